"""
Own penalty: stay close to last year's model
============================================

A model is fitted again to a few new rows. It should differ from the old one only where the new rows require it. A
penalty on the distance to the old coefficients does this. A penalty is a class with a value and a proximal operator.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from dask_saga import SAGARegressor


class Towards(NamedTuple):
    """``alpha |x - target|``, which leaves many coefficients exactly at the target."""

    alpha: float = 0.1
    target: float = 0.0

    def value(self, x):  # must also work on arrays
        return self.alpha * abs(x - self.target)

    def prox(self, v, step):  # the minimiser over x of (x - v)^2 / 2 + step value(x)
        d = v - self.target
        return (
            self.target
            + max(d - step * self.alpha, 0.0)
            + min(d + step * self.alpha, 0.0)
        )


# %%
# The proximal operator must belong to the value. Compare it with a grid search:

penalty, grid = Towards(0.3, 1.0), np.linspace(-5, 5, 100_001)
for v in (-2.0, 0.9, 1.1, 3.0):
    best = grid[np.argmin((grid - v) ** 2 / 2 + 0.5 * penalty.value(grid))]
    assert abs(best - penalty.prox(v, 0.5)) < 1e-3

# %%
# A penalty sees one coefficient and does not know which one. If each coefficient has its own target, fit ``y - X @ old``
# with a penalty towards zero; this has the same optimum. Here all ten coefficients were one last year, and three of
# them have changed.

rng = np.random.default_rng(0)
old, new = np.ones(10), np.array([1, 1, 3, 1, 1, -1, 1, 0, 1, 1.0])
X = rng.standard_normal((60, 10))
y = X @ new + rng.standard_normal(60)

weights = np.logspace(-3, 0.7, 30)
settings = {"tol": 1e-7, "max_iter": 2000, "random_state": 0}
path = np.array(
    [
        SAGARegressor(penalty=Towards(w, 1.0), **settings).fit(X, y).coef_
        for w in weights
    ]
)
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
for j in range(10):
    ax.semilogx(weights, path[:, j], color="0.7" if new[j] == old[j] else "C3")
_ = ax.set(
    xlabel="alpha",
    ylabel="coefficient",
    title="Coefficients that have changed (red) reach the target last",
)
