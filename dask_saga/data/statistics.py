"""What is known of the columns of chunks, and of their merger."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..execution.threads import even_slices, one_blas_thread, thread_count, threads
from ..kernels.column_moments import dense_moments, gather_columns, read_moments, sparse_moments
from ..kernels.intrinsics import DOUBLES, empty_on_lines
from ..penalties import ElasticNet
from .chunk import BLOCK_BYTES, frozen, ordered_blocks, row_arrays
from .targets import LARGEST
from .validation import check_finite

if TYPE_CHECKING:
    from .chunk import Chunk

__all__ = [
    "MOMENTS",
    "ColumnStats",
    "column_stats",
    "gram",
    "measure",
    "merge",
    "no_stats",
    "typical",
    "wants_products",
    "without",
]


# Columns up to which products are collected.
MOST_ROTATED = 300

# Rows of a chunk of which products are taken, at least, and rows that are looked at together.
MOST_MULTIPLIED, LEAST_MULTIPLIED, MOMENTS = 2**13, 2**10, 2**12

# Entries of sparse rows for each column that are looked at together, at least.
MOMENTS_ENTRIES = 32

# Magnitudes that sparse rows tell.
SINGLE = np.finfo(np.float32)

# Multiplications of so few are not worth BLAS.
FEW = 2**15

# Sums are taken anew about the mean where squares about the origin are so many times larger than those about it.
FAR = 1e6

# What is known of a column's rest, in units of what was known before: less is rounding. Products need more.
ROUNDED, CANCELLED = 1e-13, 1e-5

# Where the extreme value leaves, the rest is taken to lie within so many standard deviations.
WITHIN = 10.0


class ColumnStats(NamedTuple):
    """What is known of the columns of all chunks seen; arrays have shape (p,) but for `products`.

    Parameters
    ----------
    rows : int
        Rows of positive weight.
    weight : float
        Sum of weights.
    mean, squares : ndarray
        Weighted mean, and weighted sum of squared deviations from it.
    low, high : ndarray
        Extremes; of columns that not every row of a sparse chunk stores the largest magnitude, to 32 bits, either way.
    counts : ndarray
        Rows in which the column is stored: all of them in dense chunks.
    full : ndarray of bool
        Whether every row stores it, those without weight as well.
    sparse : bool
        Whether any chunk is sparse.
    target : float
        Weighted mean of the targets.
    cross : ndarray
        Weighted sum of products of deviations of column and target, of dense chunks.
    products : ndarray of shape (p, p) or None
        Weighted sum of products of deviations of columns, where it was asked for in all chunks.
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


def wants_products(p: int, problem: Any) -> bool:
    """Whether a rotation of p columns is open to this problem."""
    rotates = isinstance(problem.penalty, ElasticNet) and problem.penalty.rotates
    return bool(problem.precondition and rotates and 1 < p <= MOST_ROTATED)


def no_stats(p: int, full: Any = True) -> ColumnStats:
    """Statistics of p columns without rows of positive weight."""
    zeros, full = np.zeros(p), np.broadcast_to(full, p)
    low, high, counts = zeros + np.inf, zeros - np.inf, np.zeros(p, int)
    return ColumnStats(0, 0.0, zeros, zeros, low, high, counts, full, False, 0.0, zeros, None)


def column_stats(chunk: Chunk, problem: Any) -> ColumnStats:
    """Statistics of the columns of a chunk, as ``measure`` finds them."""
    return measure(chunk, problem)[0]


def measure(
    chunk: Chunk, problem: Any, chunks: int = 1, factors: np.ndarray | None = None
) -> tuple[ColumnStats, np.ndarray]:
    """Statistics of the columns of one of so many chunks, in float64, by one pass over its rows.

    Products are those of MOST_MULTIPLIED rows of all chunks where the loss is not quadratic, as they only choose
    coordinates.

    Parameters
    ----------
    chunk : Chunk
    problem : Problem
    chunks : int, default=1
    factors : ndarray of shape (n, 1), default=None
        Of rows whose sum is asked as well; zero where a row weighs nothing.

    Returns
    -------
    stats : ColumnStats
    sums : ndarray of shape (1, p + 1), or (0, p + 1) without factors
        sum_i factors_i a_i, with 1 for the intercept's column.

    Raises
    ------
    ValueError
        If values are not finite, or so large that squares would overflow.
    """
    rows, p, sparse = chunk.rows, chunk.rows.shape[1], sp.issparse(chunk.rows)
    used = chunk.weights > 0 if chunk.weights.size else np.ones(len(chunk.targets), bool)
    full = np.ones(p, bool)
    factors = np.zeros((len(used), 0)) if factors is None else factors
    if not used.all():
        if sparse:  # what it does not count must store a column as well
            full = np.bincount(rows.indices, minlength=p) == len(used)
        # And it must not be too large either.
        _check_all(rows)
        factors, weights = factors[used], chunk.weights[used]
        chunk = chunk._replace(rows=rows[used], targets=chunk.targets[used], weights=weights)
    with np.errstate(over="ignore", invalid="ignore"):
        if not used.any():
            stats, sums = no_stats(p, full)._replace(sparse=sparse), np.zeros((factors.shape[1], p))
        else:
            stats, sums = (_measure_sparse if sparse else _measure_dense)(chunk, full, problem, chunks, factors)
    return stats, np.column_stack([sums, factors.sum(axis=0)])


