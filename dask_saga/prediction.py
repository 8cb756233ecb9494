"""Linear predictions and scores, block by block; Dask stays lazy.

A graph carries coefficients only, never an estimator with its gradient memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import numpy as np
from dask import delayed, is_dask_collection

from .inputs import blame, dask_blocks, read_labels, read_rows, read_targets, read_weights

__all__ = ["accuracy", "linear", "probabilities", "r2", "to_labels"]


def linear(X: Any, coef: np.ndarray, intercept: float) -> Any:
    """``X coef + intercept``: a dask array for a Dask collection, an array for rows as read, of shape (n,)."""
    if not is_dask_collection(X):
        return np.asarray(X @ coef).ravel() + intercept
    if hasattr(X, "map_blocks"):
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        return X.map_blocks(_linear_block, coef, intercept, drop_axis=1, dtype=np.float64, meta=np.empty(0))
    import dask.array as da

    parts = [delayed(_linear_block)(part, coef, intercept) for part in X.to_delayed()]
    return da.concatenate([da.from_delayed(part, (np.nan,), meta=np.empty(0)) for part in parts])


def _linear_block(X: Any, coef: np.ndarray, intercept: float) -> np.ndarray:
    return linear(read_rows(X, empty=True), coef, intercept)


def to_labels(z: Any, classes: np.ndarray) -> Any:
    """Labels at linear predictions."""
    if is_dask_collection(z):
        return z.map_blocks(to_labels, classes, dtype=classes.dtype, meta=classes[:0])
    return classes[(z > 0).astype(int)]


def probabilities(z: Any, loss: Any) -> Any:
    """Probabilities of both classes at linear predictions, of shape (n, 2)."""
    if is_dask_collection(z):
        chunks = (z.chunks[0], (2,))
        return z.map_blocks(probabilities, loss, chunks=chunks, new_axis=1, dtype=float, meta=np.empty((0, 2)))
    # 1 - p would lose the small probabilities.
    return np.column_stack([loss.probability(-z), loss.probability(z)])


def _by_block(predict: Callable, X: Any, y: Any, sample_weight: Any, part: Callable) -> np.ndarray:
    """Columns of ``part(prediction, y, weights)`` of every block that has rows; the second is the weight."""
    if not any(map(is_dask_collection, (X, y, sample_weight))):
        parts = [_score_block((X, y, sample_weight), predict, part)]
    else:
        if hasattr(X, "numblocks") and X.ndim == 2 and X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        tasks = [delayed(_score_block)(block, predict, part) for block in dask_blocks(X, y, sample_weight)]
        parts = [row for row in dask.compute(*tasks) if row is not None]
    columns = np.array(parts).reshape(len(parts), -1).T
    if not parts or not columns[1].sum() > 0:
        raise ValueError("sample_weight is zero for every row" if parts else "X has no rows")
    return columns


def _score_block(block: tuple, predict: Callable, part: Callable) -> Any:
    X, y, sample_weight = block
    if hasattr(X, "shape") and X.shape[0] == 0:
        return None
    prediction = predict(X)
    weights = read_weights(1.0 if sample_weight is None else sample_weight, len(prediction))
    for name, other in (("y", y), ("sample_weight", weights)):
        if other is not None and len(other) != len(prediction):
            raise ValueError(f"X has {len(prediction)} rows, but {name} has {len(other)}")
    return part(prediction, y, weights)


def accuracy(predict: Callable, X: Any, y: Any, sample_weight: Any) -> float:
    """Weighted mean accuracy."""
    right, weights = _by_block(predict, X, y, sample_weight, _accuracy_part)
    return float(right.sum() / weights.sum())


def _accuracy_part(prediction, y, weights):
    with blame("y"):
        labels = read_labels(y)
    return weights[labels == prediction].sum(), weights.sum()


def r2(predict: Callable, X: Any, y: Any, sample_weight: Any) -> float:
    """Coefficient of determination."""
    errors, weights, means, spreads = _by_block(predict, X, y, sample_weight, _r2_part)
    mean = np.average(means, weights=weights)
    spread = spreads.sum() + weights @ (means - mean) ** 2
    return float(1.0 - errors.sum() / spread) if spread > 0 else float(errors.sum() == 0)


def _r2_part(prediction, y, weights):
    with blame("y"):
        targets = read_targets(y, None, None)
    total = weights.sum()
    mean = weights @ targets / total if total else 0.0
    return weights @ (targets - prediction) ** 2, total, mean, weights @ (targets - mean) ** 2
