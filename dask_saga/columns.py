"""What is known of the columns of chunks, and of their merger."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ._kernels import kernels_for
from .inputs import Chunk, frozen
from .penalties import ElasticNet
from .threads import one_blas_thread, sharers, threads

__all__ = ["ColumnStats", "column_stats", "merge", "no_stats", "typical", "wants_products", "without"]

# Columns up to which products are collected.
MOST_ROTATED = 300
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
        Extremes.
    counts : ndarray
        Rows in which the column is stored: all of them in dense chunks.
    full : ndarray of bool
        Whether every row stores it, those without weight as well.
    sparse : bool
        Whether any chunk is sparse.
    target : float
        Weighted mean of the targets.
    cross : ndarray
        Weighted sum of products of deviations of column and target.
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
    """Statistics of one chunk's columns, in float64 and, if dense, by two passes.

    Raises
    ------
    ValueError
        If squares overflow.
    """
    p, kernels = chunk.rows.shape[1], kernels_for(problem.loss, problem.penalty)
    products = wants_products(p, problem)

    quietly = np.errstate(over="ignore", invalid="ignore")

    @quietly
    def examine(block: slice) -> ColumnStats:
        rows = (chunk.rows if sp.issparse(chunk.rows) else chunk.rows[block]).astype(np.float64, copy=False)
        weights = chunk.weights[block] if chunk.weights.size else np.ones(rows.shape[0])
        return _block_stats(rows, chunk.targets[block], weights, products, kernels)

    count = sharers(problem.n_threads, chunk.entries)
    with one_blas_thread(np.inf if products else 0.0), threads(count) as each, quietly:
        stats = functools.reduce(merge, each(examine, chunk.row_blocks()), no_stats(p))
    if not np.isfinite(stats.squares).all():
        raise ValueError(f"X has values too large to be squared in column {np.argmin(np.isfinite(stats.squares))}")
    return stats


def _block_stats(rows: Any, targets: np.ndarray, weights: np.ndarray, products: bool, kernels: Any) -> ColumnStats:
    used, p = weights > 0, rows.shape[1]
    full = np.bincount(rows.indices, minlength=p) == len(weights) if sp.issparse(rows) else np.ones(p, bool)
    if not used.all():
        rows, targets, weights = rows[used], targets[used], weights[used]
    n = rows.shape[0]
    if n == 0:
        return no_stats(p, full)._replace(sparse=sp.issparse(rows))
    weight = weights.sum()
    targets = targets.mean(axis=1)
    target = float((targets * weights).sum() / weight)
    pulls = (targets - target) * weights
    if sp.issparse(rows):
        mean = rows.T @ weights / weight
        squares = np.maximum(rows.multiply(rows).T @ weights - weight * mean**2, 0.0)
        low, high = (extreme.toarray().ravel() for extreme in (rows.min(axis=0), rows.max(axis=0)))
        counts = np.bincount(rows.indices, minlength=p)
        if full.any():  # the difference of squares would lose the variance of columns far from zero
            dense = rows[:, np.flatnonzero(full)].toarray() - mean[full]
            squares[full] = (dense * dense * weights[:, None]).sum(axis=0)
        return ColumnStats(n, weight, mean, squares, low, high, counts, full, True, target, rows.T @ pulls, None)
    # Not by BLAS: its sums depend on the alignment of the rows and on its threads.
    rows, mean, apart = frozen(np.ascontiguousarray(rows)), rows[0].astype(float), np.empty((n, p))
    for _ in range(2):  # about the first row, so that columns far from zero keep their digits, then about the mean
        sums, squares, cross = np.zeros((3, p))
        low, high = np.full(p, np.inf), np.full(p, -np.inf)
        kernels.dense_moments(
            rows, frozen(weights), frozen(pulls), frozen(mean), apart, sums, squares, cross, low, high
        )
        mean = mean + sums / weight
    product = None
    if products:  # by BLAS, as these are rounded before they decide; of a matrix times its transpose it takes half
        apart *= np.sqrt(weights)[:, None]
        product = apart.T @ apart
    return ColumnStats(n, weight, mean, squares, low, high, np.full(p, n), full, False, target, cross, product)


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
