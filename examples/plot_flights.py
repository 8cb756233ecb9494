"""
Flights with raw columns
========================

Will a flight be late? The data are 336,776 flights in order of time with raw columns: pressure in hectopascals, distance
in miles, hours, seats. The chunks are the 24 partitions of a dask dataframe. The fit needs no scaler, no shuffling
and no choice of a step size.
"""

import warnings

import dask.dataframe as dd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from dask_saga import SAGAClassifier
from dask_saga.inspection import ConvergenceDisplay
from flights_data import load_flights

numeric, one_hot, late, month = load_flights()
rows = pd.concat([numeric, one_hot], axis=1)
print(f"{len(rows):,} rows, {rows.shape[1]} columns; late: {late.mean():.0%}")
numeric.describe().loc[["mean", "std", "min", "max"]].round(1)

# %%
# Train on January to November. ``fit`` accepts a dask dataframe like an array.

frame = dd.from_pandas(rows.assign(late=late)[month < 12], npartitions=24)
X, y = frame.drop(columns="late"), frame["late"]
model = SAGAClassifier(random_state=0).fit(X, y)
print("converged:", model.converged_)
print(f"{model.n_iter_} passes over {len(model.state_.chunks)} chunks")

# %%
# Then predict December. Predictions for an array or a pandas dataframe are in memory, those for a dask dataframe are
# lazy.

december = month == 12
probability = model.predict_proba(rows[december])[:, 1]
print(f"ROC AUC in December: {roc_auc_score(late[december], probability):.3f}")
model.predict_proba(X)

# %%
# Raw columns converge because the solver preconditions its steps (``precondition``). The next figure compares fits with
# and without it on the numeric columns. A callback evaluates the objective after each pass. The optimum is that of
# scikit-learn's Newton method, as an independent reference.

warnings.simplefilter(
    "ignore", ConvergenceWarning
)  # fifteen passes are enough to see the difference
numbers, alpha, n = numeric.to_numpy(), 1e-4, len(numeric)
exact = LogisticRegression(
    C=1 / (alpha * n), solver="newton-cholesky", tol=1e-10, max_iter=500
).fit(numbers, late)


def objective(coef, intercept):
    probability = expit(numbers @ coef + intercept)
    return log_loss(late, probability) + 0.5 * alpha * (coef**2).sum()


zero = objective(np.zeros(numbers.shape[1]), 0.0)
optimum = objective(exact.coef_[0], exact.intercept_[0])


def history_of(model):
    rows = []

    def note(info):
        left = objective(info.x, info.intercept) - optimum
        rows.append({"epoch": info.epoch, "suboptimality": left / (zero - optimum)})

    model.fit(numbers, late, callback=note)
    return rows


settings = {"alpha": alpha, "max_iter": 15, "tol": 0.0, "random_state": 0}
histories = {
    f"precondition={value}": history_of(SAGAClassifier(precondition=value, **settings))
    for value in (True, False)
}
figure, ax = plt.subplots(layout="constrained")
ConvergenceDisplay.from_histories(
    histories, quantity="suboptimality", ax=ax, curve_kwargs={"marker": "o"}
)
