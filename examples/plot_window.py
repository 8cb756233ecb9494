"""
A window over a stream that drifts
==================================

What is true moves: here the coefficients turn by one degree with each chunk. Old chunks then say what was true, and
should leave. ``forget`` takes a chunk out exactly, so a window over the last chunks is two lines.
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
# Every chunk is first predicted, then learnt. ``SGDClassifier`` at a constant rate forgets by itself, as fast as its
# rate is large; which rate is right depends on the drift. A window says in chunks how long something stays true.

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
ax.set(xlabel="chunk, not yet seen", ylabel="log loss above the truth's", yscale="log")
ax.legend()

# %%
# The state is bounded as well: it holds the chunks of the window, in order of arrival.

print(models[f"SAGA, the last {WINDOW}"].state_)
