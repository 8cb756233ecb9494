"""When a fit has converged, and Newton steps where it has not.

A fit has converged where two measures are below `tol`: the norm of the scaled proximal gradient, relative to that at
zero, and the decrease of F that a Newton step promises, relative to what was gained so far. The first is free in every
pass, but it depends on the columns' scales. The second does not: it takes the curvature at x (docs/algorithm.md,
"Stopping").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.chunk import frozen
from ..penalties import ElasticNet
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
from ..solver.optimality import gradient_mapping_norm, penalty_value
from .fit_state import moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..solver.local_model import Extremes, ModelPlan
    from ..solver.newton import Direction
    from ..solver.problem import Problem
    from ..solver.subsample import Subsample
    from .fit_state import FitSetup, FitState
    from .preparation import Prepared
    from .rounds import VisitResult

__all__ = ["confirm", "is_slow", "may_step", "newton_pass", "norm_at_zero", "tells_exactly"]


# Gradients this much smaller than those of which they are the mean: memory of float32 does not tell them exactly.
KNOWN = 1e-6

# And this much smaller they are zero. Of F itself a decrease so small is rounding.
ROUNDING, LEAST_DECREASE = 1e-14, 1e-13

# Models that one task merges.
MERGED = 8

# Passes are slow if so many of them leave more than this share of the norm; the second one where outputs are coupled.
SLOW_PASSES, SLOW, SLOW_COUPLED = 3, 1 / 3, 0.7

# A Hessian may take so many seconds where columns have extreme entries, as passes of steps may then not get there. Else
# it may take the time of so many passes where it is but a safeguard, and that of all passes made where these are slow.
EXTREME_SECONDS, SAFEGUARD_PASSES = 0.5, 5

# Seconds of a multiplication, of one of sparse rows, of an entry's visit, and of a pass apart from these.
BLAS_SECONDS, SPARSE_SECONDS, VISIT_SECONDS, PASS_SECONDS = 1e-10, 3e-9, 2e-9, 3e-4

# Where the other rows would go is looked at if so much of the gain seems to be left, or less.
PROBED = 1e-2
# What the models of all chunks may take, or else the size of the data.
MODEL_BYTES = 2**28
# Newton steps go on where each promises so much of what the one before did.
HALVED = 0.5

# The share of the promised decrease that a step must achieve. Else rows whose losses rise by such a share of it are
# added to the model as they are, so often at most.
ACHIEVED, LEAST_RISE, ROUNDS = 0.1, 1e-3, 6

FULL_STEP = np.array((0.0, 1.0))


class Examined(NamedTuple):
    """What an exact pass at x found.

    Parameters
    ----------
    norm : float
        Of the proximal gradient, scaled.
    value : float
        F.
    decrease : float
        By how much F can still fall, as far as is known.
    better : ndarray of shape (k, p + 1) or None
        Coefficients to go on from, if F is smaller there.
    """

    norm: float
    value: float
    decrease: float
    better: np.ndarray | None


def is_converged(fit: FitSetup, examined: Examined, at_zero: float, tol: float) -> bool:
    """Whether both measures are below `tol`."""
    known = np.isfinite(examined.norm) and np.isfinite(examined.decrease)
    return bool(known and examined.norm <= tol * at_zero and examined.decrease <= tol * _gain(fit, examined))


def _gain(fit: FitSetup, examined: Examined) -> float:
    """By how much F is less than at zero, or could be; where zero is out of bounds, its own size stands for that."""
    penalty = fit.problem.penalty
    if isinstance(penalty, ElasticNet) and not penalty.lower <= 0.0 <= penalty.upper:
        return abs(examined.value) + examined.decrease
    return max(_at_zero(fit) - examined.value, 0.0) + examined.decrease


def _at_zero(fit: FitSetup) -> float:
    zero = np.zeros_like(fit.prepared.zero)
    return fit.prepared.value / fit.weight + penalty_value(zero, fit.problem)


def confirm(fit: FitSetup, place: FitState, at_zero: float, tol: float, is_exact: bool) -> FitState:
    """The place with the exact norm, and whether it has converged; after a pass in vain the next one waits longer.

    `is_exact` tells that gradient and objective are those of a pass at x. The sample's curvature may then be enough.
    """
    if is_exact and _holds_by_sample(fit, place, tol):
        return place._replace(converged=True)
    examined = _examine(fit, place.summary.x, tol=tol)
    exact = {"objective": examined.value, "gradient_norm": examined.norm / at_zero, "bytes_read": fit.source.bytes_read}
    converged = is_converged(fit, examined, at_zero, tol)
    # With a diagonal only where the norm misleads: passes of steps gain more than such steps.
    pays = examined.norm <= tol * at_zero or _plan(fit, len(fit.prepared.groups)).full
    steps = may_step(fit.problem) and pays and examined.decrease > tol * _gain(fit, examined)
    return place._replace(
        history=(*place.history[:-1], {**place.history[-1], **exact}),
        converged=converged,
        newton=SAFEGUARD_PASSES if steps else 0,
        step=examined if steps else None,
        next_check=len(place.history) + place.wait,
        wait=2 * place.wait,
    )


def _holds_by_sample(fit: FitSetup, place: FitState, tol: float) -> bool:
    """Whether what can still be gained is small by the curvature of the sample, which needs no pass."""
    prepared, executor = fit.prepared, fit.source.executor
    if not prepared.sample or has_extreme_columns(prepared.stats):
        return False
    if prepared.gradient is not None:
        return True  # the norm along these axes is that of Newton's step
    [visited] = place.visits
    plan = _plan(fit, 1)._replace(extreme=False)
    decrease = executor.submit(_sample_decrease, prepared.sample[0], visited, fit.problem, plan, name="saga-decrease")
    [decrease] = executor.gather([decrease])
    return np.isfinite(decrease) and decrease <= tol * _gain(
        fit, Examined(0.0, place.summary.objective, decrease, None)
    )


def _sample_decrease(sample: Subsample, visited: VisitResult, problem: Problem, plan: ModelPlan) -> float:
    return sample_decrease(sample, visited.head.x, visited.head.gradient_average, problem, plan)


def may_step(problem: Problem) -> bool:
    """Whether Newton steps may be taken: plain SAGA, by a float step or without averaging, is left alone."""
    return problem.automatic and problem.average


def is_slow(fit: FitSetup, place: FitState) -> bool:
    """Whether passes of steps gain so little that a Newton step is tried, if its Hessian is cheap enough."""
    norms = [row["gradient_norm"] for row in place.history]
    # The Hessian leaves out what couples several outputs: its steps gain less.
    slow = SLOW_COUPLED if hasattr(fit.problem.loss, "outputs") else SLOW
    return bool(
        len(norms) >= max(place.newton_check, SLOW_PASSES + 1)
        and norms[-1] > slow * norms[-1 - SLOW_PASSES]
        and may_step(fit.problem)
        and _plan(fit, len(fit.prepared.groups), len(norms)).full
    )


def newton_pass(fit: FitSetup, place: FitState) -> FitState:
    """The place after a Newton step, if F is smaller there; else where it was.

    Steps go on as long as the decrease that they promise halves and the Hessian is a matrix. Passes of steps follow.
    """
    passes = place.newton
    step = place.step or _examine(fit, place.summary.x, passes)
    place = place._replace(step=None, newton=0)
    there = None if step.better is None else moved(fit, place, step.better)
    gained = -np.inf if there is None else step.value - there.summary.objective
    if not gained > LEAST_DECREASE * abs(step.value):
        return _waits(place._replace(in_vain=place.in_vain + 1))
    full = _plan(fit, len(fit.prepared.groups), passes).full
    if full and step.decrease <= HALVED * place.newton_decrease:
        return there._replace(newton=passes, newton_decrease=step.decrease)
    return _waits(there)


def _waits(place: FitState) -> FitState:
    """The place where passes of steps follow, before Newton steps are tried again: twice as many each time."""
    wait = place.newton_wait
    return place._replace(
        newton=0, newton_decrease=np.inf, newton_check=len(place.history) + 1 + wait, newton_wait=2 * wait
    )


def _plan(fit: FitSetup, chunks: int, passes: float = SAFEGUARD_PASSES) -> ModelPlan:
    """How the Hessian is found: a matrix, if it takes no longer than so many passes of steps, or its diagonal."""
    prepared = fit.prepared
    plan, k, p = plan_model(prepared.stats, len(prepared.zero), chunks), len(prepared.zero), len(prepared.stats.mean)
    entries, rows = float(prepared.stats.counts.sum()), max(prepared.stats.rows, 1)
    used, width = min(rows, plan.rows * chunks), p if not prepared.stats.sparse else entries / rows
    each = SPARSE_SECONDS if prepared.stats.sparse else BLAS_SECONDS
    seconds = k * (BLAS_SECONDS * p**3 / 3 + each * used * width**2)
    budget = max(EXTREME_SECONDS if plan.extreme else 0.0, passes * (VISIT_SECONDS * entries * k + PASS_SECONDS))
    room = max(MODEL_BYTES, 8.0 * entries)  # that the models of all chunks may take
    return plan._replace(full=plan.full and seconds <= budget and 8.0 * chunks * k * p**2 <= room)


def _examine(fit: FitSetup, x: np.ndarray, passes: float = SAFEGUARD_PASSES, tol: float = 0.0) -> Examined:
    """What exact passes over all rows find at x: the norm, F, and how much less F could be.

    One pass finds F, its gradient and its curvature. Where rows are far outside of the others, and little seems to be
    left, two more look where the others would go: codes for missing values hide it together, none of them alone.
    """
    plan = _plan(fit, len(fit.prepared.groups), passes)
    model = _merged(fit, local_model, x, plan)
    examined, far = _along_newton_step(fit, x, model, plan, tol)
    if far and examined.decrease <= PROBED * _gain(fit, examined):
        usual = _direction(fit, _merged(fit, usual_model, x, plan), x)
        better, measured = _on_line(fit, x, usual.move, np.array((0.0, *STEPS)))
        if measured > max(examined.decrease, LEAST_DECREASE * abs(examined.value)):
            return examined._replace(decrease=measured, better=better)
    return examined


def _merged(fit: FitSetup, model_of: Callable, x: np.ndarray, plan: ModelPlan) -> Any:
    """A reference to the sum of all chunks' models."""
    p, executor = x.shape[1] - 1, fit.source.executor
    nbytes = 8.0 * x.size * (3 + (p if plan.full else 1))
    models = fit.source.map(model_of, x, fit.problem, fit.prepared.metric, plan, name="saga-confirm", nbytes=nbytes)
    while len(models) > 1:
        groups = [models[k : k + MERGED] for k in range(0, len(models), MERGED)]
        models = [executor.submit(merge_models, *group, name="saga-merge") for group in groups]
    return models[0]


