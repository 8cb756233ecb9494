"""Validate a block of user data and convert it to a ``Chunk``.

Numpy, scipy.sparse, pydata/sparse and pandas input becomes C-contiguous float rows or canonical CSR, with float64
targets and weights. The content hash is computed after the conversion, so pandas and numpy input of equal values
have the same hash.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from numbers import Number
from typing import Any

import numpy as np
import scipy.sparse as sp
import xxhash
from dask import is_dask_collection
from dask.delayed import Delayed
from distributed import Future
from sklearn.utils import assert_all_finite, check_array

from ..losses import Loss
from .chunk import Chunk, ordered_blocks
from .targets import checked, encode_labels, read_targets

__all__ = [
    "align_columns",
    "blame",
    "check_containers",
    "check_finite",
    "read_chunk",
    "read_rows",
    "read_weights",
    "with_folds",
]


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


def check_containers(**arguments: Any) -> None:
    """Refuse Delayed and Future objects, lists of them, and containers that are neither arrays nor frames.

    Every method that takes data calls this first. Otherwise NumPy would wrap such a container in an object array with
    one entry, and a later check would fail with a misleading message.

    Parameters
    ----------
    **arguments : object
        Values to check, each passed under the name of its argument: ``check_containers(X=X, y=y)``.

    Raises
    ------
    TypeError
        If a value is refused. The message names the argument, what it holds, and what to pass instead.
    """
    for name, value in arguments.items():
        listed = isinstance(value, (list, tuple))
        kind = _refused_kind(value)
        if kind is None:
            continue
        found = f"a {type(value).__name__} of {kind}" if listed else f"{'an' if kind[0] == 'x' else 'a'} {kind}"
        wanted = f"a dask array or {'dataframe' if name == 'X' else 'series'}"
        if kind in ("Delayed", "Future") and name in ("X", "y"):
            wanted += f", or {'delayed pairs' if kind == 'Delayed' else 'futures of pairs'} to saga"
        remedy = {
            "Delayed": f"their values: dask.compute(*{name})" if listed else f"its value: {name}.compute()",
            "Future": f"their values: client.gather({name})" if listed else f"its value: {name}.result()",
            "dask Bag": f"columns of {name}.to_dataframe()",
            "xarray Dataset": f"columns of {name}.to_dataframe() or {name}.to_dask_dataframe()",
        }.get(kind, f"its value: {name}.compute()")
        raise TypeError(f"{name} is {found}; give {wanted}, or {remedy}")


def _refused_kind(value: Any) -> str | None:
    """Return the name that messages use for a refused value (or list items), or None for an accepted value."""
    listed = isinstance(value, (list, tuple))
    for kind in _item_types(value) if listed else [type(value)]:
        if issubclass(kind, (Delayed, Future)):
            return "Delayed" if issubclass(kind, Delayed) else "Future"
    if listed:  # a list of numbers, rows or Dask arrays is accepted
        return None
    # Test the class name, as xarray may not be installed.
    if any(base.__name__ == "Dataset" and base.__module__.startswith("xarray.") for base in type(value).__mro__):
        return "xarray Dataset"
    if is_dask_collection(value) and not hasattr(value, "ndim"):  # such as a bag, without rows and columns
        return f"dask {type(value).__name__}"
    return None


def _item_types(items: list | tuple) -> set[type]:
    """Return the types of the items of a list and of its nested lists (rows and their entries)."""
    types = set(map(type, items))
    if any(issubclass(kind, (list, tuple)) for kind in types):
        rows = (item for item in items if isinstance(item, (list, tuple)))
        types.update(map(type, itertools.chain.from_iterable(rows)))
    return types


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
    if is_dask_collection(X):
        raise TypeError("X is a Dask collection, but must be one chunk in memory; use fit, or dask_ml's Incremental")
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
    X = checked(
        check_array,
        X,
        accept_sparse="csr",
        dtype=[np.float64, np.float32],
        order=order,
        ensure_all_finite=finite,
        ensure_min_samples=0,
        input_name="X",
        estimator=estimator,
    )
    if sp.issparse(X):
        if not X.has_canonical_format:
            X = X.copy()
            X.sum_duplicates()
        index = np.int32 if max(X.nnz, *X.shape) < 2**31 else np.int64
        arrays = X.data, X.indices.astype(index, copy=False), X.indptr.astype(index, copy=False)
        X = type(X)(tuple(map(np.ascontiguousarray, arrays)), shape=X.shape)
    return X


def check_finite(rows: Any, estimator: str | None = None) -> None:
    """Raise ValueError if rows contain NaN or infinity.

    A fit calls this only if a sum over the rows is not finite, which saves one pass over the values.
    """
    checked(assert_all_finite, rows, estimator_name=estimator or "This estimator", input_name="X")


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
    how = {"ensure_2d": False, "dtype": np.float64, "order": "C", "ensure_min_samples": 0}
    weights = checked(check_array, sample_weight, **how, input_name="sample_weight")
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
    X, y, sample_weight : array-like
        Rows, targets and row weights in memory, of equal length, as given to ``fit`` or ``partial_fit``.
    columns : list, default=None
        Column names of the frame of which X is a partition. None if X is no partition of a frame.
    classes : ndarray of shape (n_classes,), default=None
        All class labels. None for regression.
    class_weights : ndarray of shape (n_classes,), default=None
        Factor of the row weights for each class.
    loss : object, default=None
        Its ``labels`` and ``least_target`` define which targets are valid.
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
    with blame("sample_weight", name):
        weights = read_weights(sample_weight, n)
        if weights.size and len(weights) != n:
            raise ValueError(f"X has {n} rows, but sample_weight has {len(weights)}; give one weight per row")
    if class_weights is not None and classes is not None:
        with blame("sample_weight", name), np.errstate(over="ignore"):
            weights = _checked_total(class_weights[encode_labels(y, classes)] * (weights if weights.size else 1.0))
    arrays = (rows.data, rows.indices, rows.indptr) if sp.issparse(rows) else (rows,)
    content = content_hash(*arrays, targets, shape=rows.shape) if hashed else ""
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
