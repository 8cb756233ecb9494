"""Any accepted chunk -> rows as the kernels see them, and their hash.

A block of the user's data (numpy, scipy.sparse, pydata/sparse, pandas) becomes a
``Chunk``: C-contiguous float rows or canonical CSR, float64 targets and weights. Its
content hash is taken of these, so pandas and numpy of the same values agree.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import xxhash
from dask import compute, is_dask_collection
from dask.delayed import Delayed
from distributed.client import futures_of
from sklearn.utils import assert_all_finite, check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ._intrinsics import GROUP

__all__ = [
    "Chunk",
    "check_finite",
    "dask_blocks",
    "encode_labels",
    "join_chunks",
    "known_length",
    "most_bytes",
    "ordered_blocks",
    "read_chunk",
    "read_labels",
    "read_rows",
    "row_arrays",
    "row_blocks",
]

# About a megabyte of float64 rows: what is converted or transformed at once.
BLOCK_BYTES = 2**20
# Blocks along the columns are put together where the larger blocks take no more.
MERGED_BYTES = 2**28
# Beyond it, squares and their sums would leave the range of float64; no data are measured on such scales.
LARGEST = 1e50
# Sums of weights beyond these would leave that of float32, as memory of that type holds weighted gradients.
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-30, 1e30
NO_TARGET = "This estimator requires y to be passed, but the target y is None"


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view


class Chunk(NamedTuple):
    """One chunk as the kernels see it; arrays are C-contiguous, often the user's own, and never written.

    Rows that are to be read once, from one end to the other, may lie in any order (``ordered_blocks``).

    Parameters
    ----------
    rows : ndarray or scipy.sparse CSR of shape (n, p), float32 or float64
    targets : ndarray of shape (n, 1) or (n, k), float64
        Labels as the loss wants them, or numbers; the number of the class where there are several.
    weights : ndarray of shape (n,) or (0,), float64
        Empty where every row weighs one.
    content : str
        Hash of rows and targets.
    weights_content : str
        Hash of the weights; "" where there are none.
    """

    rows: Any
    targets: np.ndarray
    weights: np.ndarray
    content: str
    weights_content: str

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum()) if self.weights.size else float(len(self.targets))

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        rows = self.rows
        return rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes if sp.issparse(rows) else rows.nbytes

    @property
    def entries(self) -> int:
        """Stored entries of the rows."""
        return self.rows.nnz if sp.issparse(self.rows) else self.rows.size


def ordered_blocks(array: np.ndarray, part: slice) -> Iterator[tuple[slice, np.ndarray]]:
    """A part of an array in C order: all at once if it lies so, else copied block by block, into the same megabyte."""
    if array.flags.c_contiguous:
        yield part, array[part]
        return
    size = max(1, BLOCK_BYTES // max(array[:1].nbytes, 1) // GROUP) * GROUP  # a whole number of the kernels' groups
    room = np.empty((min(size, part.stop - part.start), *array.shape[1:]), array.dtype)
    for start in range(part.start, part.stop, size):
        block = slice(start, min(start + size, part.stop))
        copy = room[: block.stop - start]
        np.copyto(copy, array[block])
        yield block, copy


def row_blocks(rows: Any, part: slice) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Some consecutive rows, in as many blocks as they must be copied, as the kernels take them."""
    if sp.issparse(rows):
        yield part, row_arrays(rows, part)
    else:
        yield from ((block, [frozen(array)]) for block, array in ordered_blocks(rows, part))


def row_arrays(rows: Any, block: slice) -> list[np.ndarray]:
    """Some consecutive rows as the kernels take them: one array, or three of CSR."""
    if sp.issparse(rows):
        return [frozen(array) for array in (rows.data, rows.indices, rows.indptr[block.start : block.stop + 1])]
    return [frozen(rows[block])]


def join_chunks(*chunks: Chunk) -> Chunk:
    """Several chunks, all dense or all sparse, as one."""
    rows = [chunk.rows for chunk in chunks]
    weighted = any(chunk.weights.size for chunk in chunks)
    weights = [chunk.weights if chunk.weights.size else np.ones(len(chunk.targets)) for chunk in chunks]
    return Chunk(
        sp.vstack(rows, format="csr") if sp.issparse(rows[0]) else np.concatenate(rows),
        np.concatenate([chunk.targets for chunk in chunks]),
        np.concatenate(weights) if weighted else chunks[0].weights,
        " ".join(chunk.content for chunk in chunks),
        " ".join(chunk.weights_content for chunk in chunks) if weighted else "",
    )


