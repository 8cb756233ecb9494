"""The step multiplier, from what the visits of an averaging window did (docs/algorithm/step_size.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..data.chunk import frozen
from ..kernels.vectors import scaled_products
from .preconditioner import x_to_solver
from .state import new_solver_state

if TYPE_CHECKING:
    from .preconditioner import Preconditioner
    from .problem import Problem
    from .state import SolverState

__all__ = ["LEAST_MULTIPLIER", "next_step_multiplier", "restarted", "shortened"]


# x moves less in a visit's second half than in its first where visits forget where they came from:
# the squared distances have the ratio e^(step x rows x curvature) of the direction it moves in.
# The step is kept where the mean logarithm of that ratio is between these.
LEAST_RATIO, AIM, MOST_RATIO = 0.3, 0.5, 1.0

# A chunk's largest curvature, at most, in units of the mean square of all rows.
SETTLES = 2.0

# Bounds of one change of the step, up and down.
RAISE_BY, CUT_BY = 2.0, 10.0

# Where x circles and its squared moves fall by less than the first from window to window, or where
# they grow by more than the second, the step is cut by the third.
STUCK_ABOVE, GROWS_ABOVE, UNSTICK_BY = 0.5, 2.0, 3.0

# Where one window moves x on as the last did.
ALONG, ACROSS, FASTER, FASTEST = 0.5, 0.0, 1.5, 30.0

# Windows so much alike that x is under way, however it turns from chunk to chunk, and the step too short.
STRAIGHT = 0.9

LEAST_MULTIPLIER = 1e-200


def next_step_multiplier(
    head: SolverState, move: np.ndarray, problem: Problem, metric: Preconditioner, circles: bool
) -> float:
    """The next window's cut of the step, from what the visits of this one did, and how it moved x.

    A visit that settles early forgets where it came from: x returns to a point of the
    chunk's own at each visit, and the chunks never agree (docs/algorithm.md, "Step").
    """
    if not (problem.average and problem.automatic) or head.diverged:
        return head.step_multiplier
    ratio, fell = head.window_ratio / max(head.window_count, 1), head.window_energy / (head.last_energy or 1.0)
    along = _cosine(move, head.last_move, metric)
    if head.window_count < 2:
        ratio, circles = 0.0, along < ACROSS  # a chunk alone may settle
    # Nothing settles faster than step x rows x curvature; more is one row's luck to be in either half.
    rows = head.rows / max(head.window_count, 1)
    ratio = min(ratio, SETTLES * problem.step(metric, head.step_multiplier) * metric.L * rows)
    if ratio > MOST_RATIO:
        return head.step_multiplier * max(1.0 / CUT_BY, AIM / ratio)
    # Of a step just changed, moves must grow by more than the step did.
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
    """The head at an x that no visit led to, with this cut of the step."""
    fresh = new_solver_state(
        x.shape[1] - 1, len(x), weight=head.weight, rows=head.rows, preconditioner_key=head.preconditioner_key
    )
    return fresh._replace(
        x=x, window_start=x, limits=head.limits, step_multiplier=step_multiplier, last_step_multiplier=step_multiplier
    )


def shortened(head: SolverState, x: np.ndarray) -> SolverState:
    """The head at an x from which a pass led far astray, for shorter steps."""
    return restarted(head, x, max(head.step_multiplier / UNSTICK_BY, LEAST_MULTIPLIER))


def _cosine(u: np.ndarray, v: np.ndarray, metric: Preconditioner) -> float:
    """Of two moves, in the solver's coordinates; 0 where one is none."""
    unshifted = metric.unshifted
    uu, uv, vv = scaled_products(*(frozen(x_to_solver(move, unshifted)) for move in (u, v)), metric.scale)
    return uv / (math.sqrt(uu) * math.sqrt(vv) or 1.0)
