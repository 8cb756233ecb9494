"""Local models of F at x: the sum over all chunks, the Newton step of the model, and F along it.

Each is a pass over all chunks in parallel. The stopping test and Newton passes use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..data.immutable import immutable
from ..execution.executor import merged
from ..execution.threads import one_blas_thread
from ..losses import MultinomialLogLoss
from ..penalties import ElasticNet
from ..solver.curvature import BLAS_SECONDS, ENTRY_SECONDS
from ..solver.line_search import STEPS, best_on_line, chunk_values, rising_rows, within
from ..solver.local_model import MOST_ENTRIES, join_extremes, local_model, merge_models, plan_model, usual_model
from ..solver.newton import newton_direction
from ..solver.optimality import penalty_value
from ..solver.problem import null_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..execution.protocol import Reference
    from ..solver.local_model import Extremes, LocalModel, ModelPlan
    from ..solver.newton import Direction
    from .fit_state import FitSetup

__all__ = [
    "ACHIEVED",
    "LEAST_DECREASE",
    "Examined",
    "best_along",
    "examine",
    "gain",
    "ignores_coupling",
    "merged_model",
    "pass_seconds",
    "plan_for",
    "value_at_zero",
]


# A decrease of F counts only if it is more than LEAST_DECREASE times F. Otherwise it is a rounding error.
LEAST_DECREASE = 1e-13

# Number of models that one task merges.
MERGED_MODELS = 8

# Assumed times in seconds: a multiplication of sparse rows, a multiplication of a product of dense rows by BLAS, an
# entry of these rows, the overhead of a pass, and that of each further chunk.
SPARSE_SECONDS, MATRIX_SECONDS, WEIGHTED_SECONDS = 3e-9, 3.5e-11, 2e-9
PASS_SECONDS, CHUNK_SECONDS = 3e-4, 2e-4

# Largest size, in bytes, of the models of all chunks, unless the data are larger.
MODEL_BYTES = 2**28

# The step of the usual rows is tried if the promised decrease is at most this fraction of the gain.
PROBED = 1e-2

# A step must achieve more than the fraction ACHIEVED of its promised decrease. Otherwise the rows whose losses rise by
# at least the fraction LEAST_RISE of it are kept apart in the model. The step is computed at most ROUNDS times.
ACHIEVED, LEAST_RISE, ROUNDS = 0.1, 1e-3, 6

# Lengths at which a Newton step is evaluated first: x itself and the full step.
FULL_STEP = np.array((0.0, 1.0))


@immutable
class Examined(NamedTuple):
    """Result of the exact passes at x.

    Parameters
    ----------
    norm : float
        Norm of the proximal gradient in the solver's coordinates.
    value : float
        F at x.
    decrease : float
        Estimated amount by which F can still fall.
    better : ndarray of shape (k, p + 1) or None
        Coefficients to go on from. None if no step is worth a try.
    """

    norm: float
    value: float
    decrease: float
    better: np.ndarray | None


def ignores_coupling(fit: FitSetup, plan: ModelPlan) -> bool:
    """Return whether each output has its own H, although the loss couples them. Newton steps then gain less."""
    return hasattr(fit.problem.loss, "outputs") and not plan.coupled


def plan_for(fit: FitSetup, seconds: float, chunks: int | None = None, extreme: bool = True) -> ModelPlan:
    """Return the plan of the model. H is a matrix if this takes no longer than `seconds`. Otherwise it is a diagonal.

    Parameters
    ----------
    fit : FitSetup
    seconds : float
        If this allows it, H is one matrix for all classes of the multinomial loss. Rows that are kept apart have no
        place in it.
    chunks : int, default=None
        Number of chunks that contribute to the model. By default these are all chunks.
    extreme : bool, default=True
        Whether rows may be kept apart.
    """
    prepared, chunks = fit.prepared, chunks or len(fit.prepared.groups)
    stats, k, p = prepared.stats, len(prepared.zero), len(prepared.stats.mean)
    plan = plan_model(stats, k, chunks)
    plan = plan._replace(extreme=plan.extreme and extreme)
    entries, rows = float(stats.counts.sum()), max(stats.rows, 1)
    used, width, coupled = min(rows, plan.rows * chunks), entries / rows, k * (p + 1)
    room = max(MODEL_BYTES, 8.0 * entries)  # bytes for the models of all chunks

    def is_affordable(blocks: int, size: int) -> bool:
        products = MATRIX_SECONDS * size**2 + WEIGHTED_SECONDS * size
        if stats.sparse and size == p:
            products = SPARSE_SECONDS * width**2
        needed = blocks * (BLAS_SECONDS * size**3 / 3 + products * used) + CHUNK_SECONDS * (chunks - 1)
        return blocks * size**2 <= MOST_ENTRIES and needed <= seconds and 8.0 * chunks * blocks * size**2 <= room

    if isinstance(fit.problem.loss, MultinomialLogLoss) and not plan.extreme and is_affordable(1, coupled):
        return plan._replace(full=True, coupled=True)
    return plan._replace(full=is_affordable(k, p))


def examine(fit: FitSetup, x: np.ndarray, seconds: float, tol: float | None = None) -> Examined:
    """Evaluate the norm, F and the promised decrease at x by exact passes over all rows.

    One pass evaluates F, its gradient and its curvature. If there are far rows and the promised decrease is small, two
    more passes try the step of the usual rows. Far rows, such as codes for missing values, may hide this decrease
    together even if none of them does so alone.

    The promised decrease must be right if it decides whether x is within `tol`. Without a `tol` only the step counts.
    """
    plan = plan_for(fit, seconds)
    model = merged_model(fit, local_model, x, plan)
    examined, far = _along_newton_step(fit, x, model, plan, tol)
    if far and examined.decrease <= PROBED * gain(fit, examined):
        usual = _direction(fit, merged_model(fit, usual_model, x, plan), x)
        better, measured = best_along(fit, x, usual.move, np.array((0.0, *STEPS)))
        if measured > max(examined.decrease, LEAST_DECREASE * abs(examined.value)):
            return examined._replace(decrease=measured, better=better)
    return examined


def merged_model(
    fit: FitSetup, model_of: Callable[..., LocalModel], x: np.ndarray, plan: ModelPlan
) -> Reference[LocalModel]:
    """Return a reference to the merged model of all chunks."""
    width = x.size if plan.coupled else x.shape[1] if plan.full else 1
    nbytes = 8.0 * x.size * (3 + width)
    with one_blas_thread():  # once for all chunks in this process, because each change of the limit takes 0.1 ms
        models = fit.source.map(model_of, x, fit.prepared.preconditioned, plan, name="saga-confirm", nbytes=nbytes)
    [model] = merged(fit.source.executor, merge_models, models, MERGED_MODELS)
    return model


def _direction(
    fit: FitSetup, model: Reference[LocalModel], x: np.ndarray, more: Extremes | None = None, thorough: bool = True
) -> Direction:
    call = (model, x, fit.weight, fit.problem, more, thorough)
    return fit.source.executor.gather([fit.source.executor.submit(newton_direction, *call, name="saga-newton")])[0]


def _along_newton_step(
    fit: FitSetup, x: np.ndarray, model: Reference[LocalModel], plan: ModelPlan, tol: float | None
) -> tuple[Examined, int]:
    """Evaluate the Newton step of a model. Return the result and the number of far rows.

    If the promised decrease is above `tol`, a second pass evaluates F along the step. With extreme columns it does so
    in any case, since a few rows may have most of the curvature at x but not one step further. Rows whose losses rise
    along the step are then kept apart in the model, and a new step is computed.
    """
    problem, p = fit.problem, x.shape[1] - 1
    more: Extremes | None = None
    for _ in range(ROUNDS):
        direction = _direction(fit, model, x, more, thorough=tol is not None)
        norm = fit.preconditioned.gradient_mapping_norm(x, direction.gradient)
        examined = Examined(norm, direction.value, direction.decrease, within(x + direction.move, problem))
        if not direction.decrease > LEAST_DECREASE * abs(direction.value):
            return examined._replace(decrease=0.0, better=None), direction.far
        # If F(x) is above F(0), or the decrease is not finite, the step of a quadratic model is not trusted.
        if not (direction.value <= value_at_zero(fit) and np.isfinite(direction.decrease)):
            return examined._replace(better=None), direction.far
        if not plan.extreme and direction.decrease <= (tol or 0.0) * gain(fit, examined):
            return examined, direction.far
        # Try the full step first, and other lengths only if it achieves too little of the promised decrease.
        better, measured = best_along(fit, x, direction.move, FULL_STEP)
        if measured > ACHIEVED * direction.decrease:
            break
        better, measured = best_along(fit, x, direction.move, np.array((0.0, *STEPS)))
        if measured > ACHIEVED * direction.decrease or not plan.full:
            break
        least = LEAST_RISE * direction.decrease * fit.weight
        call = (x, direction.move, problem, plan.apart, least)
        rising = fit.source.map(rising_rows, *call, name="saga-values", nbytes=1000.0 + 8 * plan.apart * p)
        found = fit.source.executor.gather(rising)
        more = join_extremes(*found) if more is None else join_extremes(more, *found)
    falls = measured > LEAST_DECREASE * abs(direction.value)
    decrease = max(measured, direction.decrease if plan.full else 0.0)
    return examined._replace(decrease=decrease, better=better if falls else None), direction.far


def best_along(fit: FitSetup, x: np.ndarray, move: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the best point at the given lengths of a move, and the decrease of F there. This is one pass."""
    values = fit.source.map(chunk_values, x, move, lengths, fit.problem, name="saga-values", nbytes=1000.0)
    total = np.asarray(sum(fit.source.executor.gather(values)))
    return best_on_line(x, move, lengths, total, fit.weight, fit.problem)


def pass_seconds(fit: FitSetup) -> float:
    """Return the assumed time of a pass of steps."""
    entries, chunks = float(fit.prepared.stats.counts.sum()), len(fit.prepared.groups)
    return ENTRY_SECONDS * entries * len(fit.prepared.zero) + PASS_SECONDS + CHUNK_SECONDS * (chunks - 1)


def gain(fit: FitSetup, examined: Examined) -> float:
    """Return the reference of the promised decrease: F(0) - F(x) plus this decrease.

    For a loss with ``link``, F of the null model replaces F(0). If zero is out of bounds, abs(F(x)) replaces the
    difference.
    """
    penalty = fit.problem.penalty
    if isinstance(penalty, ElasticNet) and not penalty.lower <= 0.0 <= penalty.upper:
        return abs(examined.value) + examined.decrease
    null = null_model(fit.problem, fit.prepared.stats.target)
    reference = null.value * len(fit.prepared.zero) if null else value_at_zero(fit)
    return max(reference - examined.value, 0.0) + examined.decrease


def value_at_zero(fit: FitSetup) -> float:
    zero = np.zeros_like(fit.prepared.zero)
    return fit.prepared.value / fit.weight + penalty_value(zero, fit.problem)
