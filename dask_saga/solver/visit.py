"""One SAGA pass over one chunk as a pure function, and what surrounds it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ..data.chunk import frozen
from ..kernels.vectors import largest_of, squared_moves
from .identity import digest
from .optimality import count_outputs, weighted_sum
from .preconditioner import sum_to_solver, sum_to_user, x_to_solver, x_to_user
from .preconditioner_choice import limit_axes
from .state import LARGEST_COEFFICIENT, ChunkMemory, adapt
from .threaded_visit import share_dense_steps, share_sparse_steps
from .visit_plan import plan_visit

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .preconditioner import Preconditioner
    from .problem import Problem
    from .state import SolverState
    from .visit_plan import RowSchedule

__all__ = ["chunk_saga", "fresh_memory", "split_memory", "take_steps", "visit_digest"]


def take_steps(
    plan: RowSchedule, chunk: Chunk, head: SolverState, memory: ChunkMemory, problem: Problem, metric: Preconditioner
) -> tuple[SolverState, ChunkMemory] | None:
    """The head and memory after one visit, or None where it left finite numbers."""
    start, gradients = frozen(x_to_solver(head.x, metric)), memory.gradients.copy()
    past, left, end = _shares(head, memory, problem)
    anchor = frozen(x_to_solver(head.visited_sum / head.visited_weight, metric)) if past else start
    share = share_sparse_steps if sp.issparse(chunk.rows) else share_dense_steps
    x, middle, gradient_sum = share(
        plan.orders, start, frozen(sum_to_solver(head.gradient_sum, metric)), (left, end), anchor=anchor, past=past,
        gradients=gradients, plan=plan, chunk=chunk, head=head, problem=problem, metric=metric,
    )  # fmt: skip

    with np.errstate(invalid="ignore", over="ignore"):
        moves = squared_moves(start, middle, x, metric.scale)
        x, middle, gradient_sum = x_to_user(x, metric), x_to_user(middle, metric), sum_to_user(gradient_sum, metric)
        if metric.rotation is not None:
            # Turned there and back, large columns would leave their rounding in small ones.
            gradient_sum = head.gradient_sum + weighted_sum(
                chunk.rows, gradients - memory.gradients.astype(float), problem, len(plan.orders)
            )
        good = largest_of(x, middle) < LARGEST_COEFFICIENT and np.isfinite(gradient_sum.sum())  # a sum tells NaN
    if not good:
        return None
    if memory.total is not None:
        memory = memory._replace(total=frozen(memory.total + (gradient_sum - head.gradient_sum)))
    visited_sum = np.multiply(middle, memory.weight, out=middle)  # nobody else asks for x on the way
    tiny = np.finfo(float).tiny
    head = head._replace(
        x=frozen(x),
        gradient_sum=frozen(gradient_sum),
        window_sum=frozen(head.window_sum + x if head.window_count else x),
        window_count=head.window_count + 1,
        visited_weight=head.visited_weight + memory.weight,
        visited_sum=frozen(head.visited_sum + visited_sum if head.visited_weight else visited_sum),
        window_ratio=head.window_ratio + float(np.log(max((moves[0] + tiny) / (moves[1] + tiny), tiny))),
        window_energy=head.window_energy + sum(moves),
    )
    return head, memory._replace(gradients=frozen(gradients))


def _shares(head: SolverState, memory: ChunkMemory, problem: Problem) -> tuple[float, float, float]:
    """Shares of all rows: of other chunks visited in this pass, and not yet visited before and after this visit."""
    # Slopes without bound, as exp(z), say nothing of those elsewhere.
    if not problem.automatic or problem.loss.curvature is None or head.visited_weight == np.inf:
        return 0.0, 1.0, 1.0
    own = memory.weight / head.weight
    past = max(0.0, min(head.visited_weight / head.weight, 1.0 - own))  # rounding may leave less than nothing
    return past, 1.0 - past, max(0.0, 1.0 - past - own)


# How often a step that left finite numbers is cut and tried again.
RETRIES, RETRY_CUT = 5, 0.1


def fresh_memory(chunk: Chunk, problem: Problem) -> ChunkMemory:
    """The memory of a chunk before its first visit."""
    (n, p), k = chunk.rows.shape, count_outputs(chunk, problem)
    rows = int(np.count_nonzero(chunk.weights)) if chunk.weights.size else n
    gradients = np.zeros((n, k), dtype=problem.memory_dtype)
    total = frozen(np.zeros((k, p + 1))) if _total_pays(gradients, p) else None
    return ChunkMemory(frozen(gradients), 0, chunk.content, chunk.weights_content, chunk.weight, rows, total)


def _total_pays(gradients: np.ndarray, columns: int) -> bool:
    return 8 * gradients.shape[1] * (columns + 1) <= gradients.nbytes / 4


def split_memory(
    chunk: Chunk, memory: ChunkMemory, parts: list[ChunkMemory], lengths: list[int], problem: Problem
) -> list[ChunkMemory]:
    """The memory of joined chunks as that of each; `parts` are their facts, `lengths` their rows."""
    if len(parts) == 1:
        return [memory]
    split, start = [], 0
    for part, n in zip(parts, lengths, strict=True):
        rows, start = slice(start, start + n), start + n
        gradients, total = memory.gradients[rows].copy(), None
        if _total_pays(gradients, chunk.rows.shape[1]):
            total = frozen(weighted_sum(chunk.rows[rows], gradients.astype(float), problem))
        split.append(part._replace(gradients=frozen(gradients), visits=memory.visits, total=total))
    return split


def chunk_saga(
    chunk: Chunk,
    head: SolverState,
    memory: ChunkMemory | None,
    problem: Problem,
    metric: Preconditioner,
    seed: int,
    norms: np.ndarray | None = None,
) -> tuple[SolverState, ChunkMemory]:
    """One pass of SAGA over one chunk.

    A pure function: nothing is written but what it returns, and equal arguments give
    equal bits. It is the post's ``_chunk_saga`` (SAGA paper, equations 1 and 2; sparse
    rows: Leblond et al. 2017, section 2.2).

    Parameters
    ----------
    chunk : Chunk
        From ``read_chunk``.
    head : Head
        What the previous visit, of whichever chunk, returned.
    memory : ChunkMemory or None
        What this chunk's own last visit returned. None if there was none: its rows and
        weight are then added to the head's. ``fresh_memory`` for a chunk that the head
        already counts.
    problem : Problem
    metric : Metric
    seed : int
        Of the row order.
    norms : ndarray of shape (n,), default=None
        ``row_norms`` of the chunk, where they are known.

    Returns
    -------
    head : Head
    memory : ChunkMemory

    Raises
    ------
    ValueError
        If `memory` is that of other content.
    """
    head = adapt(head, problem)
    if memory is None:
        memory = fresh_memory(chunk, problem)
        head = head._replace(
            weight=head.weight + memory.weight,
            rows=head.rows + memory.rows,
        )
    elif memory.content != chunk.content:
        raise ValueError("memory belongs to a chunk of other content")
    elif memory.weights_content != chunk.weights_content:
        now = fresh_memory(chunk, problem)
        head = head._replace(weight=head.weight + now.weight - memory.weight, rows=head.rows + now.rows - memory.rows)
        memory = memory._replace(weights_content=now.weights_content, weight=now.weight, rows=now.rows)
    memory = memory._replace(visits=memory.visits + 1)
    if head.diverged or head.weight <= 0 or not head.rows:  # rounding may leave a weight of no rows
        return head, memory
    plan = plan_visit(chunk, head, memory, problem, metric, seed, norms)
    if memory.visits == 1:
        # The memory is not yet that of steps, or there is none: no variance reduction would allow long ones.
        metric = metric._replace(step_factor=min(metric.step_factor, 1.0))
    if memory.weight < head.weight:
        metric = limit_axes(metric, head.limits, problem, min(head.step_multiplier, 1.0))
    for _ in range(RETRIES if problem.automatic else 1):
        moved = take_steps(plan, chunk, head, memory, problem, metric)
        if moved is not None:
            return moved
        head = head._replace(step_multiplier=head.step_multiplier * RETRY_CUT)
    return head._replace(diverged=True), memory


def visit_digest(before: str, chunk_id: Hashable, memory: ChunkMemory, problem: Problem) -> str:
    """The digest of a state after one more visit."""
    return digest(before, "visit", chunk_id, memory.content, memory.weights_content, problem.token())
