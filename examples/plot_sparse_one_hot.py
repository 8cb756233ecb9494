"""
Sparse one-hot columns and an L1 penalty
========================================

Carrier, origin, destination and hour of the week become 258 one-hot columns with four entries per row. As scipy.sparse
blocks of a dask array they take a fraction of the memory. An L1 penalty selects the columns that matter.
"""

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from dask_saga import SAGAClassifier
from flights_data import load_flights

numeric, one_hot, late, month = load_flights()
hour_of_week = (
    numeric.weekday.astype(int).astype(str) + "-" + numeric.hour.astype(int).astype(str)
)
columns = pd.concat(
    [one_hot, pd.get_dummies(hour_of_week, prefix="hour", dtype=float)], axis=1
)
sparse = csr_matrix(columns.to_numpy())
megabytes = (sparse.data.nbytes + sparse.indices.nbytes + sparse.indptr.nbytes) / 1e6
dense = 8 * np.prod(sparse.shape) / 1e6
print(f"{sparse.shape[0]:,} rows, {sparse.shape[1]} columns")
print(f"{megabytes:.0f} MB, where dense columns take {dense:.0f} MB")

# %%
# Blocks of any kind become a dask array with ``map_blocks`` or, as here, one after the other. The 25 blocks are 25
# chunks.

size = 14_000
blocks = [sparse[k : k + size] for k in range(0, len(late), size)]
X = da.concatenate(
    [da.from_array(block, chunks=block.shape, asarray=False) for block in blocks]
)
y = da.from_array(late, chunks=size)
X

# %%
# A column whose coefficient is exactly zero has no effect. The smaller ``alpha``, the more coefficients are not zero.

alphas = np.logspace(-2, -4, 5)
models = [
    SAGAClassifier(penalty="l1", alpha=alpha, random_state=0).fit(X, y)
    for alpha in alphas
]
counts = [int(np.count_nonzero(model.coef_)) for model in models]
print(dict(zip(alphas.round(5).tolist(), counts, strict=True)))

# %%
# Carriers are the first columns to enter. The early hours of Sunday follow, whose flights are punctual.

path = np.array([model.coef_[0] for model in models])
first = np.argsort(
    (path != 0).argmax(axis=0) + 1e3 * (path == 0).all(axis=0) - 1e-3 * np.abs(path[-1])
)[:10]
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
ax.semilogx(alphas, path, color="0.85", linewidth=0.7)
for j in first:
    ax.semilogx(alphas, path[:, j], label=columns.columns[j])
ax.invert_xaxis()
ax.set(
    xlabel="alpha",
    ylabel="coefficient",
    title="The L1 path; the first ten columns are coloured",
)
figure.legend(loc="outside right upper")
