"""Decide whether a fit has converged, and take Newton steps where passes of steps gain too little.

A fit has converged if two measures are at most `tol`: the norm of the scaled proximal gradient, and the decrease of F
that a Newton step promises. See docs/algorithm/stopping.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..data.immutable import immutable
from ..penalties import ElasticNet
from ..solver.curvature import BLAS_SECONDS, ENTRY_SECONDS
from ..solver.line_search import STEPS, best_on_line, chunk_values, rising_rows, within
from ..solver.local_model import (
    has_extreme_columns,
    join_extremes,
    local_model,
    merge_models,
    plan_model,
    usual_model,
)
from ..solver.newton import newton_direction, sample_decrease
from ..solver.optimality import penalty_value
from ..solver.preconditioned_problem import PreconditionedProblem
from .fit_state import moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..execution.protocol import Reference
    from ..solver.local_model import Extremes, LocalModel, ModelPlan
    from ..solver.newton import Direction
    from ..solver.problem import Problem
    from ..solver.state import SolverState
    from ..solver.subsample import Subsample
    from .fit_state import FitSetup, FitState
    from .preparation import Prepared

__all__ = ["affordable_seconds", "confirm", "may_step", "memory_is_exact", "newton_pass", "norm_at_zero"]


# Relative accuracy of a float32 gradient memory. Below this ratio of the gradient norm to the derivatives of the rows,
# the memory does not give the gradient exactly.
FLOAT32_ACCURACY = 1e-6

# Rounding errors. A gradient at zero is zero if its ratio to the derivatives of the rows is at most ROUNDING. A
# decrease of F counts only if it is more than LEAST_DECREASE times F.
ROUNDING, LEAST_DECREASE = 1e-14, 1e-13

# Number of models that one task merges.
MERGED_MODELS = 8

# Passes of steps are slow if SLOW_PASSES of them leave more than the fraction SLOW of the gradient norm. If the loss
# couples the outputs, the fraction is SLOW_COUPLED.
SLOW_PASSES, SLOW, SLOW_COUPLED = 3, 1 / 3, 0.7

# Time that a matrix H may take. A confirmation may take as long as SAFEGUARD_PASSES passes of steps. With extreme
# columns EXTREME_SECONDS are allowed in any case, because passes of steps may not reach the optimum there. A step after
# slow passes may take as long as all passes made, its overhead included.
EXTREME_SECONDS, SAFEGUARD_PASSES = 0.5, 5

# Assumed times in seconds: a multiplication of sparse rows, and the overhead of a pass. OVERHEAD_SECONDS: overhead of a
# Newton step for each output and one more, without and with extreme columns.
SPARSE_SECONDS, PASS_SECONDS = 3e-9, 3e-4
OVERHEAD_SECONDS = (1e-3, 4e-3)

# The step of the usual rows is tried if the promised decrease is at most this fraction of the gain.
PROBED = 1e-2
# Largest size, in bytes, of the models of all chunks, unless the data are larger.
MODEL_BYTES = 2**28
# Newton steps go on if each promises at most this fraction of the decrease that the previous one promised.
HALVED = 0.5

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


def is_converged(fit: FitSetup, examined: Examined, tol: float) -> bool:
    """Return whether both measures are at most `tol`."""
    is_finite = np.isfinite(examined.norm) and np.isfinite(examined.decrease)
    return bool(
        is_finite and examined.norm <= tol * fit.norm_at_zero and examined.decrease <= tol * _gain(fit, examined)
    )


def _gain(fit: FitSetup, examined: Examined) -> float:
    """Return the reference of the promised decrease: F(0) - F(x) plus this decrease.

    If zero is out of bounds, abs(F(x)) replaces the difference.
    """
    penalty = fit.problem.penalty
    if isinstance(penalty, ElasticNet) and not penalty.lower <= 0.0 <= penalty.upper:
        return abs(examined.value) + examined.decrease
    return max(_at_zero(fit) - examined.value, 0.0) + examined.decrease


def _at_zero(fit: FitSetup) -> float:
    zero = np.zeros_like(fit.prepared.zero)
    return fit.prepared.value / fit.weight + penalty_value(zero, fit.problem)


def confirm(fit: FitSetup, state: FitState, tol: float, is_exact: bool) -> FitState:
    """Test for convergence, and return the state with the outcome.

    One exact pass evaluates both measures and writes the exact norm and objective to the history. If the test fails,
    the next one waits twice as many passes.

    If `is_exact`, the gradient and the objective of the state are those of a pass at x. The curvature of the subsample
    may then replace the exact pass.
    """
    if is_exact and _holds_by_sample(fit, state, tol):
        return state._replace(converged=True)
    seconds, at_zero = _safeguard_seconds(fit), fit.norm_at_zero
    examined = _examine(fit, state.summary.x, seconds, tol)
    exact = {"objective": examined.value, "gradient_norm": examined.norm / at_zero, "bytes_read": fit.source.bytes_read}
    converged = is_converged(fit, examined, tol)
    # With a diagonal H, Newton steps follow only if the norm is at most `tol`. Otherwise passes of steps gain more.
    # They also gain more near the optimum if the loss couples the outputs, which H ignores.
    pays = examined.norm <= tol * at_zero or _plan(fit, seconds).full
    far = examined.decrease > tol * _gain(fit, examined) or not hasattr(fit.problem.loss, "outputs")
    steps = may_step(fit.problem) and pays and far and not converged and examined.better is not None
    return state._replace(
        history=(*state.history[:-1], {**state.history[-1], **exact}),
        converged=converged,
        newton=seconds if steps else 0.0,
        step=examined if steps else None,
        next_check=len(state.history) + state.wait,
        wait=2 * state.wait,
    )


def _holds_by_sample(fit: FitSetup, state: FitState, tol: float) -> bool:
    """Return whether the promised decrease is at most `tol` by the curvature of the subsample. This needs no pass."""
    prepared, executor = fit.prepared, fit.source.executor
    if state.sample is None or has_extreme_columns(prepared.stats):
        return False
    if prepared.gradient is not None:
        return True  # quadratic loss, rotated columns: the norm is that of Newton's step
    plan = _plan(fit, _safeguard_seconds(fit), chunks=1)._replace(extreme=False)
    call = (state.sample, state.head, fit.problem, plan)
    [decrease] = executor.gather([executor.submit(_sample_decrease, *call, name="saga-decrease")])
    gain = _gain(fit, Examined(0.0, state.summary.objective, decrease, None))
    return bool(np.isfinite(decrease) and decrease <= tol * gain)


def _sample_decrease(sample: Subsample, head: SolverState, problem: Problem, plan: ModelPlan) -> float:
    return sample_decrease(sample, head.x, head.gradient_average, problem, plan)


def may_step(problem: Problem) -> bool:
    """Return whether Newton steps may be taken. A float `step_size` and ``average=False`` ask for plain SAGA."""
    return problem.automatic and problem.average


def affordable_seconds(fit: FitSetup, state: FitState) -> float:
    """Return the time that a Newton step may take because passes of steps are slow. It is zero if none is tried.

    A step may take as long as all passes so far, so that it costs at most as much as they did if it gains nothing.
    """
    norms, coupled = [row["gradient_norm"] for row in state.history], hasattr(fit.problem.loss, "outputs")
    if len(norms) < max(state.newton_check, SLOW_PASSES + 1) or not may_step(fit.problem):
        return 0.0
    # Each output has its own H, which ignores the coupling of outputs. Newton steps then gain less.
    if not norms[-1] > (SLOW_COUPLED if coupled else SLOW) * norms[-1 - SLOW_PASSES]:
        return 0.0
    passes, extreme = len(norms) * _pass_seconds(fit), has_extreme_columns(fit.prepared.stats)
    left = passes - (1 + len(fit.prepared.zero)) * OVERHEAD_SECONDS[extreme]
    # Passes of steps may not reach the optimum with extreme columns, so the step may then cost more than they do.
    seconds = max(passes, EXTREME_SECONDS if extreme and not coupled else 0.0)
    return seconds if left > 0.0 and _plan(fit, seconds - passes + left).full else 0.0


def newton_pass(fit: FitSetup, state: FitState) -> FitState:
    """Take a Newton step, and return the new state if F is smaller there. Otherwise keep the previous iterate.

    Another Newton step follows if H is a matrix and the promised decrease is at most half of the previous one.
    Otherwise passes of steps follow.
    """
    seconds = state.newton
    step = state.step or _examine(fit, state.summary.x, seconds)
    state = state._replace(step=None, newton=0.0)
    after = state if step.better is None else moved(fit, state, step.better)
    gained = -np.inf if step.better is None else step.value - after.summary.objective
    if not gained > LEAST_DECREASE * abs(step.value):
        return _waits(state._replace(in_vain=state.in_vain + 1))
    after = after._replace(next_check=len(state.history) + 1)  # the step may have reached the optimum
    full = _plan(fit, seconds).full
    if full and step.decrease <= HALVED * state.newton_decrease:
        return after._replace(newton=seconds, newton_decrease=step.decrease)
    return _waits(after)


def _waits(state: FitState) -> FitState:
    """Return the state from which passes of steps follow. The wait for the next Newton step doubles each time."""
    wait = state.newton_wait
    return state._replace(
        newton=0.0, newton_decrease=np.inf, newton_check=len(state.history) + 1 + wait, newton_wait=2 * wait
    )


def _pass_seconds(fit: FitSetup) -> float:
    """Return the assumed time of a pass of steps."""
    return ENTRY_SECONDS * float(fit.prepared.stats.counts.sum()) * len(fit.prepared.zero) + PASS_SECONDS


def _safeguard_seconds(fit: FitSetup) -> float:
    """Return the time that a matrix H may take in a test for convergence."""
    least = EXTREME_SECONDS if has_extreme_columns(fit.prepared.stats) else 0.0
    return max(least, SAFEGUARD_PASSES * _pass_seconds(fit))


def _plan(fit: FitSetup, seconds: float, chunks: int | None = None) -> ModelPlan:
    """Return the plan of the model. H is a matrix if this takes no longer than `seconds`. Otherwise it is a diagonal.

    `chunks` is the number of chunks that contribute to it. By default these are all chunks.
    """
    prepared, chunks = fit.prepared, chunks or len(fit.prepared.groups)
    plan, k, p = plan_model(prepared.stats, len(prepared.zero), chunks), len(prepared.zero), len(prepared.stats.mean)
    entries, rows = float(prepared.stats.counts.sum()), max(prepared.stats.rows, 1)
    used, width = min(rows, plan.rows * chunks), p if not prepared.stats.sparse else entries / rows
    each = SPARSE_SECONDS if prepared.stats.sparse else BLAS_SECONDS
    needed = k * (BLAS_SECONDS * p**3 / 3 + each * used * width**2)
    room = max(MODEL_BYTES, 8.0 * entries)  # bytes for the models of all chunks
    return plan._replace(full=plan.full and needed <= seconds and 8.0 * chunks * k * p**2 <= room)


def _examine(fit: FitSetup, x: np.ndarray, seconds: float, tol: float | None = None) -> Examined:
    """Evaluate the norm, F and the promised decrease at x by exact passes over all rows.

    One pass evaluates F, its gradient and its curvature. If there are far rows and the promised decrease is small, two
    more passes try the step of the usual rows. Far rows, such as codes for missing values, may hide this decrease
    together even if none of them does so alone.

    The promised decrease must be right if it decides whether x is within `tol`. Without a `tol` only the step counts.
    """
    plan = _plan(fit, seconds)
    model = _merged(fit, local_model, x, plan)
    examined, far = _along_newton_step(fit, x, model, plan, tol)
    if far and examined.decrease <= PROBED * _gain(fit, examined):
        usual = _direction(fit, _merged(fit, usual_model, x, plan), x)
        better, measured = _on_line(fit, x, usual.move, np.array((0.0, *STEPS)))
        if measured > max(examined.decrease, LEAST_DECREASE * abs(examined.value)):
            return examined._replace(decrease=measured, better=better)
    return examined


def _merged(
    fit: FitSetup, model_of: Callable[..., LocalModel], x: np.ndarray, plan: ModelPlan
) -> Reference[LocalModel]:
    """Return a reference to the merged model of all chunks."""
    p, executor = x.shape[1] - 1, fit.source.executor
    nbytes = 8.0 * x.size * (3 + (p if plan.full else 1))
    models = fit.source.map(model_of, x, fit.prepared.preconditioned, plan, name="saga-confirm", nbytes=nbytes)
    while len(models) > 1:
        groups = [models[k : k + MERGED_MODELS] for k in range(0, len(models), MERGED_MODELS)]
        models = [executor.submit(merge_models, *group, name="saga-merge") for group in groups]
    return models[0]


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
        if not (direction.value <= _at_zero(fit) and np.isfinite(direction.decrease)):
            return examined._replace(better=None), direction.far
        if not plan.extreme and direction.decrease <= (tol or 0.0) * _gain(fit, examined):
            return examined, direction.far
        # Try the full step first, and other lengths only if it achieves too little of the promised decrease.
        better, measured = _on_line(fit, x, direction.move, FULL_STEP)
        if measured > ACHIEVED * direction.decrease:
            break
        better, measured = _on_line(fit, x, direction.move, np.array((0.0, *STEPS)))
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


def _on_line(fit: FitSetup, x: np.ndarray, move: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the best point at the given lengths of a move, and the decrease of F there. This is one pass."""
    values = fit.source.map(chunk_values, x, move, lengths, fit.problem, name="saga-values", nbytes=1000.0)
    total = np.asarray(sum(fit.source.executor.gather(values)))
    return best_on_line(x, move, lengths, total, fit.weight, fit.problem)


