"""Any accepted chunk -> rows as the kernels see them, and their hash.

A block of the user's data (numpy, scipy.sparse, pydata/sparse, pandas) becomes a
``Chunk``: C-contiguous float rows or canonical CSR, float64 targets and weights. Its
content hash is taken of these, so pandas and numpy of the same values agree.
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

from .chunk import Chunk, ordered_blocks
from .targets import checked, encode_labels, read_targets

__all__ = ["align_columns", "blame", "check_containers", "check_finite", "read_chunk", "read_rows", "read_weights"]


# Sums of weights beyond these would leave that of float32, as memory of that type holds weighted gradients.
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-30, 1e30


@contextlib.contextmanager
def blame(argument: str, chunk: Any = None) -> Iterator[None]:
    """Errors from inside name the argument and, where there are several, the chunk."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        text = str(error) if argument in str(error).split() else f"{argument}: {error}"
        raise kind(text if chunk is None else f"chunk {chunk}: {text}") from error


def check_containers(**arguments: Any) -> None:
    """Refuse Delayed and Future objects, lists of them, and containers that are no array or frame.

    Every method that takes data calls this first. NumPy would make an array of one object of such a
    container, and a later check would then fail with a message about something else.

    Parameters
    ----------
    **arguments : object
        Each value under the name of its argument: ``check_containers(X=X, y=y)``.

    Raises
    ------
    TypeError
        Says which argument it is, what it holds, and what to give instead.
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
    """What messages call a value that is refused, or the items of a list that is; None for any other value."""
    listed = isinstance(value, (list, tuple))
    for kind in _item_types(value) if listed else [type(value)]:
        if issubclass(kind, (Delayed, Future)):
            return "Delayed" if issubclass(kind, Delayed) else "Future"
    if listed:  # of numbers, rows or Dask arrays
        return None
    # By name, as xarray need not be installed.
    if any(base.__name__ == "Dataset" and base.__module__.startswith("xarray.") for base in type(value).__mro__):
        return "xarray Dataset"
    if is_dask_collection(value) and not hasattr(value, "ndim"):  # a bag, or another one without rows and columns
        return f"dask {type(value).__name__}"
    return None


def _item_types(items: list | tuple) -> set[type]:
    """The types of the items of a list, and of the items of lists in it: rows, and the entries of rows."""
    types = set(map(type, items))
    if any(issubclass(kind, (list, tuple)) for kind in types):
        rows = (item for item in items if isinstance(item, (list, tuple)))
        types.update(map(type, itertools.chain.from_iterable(rows)))
    return types


def align_columns(X: Any, names: list | None) -> Any:
    """A partition of a frame with its columns as the frame has them: Dask takes them by name, whatever their order."""
    if names is None or not hasattr(X, "columns") or list(X.columns) == names:
        return X
    if sorted(map(str, X.columns)) != sorted(map(str, names)):
        raise ValueError(f"X has the columns {list(X.columns)} here, but the frame has {names}")
    return X[names]


def read_rows(X: Any, *, estimator: str | None = None, finite: bool = True, order: str | None = "C") -> Any:
    """Rows as the kernels see them: C-ordered float32 or float64, or canonical CSR.

    Parameters
    ----------
    X : array-like, DataFrame or sparse of shape (n, p)
        In memory, of any number of rows. float32 stays float32, all else becomes float64.
    estimator : str, default=None
        Name for error messages.
    finite : bool, default=True
        Whether values are looked at. ``measure`` does so too.
    order : "C" or None, default="C"
        None leaves dense rows as they lie.

    Raises
    ------
    ValueError, TypeError
        For NaN, inf, complex or non-numeric values, other than two dimensions, or a
        Dask collection.
    """
    if is_dask_collection(X):
        raise TypeError("X is a Dask collection, but one chunk in memory is wanted; use fit, or Incremental")
    if hasattr(X, "to_scipy_sparse"):  # pydata/sparse
        X = X.to_scipy_sparse()
    if sp.issparse(X) and X.dtype == object:
        raise TypeError("X has dtype object; a sparse X must be numeric")
    if sp.issparse(X) and hasattr(X, "indptr"):
        # What points outside of the arrays would be read there. Of a twin, as the check may change what it checks.
        type(X)((X.data, X.indices, X.indptr), shape=X.shape).check_format(full_check=True)
        if (np.diff(X.indptr) < 0).any():  # which scipy does not look at where nothing is stored
            raise ValueError("indptr must be a non-decreasing sequence")
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
    """Raise ValueError for NaN or infinity, which a fit need not look for unless sums are not finite."""
    checked(assert_all_finite, rows, estimator_name=estimator or "This estimator", input_name="X")


def read_weights(sample_weight: Any, n: int) -> np.ndarray:
    """Row weights as float64 of shape (n,), or an empty array for none.

    Raises
    ------
    ValueError
        If they are negative, not finite, of another shape, or so large or small that sums leave float64.
    """
    if sample_weight is None:
        return np.empty(0)
    if isinstance(sample_weight, Number):
        sample_weight = np.full(n, sample_weight)
    how = {"ensure_2d": False, "dtype": np.float64, "order": "C", "ensure_min_samples": 0}
    weights = checked(check_array, sample_weight, **how, input_name="sample_weight")
    if weights.ndim != 1:
        raise ValueError(f"sample_weight must be a 1D array or a number, but has {weights.ndim} dimensions")
    if (weights < 0).any():
        raise ValueError("sample_weight must not be negative")
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
    loss: Any = None,
    name: Any = None,
    estimator: str | None = None,
    finite: bool = True,
    hashed: bool = True,
    order: str | None = "C",
) -> Chunk:
    """One block of the user's data as a ``Chunk``.

    Parameters
    ----------
    X, y, sample_weight : array-like
        As given to ``fit`` or ``partial_fit``, in memory, of equal length.
    columns : list, default=None
        Those of the frame of which X is a partition.
    classes : ndarray of shape (n_classes,), default=None
        All class labels; None where `y` holds numbers.
    class_weights : ndarray of shape (n_classes,), default=None
        Multiply the weights of the rows of each class.
    loss : object, default=None
        Says by its ``labels`` and ``least_target`` what targets it takes.
    name : object, default=None
        Names the chunk in error messages.
    estimator : str, default=None
        Names the estimator in error messages.
    finite : bool, default=True
        Whether NaN and infinity in X are looked for.
    hashed : bool, default=True
        Whether its content is hashed, and else "".
    order : "C" or None, default="C"
        None for a chunk that is never visited, only read from one end to the other: dense rows stay as they lie.

    Raises
    ------
    ValueError, TypeError
        Naming the argument at fault, and the chunk where `name` is given.
    """
    with blame("X", name):
        rows = read_rows(align_columns(X, columns), estimator=estimator, finite=finite, order=order)
    n = rows.shape[0]
    with blame("y", name):
        targets = read_targets(y, classes, loss)
        if len(targets) != n:
            raise ValueError(f"X has {n} rows, but y has {len(targets)}")
    with blame("sample_weight", name):
        weights = read_weights(sample_weight, n)
        if weights.size and len(weights) != n:
            raise ValueError(f"X has {n} rows, but sample_weight has {len(weights)}")
    if class_weights is not None:
        with blame("sample_weight", name), np.errstate(over="ignore"):
            weights = _checked_total(class_weights[encode_labels(y, classes)] * (weights if weights.size else 1.0))
    arrays = (rows.data, rows.indices, rows.indptr) if sp.issparse(rows) else (rows,)
    content = content_hash(*arrays, targets, shape=rows.shape) if hashed else ""
    return Chunk(rows, targets, weights, content, content_hash(weights) if weights.size else "")


def content_hash(*arrays: np.ndarray, shape: tuple = ()) -> str:
    """128-bit hash of arrays, whatever their order; about a tenth of a pass in cost."""
    state = xxhash.xxh3_128()
    state.update(repr((shape, [(a.dtype.str, a.shape) for a in arrays])).encode())
    for array in arrays:
        for _, block in ordered_blocks(array, slice(0, len(array))):
            state.update(memoryview(block).cast("B") if block.size else b"")
    return state.hexdigest()
