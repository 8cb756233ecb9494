"""
A window over a stream that drifts
==================================

The true coefficients change over time; here they rotate by one degree with each chunk. Old chunks then describe the
past and should be removed. ``forget`` removes a chunk exactly, so a window over the last chunks takes two lines.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from dask_saga import SAGAClassifier

rng = np.random.default_rng(0)


def chunk(k, rows=1000):
    """Rows, labels, and the probabilities that they were drawn with."""
    angle = np.deg2rad(k)
    X = rng.standard_normal((rows, 2))
    probability = expit(3 * X @ [np.cos(angle), np.sin(angle)])
    return X, rng.random(rows) < probability, probability


# %%
# Each chunk is first predicted and then learned. ``SGDClassifier`` with a constant learning rate forgets by itself. The
# larger the rate, the faster it forgets, and the best rate depends on the drift. A window is easier to choose: it says
# for how many chunks the data stay valid.

CHUNKS, WINDOW = 180, 10
models = {
    "SAGA, all chunks": SAGAClassifier(random_state=0),
    f"SAGA, the last {WINDOW}": SAGAClassifier(random_state=0),
    "SGD, rate 0.01": SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=0.01, random_state=0
    ),
}
excess = {name: [] for name in models}
for k in range(CHUNKS):
    X, y, truth = chunk(k)
    for name, model in models.items():
        if k:
            loss = log_loss(y, model.predict_proba(X)) - log_loss(y, truth)
            excess[name].append(loss)
        model.partial_fit(X, y, classes=[False, True])
        if "last" in name and len(model.state_.chunks) > WINDOW:
            model.forget(next(iter(model.state_.chunks)))

figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
for (name, values), style in zip(excess.items(), ("--", "-", ":"), strict=True):
    ax.plot(range(1, CHUNKS), np.maximum(values, 1e-5), style, label=name)
ax.set(xlabel="predicted chunk", ylabel="log loss above the truth's", yscale="log")
ax.legend()

# %%
# The window also limits the size of the state, which holds its chunks in order of arrival.

print(models[f"SAGA, the last {WINDOW}"].state_)
