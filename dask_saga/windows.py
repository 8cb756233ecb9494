"""The averaging window of a fit, and the step that follows from what its visits did (docs/algorithm.md, "Averaging",
"Step").
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import numpy as np

from ._kernels import kernels_for
from ._rows import scaled_products
from .inputs import frozen
from .metric import Metric, sum_to_solver, x_to_solver, x_to_user
from .problem import Problem
from .state import Head, SAGAState, new_head

__all__ = [
    "candidate",
    "end_pass",
    "gradient_mapping_norm",
    "next_cut",
    "open_pass",
    "open_window",
    "proximal_gradient_step",
    "restarted",
    "shortened",
    "shown_x",
    "stream_window_is_due",
    "window_is_complete",
    "window_is_due",
]

# The iterate circles, rather than drifts, where the cosine between its last and its
# mean displacement over the window is below this (docs/algorithm.md, "Averaging").
CIRCLES_BELOW = 0.6
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
LEAST_CUT = 1e-200


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


def proximal_gradient_step(x: np.ndarray, gradient: np.ndarray, step: float, problem: Problem, metric: Metric) -> Any:
    """One proximal gradient step from x, both of shape (outputs, p + 1) in the solver's coordinates."""
    out = np.empty_like(x)
    kernels = kernels_for(problem.loss, problem.penalty)
    for row, direction, result in zip(x, gradient, out, strict=True):
        kernels.proximal_step(
            frozen(row[:-1]), frozen(direction[:-1]), frozen(metric.scale), step, problem.penalty, result[:-1]
        )
    out[:, -1] = x[:, -1] - step * gradient[:, -1] if problem.fit_intercept else x[:, -1]
    return out


def gradient_mapping_norm(x: np.ndarray, gradient_average: np.ndarray, problem: Problem, metric: Metric) -> float:
    """Norm of the proximal gradient at x, scaled by the metric; zero at the optimum only."""
    step, squared_mapping = 0.3 / metric.L, kernels_for(problem.loss, problem.penalty).squared_mapping
    x, gradient = x_to_solver(x, metric), sum_to_solver(gradient_average, metric)
    square = sum(
        squared_mapping(frozen(row[:-1]), frozen(direction[:-1]), frozen(metric.scale), step, problem.penalty)
        for row, direction in zip(x, gradient, strict=True)
    )
    if problem.fit_intercept:
        square += step**2 * (gradient[:, -1] ** 2).sum()
    return math.sqrt(square) / step


def candidate(head: Head, problem: Problem, metric: Metric) -> tuple[np.ndarray, bool]:
    """The x of the averaging window, and whether it circles: one step from its mean if so, else the last x."""
    if not problem.average or head.window_count < 2 or head.diverged:
        return head.x, False
    mean = head.window_sum / head.window_count
    start, mean, x = (x_to_solver(v, metric) for v in (head.window_start, mean, head.x))
    uu, ud, dd = scaled_products(frozen(mean - start), frozen(x - mean), metric.scale)
    if ud >= CIRCLES_BELOW * math.sqrt(uu) * math.sqrt(dd):
        return head.x, False
    step = min(problem.step(metric, head.cut), 0.3 / metric.L)
    average = sum_to_solver(head.gradient_average, metric)
    return frozen(x_to_user(proximal_gradient_step(mean, average, step, problem, metric), metric)), True


def open_window(head: Head, problem: Problem, metric: Metric) -> Head:
    """The head with x at the old window's candidate and a new, empty window."""
    (x, circles), move = candidate(head, problem, metric), frozen(head.x - head.window_start)
    return head._replace(
        x=x,
        cut=max(next_cut(head, move, problem, metric, circles), LEAST_CUT),
        last_move=move,
        last_energy=head.window_energy,
        last_cut=head.cut,
        window_start=x,
        window_sum=frozen(np.zeros_like(x)),
        window_count=0,
        window_ratio=0.0,
        window_energy=0.0,
    )


def open_pass(head: Head) -> Head:
    """The head before the first visit of a pass."""
    return head._replace(past_weight=0.0, past_sum=frozen(np.zeros_like(head.x)))


def end_pass(head: Head) -> Head:
    """The head where chunks came or left: of the others it is not known when they were visited."""
    return head._replace(past_weight=np.inf)


def next_cut(head: Head, move: np.ndarray, problem: Problem, metric: Metric, circles: bool) -> float:
    """The next window's cut of the step, from what the visits of this one did, and how it moved x.

    A visit that settles early forgets where it came from: x returns to a point of the
    chunk's own at each visit, and the chunks never agree (docs/algorithm.md, "Step").
    """
    if not (problem.average and problem.automatic) or head.diverged:
        return head.cut
    ratio, fell = head.window_ratio / max(head.window_count, 1), head.window_energy / (head.last_energy or 1.0)
    along = _cosine(move, head.last_move, metric)
    if head.window_count < 2:
        ratio, circles = 0.0, along < ACROSS  # a chunk alone may settle
    # Nothing settles faster than step x rows x curvature; more is one row's luck to be in either half.
    rows = head.rows / max(head.window_count, 1)
    ratio = min(ratio, SETTLES * problem.step(metric, head.cut) * metric.L * rows)
    if ratio > MOST_RATIO:
        return head.cut * max(1.0 / CUT_BY, AIM / ratio)
    # Of a step just changed, moves must grow by more than the step did.
    grows = min(fell, fell * (head.last_cut / head.cut) ** 2) > GROWS_ABOVE
    straight = along > STRAIGHT
    stuck = (circles and not straight) or (along < ACROSS and head.cut <= 1.0)
    if grows or (fell > STUCK_ABOVE and stuck):
        return head.cut / UNSTICK_BY
    if not straight and (ratio > LEAST_RATIO or (circles and fell > LEAST_RATIO)):
        return head.cut
    if head.cut < 1.0:
        return min(1.0, head.cut * RAISE_BY)
    if along > ALONG and not circles:
        return min(head.cut * FASTER, FASTEST)
    return max(head.cut / FASTER, 1.0) if along < ACROSS else head.cut


def restarted(head: Head, x: np.ndarray, cut: float) -> Head:
    """The head at an x that no visit led to, with this cut of the step."""
    fresh = new_head(x.shape[1] - 1, len(x), weight=head.weight, rows=head.rows, geometry=head.geometry)
    return fresh._replace(x=x, window_start=x, limits=head.limits, cut=cut, last_cut=cut)


def shortened(head: Head, x: np.ndarray) -> Head:
    """The head at an x from which a pass led far astray, for shorter steps."""
    return restarted(head, x, max(head.cut / UNSTICK_BY, LEAST_CUT))


def _cosine(u: np.ndarray, v: np.ndarray, metric: Metric) -> float:
    """Of two moves, in the solver's coordinates; 0 where one is none."""
    unshifted = metric.unshifted
    uu, uv, vv = scaled_products(*(frozen(x_to_solver(move, unshifted)) for move in (u, v)), metric.scale)
    return uv / (math.sqrt(uu) * math.sqrt(vv) or 1.0)


def shown_x(state: SAGAState, problem: Problem) -> np.ndarray:
    """What ``coef_`` shows: the candidate once the window is complete, x before."""
    if window_is_complete(state.window_ids, len(state.chunks), state.head.window_count):
        return candidate(state.head, problem, state.metric)[0]
    return state.head.x
