"""Newton passes: a step to the minimum of the local model of F, where passes of steps gain too little."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from ..solver.line_search import EXCEEDED, LONGER, within
from ..solver.local_model import curvature_model, has_extreme_columns
from ..solver.newton import direction_of
from ..solver.subsample import is_separated
from .fit_state import moved
from .models import (
    ACHIEVED,
    LEAST_DECREASE,
    Examined,
    best_along,
    examine,
    ignores_coupling,
    merged_model,
    pass_seconds,
    plan_for,
    value_at_zero,
)

if TYPE_CHECKING:
    from ..solver.problem import Problem
    from ..solver.state import SolverState
    from .fit_state import FitSetup, FitState

__all__ = ["EXTREME_SECONDS", "affordable_seconds", "may_step", "newton_pass"]


# Passes of steps are slow if SLOW_PASSES of them leave more than the fraction SLOW of the gradient norm. If H ignores
# the coupling of outputs, the fraction is SLOW_COUPLED.
SLOW_PASSES, SLOW, SLOW_COUPLED = 3, 1 / 3, 0.7

# Time that a matrix H may take. A step after slow passes may take as long as all passes made, its overhead included.
# With extreme columns EXTREME_SECONDS are allowed in any case, because passes of steps may not reach the optimum there.
# OVERHEAD_SECONDS: overhead of a Newton step for each output and one more, without and with extreme columns.
EXTREME_SECONDS, OVERHEAD_SECONDS = 0.5, (1e-3, 4e-3)

# Newton steps are taken from the start if H costs at most CHEAP passes of steps, and there is no subsample or classes
# are nearly separable.
CHEAP = 1.5

# Newton steps go on if each achieves the fraction KEPT of its promise, or promises at most the fraction HALVED of the
# decrease that the previous one promised. Full steps that achieve less than KEPT are tried at the lengths SHORTER.
KEPT, HALVED, SHORTER = 0.5, 0.5, (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def may_step(problem: Problem) -> bool:
    """Return whether Newton steps may be taken. A float `step_size` and ``average=False`` ask for plain SAGA."""
    return problem.automatic and problem.average


def affordable_seconds(fit: FitSetup, state: FitState, is_exact: bool) -> float:
    """Return the time that the Newton step of the next pass may take. It is zero if that pass is none.

    Parameters
    ----------
    fit : FitSetup
    state : FitState
    is_exact : bool
        Whether the state has the exact gradient.
    """
    if len(state.history) < state.newton_check or not may_step(fit.problem):
        return 0.0
    return _seconds_if_cheap(fit, state) if is_exact else _seconds_if_slow(fit, state)


def _seconds_if_cheap(fit: FitSetup, state: FitState) -> float:
    """Return the time of CHEAP passes of steps, if H costs no more and subsample steps gain less than Newton steps.

    They do if there is no subsample, or if the classes are nearly separable. The curvature of most rows is then small
    near the optimum, so that few rows of a subsample have any.
    """
    separated = is_separated(fit.problem, state.summary.objective, value_at_zero(fit))
    at_zero = not state.summary.x.any()
    if (state.refines and not separated) or (state.results is None and not at_zero):
        return 0.0
    seconds = CHEAP * pass_seconds(fit)
    plan = plan_for(fit, seconds, extreme=False)
    return seconds if plan.full and not ignores_coupling(fit, plan) else 0.0


def _seconds_if_slow(fit: FitSetup, state: FitState) -> float:
    """Return the time of all passes so far, if passes of steps are slow and H costs no more.

    The Newton step then costs at most as much as they did, even if it gains nothing.
    """
    norms = [row["gradient_norm"] for row in state.history]
    if len(norms) <= SLOW_PASSES:
        return 0.0
    extreme, passes = has_extreme_columns(fit.prepared.stats), len(norms) * pass_seconds(fit)
    coupled = ignores_coupling(fit, plan_for(fit, passes, extreme=False))
    if not norms[-1] > (SLOW_COUPLED if coupled else SLOW) * norms[-1 - SLOW_PASSES]:
        return 0.0
    left = passes - (1 + len(fit.prepared.zero)) * OVERHEAD_SECONDS[extreme]
    # Passes of steps may not reach the optimum with extreme columns, so the step may then cost more than they do.
    seconds = max(passes, EXTREME_SECONDS if extreme and not coupled else 0.0)
    return seconds if left > 0.0 and plan_for(fit, seconds - passes + left).full else 0.0


def newton_pass(fit: FitSetup, state: FitState) -> FitState:
    """Take a Newton step, and return the new state if F is smaller there. Otherwise keep the previous iterate.

    The full step is tried first. If it gains too little, rows are kept apart from the model.

    Another Newton step follows if H is a matrix, and the step achieves half of its promise or promises at most half of
    what the previous one did. Otherwise passes of steps follow.
    """
    seconds, step, tested = state.newton, state.step, state.tested
    state = state._replace(step=None, newton=0.0, tested=False)
    full = None if tested else _full_step(fit, state, seconds)
    if full:
        after, step = full
    else:
        step = step or examine(fit, state.summary.x, seconds)
        after = state if step.better is None else moved(fit, state, step.better)
    gained = -np.inf if step.better is None else step.value - after.summary.objective
    if not gained > LEAST_DECREASE * abs(step.value):
        return _waits(state._replace(in_vain=state.in_vain + 1))
    after = after._replace(next_check=len(state.history) + 1)  # the step may have reached the optimum
    goes_on = gained >= KEPT * step.decrease or step.decrease <= HALVED * state.newton_decrease
    if goes_on and (full or plan_for(fit, seconds).full):
        return after._replace(newton=seconds, newton_decrease=step.decrease)
    return _waits(after)


def _full_step(fit: FitSetup, state: FitState, seconds: float) -> tuple[FitState, Examined] | None:
    """Take the full Newton step of a model without rows kept apart, from an x whose exact gradient is known.

    H needs one pass, and the exact gradient at the new x another one. If the step achieves much more or less than it
    promises, longer or shorter ones are tried.

    Returns
    -------
    tuple of FitState and Examined, or None
        The state after the step, and what was known before it. None if H is no matrix, or if the step achieves too
        little of its promise.
    """
    x, plan, executor = state.summary.x, plan_for(fit, seconds, extreme=False), fit.source.executor
    if not plan.full:
        return None
    gradient, value = fit.prepared.zero, value_at_zero(fit)
    if state.results is not None:
        if state.head is None or state.window:  # the gradient memory is not that of x
            state = moved(fit, state, x)
        gradient, value = cast("SolverState", state.head).gradient_sum, state.summary.objective
    call = (merged_model(fit, curvature_model, x, plan), x, fit.weight, fit.problem, gradient)
    [direction] = executor.gather([executor.submit(direction_of, *call, name="saga-newton")])
    if not direction.decrease > LEAST_DECREASE * abs(value):
        return None
    better = within(x + direction.move, fit.problem)
    after = moved(fit, state, better)
    gained = value - after.summary.objective
    if not gained > ACHIEVED * direction.decrease:
        return None
    if not KEPT * direction.decrease <= gained <= EXCEEDED * direction.decrease:
        lengths = np.array((0.0, *(LONGER if gained > direction.decrease else SHORTER)))
        other, most = best_along(fit, x, direction.move, lengths)
        if most > gained:
            after, better = moved(fit, state, other), other
    return after, Examined(0.0, value, direction.decrease, better)


def _waits(state: FitState) -> FitState:
    """Return the state from which passes of steps follow. The wait for the next Newton step doubles each time."""
    wait = state.newton_wait
    return state._replace(
        newton=0.0, newton_decrease=np.inf, newton_check=len(state.history) + 1 + wait, newton_wait=2 * wait
    )
