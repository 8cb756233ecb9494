"""The averaging window: when it is complete, which iterate it yields, and how the next one starts.

See docs/algorithm/averaging.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.vectors import scaled_products
from .preconditioned_problem import PreconditionedProblem
from .step_control import next_step_multiplier
from .step_rule import STEP_RULE

if TYPE_CHECKING:
    from .problem import Problem
    from .state import SAGAState, SolverState

__all__ = [
    "averaged_iterate",
    "begin_pass",
    "leave_pass",
    "open_window",
    "reported_x",
    "stream_window_is_due",
    "window_is_complete",
    "window_is_due",
]


def window_is_complete(window_ids: Collection, known: int, count: int) -> bool:
    """Whether the averaging window contains every known chunk, or at least twice as many visits as known chunks.

    Parameters
    ----------
    window_ids : collection of chunk ids
        Chunks visited in the window.
    known : int
        Number of known chunks.
    count : int
        Number of visits in the window.

    Returns
    -------
    bool
    """
    return len(window_ids) >= known or count >= 2 * known


def window_is_due(chunk_id: Hashable, window_ids: Collection, known: int, count: int) -> bool:
    """Whether the visit of this chunk opens a new window: it comes again, and the window is complete."""
    return chunk_id in window_ids and window_is_complete(window_ids, known, count)


def stream_window_is_due(window_ids: Mapping[Hashable, bool], known: int, count: int, *, first: bool) -> bool:
    """Whether a visit opens a new window in a stream, where not all chunks come again.

    A new chunk opens one if the window has visits of at least half of the known chunks (at least 2), because perhaps no
    chunk comes again that would close it. A known chunk opens one if all chunks of the window were new, so that a
    window holds one pass.

    Parameters
    ----------
    window_ids : mapping of chunk id to bool
        Chunks visited in the window, and whether it was their first visit.
    known : int
        Number of known chunks.
    count : int
        Number of visits in the window.
    first : bool
        Whether this is the first visit of the chunk.

    Returns
    -------
    bool
    """
    if first:
        return 2 * count >= max(known, 4)
    return count > 1 and all(window_ids.values())


def averaged_iterate(head: SolverState, preconditioned: PreconditionedProblem) -> tuple[np.ndarray, bool]:
    """Return the averaged iterate of the window.

    If x circles, it is one proximal gradient step from the mean of the window, because the mean of sparse coefficients
    is not sparse. If x drifts, it is the last x, because the mean would lag behind.

    Parameters
    ----------
    head : SolverState
    preconditioned : PreconditionedProblem

    Returns
    -------
    x : ndarray of shape (outputs, p + 1)
    circles : bool
        Whether x circles.
    """
    if not preconditioned.problem.average or head.window_count < 2 or head.diverged:
        return head.x, False
    mean = head.window_sum / head.window_count
    start, middle, last = map(preconditioned.x_to_solver, (head.window_start, mean, head.x))
    uu, ud, dd = scaled_products(middle - start, last - middle, preconditioned.preconditioner.scale)
    if ud >= STEP_RULE.circling_cosine * math.sqrt(uu) * math.sqrt(dd):
        return head.x, False
    return preconditioned.proximal_gradient_step(mean, head.gradient_average, head.step_multiplier), True


def open_window(head: SolverState, preconditioned: PreconditionedProblem) -> SolverState:
    """Close the averaging window: move x to its averaged iterate, adapt the step and open an empty window."""
    (x, circles), move = averaged_iterate(head, preconditioned), head.x - head.window_start
    return head._replace(
        x=x,
        step_multiplier=max(next_step_multiplier(head, move, preconditioned, circles), STEP_RULE.min_multiplier),
        last_move=move,
        last_energy=head.window_energy,
        last_step_multiplier=head.step_multiplier,
        window_start=x,
        window_sum=np.zeros_like(x),
        window_count=0,
        window_ratio=0.0,
        window_energy=0.0,
    )


def begin_pass(head: SolverState) -> SolverState:
    """Mark the start of a pass over all chunks: no row of it has been visited yet."""
    return head._replace(visited_weight=0.0, visited_sum=np.zeros_like(head.x))


def leave_pass(head: SolverState) -> SolverState:
    """Mark that no full pass is in progress, after chunks were added or removed.

    It is then unknown when the other chunks were visited, so visits do not correct for the row order.
    """
    return head._replace(visited_weight=np.inf)


def reported_x(state: SAGAState, problem: Problem) -> np.ndarray:
    """Return the x that ``coef_`` shows: the averaged iterate if the window is complete, else the current x."""
    complete = window_is_complete(state.window_ids, len(state.chunks), state.head.window_count)
    if state.metric is not None and complete:
        return averaged_iterate(state.head, PreconditionedProblem(problem, state.metric))[0]
    return state.head.x