@contextlib.contextmanager
def blame(argument: str, chunk: Any = None) -> Iterator[None]:
    """Errors from inside name the argument and, where there are several, the chunk."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        text = str(error) if argument in str(error).split() else f"{argument}: {error}"
        raise kind(text if chunk is None else f"chunk {chunk}: {text}") from error


# scikit-learn's checks change the process's warning filters for a while.
_alone = threading.RLock()


def _checked(check: Callable, values: Any, **how: Any) -> Any:
    """What a check of scikit-learn's returns: one thread at a time, as several would leave warning filters changed."""
    # Tasks that check as well must not wait for this one.
    if is_dask_collection(values) or (isinstance(values, (list, tuple)) and any(map(is_dask_collection, values))):
        [values] = compute(values)
    with _alone, np.errstate(all="ignore"):
        return check(values, **how)


def read_rows(
    X: Any, *, estimator: str | None = None, empty: bool = False, finite: bool = True, order: str | None = "C"
) -> Any:
    """Rows as the kernels see them: C-ordered float32 or float64, or canonical CSR.

    Parameters
    ----------
    X : array-like, DataFrame or sparse of shape (n, p)
        In memory. float32 stays float32, all else becomes float64.
    estimator : str, default=None
        Name for error messages.
    empty : bool, default=False
        Whether zero rows are allowed.
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
    X = _checked(
        check_array,
        X,
        accept_sparse="csr",
        dtype=[np.float64, np.float32],
        order=order,
        ensure_all_finite=finite,
        ensure_min_samples=0 if empty else 1,
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


def check_finite(rows: Any) -> None:
    """Raise ValueError for NaN or infinity, which a fit need not look for unless sums are not finite."""
    _checked(assert_all_finite, rows, estimator_name="This estimator", input_name="X")


def read_labels(y: Any, argument: str = "y", warn: bool = False) -> np.ndarray:
    """Labels of any kind as a one-dimensional numpy array.

    Strings stay objects; nullable and categorical pandas types become what they hold.

    Raises
    ------
    ValueError
        If a label is missing.
    """
    if y is None:
        raise ValueError(NO_TARGET)
    labels = np.asarray(y)
    if labels.ndim != 1:
        labels = _checked(column_or_1d, labels, warn=warn)
    if labels.dtype == object and len(labels):
        import pandas as pd

        if pd.isna(labels).any():
            raise ValueError(f"{argument} contains missing labels (NaN, None or NA)")
        kind = pd.api.types.infer_dtype(labels, skipna=False)
        if kind in ("integer", "boolean", "floating"):
            labels = labels.astype({"integer": np.int64, "boolean": bool, "floating": np.float64}[kind])
    elif labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"{argument} contains NaN or infinity")
    return labels


def count_labels(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct labels of one block, and the sums of their rows' weights."""
    distinct, codes = _sorted_codes(labels)
    if len(labels) and (labels.dtype.kind not in "iub" or len(distinct) > len(labels) / 2):  # integers may be too many
        _checked(check_classification_targets, labels)
    if weights.size and len(weights) != len(labels):
        raise ValueError(f"y has {len(labels)} rows, but sample_weight has {len(weights)}")
    return distinct, np.bincount(codes, weights if weights.size else None, minlength=len(distinct)).astype(float)


def _sorted_codes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct labels, and of each label the position among them."""
    if labels.dtype.kind in "iu" and len(labels) and int(labels.max()) - int(labels.min()) < len(labels):
        least = labels.min()  # of a small range: a table tells sooner than sorting
        wide = np.int64 if labels.dtype.kind == "i" else np.uint64
        offsets = np.subtract(labels, least, dtype=wide).astype(np.intp)
        there = np.bincount(offsets) > 0
        return np.flatnonzero(there).astype(labels.dtype) + least, (np.cumsum(there) - 1)[offsets]
    distinct = sorted_labels(labels)
    return distinct, np.searchsorted(distinct, labels)


def sorted_labels(labels: np.ndarray, argument: str = "y") -> np.ndarray:
    """Distinct labels in order.

    Raises
    ------
    TypeError
        If they cannot be compared.
    """
    try:
        return np.unique(labels)
    except TypeError as error:
        raise TypeError(f"{argument} mixes labels that cannot be sorted, such as strings and numbers") from error


def check_classes(labels: np.ndarray, argument: str) -> np.ndarray:
    """The classes among some labels.

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    classes = sorted_labels(labels, argument)
    if len(classes) < 2:
        raise ValueError(
            f"{argument} holds {len(classes)} class(es); a classifier needs at least two classes: {classes.tolist()}"
        )
    return classes


