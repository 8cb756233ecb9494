"""Column statistics: compute, merge, subtract."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from ..execution.threads import even_slices, one_blas_thread, thread_count, threads
from ..kernels.column_moments import dense_moments, gather_columns, read_moments, sparse_moments
from ..kernels.intrinsics import DOUBLES, empty_on_lines
from ..losses import Loss
from ..penalties import ElasticNet, Penalty
from .bad_values import check_finite
from .chunk import BLOCK_BYTES, ordered_blocks, row_arrays
from .immutable import immutable
from .targets import LARGEST

if TYPE_CHECKING:
    from .chunk import Chunk

__all__ = [
    "MOMENTS",
    "ColumnStats",
    "check_values",
    "column_stats",
    "gram",
    "measure",
    "merge",
    "no_stats",
    "typical",
    "wants_products",
    "without",
]


# Maximum number of columns for which products of columns (the Gram matrix) are computed.
MOST_ROTATED = 300

# These are numbers of rows. For non-quadratic losses, products use max(MOST_MULTIPLIED, 50 p) rows of all chunks
# together, but at least max(LEAST_MULTIPLIED, 20 p) of each chunk. Moments and products use blocks of MOMENTS rows.
MOST_MULTIPLIED, LEAST_MULTIPLIED, MOMENTS = 2**13, 2**10, 2**12

# Minimum number of stored entries per column in one part of sparse rows; each part has its own table of sums.
MOMENTS_ENTRIES = 32

# Range of float32: the sparse kernel computes largest magnitudes in this type.
SINGLE = np.finfo(np.float32)

# Number of multiplications (rows x columns x columns) up to which einsum is faster than BLAS.
FEW = 2**15

# Recompute sums about the mean if a column's sum of squares about the origin exceeds that about the mean by this
# factor: too many digits would cancel.
FAR_FROM_MEAN = 1e6

# Smallest share of a column's sum of squares that a subtraction can resolve; less is rounding error. ROUNDED bounds the
# squares, CANCELLED the products, which need more digits.
ROUNDED, CANCELLED = 1e-13, 1e-5

# If the extreme value of a column is removed, the remaining values are assumed to lie within this number of standard
# deviations of the mean.
WITHIN = 10.0


class MeasuredProblem(Protocol):
    """What this module reads of a ``Problem``, whose class is in a higher layer."""

    @property
    def loss(self) -> Loss: ...
    @property
    def penalty(self) -> Penalty: ...
    @property
    def precondition(self) -> bool: ...
    @property
    def n_threads(self) -> int: ...


@immutable
class ColumnStats(NamedTuple):
    """Statistics of the columns of one or more chunks.

    All arrays but `products` have shape (p,).

    Parameters
    ----------
    rows : int
        Number of rows of positive weight.
    weight : float
        Sum of the row weights.
    mean, squares : ndarray
        Weighted mean, and weighted sum of squared deviations from the mean.
    low, high : ndarray
        Minimum and maximum. For a column that some rows of a sparse chunk do not store, these are minus and plus the
        largest magnitude, computed in float32.
    counts : ndarray
        Number of rows that store the column. Dense chunks store every column in every row.
    full : ndarray of bool
        Whether every row stores the column, including rows of weight zero.
    sparse : bool
        Whether any chunk is sparse.
    target : float
        Weighted mean of the targets.
    cross : ndarray
        Weighted sum of products of the deviations of column and target, for dense chunks. Zero for sparse chunks.
    products : ndarray of shape (p, p) or None
        Weighted sums of products of the deviations of two columns. None unless it was computed for every chunk.
    """

    rows: int
    weight: float
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    full: np.ndarray
    sparse: bool
    target: float
    cross: np.ndarray
    products: np.ndarray | None


def wants_products(p: float, problem: MeasuredProblem) -> bool:
    """Return whether the problem permits a rotation of p columns, which needs their products."""
    rotates = isinstance(problem.penalty, ElasticNet) and problem.penalty.rotates
    return bool(problem.precondition and rotates and 1 < p <= MOST_ROTATED)


def no_stats(p: int, full: bool | np.ndarray = True) -> ColumnStats:
    """Return the statistics of p columns if no row has positive weight."""
    zeros, full = np.zeros(p), np.broadcast_to(full, p)
    low, high, counts = zeros + np.inf, zeros - np.inf, np.zeros(p, int)
    return ColumnStats(0, 0.0, zeros, zeros, low, high, counts, full, False, 0.0, zeros, None)


def column_stats(chunk: Chunk, problem: MeasuredProblem) -> ColumnStats:
    """Return the statistics of a chunk's columns, as computed by ``measure``."""
    return measure(chunk, problem)[0]


