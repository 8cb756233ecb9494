"""Column statistics, the solver's coordinates, Lipschitz bounds and the step size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from .inputs import Chunk

# Bound of a squared entry in the solver's coordinates, in units of the column's variance.
LARGEST_ENTRY = 100.0

__all__ = ["ColumnStats", "Metric", "choose_metric", "column_stats", "curvature_bound", "merge", "to_solver", "to_user"]


class ColumnStats(NamedTuple):
    """What is known of the columns of all chunks seen; all arrays have shape (p,).

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
    sparse : bool
        Whether any chunk is sparse.
    """

    rows: int
    weight: float
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    sparse: bool


class Metric(NamedTuple):
    """The solver's coordinates: rows ``a - shift``, steps ``step * scale``.

    The optimum does not depend on it, as only the steps know it.

    Parameters
    ----------
    shift, scale : ndarray of shape (p,)
        The shift is zero where any chunk is sparse.
    rarity : ndarray of shape (p,)
        D of sparse SAGA: rows seen over rows in which the column is stored.
    mean_square : float
        Mean of ||a||^2 in these coordinates, the intercept's 1 included.
    rows : int
        Rows that the statistics behind it knew.
    """

    shift: np.ndarray
    scale: np.ndarray
    rarity: np.ndarray
    mean_square: float
    rows: int


def no_stats(p: int) -> ColumnStats:
    """Statistics of p columns without rows."""
    zeros = np.zeros(p)
    return ColumnStats(0, 0.0, zeros, zeros, zeros + np.inf, zeros - np.inf, np.zeros(p, int), False)


def column_stats(chunk: Chunk) -> ColumnStats:
    """Statistics of one chunk's columns, in float64 and, if dense, by two passes.

    Raises
    ------
    ValueError
        If squares overflow.
    """
    stats = no_stats(chunk.rows.shape[1])
    for block, rows in chunk.row_blocks():
        weights = chunk.weights[block] if chunk.weights.size else np.ones(rows.shape[0])
        with np.errstate(over="ignore", invalid="ignore"):
            stats = merge(stats, _block_stats(rows, weights))
    if not np.isfinite(stats.squares).all():
        raise ValueError(f"X has values too large to be squared in column {np.argmin(np.isfinite(stats.squares))}")
    return stats


def _block_stats(rows: Any, weights: np.ndarray) -> ColumnStats:
    used = weights > 0
    if not used.all():
        rows, weights = rows[used], weights[used]
    n, p = rows.shape
    if n == 0:
        return no_stats(p)
    weight = weights.sum()
    if sp.issparse(rows):
        mean = rows.T @ weights / weight
        squares = np.maximum(rows.multiply(rows).T @ weights - weight * mean**2, 0.0)
        low, high = (extreme.toarray().ravel() for extreme in (rows.min(axis=0), rows.max(axis=0)))
        return ColumnStats(n, weight, mean, squares, low, high, np.bincount(rows.indices, minlength=p), True)
    # Not by BLAS: its sums depend on the alignment of the rows and on its threads.
    mean = (rows * weights[:, None]).sum(axis=0) / weight
    squares = (np.square(rows - mean) * weights[:, None]).sum(axis=0)
    return ColumnStats(n, weight, mean, squares, rows.min(axis=0), rows.max(axis=0), np.full(p, n), False)


def merge(one: ColumnStats, other: ColumnStats) -> ColumnStats:
    """Statistics of the chunks of both (Chan, Golub, LeVeque 1983, equation 2.1)."""
    if not one.rows or not other.rows:
        return one if one.rows else other
    weight = one.weight + other.weight
    apart = other.mean - one.mean
    return ColumnStats(
        one.rows + other.rows,
        weight,
        one.mean + apart * (other.weight / weight),
        one.squares + other.squares + apart**2 * (one.weight * other.weight / weight),
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
        one.counts + other.counts,
        one.sparse or other.sparse,
    )


def choose_metric(stats: ColumnStats, problem: Any) -> Metric:
    """The solver's coordinates for columns like these.

    Dense rows are centred, where there is an intercept to absorb it, and scaled to unit
    variance, yet so that no squared entry exceeds LARGEST_ENTRY: rare levels would else
    rule the step. Sparse rows are scaled by the mean square of their stored entries.

    Parameters
    ----------
    stats : ColumnStats
        Of all chunks seen.
    problem : Problem
        Its `precondition` and `fit_intercept`.
    """
    p, weight = len(stats.mean), max(stats.weight, np.finfo(float).tiny)
    centred = problem.precondition and problem.fit_intercept and not stats.sparse
    shift = stats.mean if centred else np.zeros(p)
    rarity = stats.rows / np.maximum(stats.counts, 1)
    moment = stats.squares / weight + stats.mean**2
    spread = stats.squares / weight if centred else moment
    scale = np.ones(p)
    if problem.precondition and stats.rows:
        largest = np.maximum((stats.high - shift) ** 2, (stats.low - shift) ** 2) / LARGEST_ENTRY
        divisor = moment * rarity if stats.sparse else np.maximum(spread, largest)
        # A column that is constant but for rounding keeps unit steps.
        varies = divisor > 1e-24 * moment
        scale[varies] = 1.0 / divisor[varies]
    return Metric(shift, scale, rarity, float((spread * scale).sum()) + problem.fit_intercept, stats.rows)


def curvature_bound(chunk: Chunk, metric: Metric, problem: Any) -> float:
    """Largest ``c w_i (||a_i||^2 + 1)`` of a chunk's rows, in the solver's coordinates.

    c is the loss's ``curvature``; the 1 is the intercept's column. It bounds the
    Lipschitz constant L_i of every row's gradient (SAGA paper, section 2).
    """
    largest = 0.0
    for block, rows in chunk.row_blocks():
        if sp.issparse(rows):
            bounds = rows.multiply(rows) @ metric.scale
        else:
            bounds = (np.square(rows - metric.shift) * metric.scale).sum(axis=1)
        bounds = bounds + problem.fit_intercept
        if chunk.weights.size:
            bounds = bounds * chunk.weights[block]
        largest = max(largest, float(bounds.max(initial=0.0)))
    return problem.loss.curvature * largest


def to_solver(x: np.ndarray, gradient_sum: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """x and gradient sum of shape (k, p + 1) from the user's coordinates to the solver's, as new arrays."""
    x, gradient_sum = x.copy(), gradient_sum.copy()
    x[:, -1] += (x[:, :-1] * metric.shift).sum(axis=1)
    gradient_sum[:, :-1] -= gradient_sum[:, -1:] * metric.shift
    return x, gradient_sum


def to_user(x: np.ndarray, gradient_sum: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``to_solver``."""
    x, gradient_sum = x.copy(), gradient_sum.copy()
    x[:, -1] -= (x[:, :-1] * metric.shift).sum(axis=1)
    gradient_sum[:, :-1] += gradient_sum[:, -1:] * metric.shift
    return x, gradient_sum
