"""The data sets of trust.py: bundled, shipped by PyPI packages, and synthetic; all columns raw.

Each loads only when called: ``SETS["wine"]()``. What is random has a fixed seed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn import datasets

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from flights_data import load_flights


class DataSet(NamedTuple):
    """One problem of the benchmark.

    Parameters
    ----------
    name : str
    X : ndarray or csr_matrix of shape (n, p), float64
    y : ndarray of shape (n,)
        Labels 0 to k - 1, or targets.
    task : {"binary", "multiclass", "regression"}
    loss : str
    order : {"as it comes", "time", "label", "random"}
        Order of the rows; chunks are cut from them as they stand.
    chunks : tuple of int
        The numbers of chunks it is asked in.
    """

    name: str
    X: np.ndarray | sp.csr_matrix
    y: np.ndarray
    task: str
    loss: str = "log_loss"
    order: str = "random"
    chunks: tuple[int, ...] = (1, 40)


def bundled(name: str, task: str) -> DataSet:
    """One of scikit-learn's own."""
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    loss = "squared_error" if task == "regression" else "log_loss"
    return DataSet(name, np.ascontiguousarray(X, dtype=float), y, task, loss, "as it comes")


def flights(kind: str) -> DataSet:
    """Flights of 2013, late or not, in order of time or sorted by label."""
    numeric, one_hot, late, _ = load_flights()
    X, y = np.ascontiguousarray(numeric), late.astype(int)
    if kind == "one-hot":
        both = sp.hstack([sp.csr_matrix(X), sp.csr_matrix(one_hot.to_numpy())], format="csr")
        return DataSet("flights one-hot", both, y, "binary", order="time")
    if kind == "raw":
        return DataSet("flights raw", X, y, "binary", order="time")
    rows = np.argsort(y, kind="stable")
    return DataSet("flights by label", X[rows], y[rows], "binary", order="label", chunks=(7, 40))


def diamonds() -> DataSet:
    """Price in dollars of 53,940 diamonds, from plotnine; qualities one-hot and dense."""
    frame = pd.read_csv(_shipped("plotnine", "data/diamonds.csv"))
    X = pd.get_dummies(frame.drop(columns="price"), dtype=float)
    y = frame["price"].to_numpy(dtype=float)
    return DataSet("diamonds", np.ascontiguousarray(X), y, "regression", "squared_error", "as it comes")


def health() -> DataSet:
    """Any visit to a doctor in a year, of 20,190 in the RAND health insurance experiment, from statsmodels."""
    frame = pd.read_csv(_shipped("statsmodels", "datasets/randhie/randhie.csv"))
    y = (frame["mdvis"] > 0).to_numpy(dtype=int)
    return DataSet(
        "health", np.ascontiguousarray(frame.drop(columns="mdvis"), dtype=float), y, "binary", order="as it comes"
    )


def mixed_units() -> DataSet:
    """Years, incomes, shares, rare counts and normal columns side by side."""
    rng, n = np.random.default_rng(0), 100_000
    year, income = rng.normal(2010, 5, n), rng.lognormal(8, 1.5, n)
    X = np.c_[year, income, rng.random((n, 5)), rng.poisson(0.1, (n, 5)), rng.standard_normal((n, 8))]
    z = (year - 2010) / 5 + np.log(income) - 8 + X[:, 2:] @ rng.standard_normal(18) + rng.standard_normal(n)
    return DataSet("mixed units", X, (z > np.median(z)).astype(int), "binary")


def correlated() -> DataSet:
    """100 columns mixed by a random matrix: scaling columns one by one does not help."""
    rng, n, p = np.random.default_rng(0), 100_000, 100
    X = rng.standard_normal((n, p)) @ (rng.standard_normal((p, p)) + np.eye(p))
    z = X @ rng.standard_normal(p)
    return DataSet("correlated", X, (z + rng.standard_normal(n) * z.std() > 0).astype(int), "binary")


def by_label() -> DataSet:
    """50 normal columns, nearly separable, all zeros before all ones."""
    rng, n, p = np.random.default_rng(0), 20_000, 50
    X = rng.standard_normal((n, p))
    y = (X @ rng.standard_normal(p) + rng.standard_normal(n) > 0).astype(int)
    rows = np.argsort(y, kind="stable")
    return DataSet("by label", X[rows], y[rows], "binary", order="label", chunks=(7, 40))


def heavy_tails() -> DataSet:
    """Lognormal columns: one row may weigh as much as thousands."""
    rng, n, p = np.random.default_rng(0), 50_000, 10
    logs = 1.5 * rng.standard_normal((n, p))
    y = logs @ rng.standard_normal(p) / 2 + rng.logistic(size=n) > 0
    return DataSet("heavy tails", np.exp(logs), y.astype(int), "binary")