def norm_at_zero(prepared: Prepared, weight: float, problem: Problem) -> float:
    """Return the reference of the gradient norm: the norm at x = 0 of the coefficients' part of the gradient.

    If this part is zero, the whole gradient is used. The intercept is left out because an intercept far from zero must
    not hide the coefficients. It does not affect centred columns.
    """
    gradient = prepared.zero / weight
    zero, unshifted = np.zeros_like(gradient), PreconditionedProblem(problem, prepared.axes.unshifted)
    whole = unshifted.gradient_mapping_norm(zero, gradient)
    # If zero is the optimum, only rounding errors remain, for example with labels that do not depend on the columns.
    if whole <= ROUNDING * _largest_norm(prepared, weight):
        return 0.0
    if not problem.fit_intercept:
        return whole
    inner = gradient[:, :-1] - gradient[:, -1:] * prepared.stats.mean
    inner = unshifted.gradient_mapping_norm(zero, np.column_stack([inner, zero[:, -1]]))
    centred = PreconditionedProblem(problem, prepared.axes).gradient_mapping_norm(zero, gradient)
    return max(inner, 1e-6 * centred) if inner > 1e-12 * whole else centred


def memory_is_exact(prepared: Prepared, weight: float, problem: Problem, norm: float) -> bool:
    """Return whether the gradient memory is accurate enough for a gradient norm of `norm`."""
    return problem.memory_dtype == "float64" or norm >= FLOAT32_ACCURACY * _largest_norm(prepared, weight)


def _largest_norm(prepared: Prepared, weight: float) -> float:
    """Return a bound of the norm at zero. The derivative of a row's loss is at most sqrt(2 L F(0))."""
    return float(np.sqrt(2.0 * prepared.axes.L * abs(prepared.value) / weight))
