"""
Insurance claims: exposure as an offset
=======================================

Policies of an insurer run for different times within a year. Twice the time brings twice the claims. An offset tells
this to the model, so that its coefficients describe claims per year.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dask_saga import SAGARegressor
from dask_saga.inference import summary

# %%
# 50,000 policies. Young drivers cause more claims per year. They also change insurers more often, so that their
# policies run for a shorter time.

rng = np.random.default_rng(0)
n = 50_000
X = pd.DataFrame({"age": rng.uniform(18, 80, n), "power": rng.uniform(40, 200, n)})
exposure = rng.beta(2, 2, n) * np.where(X["age"] < 30, 0.4, 1.0)
rate = np.exp(-1.5 - 0.015 * (X["age"] - 40) + 0.004 * (X["power"] - 100))
claims = rng.poisson(rate * exposure)

# %%
# Without the offset, the model compares claims of policies of different length. It then takes young drivers for safer
# than they are. The truth is -0.015 for each year of age.

plain = SAGARegressor("poisson", penalty=None, random_state=0).fit(X, claims)
model = SAGARegressor("poisson", penalty=None, random_state=0)
model.fit(X, claims, offset=np.log(exposure))
print(pd.DataFrame({"without": plain.coef_, "with": model.coef_}, index=X.columns))
summary(model, X, claims, offset=np.log(exposure)).round(4)

# %%
# A prediction without an offset is the expected number of claims in a full year. With it, it is the number that is
# expected for the time that a policy ran. The model without an offset knows claims per policy only.

age = pd.cut(X["age"], np.arange(15, 85, 5))
by_age = pd.DataFrame(
    {
        "observed": claims,
        "exposure": exposure,
        "with offset": model.predict(X) * exposure,
        "without": plain.predict(X) * exposure,
    }
).groupby(age, observed=True)
rates = by_age.sum().pipe(lambda table: table.div(table["exposure"], axis=0))
middle = [interval.mid for interval in rates.index]

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.plot(middle, rates["observed"], "o", color="0.4", label="observed")
ax.plot(middle, rates["with offset"], label="with offset")
ax.plot(middle, rates["without"], "--", label="without offset (per policy)")
ax.set(
    xlabel="age",
    ylabel="claims per year",
    title="Without the offset, age hardly seems to matter",
)
_ = ax.legend()

assert abs(model.coef_[0] + 0.015) < 0.003 < abs(plain.coef_[0] + 0.015)