def rare_levels() -> DataSet:
    """One category of 200 levels, most of them in 2 to 20 of 20,000 rows, and five numeric columns."""
    rng, n, levels = np.random.default_rng(0), 20_000, 200
    share = np.arange(1, levels + 1) ** -1.5
    # Counts are fixed, not drawn: a level in no row would be no level.
    count = np.maximum(2, (n * share / share.sum()).astype(int))
    count[0] += n - count.sum()
    level = rng.permutation(np.repeat(np.arange(levels), count))
    numeric = rng.standard_normal((n, 5)) * [1, 10, 0.1, 100, 1] + [0, 50, 1, 1000, 0]
    z = rng.standard_normal(levels)[level] + (numeric[:, 1] - 50) / 10 + numeric[:, 4]
    X = np.c_[numeric, np.eye(levels)[level]]
    return DataSet("rare levels", X, (z + rng.logistic(size=n) > 0).astype(int), "binary")


def twenty_classes() -> DataSet:
    """Twenty normal clouds in 30 dimensions that overlap."""
    rng, n, p, k = np.random.default_rng(0), 20_000, 30, 20
    y = rng.integers(k, size=n)
    return DataSet("20 classes", 0.5 * rng.standard_normal((k, p))[y] + rng.standard_normal((n, p)), y, "multiclass")


def more_columns() -> DataSet:
    """200 rows, 1,000 columns: separable, and only the penalty makes the optimum unique."""
    rng, n, p = np.random.default_rng(0), 200, 1000
    X = rng.standard_normal((n, p))
    y = (X[:, :20].sum(axis=1) + rng.standard_normal(n) > 0).astype(int)
    return DataSet("p > n", X, y, "binary")


def text() -> DataSet:
    """About 60 of 20,000 words a row with Zipf's frequencies, tf-idf, rows of norm one."""
    rng, n, p = np.random.default_rng(0), 50_000, 20_000
    frequency = 1 / (np.arange(p) + 10.0)
    length = rng.poisson(58, n) + 5
    words = rng.choice(p, size=length.sum(), p=frequency / frequency.sum())
    X = sp.csr_matrix((np.ones(len(words)), words, np.r_[0, length.cumsum()]), shape=(n, p))
    X.sum_duplicates()
    holding = np.bincount(X.indices, minlength=p)
    X.data *= np.log((1 + n) / (1 + holding))[X.indices] + 1
    X.data /= np.sqrt(X.multiply(X).sum(axis=1)).A1.repeat(np.diff(X.indptr))
    rule = np.where(rng.random(p) < 0.05, rng.standard_normal(p), 0)
    z = X @ rule
    return DataSet("text", X, (z + 0.3 * z.std() * rng.logistic(size=n) > z.mean()).astype(int), "binary")


def outliers(loss: str) -> DataSet:
    """Raw columns of 20 units; one target in twenty is off by a hundred times the spread of the others."""
    rng, n, p = np.random.default_rng(0), 20_000, 20
    Z, unit = rng.standard_normal((n, p)), 10 ** rng.uniform(-2, 3, p)
    y = Z @ rng.standard_normal(p) + rng.standard_normal(n)
    y += np.where(rng.random(n) < 0.05, 100 * y.std() * rng.standard_exponential(n), 0)
    X = Z * unit + unit * rng.standard_normal(p)
    return DataSet(f"outliers, {loss.replace('_', ' ')}", X, y, "regression", loss)


def _shipped(package: str, path: str) -> Path:
    """A file that the package ships, without importing the package."""
    return Path(str(distribution(package).locate_file(package))) / path


SETS: dict[str, Callable[[], DataSet]] = {
    "breast_cancer": lambda: bundled("breast_cancer", "binary"),
    "wine": lambda: bundled("wine", "multiclass"),
    "iris": lambda: bundled("iris", "multiclass"),
    "digits": lambda: bundled("digits", "multiclass"),
    "diabetes": lambda: bundled("diabetes", "regression"),
    "flights_raw": lambda: flights("raw"),
    "flights_one_hot": lambda: flights("one-hot"),
    "flights_by_label": lambda: flights("by label"),
    "diamonds": diamonds,
    "health": health,
    "mixed_units": mixed_units,
    "correlated": correlated,
    "by_label": by_label,
    "heavy_tails": heavy_tails,
    "rare_levels": rare_levels,
    "20_classes": twenty_classes,
    "p_gt_n": more_columns,
    "text": text,
    "outliers": lambda: outliers("squared_error"),
    "outliers_huber": lambda: outliers("huber"),
}
