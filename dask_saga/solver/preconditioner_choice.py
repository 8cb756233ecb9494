"""Choice of the preconditioner from column statistics: scales, rotation, step factor and limits per axis.

See docs/algorithm/preconditioning.md and docs/algorithm/step_size.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.linalg import lapack

from ..data.statistics import wants_products
from ..execution.threads import one_blas_thread
from ..kernels.column_moments import LARGEST_ENTRY, LEAST_SQUARE, overshoot_limits, scale_columns
from ..penalties import ElasticNet
from .preconditioned_problem import PreconditionedProblem
from .preconditioner import Preconditioner
from .problem import null_model
from .step_rule import STEP_RULE

if TYPE_CHECKING:
    from ..data.statistics import ColumnStats
    from .problem import Problem

__all__ = ["STALE", "axis_limits", "choose_preconditioner", "limit_axes", "staleness"]


# Cost of the rotation: rotating p columns costs as much as p / ROTATES_FREELY visits of their rows
# (benchmarks/rotation.py).
ROTATES_FREELY = 40.0

# Number of passes that a fit takes even with ideal columns.
FEWEST_PASSES = 5.0

# Assumed mean curvature in units of its bound, to predict the passes without rotation.
MEAN_CURVATURE = 0.4

# The preconditioner is chosen anew when the chunks added or removed since the last choice exceed this fraction of the
# rows or of the weight.
STALE = 0.1


def choose_preconditioner(stats: ColumnStats, problem: Problem, sampled: float | None = None) -> Preconditioner:
    """Choose the preconditioner for the given column statistics.

    Dense columns are centred if there is an intercept to absorb the shift, and scaled to unit variance. The scale
    is capped so that no squared entry exceeds LARGEST_ENTRY, because otherwise rare levels would determine the
    step. If a rotation to the principal axes is predicted to save time, the columns are rotated first.

    Sparse columns are centred only if every row stores them. The scale of the others is the inverse of the
    geometric mean of two mean squares: over all rows, and over the rows that store the column.

    Parameters
    ----------
    stats : ColumnStats
        Statistics of all chunks seen so far.
    problem : Problem
        Only `loss`, `penalty`, `precondition`, `fit_intercept` and the step parameters are used.
    sampled : float, default=None
        Effective rows of the subsample of a fit, or 0 if the subsample step is not used. None for streams of
        chunks (``partial_fit``).

    Returns
    -------
    Preconditioner
    """
    p, weight = len(stats.mean), max(stats.weight, np.finfo(float).tiny)
    curvature = _curvature(stats.target, problem)
    out, varies, scales = np.empty((4, p)), np.empty(p, bool), bool(problem.precondition and stats.rows)
    moments = (stats.mean, stats.squares, stats.low, stats.high, stats.counts, stats.full)
    centres = scales and bool(problem.fit_intercept)
    scale_columns(moments, stats.rows, float(weight), stats.sparse, centres, scales, out, varies)
    shift, scale, inverse_density, spread = out
    mean_square = _above_least(float((spread * scale).sum()) + problem.fit_intercept)
    step_factor = _step_factor(stats.rows, mean_square, problem) if scales else 1.0
    max_step = STEP_RULE.max_step_per_row * stats.rows
    scaled = Preconditioner(shift, scale, None, inverse_density, spread, mean_square, curvature, step_factor, max_step)
    if not scales:
        return scaled
    if stats.products is None or not varies.any() or not wants_products(p, problem):
        return scaled
    products = stats.products / weight + np.outer(stats.mean - shift, stats.mean - shift)
    return _rotated(scaled, stats, products, varies, problem, sampled)


def _curvature(target: float, problem: Problem) -> float:
    """Return the bound of the second derivative, or an estimate of its mean near the optimum if there is no bound.

    Parameters
    ----------
    target : float
        Mean of the targets.
    problem : Problem
    """
    loss: Any = problem.loss
    if loss.curvature is not None:
        return float(loss.curvature)
    if null := null_model(problem, target):
        # At x = 0 it may be larger. The first steps must not be far too long there.
        return max(null.curvature, min(0.1, loss.curvature_at(0.0, target)))
    if hasattr(loss, "link"):
        return float(loss.curvature_at(0.0, target))
    # The curvature of the Poisson loss is exp(z). At the optimum its mean is the mean target. At x = 0 it is 1, and
    # without an intercept x leaves that region slowly, so use at least 1 then.
    return max(target, 0.1 if problem.fit_intercept else 1.0)


def _above_least(mean_square: float) -> float:
    return mean_square if mean_square > LEAST_SQUARE else 0.0


def staleness(before: ColumnStats, now: ColumnStats, problem: Problem) -> float:
    """Measure how much an added or removed chunk changed the statistics: its share of the rows or of the weight.

    It is inf if the current preconditioner would be wrong. That is the case if a column is no longer stored in every
    row (or now is), or if new values are so extreme that they would determine the step.

    Parameters
    ----------
    before, now : ColumnStats
        Statistics before and after the change.
    problem : Problem

    Returns
    -------
    float
        Compared with ``STALE`` after summing over changes.
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


