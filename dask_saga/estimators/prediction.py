"""Compute linear predictions and scores, lazily and block by block for Dask collections.

The Dask graphs contain the coefficients only, never an estimator with its gradient memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import numpy as np
from dask import delayed, is_dask_collection

from ..data.dask_blocks import column_names, dask_blocks, partitions
from ..data.targets import read_labels, read_targets
from ..data.validation import align_columns, blame, check_containers, read_rows, read_weights
from .messages import ZERO_WEIGHTS

__all__ = ["accuracy", "elementwise", "linear", "probabilities", "r2", "to_labels"]


def linear(X: Any, coef: np.ndarray, intercept: np.ndarray) -> Any:
    """Return ``X coef' + intercept`` for k outputs, of shape (n,) for one output and (n, k) for more.

    The result is a dask array if X is a Dask collection, and a numpy array if X holds validated rows.
    """
    if not is_dask_collection(X):
        z = np.asarray(X @ coef.T) + intercept
        return z[:, 0] if len(coef) == 1 else z
    k = len(coef)
    meta, size = (np.empty(0), ()) if k == 1 else (np.empty((0, k)), (k,))
    if hasattr(X, "map_blocks"):
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        shape = {"drop_axis": 1} if k == 1 else {"chunks": (X.chunks[0], (k,))}
        return X.map_blocks(_linear_block, coef, intercept, **shape, dtype=np.float64, meta=meta)
    import dask.array as da

    names = column_names(X)
    parts = [delayed(_linear_block)(part, coef, intercept, names) for part in partitions(X)]
    return da.concatenate([da.from_delayed(part, (np.nan, *size), meta=meta) for part in parts])


def _linear_block(X: Any, coef: np.ndarray, intercept: np.ndarray, names: list | None = None) -> np.ndarray:
    with blame("X"):
        rows = read_rows(align_columns(X, names))
    return linear(rows, coef, intercept)


def elementwise(function: Callable, z: Any) -> Any:
    """Return ``function(z)``; lazy for a dask array."""
    return z.map_blocks(function, dtype=np.float64, meta=z._meta) if is_dask_collection(z) else function(z)


def to_labels(z: Any, classes: np.ndarray, threshold: float = 0.0) -> Any:
    """Return the class labels for linear predictions. Of two classes it is the second one above `threshold`."""
    if is_dask_collection(z):
        drop = [1] if z.ndim == 2 else None
        return z.map_blocks(to_labels, classes, threshold, drop_axis=drop, dtype=classes.dtype, meta=classes[:0])
    return classes[(z > threshold).astype(int) if z.ndim == 1 else z.argmax(axis=1)]


def probabilities(z: Any, loss: Any) -> Any:
    """Return the probabilities of all classes for linear predictions, of shape (n, n_classes)."""
    if is_dask_collection(z):
        k = 2 if z.ndim == 1 else z.shape[1]
        new = {"new_axis": 1} if z.ndim == 1 else {}
        chunks = (z.chunks[0], (k,))
        return z.map_blocks(probabilities, loss, chunks=chunks, **new, dtype=float, meta=np.empty((0, k)))
    if z.ndim == 1:  # 1 - p would lose the digits of small probabilities
        other = loss.other_probability(z) if hasattr(loss, "other_probability") else loss.probability(-z)
        return np.column_stack([other, loss.probability(z)])
    p = loss.probability(z)
    total = p.sum(axis=1, keepdims=True)
    # One-vs-rest: if every class has probability 0, return equal probabilities.
    return np.where(total > 0, p / np.where(total > 0, total, 1.0), 1.0 / p.shape[1])


def _by_block(predict: Callable, X: Any, y: Any, sample_weight: Any, part: Callable) -> np.ndarray:
    """Return ``part(prediction, y, weights)`` of every block with rows, one block per column.

    The second row of the result is the total weight of each block.
    """
    check_containers(X=X, y=y, sample_weight=sample_weight)
    if not any(map(is_dask_collection, (X, y, sample_weight))):
        parts = [_score_block((X, y, sample_weight), predict, part)]
    else:
        if hasattr(X, "numblocks") and X.ndim == 2 and X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        blocks, names = dask_blocks(X, y, sample_weight), column_names(X)
        tasks = [delayed(_score_block)(block, predict, part, names) for block in blocks]
        parts = dask.compute(*tasks)
    parts = [row for row in parts if row is not None]
    if not parts:
        raise ValueError("X has no rows")
    columns = np.array(parts).reshape(len(parts), -1).T
    if not columns[1].sum() > 0:
        raise ValueError(ZERO_WEIGHTS)
    return columns


def _score_block(block: tuple, predict: Callable, part: Callable, names: list | None = None) -> Any:
    X, y, sample_weight = block
    if getattr(X, "shape", ())[:1] == (0,):
        return None
    with blame("X"):
        X = align_columns(X, names)
    prediction = predict(X)
    with blame("sample_weight"):
        weights = read_weights(1.0 if sample_weight is None else sample_weight, len(prediction))
    for name, other in (("y", y), ("sample_weight", weights)):
        with blame(name):
            if other is not None and len(other) != len(prediction):
                raise ValueError(f"X has {len(prediction)} rows, but {name} has {len(other)}")
    return part(prediction, y, weights)


def accuracy(predict: Callable, X: Any, y: Any, sample_weight: Any) -> float:
    """Return the weighted mean accuracy."""
    right, weights = _by_block(predict, X, y, sample_weight, _accuracy_part)
    return float(right.sum() / weights.sum())


def _accuracy_part(prediction: np.ndarray, y: Any, weights: np.ndarray) -> tuple[float, float]:
    with blame("y"):
        labels = read_labels(y)
        kinds = [array.dtype.kind in "biufc" for array in (labels, prediction)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"y has labels such as {labels[0]!r}, but the classes are such as {prediction[0]!r}; convert y to the "
                "type of classes_"
            )
    return weights[labels == prediction].sum(), weights.sum()


def r2(predict: Callable, X: Any, y: Any, sample_weight: Any) -> float:
    """Return the coefficient of determination R^2, averaged over several outputs."""
    columns = _by_block(predict, X, y, sample_weight, _r2_part)
    weights, k = columns[1], (len(columns) - 1) // 3
    errors, means, spreads = (columns[[0, *range(2, len(columns))]][part * k : part * k + k] for part in range(3))
    mean = np.average(means, axis=1, weights=weights)
    spread = spreads.sum(axis=1) + (means - mean[:, None]) ** 2 @ weights
    errors = errors.sum(axis=1)
    return float(np.where(spread > 0, 1.0 - errors / np.where(spread > 0, spread, 1.0), errors == 0).mean())


def _r2_part(prediction: np.ndarray, y: Any, weights: np.ndarray) -> tuple[float, ...]:
    with blame("y"):
        targets = read_targets(y)
        if prediction.size != targets.size:
            raise ValueError(f"y has {targets.shape[1]} columns, but the fit had {prediction.size // len(targets)}")
    prediction, total = prediction.reshape(targets.shape), weights.sum()
    mean = weights @ targets / total if total else np.zeros(targets.shape[1])
    with np.errstate(over="ignore"):  # predictions may be huge for rows unlike those of the fit
        errors = weights @ np.nan_to_num((targets - prediction) ** 2, nan=np.inf)
    return errors[0], total, *errors[1:], *mean, *(weights @ (targets - mean) ** 2)
