"""A SAGA visit, that is one pass over one chunk, as a pure function of the state and the chunk's memory.

See docs/algorithm/saga_visit.md.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ..kernels.vectors import largest_of, squared_moves
from .identity import digest
from .optimality import count_outputs, weighted_sum
from .preconditioned_problem import PreconditionedProblem
from .preconditioner_choice import limit_axes
from .state import LARGEST_COEFFICIENT, ChunkMemory, adapt
from .step_rule import STEP_RULE
from .threaded_visit import share_dense_steps, share_sparse_steps
from .visit_plan import plan_visit

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .preconditioner import Preconditioner
    from .problem import Problem
    from .state import SolverState
    from .visit_plan import RowSchedule

__all__ = ["chunk_saga", "counted", "fresh_memory", "split_memory", "take_steps", "visit_digest"]


def take_steps(
    plan: RowSchedule, chunk: Chunk, head: SolverState, memory: ChunkMemory, preconditioned: PreconditionedProblem
) -> tuple[SolverState, ChunkMemory] | None:
    """Take the steps of one visit, and return the state and memory after it. Return None if it diverged.

    The steps run in the solver's coordinates, and the state is converted back to the user's afterwards.

    Parameters
    ----------
    plan : RowSchedule
    chunk : Chunk
    head : SolverState
    memory : ChunkMemory
    preconditioned : PreconditionedProblem

    Returns
    -------
    tuple of SolverState and ChunkMemory, or None
        None if x exceeds ``LARGEST_COEFFICIENT`` or a number is not finite.
    """
    problem, preconditioner = preconditioned
    start, gradients = preconditioned.x_to_solver(head.x), memory.gradients.copy()
    past, left, end = _shares(head, memory, problem)
    anchor = preconditioned.x_to_solver(head.visited_sum / head.visited_weight) if past else start
    share = share_sparse_steps if sp.issparse(chunk.rows) else share_dense_steps
    x, middle, gradient_sum = share(
        plan.orders, start, preconditioned.sum_to_solver(head.gradient_sum), (left, end), anchor=anchor, past=past,
        gradients=gradients, plan=plan, chunk=chunk, head=head, preconditioned=preconditioned,
    )  # fmt: skip

    with np.errstate(invalid="ignore", over="ignore"):
        moves = squared_moves(start, middle, x, preconditioner.scale)
        x, middle = preconditioned.x_to_user(x), preconditioned.x_to_user(middle)
        gradient_sum = preconditioned.sum_to_user(gradient_sum)
        if preconditioner.rotation is not None:
            # Recompute the change in the user's coordinates. Rotating the sum forth and back would carry rounding
            # errors of large columns into small ones.
            gradient_sum = head.gradient_sum + weighted_sum(
                chunk.rows, gradients - memory.gradients.astype(float), problem, len(plan.orders)
            )
        good = largest_of(x, middle) < LARGEST_COEFFICIENT and np.isfinite(gradient_sum.sum())  # NaN propagates
    if not good:
        return None
    if memory.total is not None:
        memory = memory._replace(total=memory.total + (gradient_sum - head.gradient_sum))
    visited_sum = np.multiply(middle, memory.weight, out=middle)  # in place, since `middle` is not used below
    tiny = np.finfo(float).tiny
    head = head._replace(
        x=x,
        gradient_sum=gradient_sum,
        window_sum=head.window_sum + x if head.window_count else x,
        window_count=head.window_count + 1,
        visited_weight=head.visited_weight + memory.weight,
        visited_sum=head.visited_sum + visited_sum if head.visited_weight else visited_sum,
        window_ratio=head.window_ratio + float(np.log(max((moves[0] + tiny) / (moves[1] + tiny), tiny))),
        window_energy=head.window_energy + sum(moves),
    )
    return head, memory._replace(gradients=gradients)


def _shares(head: SolverState, memory: ChunkMemory, problem: Problem) -> tuple[float, float, float]:
    """Return fractions of the total weight: visited in other chunks of this pass, not visited before and after.

    They are the weights v and u of docs/algorithm/without_replacement.md, u at the start and at the end of the visit.
    """
    # If f'' is unbounded (Poisson), the derivative at one x says nothing about that at another.
    if not problem.automatic or problem.loss.curvature is None or head.visited_weight == np.inf:
        return 0.0, 1.0, 1.0
    own = memory.weight / head.weight
    past = max(0.0, min(head.visited_weight / head.weight, 1.0 - own))  # rounding may make it negative
    return past, 1.0 - past, max(0.0, 1.0 - past - own)


def fresh_memory(chunk: Chunk, problem: Problem) -> ChunkMemory:
    """Return the memory of a chunk before its first visit: all gradients are zero."""
    (n, p), k = chunk.rows.shape, count_outputs(chunk, problem)
    rows = int(np.count_nonzero(chunk.weights)) if chunk.weights.size else n
    gradients = np.zeros((n, k), dtype=problem.memory_dtype)
    total = np.zeros((k, p + 1)) if _total_pays(gradients, p) else None
    return ChunkMemory(gradients, 0, chunk.content, chunk.weights_content, chunk.weight, rows, total)


def _total_pays(gradients: np.ndarray, columns: int) -> bool:
    return 8 * gradients.shape[1] * (columns + 1) <= gradients.nbytes / 4


def split_memory(
    chunk: Chunk, memory: ChunkMemory, parts: list[ChunkMemory], lengths: list[int], problem: Problem
) -> list[ChunkMemory]:
    """Split the memory of joined chunks into one memory per chunk.

    Parameters
    ----------
    chunk : Chunk
        The joined chunks.
    memory : ChunkMemory
        Memory of `chunk`.
    parts : list of ChunkMemory
        Facts of each single chunk, whose gradients are replaced.
    lengths : list of int
        Number of rows of each single chunk.
    problem : Problem

    Returns
    -------
    list of ChunkMemory
    """
    if len(parts) == 1:
        return [memory]
    split, start = [], 0
    for part, n in zip(parts, lengths, strict=True):
        rows, start = slice(start, start + n), start + n
        gradients, total = memory.gradients[rows].copy(), None
        if _total_pays(gradients, chunk.rows.shape[1]):
            total = weighted_sum(chunk.rows[rows], gradients.astype(float), problem)
        split.append(part._replace(gradients=gradients, visits=memory.visits, total=total))
    return split


def chunk_saga(
    chunk: Chunk,
    head: SolverState,
    memory: ChunkMemory | None,
    problem: Problem,
    preconditioner: Preconditioner,
    seed: int,
    norms: np.ndarray | None = None,
) -> tuple[SolverState, ChunkMemory]:
    """Make one SAGA visit: one pass over one chunk.

    This is a pure function. It changes none of its arguments, and equal arguments give equal bits. It corresponds to
    ``_chunk_saga`` of the 2018 Dask blog post (SAGA paper, equations 1 and 2; for sparse rows Leblond et al. 2017,
    section 2.2).

    Parameters
    ----------
    chunk : Chunk
        Rows, targets and weights, as ``dask_saga.data.validation.read_chunk`` returns them.
    head : SolverState
        State returned by the previous visit, of any chunk.
    memory : ChunkMemory or None
        Memory returned by the last visit of this chunk. None for a new chunk, whose rows and weight are then
        added to those of `head`. If `head` already counts the chunk, pass ``fresh_memory``.
    problem : Problem
        Loss, penalty and solver parameters (``dask_saga.solver.problem``).
    preconditioner : Preconditioner
        Shift, rotation and scale of the columns (``dask_saga.solver.preconditioner``).
    seed : int
        Seed of the row order.
    norms : ndarray of shape (n,), default=None
        ``row_norms`` of the chunk. By default they are computed.

    Returns
    -------
    head : SolverState
        State after the visit.
    memory : ChunkMemory
        Gradient memory of the chunk after the visit.

    Raises
    ------
    ValueError
        If `memory` belongs to a chunk of other content.
    """
    head, memory = counted(chunk, head, memory, problem)
    if head.diverged or head.weight <= 0 or not head.rows:  # by rounding, a weight may remain without rows
        return head, memory
    plan = plan_visit(chunk, head, memory, PreconditionedProblem(problem, preconditioner), seed, norms)
    if memory.visits == 1:
        # Before the first visit the memory is empty or not from steps, so no variance reduction allows longer steps.
        preconditioner = preconditioner._replace(step_factor=min(preconditioner.step_factor, 1.0))
    preconditioned = PreconditionedProblem(problem, preconditioner)
    if memory.weight < head.weight:
        preconditioned = limit_axes(preconditioned, head.limits, min(head.step_multiplier, 1.0))
    for _ in range(STEP_RULE.attempts if problem.automatic else 1):
        moved = take_steps(plan, chunk, head, memory, preconditioned)
        if moved is not None:
            return moved
        head = head._replace(step_multiplier=head.step_multiplier * STEP_RULE.retry_factor)
    return head._replace(diverged=True), memory


def counted(
    chunk: Chunk, head: SolverState, memory: ChunkMemory | None, problem: Problem
) -> tuple[SolverState, ChunkMemory]:
    """Return state and memory at the start of a visit: adapted to the problem, with the chunk's rows and this visit.

    Raises
    ------
    ValueError
        If `memory` belongs to a chunk of other content.
    """
    head = adapt(head, problem)
    if memory is None:
        memory = fresh_memory(chunk, problem)
        head = head._replace(
            weight=head.weight + memory.weight,
            rows=head.rows + memory.rows,
        )
    elif memory.content != chunk.content:
        raise ValueError(
            "memory belongs to a chunk of other content; pass the memory that the last visit of this chunk returned, "
            "or None for a new chunk"
        )
    elif memory.weights_content != chunk.weights_content:
        now = fresh_memory(chunk, problem)
        head = head._replace(weight=head.weight + now.weight - memory.weight, rows=head.rows + now.rows - memory.rows)
        memory = memory._replace(weights_content=now.weights_content, weight=now.weight, rows=now.rows)
    memory = memory._replace(visits=memory.visits + 1)
    return head, memory


def visit_digest(before: str, chunk_id: Hashable, memory: ChunkMemory, problem: Problem) -> str:
    """Return the digest of a state after one more visit, chained to the digest `before`."""
    return digest(before, "visit", chunk_id, memory.content, memory.weights_content, problem.token())
