"""
A fit that survives its process
===============================

With ``checkpoint`` a fit leaves a file every half minute or so, and at its end. The same call, after whatever became of
its process, goes on from there with the bits of a fit that nothing disturbed.
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
# Let this one end after two passes, as if time was up.

settings = {"tol": 1e-8, "random_state": 0}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    first = SAGAClassifier(max_iter=2, **settings).fit(X, y, checkpoint=folder)
print(
    f"{first.n_iter_} passes, gradient norm {first.history_[-1]['gradient_norm']:.1e}"
)

# %%
# Another process, another day: the same call. ``max_iter`` and ``tol`` may differ; other data or parameters
# are refused, as the result would be neither the one nor the other.

second = SAGAClassifier(max_iter=100, **settings).fit(X, y, checkpoint=folder)
print(f"{second.n_iter_} passes, of which {second.n_iter_ - first.n_iter_} are new")
try:
    SAGAClassifier(alpha=1.0, **settings).fit(X, y, checkpoint=folder)
except ValueError as error:
    print(str(error).replace(folder, "folder"))

# %%
# The bits are those of one undisturbed fit.

whole = SAGAClassifier(max_iter=100, **settings).fit(X, y)
print("same bits:", (whole.coef_ == second.coef_).all())

figure, ax = plt.subplots(layout="constrained")
ConvergenceDisplay.from_histories(
    {
        "undisturbed": whole.history_,
        "the first two passes": first.history_,
        "with the rest": second.history_,
    },
    ax=ax,
    curve_kwargs=[{"color": "0.8", "linewidth": 6}, {"marker": "o"}, {"marker": "."}],
)
