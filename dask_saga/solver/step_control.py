"""Control of the step multiplier after every averaging window (docs/algorithm/step_size.md, "Step control")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.vectors import scaled_products
from .state import new_solver_state

if TYPE_CHECKING:
    from .preconditioned_problem import PreconditionedProblem
    from .preconditioner import Preconditioner
    from .state import SolverState

__all__ = ["LEAST_MULTIPLIER", "next_step_multiplier", "restarted", "shortened"]


# Bounds of r, the mean over the visits of a window of log(d_1^2 / d_2^2), where d_1 and d_2 are the distances that x
# moves in the first and the second half of a visit. The ratio is exp(step x rows x curvature) in the direction of the
# move, so it is large if visits settle. The step is kept for r from LEAST_RATIO to MOST_RATIO, and reduced above, such
# that r becomes about AIM.
LEAST_RATIO, AIM, MOST_RATIO = 0.3, 0.5, 1.0

# Assumed largest curvature of a chunk, in units of the mean square of all rows. It caps r.
SETTLES = 2.0

# Factor by which a multiplier below 1 is raised; largest divisor of one reduction because of r.
RAISE_BY, CUT_BY = 2.0, 10.0

# Ratios of the squared moves of two consecutive windows. The step is divided by UNSTICK_BY if the ratio is above
# STUCK_ABOVE while x circles or turns back, or above GROWS_ABOVE in any case.
STUCK_ABOVE, GROWS_ABOVE, UNSTICK_BY = 0.5, 2.0, 3.0

# Cosines between the moves of two consecutive windows: above ALONG they have the same direction, below ACROSS opposite
# ones. Then a multiplier of at least 1 is multiplied or divided by FASTER, up to FASTEST and down to 1.
ALONG, ACROSS, FASTER, FASTEST = 0.5, 0.0, 1.5, 30.0

# Cosine between the moves of two windows above which x drifts and the step is too short, even if x turns at every
# visit.
STRAIGHT = 0.9

# Lower bound of the step multiplier.
LEAST_MULTIPLIER = 1e-200


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
    problem, preconditioner = preconditioned
    if not (problem.average and problem.automatic) or head.diverged:
        return head.step_multiplier
    ratio, fell = head.window_ratio / max(head.window_count, 1), head.window_energy / (head.last_energy or 1.0)
    along = _cosine(move, head.last_move, preconditioner)
    if head.window_count < 2:
        ratio, circles = 0.0, along < ACROSS  # a single chunk may settle, since no other must agree
    # Cap r at its theoretical maximum, step x rows x curvature. A column stored in one or two rows yields a random
    # ratio, and the step would keep shrinking.
    rows = head.rows / max(head.window_count, 1)
    ratio = min(ratio, SETTLES * preconditioned.step_size(head.step_multiplier) * preconditioner.L * rows)
    if ratio > MOST_RATIO:
        return head.step_multiplier * max(1.0 / CUT_BY, AIM / ratio)
    # After a raise of the step, moves count as growing only beyond the square of that raise.
    grows = min(fell, fell * (head.last_step_multiplier / head.step_multiplier) ** 2) > GROWS_ABOVE
    straight = along > STRAIGHT
    stuck = (circles and not straight) or (along < ACROSS and head.step_multiplier <= 1.0)
    if grows or (fell > STUCK_ABOVE and stuck):
        return head.step_multiplier / UNSTICK_BY
    if not straight and (ratio > LEAST_RATIO or (circles and fell > LEAST_RATIO)):
        return head.step_multiplier
    if head.step_multiplier < 1.0:
        return min(1.0, head.step_multiplier * RAISE_BY)
    if along > ALONG and not circles:
        return min(head.step_multiplier * FASTER, FASTEST)
    return max(head.step_multiplier / FASTER, 1.0) if along < ACROSS else head.step_multiplier


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
    return restarted(head, x, max(head.step_multiplier / UNSTICK_BY, LEAST_MULTIPLIER))


def _cosine(u: np.ndarray, v: np.ndarray, preconditioner: Preconditioner) -> float:
    """Cosine of the angle between two moves in the solver's coordinates. 0 if one of them is zero."""
    uu, uv, vv = scaled_products(*map(preconditioner.unshifted.x_to_solver, (u, v)), preconditioner.scale)
    return uv / (math.sqrt(uu) * math.sqrt(vv) or 1.0)
