"""Decide whether a fit has converged.

A fit has converged if two measures are at most `tol`: the norm of the scaled proximal gradient, and the decrease of F
that a Newton step promises. See docs/algorithm/stopping.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..solver.local_model import has_extreme_columns
from ..solver.newton import sample_decrease
from ..solver.preconditioned_problem import PreconditionedProblem
from ..solver.problem import null_model
from .models import Examined, examine, gain, ignores_coupling, pass_seconds, plan_for
from .newton_passes import EXTREME_SECONDS, may_step

if TYPE_CHECKING:
    from ..solver.local_model import ModelPlan
    from ..solver.problem import Problem
    from ..solver.state import SolverState
    from ..solver.subsample import Subsample
    from .fit_state import FitSetup, FitState
    from .preparation import Prepared

__all__ = ["confirm", "memory_is_exact", "norm_at_zero"]


# Relative accuracy of a float32 gradient memory. Below this ratio of the gradient norm to the derivatives of the rows,
# the memory does not give the gradient exactly.
FLOAT32_ACCURACY = 1e-6

# A gradient at zero is zero if its ratio to the derivatives of the rows is at most this rounding error.
ROUNDING = 1e-14

# A test for convergence may take as long as this number of passes of steps.
SAFEGUARD_PASSES = 5


def is_converged(fit: FitSetup, examined: Examined, tol: float) -> bool:
    """Return whether both measures are at most `tol`."""
    is_finite = np.isfinite(examined.norm) and np.isfinite(examined.decrease)
    return bool(
        is_finite and examined.norm <= tol * fit.norm_at_zero and examined.decrease <= tol * gain(fit, examined)
    )


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
    examined = examine(fit, state.summary.x, seconds, tol)
    exact = {"objective": examined.value, "gradient_norm": examined.norm / at_zero, "bytes_read": fit.source.bytes_read}
    converged = is_converged(fit, examined, tol)
    # With a diagonal H, Newton steps follow only if the norm is at most `tol`. Otherwise passes of steps gain more.
    # They also gain more near the optimum if H ignores the coupling of outputs.
    plan = plan_for(fit, seconds)
    pays = examined.norm <= tol * at_zero or plan.full
    far = examined.decrease > tol * gain(fit, examined) or not ignores_coupling(fit, plan)
    steps = may_step(fit.problem) and pays and far and not converged and examined.better is not None
    return state._replace(
        history=(*state.history[:-1], {**state.history[-1], **exact}),
        converged=converged,
        newton=seconds if steps else 0.0,
        step=examined if steps else None,
        tested=steps,
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
    plan = plan_for(fit, _safeguard_seconds(fit), chunks=1, extreme=False)
    call = (state.sample, state.head, fit.problem, plan)
    [decrease] = executor.gather([executor.submit(_sample_decrease, *call, name="saga-decrease")])
    promised = Examined(0.0, state.summary.objective, decrease, None)
    return bool(np.isfinite(decrease) and decrease <= tol * gain(fit, promised))


def _sample_decrease(sample: Subsample, head: SolverState, problem: Problem, plan: ModelPlan) -> float:
    return sample_decrease(sample, head.x, head.gradient_average, problem, plan)


def _safeguard_seconds(fit: FitSetup) -> float:
    """Return the time that a matrix H may take in a test for convergence."""
    least = EXTREME_SECONDS if has_extreme_columns(fit.prepared.stats) else 0.0
    return max(least, SAFEGUARD_PASSES * pass_seconds(fit))


def norm_at_zero(prepared: Prepared, weight: float, problem: Problem) -> float:
    """Return the reference of the gradient norm: the norm at x = 0 of the coefficients' part of the gradient.

    If this part is zero, the whole gradient is used. The intercept is left out because an intercept far from zero must
    not hide the coefficients. It does not affect centred columns. For a loss with ``link``, the gradient is that of the
    null model instead.
    """
    gradient = prepared.zero / weight
    if null := null_model(problem, prepared.stats.target):
        gradient = gradient * null.slope_ratio
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
