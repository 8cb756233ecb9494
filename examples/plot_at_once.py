"""
Several chunks at once
======================

SAGA visits one chunk after the other, and the coefficients go from each to the next. With ``n_parallel`` so many chunks
are visited at a time, from the same coefficients, which then become the mean of theirs. The optimum is the same.
"""

import dask.array as da
import matplotlib.pyplot as plt
import pandas as pd

from dask_saga import SAGAClassifier
from dask_saga.inspection import ConvergenceDisplay
from flights_data import load_flights

numeric, one_hot, late, month = load_flights()
X = da.from_array(numeric.to_numpy(), chunks=(10_000, -1))
y = da.from_array(late, chunks=10_000)
print(X.numblocks[0], "chunks")

# %%
# As long as a sample of the rows leads, a pass takes the exact gradient of all chunks at once, and ``n_parallel`` changes
# nothing. Here that is so to the end.

led = SAGAClassifier(tol=1e-6, random_state=0).fit(X, y)
print(f"a sample leads: {led.n_iter_} passes, {led.coef_[0, :3]}")

# %%
# Fewer rows with more columns: an eighth of them is too small a sample, and visits begin with the first pass. Each number
# of chunks at once gives its own bits, whatever it runs on, and takes some passes more: a mean of two visits goes less
# far than one after the other. Whether that pays in seconds depends on the machines. Here are the passes, in threads of
# this process; with a ``Client`` the workers of its cluster share them.

rows = slice(None, None, 20)  # one flight in twenty
wide = pd.concat([numeric, one_hot], axis=1)[rows].to_numpy(dtype=float)
wide = da.from_array(wide, chunks=(500, -1))
few = da.from_array(late[rows], chunks=500)
histories = {}
for n_parallel in (1, 2, 4):
    model = SAGAClassifier(n_parallel=n_parallel, tol=1e-6, random_state=0).fit(
        wide, few
    )
    histories[f"n_parallel={n_parallel}"] = model.history_
    print(f"n_parallel={n_parallel}: {model.n_iter_} passes, {model.coef_[0, :3]}")

figure, ax = plt.subplots(layout="constrained")
ConvergenceDisplay.from_histories(histories, ax=ax)

# %%
# Within one process there is ``n_threads``: threads share each visit, in rounds inside the chunk. The chunks are put
# together here, as threads pay where chunks are large.

model = SAGAClassifier(n_threads=2, tol=1e-6, random_state=0).fit(numeric, late)
print(f"n_threads=2: {model.n_iter_} passes, {model.coef_[0, :3]}")
