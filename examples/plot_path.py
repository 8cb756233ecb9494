"""
Choosing alpha from shared passes
=================================

``SAGARegressorCV`` fits the models of all folds and alphas in passes that they share. One read of the data evaluates all
of them, so that a cross-validated path takes about as many reads as one fit, also from files larger than memory.
"""

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np

from dask_saga import SAGARegressorCV
from dask_saga.inspection import PathDisplay

rng = np.random.default_rng(0)

# %%
# Of 100 columns, 30 have a weak effect and 70 are noise. The data are 20 blocks, which are loaded again for each pass
# (``persist=False``).

n, p = 100_000, 100
X = da.from_array(rng.standard_normal((n, p)).astype("float32"), chunks=(n // 20, p))
coefficients = np.where(np.arange(p) < 30, rng.normal(0, 0.05, p), 0)
y = X @ coefficients + da.from_array(rng.standard_normal(n), chunks=n // 20)

models = {
    select: SAGARegressorCV(penalty="l1", alphas=40, select=select, random_state=0)
    for select in ("min", "1se")
}
for select, model in models.items():
    model.fit(X, y, persist=False)
    reads = model.history_[-1]["bytes_read"] / (4 * n * p)
    print(
        f"{select}: alpha {model.alpha_:.4f}, {(model.coef_ != 0).sum()} columns, "
        f"{40 * 6} models in {reads:.0f} reads of the data"
    )

# %%
# The smallest held-out loss keeps some columns of noise. The one-standard-error rule takes the largest alpha whose loss
# is within one standard error of it, and keeps fewer.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
PathDisplay.from_estimator(models["min"], kind="scores", ax=axes[0])
axes[0].axvline(models["1se"].alpha_, color="C1", linestyle=":", label="1se")
axes[0].legend()
PathDisplay.from_estimator(models["min"], kind="coefficients", ax=axes[1])
