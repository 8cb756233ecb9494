"""
A search that stops early: Hyperband
====================================

`Hyperband <https://ml.dask.org/hyper-parameter-search.html>`_ trains many candidates on a little of the data each,
and goes on with those that do best. It needs an estimator that goes on where it stopped, which SAGA does
exactly. ``dask_saga.model_selection`` has dask-ml's searches as they run on the newest Dask.
"""

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from dask.distributed import Client
from scipy.stats import loguniform

from dask_saga import SAGAClassifier
from dask_saga.model_selection import HyperbandSearchCV
from flights_data import load_flights

# Threads of this process will do: the kernels let go of the interpreter's lock.
client = Client(
    processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
)

numeric, one_hot, late, month = load_flights()
rng = np.random.default_rng(0)
some = rng.permutation(len(late))[:60_000]
X, y = (
    da.from_array(numeric.to_numpy()[some], chunks=(5_000, -1)),
    da.from_array(late[some], chunks=5_000),
)

# %%
# Candidates differ in the weight of the penalty and, as most see few chunks, in the scale of their first steps.
# A classifier must be told all classes, as a chunk may lack one.

search = HyperbandSearchCV(
    SAGAClassifier(random_state=0),
    {"alpha": loguniform(1e-6, 1e-1), "step_size_scale": loguniform(1e-3, 1e1)},
    max_iter=27,
    test_size=0.1,
    scoring="neg_log_loss",
    random_state=0,
)
search.fit(X, y, classes=[False, True])
print(
    {name: float(f"{value:.2g}") for name, value in search.best_params_.items()},
    round(search.best_score_, 4),
)

# %%
# One curve a candidate: most end early, and few were given all 27 calls of ``partial_fit``.

history = pd.DataFrame(search.history_)
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
for _, calls in history.groupby("model_id"):
    best = calls.model_id.iloc[0] == search.cv_results_["model_id"][search.best_index_]
    ax.plot(
        calls.partial_fit_calls,
        -calls.score,
        color="C3" if best else "0.6",
        zorder=3 if best else 2,
    )
ax.set(
    xscale="log",
    xlabel="calls of partial_fit",
    ylabel="log loss on the test rows",
    ylim=(None, 0.75),
)
ax.set_title(f"{history.model_id.nunique()} candidates; in red the winner")

# %%
# The winner goes on from where it stopped, over all rows of the search, one chunk a call. The chunks that it knows
# go on with their memory.

model = search.best_estimator_
for _ in range(3):
    for k in range(X.numblocks[0]):
        model.partial_fit(X.blocks[k].compute(), y.blocks[k].compute())
print(len(model.state_.chunks), "chunks known")
client.close()
