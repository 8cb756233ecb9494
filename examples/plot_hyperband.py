"""
Search with Hyperband
=====================

`Hyperband <https://ml.dask.org/hyper-parameter-search.html>`_ trains many candidates on a small part of the data and
continues with the best of them. It needs an estimator that resumes training, which SAGA does exactly.
``dask_saga.model_selection`` has dask-ml's searches, adapted to run on current versions of Dask.
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

# Threads of this process are enough, since the kernels release the GIL.
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
# Candidates differ in the weight of the penalty and in the scale of the step, which matters as most of them see few
# chunks. The call must name all classes, because a chunk may lack one.

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
# Each curve is a candidate. Most end early, and only a few get all 27 calls of ``partial_fit``.

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
ax.set_title(f"{history.model_id.nunique()} candidates; the winner is red")

# %%
# Training of the winner continues over all rows, one chunk per call. The search held out a tenth of each block, so the
# whole blocks differ from the chunks of the search. The model adds them as new chunks, and recognises them in the next
# two passes.

model = search.best_estimator_
for _ in range(3):
    for k in range(X.numblocks[0]):
        model.partial_fit(X.blocks[k].compute(), y.blocks[k].compute())
print(len(model.state_.chunks), "chunks known")
client.close()