def _direction(fit: FitSetup, model: Any, x: np.ndarray, *more: Extremes) -> Direction:
    call = (model, x, fit.weight, fit.problem, *more)
    return fit.source.executor.gather([fit.source.executor.submit(newton_direction, *call, name="saga-newton")])[0]


def _along_newton_step(fit: FitSetup, x: np.ndarray, model: Any, plan: ModelPlan, tol: float) -> tuple[Examined, int]:
    """What the Newton step of a model leads to, and the number of far rows.

    A second pass evaluates F along it where the model may be wrong: where a few rows may make up a column's curvature
    at x, but not a step further; and, if the promised decrease is above `tol`, where outputs depend on each other or
    the Hessian is but its diagonal. Rows whose losses rise along it join the model.
    """
    problem, more, p = fit.problem, [], x.shape[1] - 1
    measures = plan.extreme or not plan.full or hasattr(problem.loss, "outputs")
    for _ in range(ROUNDS):
        direction = _direction(fit, model, x, *more)
        norm = gradient_mapping_norm(x, direction.gradient, problem, fit.prepared.axes)
        examined = Examined(norm, direction.value, direction.decrease, frozen(within(x + direction.move, problem)))
        if not direction.decrease > LEAST_DECREASE * abs(direction.value):
            return examined._replace(decrease=0.0, better=None), direction.far
        # Worse than zero, or where nothing is known, a quadratic model may lead anywhere.
        if not (direction.value <= _at_zero(fit) and np.isfinite(direction.decrease)):
            return examined._replace(better=None), direction.far
        if not measures or (not plan.extreme and direction.decrease <= tol * _gain(fit, examined)):
            return examined, direction.far
        # The step as it comes first; other lengths where it does not keep its word.
        better, measured = _on_line(fit, x, direction.move, FULL_STEP)
        if measured > ACHIEVED * direction.decrease:
            break
        better, measured = _on_line(fit, x, direction.move, np.array((0.0, *STEPS)))
        if measured > ACHIEVED * direction.decrease or not plan.full:
            break
        least = LEAST_RISE * direction.decrease * fit.weight
        call = (x, direction.move, problem, plan.apart, least)
        rising = fit.source.map(rising_rows, *call, name="saga-values", nbytes=1000.0 + 8 * plan.apart * p)
        more = [join_extremes(*more, *fit.source.executor.gather(rising))]
    falls = measured > LEAST_DECREASE * abs(direction.value)
    decrease = max(measured, direction.decrease if plan.full else 0.0)
    return examined._replace(decrease=decrease, better=better if falls else None), direction.far


