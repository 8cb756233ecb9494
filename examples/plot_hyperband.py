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
# Candidates differ in the weight of the penalty only. No step is searched for: a visit of ``partial_fit`` minimises the
# loss of its chunk plus quadratic models of the other chunks, so a candidate needs no tuned step to be near its optimum
# after a few chunks. The call must name all classes, because a chunk may lack one.


def searched(parameters: dict) -> HyperbandSearchCV:
    """Search over the given distributions and print the best candidate."""
    search = HyperbandSearchCV(
        SAGAClassifier(random_state=0),
        parameters,
        max_iter=27,
        test_size=0.1,
        scoring="neg_log_loss",
        random_state=0,
    )
    search.fit(X, y, classes=[False, True])
    best = {name: float(f"{value:.2g}") for name, value in search.best_params_.items()}
    print(best, round(search.best_score_, 4))
    return search


search = searched({"alpha": loguniform(1e-6, 1e-1)})

# %%
# A candidate with a step-size scale of its own takes SAGA steps. The search then has to find a scale as well.

steps = {"alpha": loguniform(1e-6, 1e-1), "step_size_scale": loguniform(1e-3, 1e1)}
with_steps = searched(steps)

# %%
# Each curve is a candidate, and the winner is red. Most end early, and only a few get all 27 calls of ``partial_fit``.

figure, axes = plt.subplots(
    1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained"
)
for ax, one, title in zip(
    axes, (search, with_steps), ("alpha", "alpha and step_size_scale"), strict=True
):
    history = pd.DataFrame(one.history_)
    for model_id, calls in history.groupby("model_id"):
        best = model_id == one.cv_results_["model_id"][one.best_index_]
        ax.plot(
            calls.partial_fit_calls,
            -calls.score,
            color="C3" if best else "0.6",
            zorder=3 if best else 2,
        )
    ax.set(xscale="log", xlabel="calls of partial_fit", ylim=(None, 0.75))
    ax.set_title(f"{title}: {history.model_id.nunique()} candidates")
axes[0].set_ylabel("log loss on the test rows")

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
