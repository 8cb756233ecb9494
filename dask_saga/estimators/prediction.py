"""Compute linear predictions and scores, lazily and block by block for Dask collections.

The Dask graphs contain the coefficients only, never an estimator with its gradient memory.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np
from dask import delayed, is_dask_collection

from ..data.containers import as_array, check_containers, column_labels
from ..data.dask_blocks import column_names, dask_blocks, partitions
from ..data.targets import read_labels, read_offset, read_targets
from ..data.validation import align_columns, blame, read_rows, read_weights
from ..execution.executor import compute
from .messages import ZERO_WEIGHTS

__all__ = ["accuracy", "add_offset", "elementwise", "linear", "probabilities", "r2", "threshold_of", "to_labels"]


def linear(X: Any, coef: np.ndarray, intercept: np.ndarray) -> Any:
    """Return ``X coef' + intercept`` for k outputs, of shape (n,) for one output and (n, k) for more.

    The result is a dask array if X is a Dask collection, and a numpy array if X holds validated rows. It is float32 if
    the rows are. The sums are computed in float64, as columns far from zero would lose too many digits.
    """
    if not is_dask_collection(X):
        z = (np.asarray(X @ coef.T) + intercept).astype(X.dtype, copy=False)
        return z[:, 0] if len(coef) == 1 else z
    k, dtype = len(coef), _row_dtype(X)
    meta, size = (np.empty(0, dtype), ()) if k == 1 else (np.empty((0, k), dtype), (k,))
    if hasattr(X, "map_blocks"):
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        shape = {"drop_axis": 1} if k == 1 else {"chunks": (X.chunks[0], (k,))}
        return X.map_blocks(_linear_block, coef, intercept, dtype, **shape, dtype=dtype, meta=meta)
    import dask.array as da

    names = column_names(X)
    parts = [
        delayed(_linear_block)(part, coef, intercept, dtype, names, (number,))
        for number, part in enumerate(partitions(X))
    ]
    return da.concatenate([da.from_delayed(part, (np.nan, *size), meta=meta) for part in parts])


def _row_dtype(X: Any) -> np.dtype:
    """Return the dtype that the rows of a Dask collection have once they are validated."""
    if hasattr(X, "numblocks"):
        return np.dtype(np.float32 if X.dtype == np.float32 else np.float64)
    return read_rows(X._meta).dtype


def _linear_block(
    X: Any, coef: np.ndarray, intercept: np.ndarray, dtype: np.dtype, names: list | None = None, block_id: tuple = ()
) -> np.ndarray:
    with blame("X", block_id[0] if block_id else None):
        rows = read_rows(align_columns(X, names))
    return linear(rows, coef, intercept).astype(dtype, copy=False)


def add_offset(z: Any, offset: Any) -> Any:
    """Return linear predictions plus an offset; lazy if they are a dask array, or if the offset is one."""
    if not is_dask_collection(z):
        if is_dask_collection(offset):
            raise TypeError("offset is a Dask collection, but X is not; compute it first: offset.compute()")
        with blame("offset"):
            return z + read_offset(offset, (len(z), z[:1].size if z.ndim > 1 else 1)).reshape(z.shape)
    if isinstance(offset, Number):
        return z + offset
    import dask.array as da

    if hasattr(offset, "to_dask_array"):
        offset = offset.to_dask_array()
    elif not is_dask_collection(offset):
        if np.isnan(z.shape[0]):
            raise ValueError("offset is in memory, but the block lengths of X are unknown; make it a Dask collection")
        offset = da.from_array(np.asarray(offset), chunks=z.chunks[: np.ndim(offset)])
    if offset.numblocks[0] != z.numblocks[0]:
        raise ValueError(
            f"X has {z.numblocks[0]} blocks, but offset has {offset.numblocks[0]}; block one like the other"
        )
    axes = "nk"[: z.ndim]
    return da.blockwise(
        add_offset, axes, z, axes, offset, axes[: offset.ndim], dtype=np.float64, meta=z._meta, align_arrays=False
    )


def elementwise(z: Any, function: Callable) -> Any:
    """Return ``function(z)`` in the dtype of z; lazy for a dask array."""
    if is_dask_collection(z):
        return z.map_blocks(elementwise, function, dtype=z.dtype, meta=z._meta)
    with np.errstate(over="ignore"):  # a prediction may be beyond float32
        return np.asarray(function(z)).astype(z.dtype, copy=False)


def to_labels(z: Any, classes: np.ndarray, loss: Any) -> Any:
    """Return the class labels for linear predictions. Of two classes it is the second one above ``threshold_of``."""
    if is_dask_collection(z):
        drop = [1] if z.ndim == 2 else None
        return z.map_blocks(to_labels, classes, loss, drop_axis=drop, dtype=classes.dtype, meta=classes[:0])
    return classes[(z > threshold_of(loss)).astype(int) if z.ndim == 1 else z.argmax(axis=1)]


def threshold_of(loss: Any) -> float:
    """Return the linear prediction above which the second of two classes is predicted."""
    return getattr(loss, "threshold", 0.0)


def probabilities(z: Any, loss: Any) -> Any:
    """Return the probabilities of all classes for linear predictions, of shape (n, n_classes) and their dtype."""
    if is_dask_collection(z):
        k = 2 if z.ndim == 1 else z.shape[1]
        new = {"new_axis": 1} if z.ndim == 1 else {}
        chunks = (z.chunks[0], (k,))
        meta = np.empty((0, k), z.dtype)
        return z.map_blocks(probabilities, loss, chunks=chunks, **new, dtype=z.dtype, meta=meta)
    if z.ndim == 1:  # 1 - p would lose the digits of small probabilities
        other = loss.other_probability(z) if hasattr(loss, "other_probability") else loss.probability(-z)
        return np.column_stack([other, loss.probability(z)]).astype(z.dtype, copy=False)
    p = np.asarray(loss.probability(z)).astype(z.dtype, copy=False)
    total = p.sum(axis=1, keepdims=True)
    # One-vs-rest: if every class has probability 0, return equal probabilities.
    return np.where(total > 0, p / np.where(total > 0, total, 1.0), 1.0 / p.shape[1])


def _by_block(predict: Callable, X: Any, y: Any, sample_weight: Any, offset: Any, part: Callable) -> np.ndarray:
    """Return ``part(prediction, y, weights)`` of every block with rows, one block per column.

    The second row of the result is the total weight of each block.
    """
    check_containers(X=X, y=y, sample_weight=sample_weight, offset=offset)
    names = column_labels(X)
    if not any(map(is_dask_collection, (X, y, sample_weight, offset))):
        parts = [_score_block((X, y, sample_weight, offset), predict, part)]
    else:
        X, y, sample_weight, offset = map(as_array, (X, y, sample_weight, offset))
        if hasattr(X, "numblocks") and X.ndim == 2 and X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        blocks = dask_blocks(X, y, sample_weight, offset=offset)
        numbers = range(len(blocks)) if len(blocks) > 1 else [None]
        tasks = [
            delayed(_score_block)(block, predict, part, names, k) for k, block in zip(numbers, blocks, strict=True)
        ]
        parts = list(compute(*tasks))
    parts = [row for row in parts if row is not None]
    if not parts:
        raise ValueError("X has no rows")
    columns = np.array(parts).reshape(len(parts), -1).T
    if not columns[1].sum() > 0:
        raise ValueError(ZERO_WEIGHTS)
    return columns


def _score_block(block: tuple, predict: Callable, part: Callable, names: list | None = None, name: Any = None) -> Any:
    X, y, sample_weight, *offset = block
    if getattr(X, "shape", ())[:1] == (0,):
        return None
    with blame("X", name):
        prediction = predict(_named_block(X, names), *offset)
    with blame("sample_weight", name):
        weights = read_weights(1.0 if sample_weight is None else sample_weight, len(prediction))
    for argument, other in (("y", y), ("sample_weight", weights)):
        with blame(argument, name):
            if other is not None and len(other) != len(prediction):
                raise ValueError(f"X has {len(prediction)} rows, but {argument} has {len(other)}")
    with blame("y", name):
        return part(prediction, y, weights)


def _named_block(X: Any, names: list | None) -> Any:
    """Return a block with the column names of its collection, in the same order."""
    if isinstance(X, np.ndarray) and names is not None:
        import pandas as pd

        return pd.DataFrame(X, columns=names)  # the block of a DataArray
    return align_columns(X, names)


def accuracy(predict: Callable, X: Any, y: Any, sample_weight: Any, offset: Any = None) -> float:
    """Return the weighted mean accuracy."""
    right, weights = _by_block(predict, X, y, sample_weight, offset, _accuracy_part)
    return float(right.sum() / weights.sum())


def _accuracy_part(prediction: np.ndarray, y: Any, weights: np.ndarray) -> tuple[float, float]:
    labels = read_labels(y)
    kinds = [array.dtype.kind in "biufc" for array in (labels, prediction)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"y has labels such as {labels[0]!r}, but the classes are such as {prediction[0]!r}; convert y to the type "
            "of classes_"
        )
    return weights[labels == prediction].sum(), weights.sum()


def r2(predict: Callable, X: Any, y: Any, sample_weight: Any, offset: Any = None) -> float:
    """Return the coefficient of determination R^2, averaged over several outputs."""
    columns = _by_block(predict, X, y, sample_weight, offset, _r2_part)
    weights, k = columns[1], (len(columns) - 1) // 3
    errors, means, spreads = (columns[[0, *range(2, len(columns))]][part * k : part * k + k] for part in range(3))
    mean = np.average(means, axis=1, weights=weights)
    spread = spreads.sum(axis=1) + (means - mean[:, None]) ** 2 @ weights
    errors = errors.sum(axis=1)
    return float(np.where(spread > 0, 1.0 - errors / np.where(spread > 0, spread, 1.0), errors == 0).mean())


def _r2_part(prediction: np.ndarray, y: Any, weights: np.ndarray) -> tuple[float, ...]:
    targets = read_targets(y)
    if prediction.size != targets.size:
        raise ValueError(f"y has {targets.shape[1]} columns, but the fit had {prediction.size // len(targets)}")
    prediction, total = prediction.reshape(targets.shape), weights.sum()
    mean = weights @ targets / total if total else np.zeros(targets.shape[1])
    with np.errstate(over="ignore"):  # predictions may be huge for rows unlike those of the fit
        errors = weights @ np.nan_to_num((targets - prediction) ** 2, nan=np.inf)
    return errors[0], total, *errors[1:], *mean, *(weights @ (targets - mean) ** 2)