def _on_line(fit: FitSetup, x: np.ndarray, move: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, float]:
    """The best point at some lengths of a move, by a pass over all rows, and how much less F is there."""
    values = fit.source.map(chunk_values, x, move, lengths, fit.problem, name="saga-values", nbytes=1000.0)
    return best_on_line(x, move, lengths, sum(fit.source.executor.gather(values)), fit.weight, fit.problem)


def norm_at_zero(prepared: Prepared, weight: float, problem: Problem) -> float:
    """What `tol` is relative to: the norm at x = 0, of the coefficients alone where these count.

    An intercept that is far from zero would else hide them: centred columns do not feel it.
    """
    gradient = prepared.zero / weight
    zero, metric = np.zeros_like(gradient), prepared.axes.unshifted
    whole = gradient_mapping_norm(zero, gradient, problem, metric)
    # What rounding leaves where zero is the optimum, as of labels that the columns tell nothing of.
    if whole <= ROUNDING * _largest_norm(prepared, weight):
        return 0.0
    if not problem.fit_intercept:
        return whole
    inner = gradient[:, :-1] - gradient[:, -1:] * prepared.stats.mean
    inner = gradient_mapping_norm(zero, np.column_stack([inner, zero[:, -1]]), problem, metric)
    centred = gradient_mapping_norm(zero, gradient, problem, prepared.axes)
    return max(inner, 1e-6 * centred) if inner > 1e-12 * whole else centred


def tells_exactly(prepared: Prepared, weight: float, problem: Problem, norm: float) -> bool:
    """Whether the gradient memory is exact enough for a norm so small."""
    return problem.memory_dtype == "float64" or norm >= KNOWN * _largest_norm(prepared, weight)


def _largest_norm(prepared: Prepared, weight: float) -> float:
    """A bound of the norm at zero: a loss's slope is at most the square root of twice the loss and its curvature."""
    return float(np.sqrt(2.0 * prepared.axes.L * abs(prepared.value) / weight))
