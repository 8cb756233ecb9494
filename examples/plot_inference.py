"""
Standard errors: when the usual ones are wrong
==============================================

A standard error says how much a coefficient would vary if the data were drawn again. The usual formula assumes that
rows are independent and that the model is right. Here we draw the data again many times and compare.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dask_saga import SAGARegressor
from dask_saga.inference import summary

# %%
# Counts of visits in 60 shops on 20 days. ``price`` differs between shops, ``weather`` between days and shops. Each shop
# has an attraction of its own that no column knows, so that the rows of a shop depend on each other.

rng = np.random.default_rng(0)
shop = np.repeat(np.arange(60), 20)
X = pd.DataFrame(
    {"price": rng.standard_normal(60)[shop], "weather": rng.standard_normal(1200)}
)


def drawn():
    attraction = 0.5 * rng.standard_normal(60)[shop]
    return rng.poisson(np.exp(1 - 0.3 * X["price"] + 0.2 * X["weather"] + attraction))


model = SAGARegressor("poisson", penalty=None, tol=1e-6, random_state=0)
y = drawn()
model.fit(X, y)
summary(model, X, y).round(3)

# %%
# The robust covariance allows another variance than that of Poisson. Clusters also allow dependent rows.

covariances = {"nonrobust": "nonrobust", "HC1": "HC1", "clusters": shop}
errors = pd.DataFrame(
    {
        name: summary(model, X, y, covariance=kind)["std err"]
        for name, kind in covariances.items()
    }
)
errors.round(3)

# %%
# Now the truth: 200 draws of the targets, and the standard deviation of the coefficients.

fits = np.array([model.fit(X, drawn()).coef_ for _ in range(200)])
truth = pd.Series(fits.std(axis=0), index=X.columns)
assert errors["nonrobust"]["price"] < 0.5 * truth["price"]
assert 0.6 < errors["clusters"]["price"] / truth["price"] < 1.5

figure, ax = plt.subplots(figsize=(8, 3.5), layout="constrained")
for k, name in enumerate(covariances):
    ax.barh(np.arange(2) + 0.25 * (1 - k), errors[name][X.columns], 0.22, label=name)
for j, value in enumerate(truth):
    label = "200 draws" if j == 0 else None
    ax.plot([value, value], [j - 0.4, j + 0.4], "k--", label=label)
ax.set(
    yticks=range(2),
    yticklabels=X.columns,
    xlabel="standard error",
    title="For a column that differs between shops, only clusters are right",
)
_ = ax.legend()
