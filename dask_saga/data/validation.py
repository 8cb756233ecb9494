"""Validate a block of user data and convert it to a ``Chunk``.

Numpy, scipy.sparse, pydata/sparse and pandas input becomes C-contiguous float rows or canonical CSR, with float64
targets and weights. The content hash is computed after the conversion, so pandas and numpy input of equal values
have the same hash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Number
from typing import Any

import numpy as np
import scipy.sparse as sp
import xxhash
from dask import is_dask_collection
from sklearn.utils import check_array

from ..losses import Loss
from .bad_values import check_finite, explain_columns
from .chunk import Chunk, ordered_blocks
from .containers import as_array, check_columns, column_labels
from .targets import add_offset, checked, encode_labels, read_numbers, read_targets

__all__ = ["align_columns", "blame", "read_chunk", "read_rows", "read_weights", "with_folds"]


# Accepted range of the sum of the weights, in the units of the weights. The gradient memory holds weighted gradients;
# outside this range they could leave the range of float32.
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-30, 1e30


@contextlib.contextmanager
def blame(argument: str, chunk: Any = None) -> Iterator[None]:
    """Add the argument's name, and the chunk's if one is given, to errors raised inside the context."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        text = str(error) if argument in str(error).split() else f"{argument}: {error}"
        raise kind(text if chunk is None else f"chunk {chunk}: {text}") from error


def align_columns(X: Any, names: list | None) -> Any:
    """Reorder the columns of a partition to the order of the frame, as Dask identifies columns by name only.

    Raises
    ------
    ValueError
        If the partition has other columns than the frame.
    """
    if names is None or not hasattr(X, "columns") or list(X.columns) == names:
        return X
    if sorted(map(str, X.columns)) != sorted(map(str, names)):
        raise ValueError(
            f"X has the columns {list(X.columns)} here, but the frame has {names}; give all partitions the same columns"
        )
    return X[names]


def read_rows(X: Any, *, estimator: str | None = None, finite: bool = True, order: str | None = "C") -> Any:
    """Validate X and convert it to the form that the kernels read: C-ordered float rows, or canonical CSR.

    Parameters
    ----------
    X : array-like, DataFrame or sparse of shape (n, p)
        Rows in memory, possibly none. float32 is kept; any other dtype becomes float64.
    estimator : str, default=None
        Name of the estimator for error messages.
    finite : bool, default=True
        Whether to check for NaN and infinity. Set False if ``measure`` reads the rows later, as it checks too.
    order : "C" or None, default="C"
        None keeps the memory layout of dense rows.

    Returns
    -------
    ndarray or scipy.sparse CSR of shape (n, p)
        Rows of dtype float32 or float64.

    Raises
    ------
    ValueError, TypeError
        For NaN, inf, complex or non-numeric values, for other than two dimensions, or for a Dask collection.
    """
    given, X = X, as_array(X)
    if is_dask_collection(X):
        raise TypeError("X is a Dask collection, but must be one chunk in memory; use fit, or dask_ml's Incremental")
    check_columns(X)
    if hasattr(X, "to_scipy_sparse"):  # pydata/sparse
        X = X.to_scipy_sparse()
    if sp.issparse(X) and X.dtype == object:
        raise TypeError("X has dtype object; a sparse X must be numeric: X.astype(float)")
    if sp.issparse(X) and hasattr(X, "indptr"):
        # The kernels would read out of bounds if an index were invalid. The check may modify its matrix object, so it
        # gets another one with the same arrays.
        type(X)((X.data, X.indices, X.indptr), shape=X.shape).check_format(full_check=True)
        if (np.diff(X.indptr) < 0).any():  # scipy skips this check if nothing is stored
            raise ValueError("indptr must be a non-decreasing sequence; the matrix is malformed, so build it again")
    how = {"accept_sparse": "csr", "dtype": [np.float64, np.float32], "order": order, "ensure_min_samples": 0}
    try:
        X = checked(check_array, X, **how, ensure_all_finite=False, input_name="X", estimator=estimator)
    except (TypeError, ValueError) as error:
        explain_columns(given, error)
        raise
    if finite:
        check_finite(X, labels=column_labels(given))
    if sp.issparse(X):
        if not X.has_canonical_format:
            X = X.copy()
            X.sum_duplicates()
        index = np.int32 if max(X.nnz, *X.shape) < 2**31 else np.int64
        arrays = X.data, X.indices.astype(index, copy=False), X.indptr.astype(index, copy=False)
        X = type(X)(tuple(map(np.ascontiguousarray, arrays)), shape=X.shape)
    return X