def measure(
    chunk: Chunk, problem: MeasuredProblem, chunks: int = 1, factors: np.ndarray | None = None
) -> tuple[ColumnStats, np.ndarray]:
    """Compute the column statistics of one chunk in float64, in one pass over its rows.

    If `factors` are given, the same pass also computes weighted sums of the rows.

    For a quadratic loss, products are computed from all rows. For other losses a random subset of
    ``max(MOST_MULTIPLIED, 50 p)`` rows of all chunks suffices, as the products only select the preconditioner.

    Parameters
    ----------
    chunk : Chunk
        The rows, targets and weights.
    problem : Problem
        Defines whether products are computed, and the number of threads.
    chunks : int, default=1
        Number of chunks of the fit, which share the rows used for products.
    factors : ndarray of shape (n, 1), default=None
        Factors of the sum of rows. They must be zero for rows of weight zero.

    Returns
    -------
    stats : ColumnStats
        Statistics of the columns.
    sums : ndarray of shape (1, p + 1), or (0, p + 1) without factors
        sum_i factors_i a_i, where each row a_i ends with a 1 for the intercept.

    Raises
    ------
    ValueError
        If values are not finite, or exceed LARGEST so that squares could overflow.
    """
    rows, p, sparse = chunk.rows, chunk.rows.shape[1], sp.issparse(chunk.rows)
    used = chunk.weights > 0 if chunk.weights.size else np.ones(len(chunk.targets), bool)
    full = np.ones(p, bool)
    factors = np.zeros((len(used), 0)) if factors is None else factors
    if not used.all():
        if sparse:  # rows of weight zero must store a column too
            full = np.bincount(rows.indices, minlength=p) == len(used)
        # Values in rows of weight zero must be valid too.
        check_values(rows)
        factors, weights = factors[used], chunk.weights[used]
        chunk = chunk._replace(rows=rows[used], targets=chunk.targets[used], weights=weights)
    with np.errstate(over="ignore", invalid="ignore"):
        if not used.any():
            stats, sums = no_stats(p, full)._replace(sparse=sparse), np.zeros((factors.shape[1], p))
        else:
            stats, sums = (_measure_sparse if sparse else _measure_dense)(chunk, full, problem, chunks, factors)
    return stats, np.column_stack([sums, factors.sum(axis=0)])


def _check_values(
    rows: Any, low: np.ndarray, high: np.ndarray, *sums: np.ndarray, labels: Sequence | None = None
) -> None:
    if not all(np.isfinite(one).all() for one in (low, high, *sums)):
        check_finite(rows, labels=labels)
    extremes = np.maximum(high, -low)
    if (extremes > LARGEST).any():
        column = extremes.argmax() if labels is None else repr(labels[int(extremes.argmax())])
        raise ValueError(f"X has values beyond {LARGEST:.0e} in column {column}; give it in larger units")


def check_values(rows: Any, *sums: np.ndarray, labels: Sequence | None = None) -> None:
    """Raise a ValueError if values are not finite, or exceed LARGEST; `labels` are names of the columns."""
    _check_values(rows, *(_extremes(rows, name) for name in ("min", "max")), *sums, labels=labels)