def _step_factor(rows: int, mean_square: float, problem: Problem) -> float:
    """Return the factor by which steps are longer if there are few rows for the condition of the problem.

    It is sqrt(condition / rows) / default_scale where that is above 1, else 1. Implicit steps converge best at about
    sqrt(condition / rows) / L (Defazio 2016, theorem 1), and default_scale / L is the step for many rows.
    """
    rule, quadratic = STEP_RULE, getattr(problem.loss, "quadratic", False)
    condition = mean_square if quadratic else min(rule.condition_ratio * mean_square, rule.max_condition)
    return max(1.0, float(np.sqrt(condition / max(rows, 1))) / rule.default_scale)


def _rotated(
    scaled: Preconditioner,
    stats: ColumnStats,
    products: np.ndarray,
    varies: np.ndarray,
    problem: Problem,
    sampled: float | None,
) -> Preconditioner:
    """Return the preconditioner with rotation to the principal axes if it is predicted to save time, else `scaled`.

    Unless the axes cannot be computed, ``_shortened`` then chooses the step factor.
    """
    p = len(products)
    # The L2 penalty adds this to the mean square along every axis.
    ridge = cast(ElasticNet, problem.penalty).l2 / scaled.curvature
    if ridge > 1.0 / LEAST_SQUARE:
        return scaled
    size = np.where(varies, np.sqrt(scaled.spread + ridge), 1.0)
    products = np.where(np.outer(varies, varies), products, 0.0)
    # Round, because the last bits of BLAS depend on memory alignment and threads.
    correlation = np.round((products + ridge * np.eye(p)) / np.outer(size, size), 9)
    # The small addend makes a Cholesky factor exist if columns are linearly dependent.
    np.fill_diagonal(correlation, 1.0 + 1e-8 + 1e-9 * p)
    with one_blas_thread():
        units = size * np.sqrt(scaled.scale)
        curvatures, axes = np.linalg.eigh(correlation * np.outer(units, units))
        curvatures = np.maximum(curvatures, 1e-12)
        gains = (axes.T @ (stats.cross * np.sqrt(scaled.scale))) ** 2 / curvatures
        step = MEAN_CURVATURE * STEP_RULE.default_scale * scaled.step_factor
        visited = step * (sampled or stats.rows) / scaled.mean_square
        passes, turning = _drift_passes(curvatures, gains, visited), p / ROTATES_FREELY
        # Newton's step needs the rotation. A subsample is rotated once, while other rows are rotated in each visit.
        newton = sampled is not None and problem.automatic and getattr(problem.loss, "quadratic", False)
        if not newton and passes < (1.0 + turning if sampled else FEWEST_PASSES * turning):
            return _shortened(scaled, curvatures, gains, stats.rows)
        # One-sided Jacobi keeps small axes accurate beside columns in large units (Demmel, Veselic 1992).
        try:
            factor = np.asfortranarray(size[:, None] * np.linalg.cholesky(correlation))
        except np.linalg.LinAlgError:  # rounding errors, after most of the rows were subtracted again
            return scaled
        lengths, rotation, _, work, _, info = lapack.dgejsv(factor, joba=2, jobu=0, jobv=3)
        # One Newton-Schulz step restores orthonormality. Otherwise a rounding error times the large coefficient of a
        # column in small units would disturb the other columns.
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
    """Predict the number of passes until the remaining suboptimality, summed over axes, is ``accuracy`` of the initial.

    An axis of curvature c keeps exp(-2 step_factor passes c) of its initial suboptimality `gains`.
    """
    passes = 2.0 ** np.arange(0, 15, 0.5)
    left = (np.exp(-2.0 * step_factor * np.outer(passes, curvatures)) * gains).sum(axis=1)
    return float(passes[min(int((left > STEP_RULE.accuracy * gains.sum()).sum()), len(passes) - 1)])


