"""
A fit that survives its process
===============================

With ``checkpoint`` a fit saves its state about every 30 seconds and at the end. If its process ends, the same call
in a new process continues from there, and the result has the same bits as that of an uninterrupted fit.
"""

import tempfile
import warnings

import dask.array as da
import matplotlib.pyplot as plt
from sklearn.exceptions import ConvergenceWarning

from dask_saga import SAGAClassifier
from dask_saga.inspection import ConvergenceDisplay
from flights_data import load_flights

numeric, one_hot, late, month = load_flights()
X = da.from_array(numeric.to_numpy(), chunks=(15_000, -1))
y = da.from_array(late, chunks=15_000)
folder = tempfile.mkdtemp()

# %%
# This fit ends after two passes, as if its process had been stopped.

settings = {"tol": 1e-8, "random_state": 0}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    first = SAGAClassifier(max_iter=2, **settings).fit(X, y, checkpoint=folder)
print(
    f"{first.n_iter_} passes, gradient norm {first.history_[-1]['gradient_norm']:.1e}"
)

# %%
# The same call continues the fit. ``max_iter`` and ``tol`` may differ. Other data or other parameters raise an error,
# because the result would be a mixture of two fits.

second = SAGAClassifier(max_iter=100, **settings).fit(X, y, checkpoint=folder)
print(f"{second.n_iter_} passes, of which {second.n_iter_ - first.n_iter_} are new")
try:
    SAGAClassifier(alpha=1.0, **settings).fit(X, y, checkpoint=folder)
except ValueError as error:
    print(str(error).replace(folder, "folder"))

# %%
# The result has the same bits as that of an uninterrupted fit.

whole = SAGAClassifier(max_iter=100, **settings).fit(X, y)
print("same bits:", (whole.coef_ == second.coef_).all())

figure, ax = plt.subplots(layout="constrained")
ConvergenceDisplay.from_histories(
    {
        "uninterrupted": whole.history_,
        "the first two passes": first.history_,
        "continued": second.history_,
    },
    ax=ax,
    curve_kwargs=[{"color": "0.8", "linewidth": 6}, {"marker": "o"}, {"marker": "."}],
)
