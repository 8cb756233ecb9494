"""The averaging window of a fit, and the step that follows from what its visits did (docs/algorithm.md, "Averaging",
"Step").
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..data.chunk import frozen
from ..kernels.vectors import scaled_products
from .optimality import proximal_gradient_step
from .preconditioner import sum_to_solver, x_to_solver, x_to_user
from .step_control import LEAST_MULTIPLIER, next_step_multiplier

if TYPE_CHECKING:
    from .preconditioner import Preconditioner
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


# The iterate circles, rather than drifts, where the cosine between its last and its
# mean displacement over the window is below this (docs/algorithm.md, "Averaging").
CIRCLES_BELOW = 0.6


def window_is_complete(window_ids: Collection, known: int, count: int) -> bool:
    """Whether the averaging window holds every known chunk, or has had visits enough for two rounds."""
    return len(window_ids) >= known or count >= 2 * known


def window_is_due(chunk_id: Hashable, window_ids: Collection, known: int, count: int) -> bool:
    """Whether this chunk's arrival opens a new window."""
    return chunk_id in window_ids and window_is_complete(window_ids, known, count)


def stream_window_is_due(window_ids: Mapping[Hashable, bool], known: int, count: int, *, first: bool) -> bool:
    """Whether a chunk's arrival opens a new window where not all come round.

    A chunk's first arrival, when the window would hold half of the chunks: none may come again that would. Or
    the first that comes back after new ones only: a window is then to hold one pass.
    """
    if first:
        return 2 * count >= max(known, 4)
    return count > 1 and all(window_ids.values())


def averaged_iterate(head: SolverState, problem: Problem, metric: Preconditioner) -> tuple[np.ndarray, bool]:
    """The x of the averaging window, and whether it circles: one step from its mean if so, else the last x."""
    if not problem.average or head.window_count < 2 or head.diverged:
        return head.x, False
    mean = head.window_sum / head.window_count
    start, mean, x = (x_to_solver(v, metric) for v in (head.window_start, mean, head.x))
    uu, ud, dd = scaled_products(frozen(mean - start), frozen(x - mean), metric.scale)
    if ud >= CIRCLES_BELOW * math.sqrt(uu) * math.sqrt(dd):
        return head.x, False
    step = min(problem.step(metric, head.step_multiplier), 0.3 / metric.L)
    average = sum_to_solver(head.gradient_average, metric)
    return frozen(x_to_user(proximal_gradient_step(mean, average, step, problem, metric), metric)), True


def open_window(head: SolverState, problem: Problem, metric: Preconditioner) -> SolverState:
    """The head with x at the old window's candidate and a new, empty window."""
    (x, circles), move = averaged_iterate(head, problem, metric), frozen(head.x - head.window_start)
    return head._replace(
        x=x,
        step_multiplier=max(next_step_multiplier(head, move, problem, metric, circles), LEAST_MULTIPLIER),
        last_move=move,
        last_energy=head.window_energy,
        last_step_multiplier=head.step_multiplier,
        window_start=x,
        window_sum=frozen(np.zeros_like(x)),
        window_count=0,
        window_ratio=0.0,
        window_energy=0.0,
    )


def begin_pass(head: SolverState) -> SolverState:
    """The head before the first visit of a pass."""
    return head._replace(visited_weight=0.0, visited_sum=frozen(np.zeros_like(head.x)))


def leave_pass(head: SolverState) -> SolverState:
    """The head where chunks came or left: of the others it is not known when they were visited."""
    return head._replace(visited_weight=np.inf)


def reported_x(state: SAGAState, problem: Problem) -> np.ndarray:
    """What ``coef_`` shows: the candidate once the window is complete, x before."""
    if window_is_complete(state.window_ids, len(state.chunks), state.head.window_count):
        return averaged_iterate(state.head, problem, state.metric)[0]
    return state.head.x