def _shortened(longest: Preconditioner, curvatures: np.ndarray, gains: np.ndarray, rows: int) -> Preconditioner:
    """Choose the shorter step factor that is predicted to take the fewest passes.

    Shorter steps have less noise but drift more slowly, and the larger of the two predictions counts. A step
    factor above 1 is kept.
    """
    if longest.step_factor > 1.0:
        return longest
    rule = STEP_RULE

    def passes(factor: float) -> float:
        step = rule.default_scale * factor
        noisy = 1.0 + np.log(rule.accuracy / (rule.first_noise * step)) / np.log(rule.noise * step)
        return max(noisy, _drift_passes(curvatures, gains, rule.low_curvature * step * rows / longest.mean_square))

    return longest._replace(step_factor=min(rule.shorter_factors, key=passes))


def axis_limits(stats: ColumnStats, preconditioned: PreconditionedProblem) -> np.ndarray:
    """Compute the longest steps along each axis with which visits of one chunk do not overshoot the optimum of all.

    Let h be the curvature of all rows along an axis, and h_c that of a chunk with n rows. A visit with step s moves
    x by (1 - exp(-s n h_c)) h / h_c times its distance to the optimum. The limit -log(1 - h_c / h) / (n h_c) keeps
    this factor at 1. Without it x moves too far where h_c is small.

    With an intercept, h_c is taken about the chunk's own mean, because the chunk cannot distinguish the rest from
    its intercept. In sparse rows only the rows that store a column move it, so h is scaled by the density of
    the column in the chunk relative to that in all rows.

    Parameters
    ----------
    stats : ColumnStats
        Statistics of the chunk.
    preconditioned : PreconditionedProblem

    Returns
    -------
    ndarray of shape (p,)
        Upper bounds of ``step * scale``. inf where the chunk sets no limit.
    """
    problem, preconditioner = preconditioned
    if not stats.rows:
        return np.full(len(preconditioner.scale), np.inf)
    apart, sums = None if problem.fit_intercept else stats.mean - preconditioner.shift, stats.squares
    if preconditioner.rotation is None:
        sums = sums if apart is None else sums + stats.weight * apart**2
        known = stats.counts * (preconditioner.inverse_density / stats.rows) * preconditioner.spread
    else:
        products = cast(np.ndarray, stats.products)  # every chunk has them if columns are rotated
        if apart is not None:
            products = products + stats.weight * np.outer(apart, apart)
        with one_blas_thread():
            sums = ((products @ preconditioner.rotation) * preconditioner.rotation).sum(axis=0)
        known = preconditioner.spread
    limits = np.empty_like(preconditioner.scale)
    overshoot_limits(sums, known, float(stats.weight), float(stats.rows * preconditioner.curvature), limits)
    return limits


def limit_axes(
    preconditioned: PreconditionedProblem, limits: np.ndarray, step_multiplier: float = 1.0
) -> PreconditionedProblem:
    """Shorten the steps along axes on which visits would overshoot.

    Parameters
    ----------
    preconditioned : PreconditionedProblem
    limits : ndarray of shape (p,)
        Minimum of ``axis_limits`` over the chunks.
    step_multiplier : float, default=1.0
        ``SolverState.step_multiplier``.

    Returns
    -------
    PreconditionedProblem
        With the preconditioner's scale reduced to at most ``axis_slack * limits / step``.
    """
    problem, preconditioner = preconditioned
    if not (problem.automatic and problem.average):
        return preconditioned
    step = preconditioned.step_size(step_multiplier)
    with np.errstate(divide="ignore"):
        shares = np.minimum(1.0, STEP_RULE.axis_slack * limits / (step * preconditioner.scale))
    scale = preconditioner.scale * np.exp2(np.round(np.log2(shares), 2))  # rounded as in ``_rotated``
    return preconditioned._replace(preconditioner=preconditioner._replace(scale=scale))
