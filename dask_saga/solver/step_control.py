"""Control of the step multiplier after every averaging window (docs/algorithm/step_size.md, "Step control")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.vectors import scaled_products
from .state import new_solver_state
from .step_rule import STEP_RULE

if TYPE_CHECKING:
    from .preconditioned_problem import PreconditionedProblem
    from .preconditioner import Preconditioner
    from .state import SolverState

__all__ = ["next_step_multiplier", "restarted", "shortened"]


def next_step_multiplier(
    head: SolverState, move: np.ndarray, preconditioned: PreconditionedProblem, circles: bool
) -> float:
    """Return the step multiplier of the next window.

    Shorten the step if visits settle, if x circles, or if the moves grow. Lengthen it if windows keep moving
    x in the same direction. If the step is too long, x ends every visit of a chunk at the same point of that chunk, and
    the chunks never agree (docs/algorithm/step_size.md, "Step control").

    Parameters
    ----------
    head : SolverState
        State at the end of the window.
    move : ndarray of shape (outputs, p + 1)
        Move of x in the window.
    preconditioned : PreconditionedProblem
    circles : bool
        Whether x circles, from ``averaged_iterate``.

    Returns
    -------
    float
    """
    (problem, preconditioner), rule = preconditioned, STEP_RULE
    if not (problem.average and problem.automatic) or head.diverged:
        return head.step_multiplier
    ratio, fell = head.window_ratio / max(head.window_count, 1), head.window_energy / (head.last_energy or 1.0)
    along = _cosine(move, head.last_move, preconditioner)
    if head.window_count < 2:
        ratio, circles = 0.0, along < rule.opposite_direction  # a single chunk may settle, since no other must agree
    # Cap r at its theoretical maximum, step x rows x curvature. A column stored in one or two rows yields a random
    # ratio, and the step would keep shrinking.
    rows = head.rows / max(head.window_count, 1)
    ratio = min(ratio, rule.chunk_curvature * preconditioned.step_size(head.step_multiplier) * preconditioner.L * rows)
    if ratio > rule.cut_above_ratio:
        return head.step_multiplier * max(1.0 / rule.max_cut, rule.target_ratio / ratio)
    # After a raise of the step, moves count as growing only beyond the square of that raise.
    grows = min(fell, fell * (head.last_step_multiplier / head.step_multiplier) ** 2) > rule.growing_ratio
    straight = along > rule.straight
    stuck = (circles and not straight) or (along < rule.opposite_direction and head.step_multiplier <= 1.0)
    if grows or (fell > rule.stuck_ratio and stuck):
        return head.step_multiplier / rule.stuck_cut
    if not straight and (ratio > rule.raise_below_ratio or (circles and fell > rule.kept_ratio)):
        return head.step_multiplier
    if head.step_multiplier < 1.0:
        return min(1.0, head.step_multiplier * rule.raise_factor)
    if along > rule.same_direction and not circles:
        return min(head.step_multiplier * rule.long_step_factor, rule.max_multiplier)
    if along < rule.opposite_direction:
        return max(head.step_multiplier / rule.long_step_factor, 1.0)
    return head.step_multiplier


def restarted(head: SolverState, x: np.ndarray, step_multiplier: float) -> SolverState:
    """Return a state that starts anew at x, with the given step multiplier and the limits of `head`.

    The gradient sum is zero, and the caller fills it.
    """
    fresh = new_solver_state(
        x.shape[1] - 1, len(x), weight=head.weight, rows=head.rows, preconditioner_key=head.preconditioner_key
    )
    return fresh._replace(
        x=x, window_start=x, limits=head.limits, step_multiplier=step_multiplier, last_step_multiplier=step_multiplier
    )


def shortened(head: SolverState, x: np.ndarray) -> SolverState:
    """Return a state that starts anew at x with a shorter step, after a pass from x was undone."""
    return restarted(head, x, max(head.step_multiplier / STEP_RULE.stuck_cut, STEP_RULE.min_multiplier))


def _cosine(u: np.ndarray, v: np.ndarray, preconditioner: Preconditioner) -> float:
    """Cosine of the angle between two moves in the solver's coordinates. 0 if one of them is zero."""
    uu, uv, vv = scaled_products(*map(preconditioner.unshifted.x_to_solver, (u, v)), preconditioner.scale)
    return uv / (math.sqrt(uu) * math.sqrt(vv) or 1.0)