def _extremes(rows: Any, name: str) -> np.ndarray:
    extremes = getattr(rows, name)(axis=0)
    return (extremes.toarray().ravel() if sp.issparse(rows) else extremes).astype(np.float64)


def _target_deviations(targets: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the weighted mean of the targets, and the weighted deviations from it."""
    targets = targets.real  # without offsets
    targets = targets.mean(axis=1) if targets.shape[1] > 1 else targets[:, 0]
    target = float((targets * weights).sum() / weights.sum())
    return target, (targets - target) * weights


def _measure_sparse(
    chunk: Chunk, full: np.ndarray, problem: MeasuredProblem, chunks: int, factors: np.ndarray
) -> tuple[ColumnStats, np.ndarray]:
    rows, n, p, weights = chunk.rows, len(chunk.targets), len(full), chunk.row_weights
    weight, count = weights.sum(), thread_count(problem.n_threads, chunk.entries)
    parts = even_slices(n, 2 ** min(max(rows.nnz // (MOMENTS_ENTRIES * p), 1).bit_length() - 1, 3))
    tables = empty_on_lines(len(parts), p, DOUBLES // 2)

    def add(table: np.ndarray, part: slice) -> float:
        table.fill(0.0)
        return sparse_moments(*row_arrays(rows, part), weights[part], factors[part], table)

    with threads(count) as each:
        largest = max(each(add, tables, parts))
    (mean, squares, high), counts, sums = np.empty((3, p)), np.empty(p, np.int64), np.empty((factors.shape[1], p))
    read_moments(tables, weight, mean, squares, sums, counts, high)
    full = full & (counts == n)
    if not (largest <= LARGEST and np.isfinite(mean).all()):
        check_values(rows, mean)
    if largest > SINGLE.max or ((high < SINGLE.tiny) & (squares > 0)).any():
        high = _extremes(abs(rows), "max")
    low = -high
    if full.any():  # treat columns that every row stores like dense columns
        some, positions = np.flatnonzero(full), np.where(full, np.cumsum(full) - 1, -1)

        def read(block: slice) -> Iterator[tuple[slice, np.ndarray]]:
            size = max(1, BLOCK_BYTES // (rows.dtype.itemsize * len(some)))
            for start in range(block.start, block.stop, size):
                part = slice(start, min(start + size, block.stop))
                few = np.zeros((part.stop - start, len(some)), rows.dtype)
                gather_columns(*row_arrays(rows, part), positions, few)
                yield part, few

        moments = _block_moments(read, weights, factors, len(some), count)
        few = rows[:: max(1, n // 1000)][:, some].toarray()
        mean[some], squares[some], low[some], high[some], more, origin = _about(moments, _middle(few), weight)
        sums[:, some] = more + factors.sum(axis=0)[:, None] * origin
    target, _ = _target_deviations(chunk.targets, weights)
    return ColumnStats(n, weight, mean, squares, low, high, counts, full, True, target, np.zeros(p), None), sums


def _measure_dense(
    chunk: Chunk, full: np.ndarray, problem: MeasuredProblem, chunks: int, factors: np.ndarray
) -> tuple[ColumnStats, np.ndarray]:
    rows, (n, p), weights = chunk.rows, chunk.rows.shape, chunk.row_weights
    (target, deviations), weight = _target_deviations(chunk.targets, weights), weights.sum()
    moments = _block_moments(
        functools.partial(ordered_blocks, rows), weights, np.column_stack([deviations, factors]), p,
        thread_count(problem.n_threads, chunk.entries),
    )  # fmt: skip
    few = np.ascontiguousarray(rows[:: max(1, n // 1000)])
    mean, squares, low, high, products, origin = _about(moments, _middle(few), weight)
    sums = products[1:] + factors.sum(axis=0)[:, None] * origin
    cross = products[0].copy()  # a view would keep all of products alive
    _check_values(rows, low, high, mean)  # before products, whose threads would warn of invalid values
    products = _products(rows, weights, mean, squares, problem, chunks) if wants_products(p, problem) else None
    counts = np.full(p, n)
    return ColumnStats(n, weight, mean, squares, low, high, counts, full, False, target, cross, products), sums


def _block_moments(
    read: Callable[[slice], Iterable], weights: np.ndarray, factors: np.ndarray, p: int, count: int
) -> Callable[[np.ndarray], tuple]:
    """Return a function that computes the moments of dense rows about a given origin, block by block.

    It does not use BLAS, whose sums depend on the alignment of the rows and on the number of threads.
    """
    n, c = factors.shape
    blocks = [slice(start, min(start + MOMENTS, n)) for start in range(0, n, MOMENTS)]

    def moments(origin: np.ndarray) -> tuple[np.ndarray, ...]:
        def add(block: slice) -> np.ndarray:
            out = np.zeros((4 + c, p))
            out[2:4] = [[np.inf], [-np.inf]]
            for some, few in read(block):
                dense_moments(few, weights[some], factors[some], origin, out)
            return out

        with threads(count) as each:
            parts = np.array(list(each(add, blocks)))
        return *parts[:, :2].sum(axis=0), parts[:, 2].min(axis=0), parts[:, 3].max(axis=0), parts[:, 4:].sum(axis=0)

    return moments


def _middle(few: np.ndarray) -> np.ndarray:
    """Return the mean of a few rows, used as origin so that columns far from zero lose no digits."""
    return few[0] + (few - few[0].astype(np.float64)).mean(axis=0)


def _about(moments: Callable, origin: np.ndarray, weight: float) -> tuple:
    """Return mean, squares and further moments, computed about an origin.

    If the origin is too far from the mean (factor FAR_FROM_MEAN), the moments are computed again about the mean.
    """
    sums, squares, *rest = moments(origin)
    if (squares > FAR_FROM_MEAN * (squares - sums**2 / weight)).any():
        origin = origin + sums / weight
        sums, squares, *rest = moments(origin)
    return origin + sums / weight, np.maximum(squares - sums**2 / weight, 0.0), *rest, origin


def _products(
    rows: np.ndarray, weights: np.ndarray, mean: np.ndarray, squares: np.ndarray, problem: MeasuredProblem, chunks: int
) -> np.ndarray:
    """Return weighted sums of products of columns, computed by BLAS from a random subset of the rows if they are many.

    BLAS sums may differ in the last bits. This is harmless, as products are rounded before they decide anything.
    """
    n, p = rows.shape
    most = n if getattr(problem.loss, "quadratic", False) else max(MOST_MULTIPLIED, 50 * p) // chunks
    most = max(most, LEAST_MULTIPLIED, 20 * p)  # enough rows for the chunk's curvature along each axis
    if n > most:
        some = np.sort(np.random.default_rng((n, p)).choice(n, most, replace=False, shuffle=False))
        rows, weights = rows[some], weights[some]
    products = gram(rows, weights, mean, problem.n_threads)
    # Rescale the products so that the variances are those of all rows.
    lengths = np.sqrt(np.diag(products))
    factors = np.divide(np.sqrt(squares), lengths, out=np.zeros(p), where=lengths > 0)
    products *= np.outer(factors, factors)
    np.fill_diagonal(products, squares)
    return products


def gram(rows: np.ndarray, weights: np.ndarray, mean: np.ndarray, n_threads: int = 1) -> np.ndarray:
    """Return weighted sums of products of dense columns about a mean, of shape (p, p), computed by BLAS."""
    p = rows.shape[1]
    blocks = [slice(start, start + MOMENTS) for start in range(0, len(weights), MOMENTS)]
    few = rows.size * p <= FEW  # setting the number of BLAS threads would take longer than the product

    def multiply(block: slice) -> np.ndarray:
        apart = (np.ascontiguousarray(rows[block]) - mean) * np.sqrt(weights[block])[:, None]
        # BLAS computes only half of a matrix times its own transpose.
        return np.einsum("ij,ik->jk", apart, apart) if few else apart.T @ apart

    count = min(thread_count(n_threads, rows.size), len(blocks))
    with one_blas_thread(0 if few else np.inf), threads(count) as each:
        return sum(each(multiply, blocks))


def merge(one: ColumnStats, other: ColumnStats) -> ColumnStats:
    """Return the statistics of two disjoint sets of chunks together (Chan, Golub, LeVeque 1983, equation 2.1)."""
    full, sparse = one.full & other.full, one.sparse or other.sparse
    if not one.rows or not other.rows:
        some = one if one.rows else other
        return some._replace(full=full, sparse=sparse, products=None if sparse else some.products)
    weight = one.weight + other.weight
    apart, factor = other.mean - one.mean, one.weight * other.weight / weight
    products = None
    if one.products is not None and other.products is not None:
        products = one.products + other.products + np.outer(apart, apart) * factor
    return ColumnStats(
        one.rows + other.rows,
        weight,
        one.mean + apart * (other.weight / weight),
        one.squares + other.squares + apart**2 * factor,
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
        one.counts + other.counts,
        full,
        sparse,
        one.target + (other.target - one.target) * (other.weight / weight),
        one.cross + other.cross + apart * (other.target - one.target) * factor,
        products,
    )


def without(whole: ColumnStats, part: ColumnStats) -> ColumnStats:
    """Return the statistics that remain after a chunk is removed: the inverse of ``merge`` as far as possible.

    Three quantities are only approximate:

    - The squares of a column have an absolute error of about ROUNDED times the former squares, as digits cancel.
    - If an extreme value is removed, the next one is unknown. It is assumed to lie within WITHIN standard deviations.
    - If `part` has no products, or too few digits of their difference remain, the former correlations are kept.
    """
    rows, weight = whole.rows - part.rows, whole.weight - part.weight
    if not part.rows:
        return whole
    if rows <= 0:
        return no_stats(len(whole.mean))
    if weight <= 0:  # possible if a revisit changed the weights
        return without(whole, typical(whole, part.rows))
    apart, share = (part.mean - whole.mean) * (whole.weight / weight), part.weight / whole.weight
    mean, factor = part.mean - apart, weight * share
    target = part.target - (part.target - whole.target) * (whole.weight / weight)
    left = whole.squares - part.squares - apart**2 * factor
    squares = np.maximum(left, ROUNDED * whole.squares)
    products, remains = None, left / np.where(whole.squares > 0, whole.squares, 1.0)
    if whole.products is not None:
        if part.products is not None and (remains[whole.squares > 0] > CANCELLED).all():
            products = whole.products - part.products - np.outer(apart, apart) * factor
        else:
            shrink = np.sqrt(np.maximum(remains, ROUNDED))
            products = whole.products * np.outer(shrink, shrink)
        np.fill_diagonal(products, squares)
    within = WITHIN * np.sqrt(squares / weight)
    return whole._replace(
        rows=rows,
        weight=weight,
        mean=mean,
        squares=squares,
        low=np.where(part.low <= whole.low, np.maximum(whole.low, mean - within), whole.low),
        high=np.where(part.high >= whole.high, np.minimum(whole.high, mean + within), whole.high),
        counts=whole.counts - part.counts,
        target=target,
        cross=whole.cross - part.cross - apart * (part.target - target) * factor,
        products=products,
    )


def typical(whole: ColumnStats, rows: int) -> ColumnStats:
    """Return the expected statistics of a number of rows, assuming that they resemble all others."""
    share = rows / whole.rows
    return whole._replace(
        rows=rows,
        weight=whole.weight * share,
        squares=whole.squares * share,
        counts=(whole.counts * share).astype(int),
        cross=whole.cross * share,
        products=None,
    )