def _check_values(rows: Any, low: np.ndarray, high: np.ndarray, *sums: np.ndarray) -> None:
    if not all(np.isfinite(one).all() for one in (low, high, *sums)):
        check_finite(rows)
    extremes = np.maximum(high, -low)
    if (extremes > LARGEST).any():
        raise ValueError(f"X has values beyond {LARGEST:.0e} in column {extremes.argmax()}; give it in larger units")


def _check_all(rows: Any, *sums: np.ndarray) -> None:
    _check_values(rows, *(_extremes(rows, name) for name in ("min", "max")), *sums)


def _extremes(rows: Any, name: str) -> np.ndarray:
    extremes = getattr(rows, name)(axis=0)
    return (extremes.toarray().ravel() if sp.issparse(rows) else extremes).astype(np.float64)


def _pulls(targets: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted mean of the targets, and weighted deviations from it."""
    targets = targets.mean(axis=1) if targets.shape[1] > 1 else targets[:, 0]
    target = float((targets * weights).sum() / weights.sum())
    return target, (targets - target) * weights


def _measure_sparse(chunk, full, problem, chunks, factors):
    rows, n, p, weights = chunk.rows, len(chunk.targets), len(full), chunk.row_weights
    weight, count = weights.sum(), thread_count(problem.n_threads, chunk.entries)
    parts = even_slices(n, 2 ** min(max(rows.nnz // (MOMENTS_ENTRIES * p), 1).bit_length() - 1, 3))
    tables = empty_on_lines(len(parts), p, DOUBLES // 2)

    def add(table: np.ndarray, part: slice) -> float:
        table.fill(0.0)
        return sparse_moments(*row_arrays(rows, part), frozen(weights[part]), frozen(factors[part]), table)

    with threads(count) as each:
        largest = max(each(add, tables, parts))
    (mean, squares, high), counts, sums = np.empty((3, p)), np.empty(p, np.int64), np.empty((factors.shape[1], p))
    read_moments(tables, weight, mean, squares, sums, counts, high)
    full = full & (counts == n)
    if not (largest <= LARGEST and np.isfinite(mean).all()):
        _check_all(rows, mean)
    if largest > SINGLE.max or ((high < SINGLE.tiny) & (squares > 0)).any():
        high = _extremes(abs(rows), "max")
    low = -high
    if full.any():  # as of dense rows
        some, place = np.flatnonzero(full), np.where(full, np.cumsum(full) - 1, -1)

        def read(block: slice) -> Iterator[tuple[slice, np.ndarray]]:
            size = max(1, BLOCK_BYTES // (rows.dtype.itemsize * len(some)))
            for start in range(block.start, block.stop, size):
                part = slice(start, min(start + size, block.stop))
                few = np.zeros((part.stop - start, len(some)), rows.dtype)
                gather_columns(*row_arrays(rows, part), place, few)
                yield part, few

        moments = _block_moments(read, weights, factors, len(some), count)
        few = rows[:: max(1, n // 1000)][:, some].toarray()
        mean[some], squares[some], low[some], high[some], more, origin = _about(moments, _middle(few), weight)
        sums[:, some] = more + factors.sum(axis=0)[:, None] * origin
    target, _ = _pulls(chunk.targets, weights)
    return ColumnStats(n, weight, mean, squares, low, high, counts, full, True, target, np.zeros(p), None), sums


def _measure_dense(chunk, full, problem, chunks, factors):
    rows, (n, p), weights = chunk.rows, chunk.rows.shape, chunk.row_weights
    (target, pulls), weight = _pulls(chunk.targets, weights), weights.sum()
    moments = _block_moments(
        functools.partial(ordered_blocks, rows), weights, np.column_stack([pulls, factors]), p,
        thread_count(problem.n_threads, chunk.entries),
    )  # fmt: skip
    few = np.ascontiguousarray(rows[:: max(1, n // 1000)])
    mean, squares, low, high, products, origin = _about(moments, _middle(few), weight)
    sums = products[1:] + factors.sum(axis=0)[:, None] * origin
    cross = products[0].copy()  # the rest is not to be kept with it
    _check_values(rows, low, high, mean)  # before products, of which threads would warn
    products = _products(rows, weights, mean, squares, problem, chunks) if wants_products(p, problem) else None
    counts = np.full(p, n)
    return ColumnStats(n, weight, mean, squares, low, high, counts, full, False, target, cross, products), sums


def _block_moments(
    read: Callable[[slice], Iterable], weights: np.ndarray, pulls: np.ndarray, p: int, count: int
) -> Callable[[np.ndarray], tuple]:
    """A function that tells moments of dense rows about an origin, of blocks that it reads.

    Not by BLAS: its sums depend on the alignment of the rows and on its threads.
    """
    n, c = pulls.shape
    blocks = [slice(start, min(start + MOMENTS, n)) for start in range(0, n, MOMENTS)]

    def moments(origin: np.ndarray) -> tuple[np.ndarray, ...]:
        def add(block: slice) -> np.ndarray:
            out = np.zeros((4 + c, p))
            out[2:4] = [[np.inf], [-np.inf]]
            for some, few in read(block):
                dense_moments(frozen(few), frozen(weights[some]), frozen(pulls[some]), frozen(origin), out)
            return out

        with threads(count) as each:
            parts = np.array(list(each(add, blocks)))
        return *parts[:, :2].sum(axis=0), parts[:, 2].min(axis=0), parts[:, 3].max(axis=0), parts[:, 4:].sum(axis=0)

    return moments


def _middle(few: np.ndarray) -> np.ndarray:
    """The mean of a few rows, about which columns far from zero keep their digits."""
    return few[0] + (few - few[0].astype(np.float64)).mean(axis=0)


def _about(moments: Callable, origin: np.ndarray, weight: float) -> tuple:
    """What moments about an origin tell, anew about the mean if the origin's few rows were unlike the others."""
    sums, squares, *rest = moments(origin)
    if (squares > FAR * (squares - sums**2 / weight)).any():
        origin = origin + sums / weight
        sums, squares, *rest = moments(origin)
    return origin + sums / weight, np.maximum(squares - sums**2 / weight, 0.0), *rest, origin


def _products(
    rows: np.ndarray, weights: np.ndarray, mean: np.ndarray, squares: np.ndarray, problem: Any, chunks: int
) -> np.ndarray:
    """Sums of products of columns, by BLAS, as they are rounded before they decide."""
    n, p = rows.shape
    most = n if getattr(problem.loss, "quadratic", False) else max(MOST_MULTIPLIED, 50 * p) // chunks
    most = max(most, LEAST_MULTIPLIED, 20 * p)  # enough for the curvature of the chunk along an axis
    if n > most:
        some = np.sort(np.random.default_rng((n, p)).choice(n, most, replace=False, shuffle=False))
        rows, weights = rows[some], weights[some]
    products = gram(rows, weights, mean, problem.n_threads)
    # Of the same variances as all rows.
    lengths = np.sqrt(np.diag(products))
    factors = np.divide(np.sqrt(squares), lengths, out=np.zeros(p), where=lengths > 0)
    products *= np.outer(factors, factors)
    np.fill_diagonal(products, squares)
    return products


def gram(rows: np.ndarray, weights: np.ndarray, mean: np.ndarray, n_threads: int = 1) -> np.ndarray:
    """Weighted sums of products of dense columns about a mean, of shape (p, p), by BLAS."""
    p = rows.shape[1]
    blocks = [slice(start, start + MOMENTS) for start in range(0, len(weights), MOMENTS)]
    few = rows.size * p <= FEW  # to tell BLAS how many threads it may take would cost more than they do

    def multiply(block: slice) -> np.ndarray:
        apart = (np.ascontiguousarray(rows[block]) - mean) * np.sqrt(weights[block])[:, None]
        # Of a matrix times its transpose BLAS takes half.
        return np.einsum("ij,ik->jk", apart, apart) if few else apart.T @ apart

    count = thread_count(n_threads, rows.size)
    with one_blas_thread(0 if few else np.inf), threads(count) as each:
        return sum(each(multiply, blocks))


def merge(one: ColumnStats, other: ColumnStats) -> ColumnStats:
    """Statistics of the chunks of both (Chan, Golub, LeVeque 1983, equation 2.1)."""
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
    """Statistics of the rest when one chunk leaves: the inverse of ``merge``, as far as there is one.

    A difference keeps the digits of what it is taken from, so a column of which nearly all variance leaves
    is known to ROUNDED of it only. Extremes that leave are not known of the rest, nor are products of which
    too few digits remain, or that `part` lacks: correlations are then those of the whole.
    """
    rows, weight = whole.rows - part.rows, whole.weight - part.weight
    if not part.rows:
        return whole
    if rows <= 0:
        return no_stats(len(whole.mean))
    if weight <= 0:  # a revisit had other weights
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
    """Statistics of so many rows, if they are like the others."""
    share = rows / whole.rows
    return whole._replace(
        rows=rows,
        weight=whole.weight * share,
        squares=whole.squares * share,
        counts=(whole.counts * share).astype(int),
        cross=whole.cross * share,
        products=None,
    )