def encode_labels(y: Any, classes: np.ndarray) -> np.ndarray:
    """Positions of the labels of `y` in `classes`.

    Raises
    ------
    ValueError
        If a label of `y` is not in `classes`.
    """
    labels = read_labels(y, warn=True)
    if {labels.dtype.kind, classes.dtype.kind} <= set("biuf"):
        if labels.dtype.kind != classes.dtype.kind:
            labels, classes = labels.astype(float), classes.astype(float)
        if len(classes) == 2:
            codes = (labels == classes[1]).astype(np.intp)
            codes[(labels != classes[0]) & (codes == 0)] = -1
        else:
            codes = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
            codes[classes[codes] != labels] = -1
    else:
        import pandas as pd

        codes = pd.Index(classes).get_indexer(labels)
    if (codes < 0).any():
        unknown = list(dict.fromkeys(labels[codes < 0].tolist()))[:5]
        raise ValueError(f"y has labels {unknown} that are not among the classes {classes.tolist()}")
    return codes


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
    weights = _checked(check_array, sample_weight, **how, input_name="sample_weight")
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


def read_targets(y: Any, classes: np.ndarray | None = None, loss: Any = None) -> np.ndarray:
    """Targets of shape (n, 1) or (n, k) as the loss wants them: numbers, its two labels, or the class's number."""
    labels = getattr(loss, "labels", None)
    if classes is not None:
        codes = encode_labels(y, classes)
        named = np.asarray(labels if len(classes) == 2 else range(len(classes)), dtype=np.float64)
        return named[codes][:, None]
    if y is None:
        raise ValueError(NO_TARGET)
    y = _checked(check_array, y, ensure_2d=False, dtype=np.float64, ensure_min_samples=0, input_name="y")
    if labels is not None or y.ndim != 2 or y.shape[1] == 0 or hasattr(loss, "outputs"):
        y = _checked(column_or_1d, y, warn=True)[:, None]
    if labels is not None and not np.isin(y, labels).all():
        raise ValueError(f"y (b) must hold only {_some(labels)} for this loss")
    if y.size and y.min() < getattr(loss, "least_target", -np.inf):
        raise ValueError(f"y must be at least {loss.least_target} for this loss, but has {y.min()}")
    if y.size and max(y.max(), -y.min()) > LARGEST:
        raise ValueError(f"y has values beyond {LARGEST:.0e}; give it in larger units")
    return np.ascontiguousarray(y)


def _some(labels: tuple) -> str:
    return str(labels) if len(labels) < 5 else f"{labels[0]} to {labels[-1]}"


