"""Which preconditioner suits columns like these: scales, rotation, and how long steps may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import lapack

from ..data.chunk import frozen
from ..data.statistics import wants_products
from ..execution.threads import one_blas_thread
from ..kernels.column_moments import LARGEST_ENTRY, LEAST_SQUARE, overshoot_limits, scale_columns
from .preconditioner import Preconditioner

if TYPE_CHECKING:
    from ..data.statistics import ColumnStats

__all__ = ["STALE", "axis_limits", "choose_preconditioner", "limit_axes", "staleness"]


# To turn p columns costs p / ROTATES_FREELY visits of their rows (benchmarks/rotation.py).
ROTATES_FREELY = 40.0

# Passes that even perfect coordinates take, and the accuracy for which passes are predicted.
FEWEST_PASSES, ACCURACY = 5.0, 1e-6

# Mean curvature in units of its bound, for that prediction; and what is counted on where steps are shortened.
MEAN_CURVATURE, LEAST_CURVATURE = 0.4, 0.03

# Of what there was a first pass leaves the one times its step, a later one the other, for steps in units of 1 / L
# and where nothing else holds them up (benchmarks/step.py).
FIRST_NOISE, NOISE = 0.7, 1.0 / 3.0

# What steps may be shortened to.
SHARES = (1.0, 0.5, 0.25, 0.125)

# What steps may be, where a chunk limits them: the bound of a loss's curvature is above its mean.
ACTUAL = 5.0

# Coordinates are chosen anew where chunks that came or left since make so large a share of the rows or weights.
STALE = 0.1

# What is taken for L over the least curvature where the curvature may fall far below its bound.
ILL_CONDITION = 4500.0


def choose_preconditioner(stats: ColumnStats, problem: Any, sampled: float | None = None) -> Preconditioner:
    """The solver's coordinates for columns like these.

    Dense rows are centred, where there is an intercept to absorb it, and scaled to unit
    variance, yet so that no squared entry exceeds LARGEST_ENTRY: rare levels would else
    rule the step. Where it is predicted to pay in time, they are rotated to their principal
    axes before. Sparse rows are centred in columns that every row stores, and scaled by
    the geometric mean of their mean square and that of their stored entries.

    Parameters
    ----------
    stats : ColumnStats
        Of all chunks seen.
    problem : Problem
        Its `loss`, `penalty`, `precondition` and `fit_intercept`.
    sampled : float, default=None
        Rows of the sample that leads the passes of a fit, or 0 where none does. None where chunks come one by one.
    """
    p, weight = len(stats.mean), max(stats.weight, np.finfo(float).tiny)
    bound = problem.loss.curvature
    # Poisson's is exp(z): the mean target at the optimum, but 1 at x = 0, which only an intercept leaves fast.
    curvature = max(stats.target, 0.1 if problem.fit_intercept else 1.0) if bound is None else float(bound)
    out, varies, scales = np.empty((4, p)), np.empty(p, bool), bool(problem.precondition and stats.rows)
    told = tuple(frozen(one) for one in (stats.mean, stats.squares, stats.low, stats.high, stats.counts, stats.full))
    centres = scales and bool(problem.fit_intercept)
    scale_columns(told, stats.rows, float(weight), stats.sparse, centres, scales, out, varies)
    shift, scale, inverse_density, spread = out
    mean_square = _above_least(float((spread * scale).sum()) + problem.fit_intercept)
    if not scales:
        return Preconditioner(shift, scale, None, inverse_density, spread, mean_square, curvature, 1.0, stats.rows / 2)

    step_factor = _step_factor(stats.rows, mean_square, problem)
    scaled = Preconditioner(
        shift, scale, None, inverse_density, spread, mean_square, curvature, step_factor, stats.rows / 2
    )
    if stats.products is None or not varies.any() or not wants_products(p, problem):
        return scaled
    products = stats.products / weight + np.outer(stats.mean - shift, stats.mean - shift)
    return _rotated(scaled, stats, products, varies, problem, sampled)


def _above_least(mean_square: float) -> float:
    return mean_square if mean_square > LEAST_SQUARE else 0.0


def staleness(before: ColumnStats, now: ColumnStats, problem: Any) -> float:
    """How far a chunk that came or left changed the statistics: its share of the rows, or of the weights.

    Infinite where coordinates chosen before would be wrong: where columns came to be stored in some rows only,
    or values lie so far off that they would rule the step.
    """
    if not before.rows or not now.rows:
        return np.inf
    if (before.sparse, before.products is None) != (now.sparse, now.products is None):
        return np.inf
    if (before.full != now.full).any():
        return np.inf
    records = (now.low < before.low) | (now.high > before.high)
    if records.any():
        beyond = np.maximum(now.high - before.mean, before.mean - now.low) ** 2 * before.weight
        if (records & (beyond > LARGEST_ENTRY * before.squares)).any():
            return np.inf
    shares = [abs(now.rows - before.rows) / now.rows]
    with np.errstate(over="ignore"):
        shares.append(abs(now.weight - before.weight) / now.weight)
    if problem.loss.curvature is None:
        shares.append(abs(now.target - before.target) / abs(before.target) if before.target else np.inf)
    return max(shares)


def _step_factor(rows: int, mean_square: float, problem: Any) -> float:
    """How much longer steps may be where there are few rows for the condition of the problem.

    Implicit steps converge best at about sqrt(condition / rows) / L (Defazio 2016, theorem 1), when
    that is more than what serves many rows.
    """
    condition = mean_square if getattr(problem.loss, "quadratic", False) else min(100 * mean_square, ILL_CONDITION)
    return max(1.0, float(np.sqrt(condition / max(rows, 1))) / 0.3)


def _rotated(
    scaled: Preconditioner,
    stats: ColumnStats,
    products: np.ndarray,
    varies: np.ndarray,
    problem: Any,
    sampled: float | None,
) -> Preconditioner:
    """Coordinates along the principal axes, if they are predicted to pay in time."""
    p = len(products)
    # What the penalty adds to the curvature, and enough for the Cholesky factor of columns that depend on each other.
    ridge = problem.penalty.l2 / scaled.curvature
    if ridge > 1.0 / LEAST_SQUARE:
        return scaled
    size = np.where(varies, np.sqrt(scaled.spread + ridge), 1.0)
    products = np.where(np.outer(varies, varies), products, 0.0)
    # Rounded, as the last bits of BLAS depend on the alignment of the rows and on its threads.
    correlation = np.round((products + ridge * np.eye(p)) / np.outer(size, size), 9)
    np.fill_diagonal(correlation, 1.0 + 1e-8 + 1e-9 * p)
    with one_blas_thread():
        units = size * np.sqrt(scaled.scale)
        curvatures, axes = np.linalg.eigh(correlation * np.outer(units, units))
        curvatures = np.maximum(curvatures, 1e-12)
        gains = (axes.T @ (stats.cross * np.sqrt(scaled.scale))) ** 2 / curvatures
        visited = MEAN_CURVATURE * 0.3 * scaled.step_factor * (sampled or stats.rows) / scaled.mean_square
        passes, turning = _drift_passes(curvatures, gains, visited), p / ROTATES_FREELY
        # Newton's step needs the axes. A sample is turned once, other rows in each visit.
        newton = sampled is not None and problem.automatic and getattr(problem.loss, "quadratic", False)
        if not newton and passes < (1.0 + turning if sampled else FEWEST_PASSES * turning):
            return _shortened(scaled, curvatures, gains, stats.rows)
        # One-sided Jacobi keeps small axes exact beside columns in large units (Demmel, Veselic 1992).
        try:
            factor = np.asfortranarray(size[:, None] * np.linalg.cholesky(correlation))
        except np.linalg.LinAlgError:  # rounding, where most of what was known has left again
            return scaled
        lengths, rotation, _, work, _, info = lapack.dgejsv(factor, joba=2, jobu=0, jobv=3)
        # Orthonormal but for rounding, of which the coefficient of a small column, a large number, would bring much
        # into the others: one step of Newton and Schulz leaves rounding in each column's own units.
        rotation = rotation - 0.5 * (rotation @ rotation.T - np.eye(p)) @ rotation
    if info:
        return scaled
    squares = (lengths * work[0] / work[1]) ** 2
    spread, scale = np.maximum(squares - ridge, 0.0), 1.0 / squares
    mean_square = float((spread * scale).sum()) + problem.fit_intercept
    rotated = scaled._replace(
        scale=scale,
        rotation=np.ascontiguousarray(rotation),
        spread=spread,
        mean_square=mean_square,
        step_factor=_step_factor(stats.rows, mean_square, problem),
    )
    gains = (rotation * stats.cross[:, None]).sum(axis=0) ** 2 / squares
    return _shortened(rotated, spread * scale, gains, stats.rows)


def _drift_passes(curvatures: np.ndarray, gains: np.ndarray, step_factor: float) -> float:
    """Passes until what is left along all axes is ACCURACY of what there was to gain."""
    passes = 2.0 ** np.arange(0, 15, 0.5)
    left = (np.exp(-2.0 * step_factor * np.outer(passes, curvatures)) * gains).sum(axis=1)
    return float(passes[min(int((left > ACCURACY * gains.sum()).sum()), len(passes) - 1)])


def _shortened(metric: Preconditioner, curvatures: np.ndarray, gains: np.ndarray, rows: int) -> Preconditioner:
    """With the steps that are predicted to take the fewest passes: short ones are noisy less, but drift slower."""
    if metric.step_factor > 1.0:
        return metric

    def passes(share: float) -> float:
        step = 0.3 * share
        noisy = 1.0 + np.log(ACCURACY / (FIRST_NOISE * step)) / np.log(NOISE * step)
        return max(noisy, _drift_passes(curvatures, gains, LEAST_CURVATURE * step * rows / metric.mean_square))

    return metric._replace(step_factor=min(SHARES, key=passes))


def axis_limits(stats: ColumnStats, metric: Preconditioner, problem: Any) -> np.ndarray:
    """The longest steps along the axes with which visits of a chunk do not overshoot the whole, of shape (p,).

    With curvature h along an axis, of the chunk h_c, steps s over n rows move x by (1 - exp(-s n h_c)) h / h_c
    times what it is off: too far where the chunk knows little of the axis. What it cannot tell from the intercept
    it does not know. Columns of sparse rows move in rows that store them only; there it is what one such row knows.

    Parameters
    ----------
    stats : ColumnStats
        Of the chunk.
    metric : Metric
    problem : Problem

    Returns
    -------
    ndarray of shape (p,)
        Of ``step * scale``; infinite where the chunk tells nothing.
    """
    if not stats.rows:
        return np.full(len(metric.scale), np.inf)
    apart, sums = None if problem.fit_intercept else stats.mean - metric.shift, stats.squares
    if metric.rotation is None:
        sums = sums if apart is None else sums + stats.weight * apart**2
        known = stats.counts * (metric.inverse_density / stats.rows) * metric.spread
    else:
        products = stats.products if apart is None else stats.products + stats.weight * np.outer(apart, apart)
        with one_blas_thread():
            sums = ((products @ metric.rotation) * metric.rotation).sum(axis=0)
        known = metric.spread
    limits = np.empty_like(metric.scale)
    overshoot_limits(frozen(sums), frozen(known), float(stats.weight), float(stats.rows * metric.curvature), limits)
    return limits


def limit_axes(
    metric: Preconditioner, limits: np.ndarray, problem: Any, step_multiplier: float = 1.0
) -> Preconditioner:
    """Shorter steps along axes on which visits would overshoot.

    Parameters
    ----------
    limits : ndarray of shape (p,)
        The least of ``axis_limits`` of the chunks.
    """
    if not (problem.automatic and problem.average):
        return metric
    with np.errstate(divide="ignore"):
        shares = np.minimum(1.0, ACTUAL * limits / (problem.step(metric, step_multiplier) * metric.scale))
    # Rounded as in ``_rotated``.
    return metric._replace(scale=metric.scale * np.exp2(np.round(np.log2(shares), 2)))
