"""
Several chunks at the same time
===============================

SAGA visits one chunk after the other, and the coefficients travel from chunk to chunk. With ``n_parallel`` several
chunks are visited at the same time, from the same coefficients, and the results are averaged. The optimum is the same.
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
# As long as ``fit`` uses the subsample step, a pass evaluates the exact gradient of all chunks in parallel, and
# ``n_parallel`` has no effect. For these data this is the case in every pass.

model = SAGAClassifier(tol=1e-6, random_state=0).fit(X, y)
print(f"with the subsample step: {model.n_iter_} passes, {model.coef_[0, :3]}")

# %%
# With fewer rows and more columns, an eighth of the rows is too small a subsample, and SAGA visits the chunks from the
# first pass on. Each value of ``n_parallel`` is reproducible on any scheduler, but values differ from each other. More
# chunks at the same time take some more passes, because the mean of two visits moves less far than two visits in
# sequence. Whether this saves seconds depends on the machines. Here threads of this process run the visits; with a
# ``Client`` the workers of its cluster do.

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
# Within one process, ``n_threads`` lets threads share each visit. This saves time where chunks are large, so here all
# rows are one chunk.

model = SAGAClassifier(n_threads=2, tol=1e-6, random_state=0).fit(numeric, late)
print(f"n_threads=2: {model.n_iter_} passes, {model.coef_[0, :3]}")