def read_weights(sample_weight: Any, n: int) -> np.ndarray:
    """Return row weights as float64 of shape (n,), or an empty array if there are none.

    Raises
    ------
    ValueError
        If weights are negative, not finite or not 1D, or if their sum is outside [LEAST_WEIGHT, LARGEST_WEIGHT].
    """
    if sample_weight is None:
        return np.empty(0)
    if isinstance(sample_weight, Number):
        sample_weight = np.full(n, sample_weight)
    weights = read_numbers(sample_weight, "sample_weight")
    if weights.ndim != 1:
        raise ValueError(
            f"sample_weight must be a 1D array or a number, but has {weights.ndim} dimensions; give one weight per row"
        )
    if (weights < 0).any():
        row = int(weights.argmin())
        raise ValueError(
            f"sample_weight must not be negative, but is {weights[row]:g} in row {row}; use 0 to leave a row out"
        )
    return _checked_total(weights)


def _checked_total(weights: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        total = weights.sum()
    if total and not LEAST_WEIGHT <= total <= LARGEST_WEIGHT:
        raise ValueError(f"sample_weight times class_weight sums to {total:.1e}; scale it, as only proportions count")
    return weights


def read_chunk(
    X: Any,
    y: Any,
    sample_weight: Any = None,
    offset: Any = None,
    *,
    columns: list | None = None,
    classes: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
    loss: Loss | None = None,
    name: Any = None,
    estimator: str | None = None,
    finite: bool = True,
    hashed: bool = True,
    order: str | None = "C",
) -> Chunk:
    """Validate one block of user data and convert it to a ``Chunk``.

    Parameters
    ----------
    X, y, sample_weight, offset : array-like
        Rows, targets, row weights and offsets in memory, of equal length, as given to ``fit`` or ``partial_fit``.
    columns : list, default=None
        Column names of the frame of which X is a partition. None if X is no partition of a frame.
    classes : ndarray of shape (n_classes,), default=None
        All class labels. None for regression.
    class_weights : ndarray of shape (n_classes,), default=None
        Factor of the row weights for each class.
    loss : object, default=None
        Its ``labels`` and ``targets`` (or ``least_target``) define which targets are valid.
    name : object, default=None
        Name of the chunk for error messages.
    estimator : str, default=None
        Name of the estimator for error messages.
    finite : bool, default=True
        Whether to check X for NaN and infinity.
    hashed : bool, default=True
        Whether to hash rows and targets. If False, ``content`` is "".
    order : "C" or None, default="C"
        None keeps the memory layout of dense rows. Use it for a chunk that is only read from start to end.

    Returns
    -------
    Chunk
        The block in the form that the kernels read.

    Raises
    ------
    ValueError, TypeError
        For invalid data. The message names the argument, and the chunk if `name` is given.
    """
    with blame("X", name):
        rows = read_rows(align_columns(X, columns), estimator=estimator, finite=finite, order=order)
    n = rows.shape[0]
    with blame("y", name):
        targets = read_targets(y, classes, loss)
        if len(targets) != n:
            raise ValueError(f"X has {n} rows, but y has {len(targets)}; give one target per row")
    if offset is not None:
        with blame("offset", name):
            targets = add_offset(targets, offset, classes, loss)
    with blame("sample_weight", name):
        weights = read_weights(sample_weight, n)
        if weights.size and len(weights) != n:
            raise ValueError(f"X has {n} rows, but sample_weight has {len(weights)}; give one weight per row")
    if class_weights is not None and classes is not None:
        with blame("sample_weight", name), np.errstate(over="ignore"):
            weights = _checked_total(class_weights[encode_labels(y, classes)] * (weights if weights.size else 1.0))
    arrays = (rows.data, rows.indices, rows.indptr) if sp.issparse(rows) else (rows,)
    content = content_hash(*arrays, targets.view(np.float64), shape=rows.shape) if hashed else ""
    return Chunk(rows, targets, weights, content, content_hash(weights) if weights.size else "")


def with_folds(chunk: Chunk, folds: np.ndarray) -> Chunk:
    """Return a chunk with the fold of each row. The hash of its weights is that of weights and folds."""
    return chunk._replace(folds=folds, weights_content=chunk.weights_content + content_hash(folds))


def content_hash(*arrays: np.ndarray, shape: tuple = ()) -> str:
    """Return a 128-bit hash of arrays that does not depend on their memory layout.

    It takes about a tenth of the time of a pass.
    """
    state = xxhash.xxh3_128()
    state.update(repr((shape, [(a.dtype.str, a.shape) for a in arrays])).encode())
    for array in arrays:
        for _, block in ordered_blocks(array, slice(0, len(array))):
            state.update(block.data.cast("B") if block.size else b"")
    return state.hexdigest()
