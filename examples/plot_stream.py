"""
A stream: a year of flights, month by month
===========================================

Chunks arrive one by one. Each month is first predicted and then learned, and all earlier months are visited once more.
So each score belongs to a model that has not seen the month.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dask_saga import SAGAClassifier
from flights_data import load_flights

numeric, one_hot, late, month = load_flights()
A = numeric.to_numpy()
months = [(A[month == m], late[month == m]) for m in range(1, 13)]
both = [False, True]

# %%
# ``partial_fit`` makes one pass over one chunk. The first call must name all classes. A month that the model has seen is
# recognised by its content and continues with its gradient memory, so a revisit does not count twice.
#
# Two models are compared with it on the same columns: ``SGDClassifier``, which needs a scaler and gets one fitted on
# January, and, as the reference, a logistic regression fitted anew to all months so far.

saga, sgd = (
    SAGAClassifier(random_state=0),
    SGDClassifier(loss="log_loss", alpha=1e-4, random_state=0),
)
scaler = StandardScaler().fit(months[0][0])
scores = {
    "SAGAClassifier.partial_fit": [],
    "SGDClassifier.partial_fit": [],
    "fitted anew": [],
}
for k, (X, y) in enumerate(months):
    if k:
        seen = np.concatenate([part for part, _ in months[:k]])
        labels = np.concatenate([part for _, part in months[:k]])
        anew = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=1 / (1e-4 * len(seen)), solver="newton-cholesky"),
        ).fit(seen, labels)
        found = (
            saga.predict_proba(X),
            sgd.predict_proba(scaler.transform(X)),
            anew.predict_proba(X),
        )
        for name, probability in zip(scores, found, strict=True):
            scores[name].append(log_loss(y, probability))
    for old in [(X, y), *months[:k][::-1]]:
        saga.partial_fit(*old, classes=both)
        sgd.partial_fit(scaler.transform(old[0]), old[1], classes=both)

print(saga.state_)

# %%
# The months differ, as each has its own weather. SAGA is as good as the model that is fitted anew to all months, with
# only one more visit of each earlier month. SGD keeps no memory of the rows, so in spring it follows the months that
# it has seen last.

figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
for (name, values), style in zip(scores.items(), ("o-", "s--", "kx:"), strict=True):
    ax.plot(range(2, 13), values, style, label=name)
ax.set(xlabel="predicted month", ylabel="log loss", xticks=range(2, 13))
ax.legend()

# %%
# The estimator has no other state than this. A pickled copy continues in another process with the same bits.

import pickle

copy = pickle.loads(pickle.dumps(saga))
copy.partial_fit(*months[0]), saga.partial_fit(*months[0])
print((copy.coef_ == saga.coef_).all())