def read_chunk(
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    classes: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
    loss: Any = None,
    name: Any = None,
    estimator: str | None = None,
    empty: bool = True,
    finite: bool = True,
    hashed: bool = True,
    order: str | None = "C",
) -> Chunk:
    """One block of the user's data as a ``Chunk``.

    Parameters
    ----------
    X, y, sample_weight : array-like
        As given to ``fit`` or ``partial_fit``, in memory, of equal length.
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
    empty : bool, default=True
        Whether zero rows are allowed.
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
        rows = read_rows(X, estimator=estimator, empty=empty, finite=finite, order=order)
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


def _split(name: str, collection: Any, lengths: tuple | None, alone: bool) -> tuple[list, tuple | None]:
    """A Dask collection, or an array beside one, as a list of blocks and their known lengths.

    Tasks are fused only of what is `alone`: a read that X and y share would else become a part of both, and Dask loses
    what is on a cluster.
    """
    if getattr(collection, "ndim", 1) == 0:
        raise ValueError(f"{name} is a single number; give one for each row of X")
    if hasattr(collection, "numblocks"):
        if collection.ndim > 1 and collection.numblocks[1] > 1:
            size = max(collection.chunks[0]) * collection.shape[1] * collection.dtype.itemsize
            if not size <= MERGED_BYTES:
                would, call = (
                    ("are of unknown length", f"{name}.compute_chunk_sizes()")
                    if math.isnan(size)
                    else (f"would take {size / 1e6:.0f} MB", name)
                )
                raise ValueError(
                    f"{name} is blocked along its columns ({collection.numblocks[1]} blocks), and blocks of whole rows "
                    f"{would}; rechunk it first: {call}.rechunk({{0: 'auto', 1: -1}})"
                )
            collection = collection.rechunk({1: -1}, method="tasks")
        known = tuple(int(n) for n in collection.chunks[0]) if not np.isnan(collection.chunks[0]).any() else None
        return list(collection.to_delayed(optimize_graph=alone).ravel()), known
    if is_dask_collection(collection):
        parts = collection.optimize(fuse=False).to_delayed(optimize_graph=False)
        if len(parts) != collection.npartitions:  # what reads few columns of a file is merged, so y other than X
            parts = collection.simplify().to_delayed(optimize_graph=False)
        return parts, None
    if lengths is None:
        raise ValueError(
            f"{name} is in memory, but X is a Dask collection whose block lengths are unknown; make {name} a "
            "Dask collection too, or give X known lengths: X.to_dask_array(lengths=True), X.compute_chunk_sizes()"
        )
    array = collection.iloc if hasattr(collection, "iloc") else np.asarray(collection)
    if len(collection) != sum(lengths):
        raise ValueError(f"X has {sum(lengths)} rows, but {name} has {len(collection)}")
    ends = np.cumsum(lengths)
    return [array[end - n : end] for n, end in zip(lengths, ends, strict=True)], lengths


def most_bytes(collection: Any) -> float:
    """What the chunks of a Dask array take if they are dense; NaN where its rows are not known, or of anything else."""
    if not hasattr(collection, "numblocks"):
        return math.nan
    return float(np.prod(collection.shape) * (4 if collection.dtype == np.float32 else 8))


def known_length(collection: Any, axis: int) -> float:
    """Rows or columns of a Dask collection; NaN where they are not known."""
    [length] = getattr(collection, "shape", ())[axis : axis + 1] or [math.nan]
    return float(length) if isinstance(length, (int, float)) else math.nan


def dask_blocks(X: Any, y: Any, sample_weight: Any = None) -> list:
    """``(X, y, sample_weight)`` of each block of Dask collections that are blocked alike, delayed where they are lazy.

    Parameters
    ----------
    X : dask array or dataframe
    y, sample_weight : dask array or series, or in memory
        In memory only where the block lengths of X are known.

    Raises
    ------
    ValueError
        If the blocks do not match, naming the first that differs, or X is blocked
        along its columns.
    """
    if not is_dask_collection(X):
        raise TypeError("y or sample_weight is a Dask collection, but X is not; make X one too")
    if isinstance(X, Delayed):
        raise TypeError("X is a Delayed; give a dask array or dataframe, or delayed pairs to saga")
    if getattr(X, "ndim", 2) != 2:
        raise ValueError(f"Expected 2D array for X, got {X.ndim}D array instead. Reshape your data")
    if y is None:
        raise ValueError(NO_TARGET)
    arrays = [part for part in (X, y, sample_weight) if hasattr(part, "numblocks")]
    layers = [name for array in arrays for name in array.dask.layers]
    alone = len(layers) == len(set(layers)) and not futures_of(arrays)
    blocks, lengths = _split("X", X, None, alone)
    columns = [blocks]
    for name, other in (("y", y), ("sample_weight", sample_weight)):
        if other is None or isinstance(other, Number):
            columns.append([other] * len(blocks))
            continue
        others, known = _split(name, other, lengths, alone)
        if lengths and known and sum(lengths) != sum(known):
            raise ValueError(f"X has {sum(lengths)} rows, but {name} has {sum(known)}")
        remedy = f"{name}.rechunk((X.chunks[0],))" if hasattr(other, "rechunk") else f"{name}.repartition like X"
        if len(others) != len(blocks):
            raise ValueError(
                f"X has {len(blocks)} blocks, but {name} has {len(others)}; block one like the other: {remedy}"
            )
        for k, (n, m) in enumerate(zip(lengths or (), known or (), strict=False)):
            if n != m:
                raise ValueError(f"chunk {k}: X has {n} rows, but {name} has {m}; block one like the other: {remedy}")
        columns.append(others)
    return list(zip(*columns, strict=True))
