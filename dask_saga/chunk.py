"""One SAGA pass over one chunk as a pure function, and what surrounds it."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import scipy.sparse as sp

from ._kernels import kernels_for
from .inputs import Chunk
from .metric import Metric, choose_metric, column_stats, curvature_bound, merge, to_solver, to_user
from .problem import Problem, digest
from .state import (
    LARGEST_COEFFICIENT,
    SETTLED_ABOVE,
    ChunkMemory,
    Head,
    SAGAState,
    adapt,
    frozen,
    open_window,
    visit_seed,
    window_is_due,
)

__all__ = ["chunk_gradient", "chunk_saga", "fresh_memory", "row_order", "visit"]


def row_order(seed: int, rows: int) -> np.ndarray:
    """The order in which a visit with this seed takes the rows."""
    return np.random.default_rng(seed).permutation(rows)


def fresh_memory(chunk: Chunk, problem: Problem, metric: Metric) -> ChunkMemory:
    """The memory of a chunk before its first visit."""
    n, p = chunk.rows.shape
    gradients, total = np.zeros((n, 1), dtype=problem.memory_dtype), np.zeros((1, p + 1))
    rows = int(np.count_nonzero(chunk.weights)) if chunk.weights.size else n
    L = curvature_bound(chunk, metric, problem)
    # A total dearer than a quarter of the gradients is not worth keeping.
    total = frozen(total) if total.nbytes <= gradients.nbytes / 4 else None
    hashes = (chunk.content, chunk.weights_content)
    measured = (metric.rows, problem.geometry)
    return ChunkMemory(frozen(gradients), 0, *hashes, chunk.weight, rows, L, measured, total)


def chunk_saga(
    chunk: Chunk, head: Head, memory: ChunkMemory | None, problem: Problem, metric: Metric, seed: int
) -> tuple[Head, ChunkMemory]:
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
        memory = fresh_memory(chunk, problem, metric)
        head = head._replace(weight=head.weight + memory.weight, rows=head.rows + memory.rows)
    elif memory.content != chunk.content:
        raise ValueError("memory belongs to a chunk of other content")
    elif memory.weights_content != chunk.weights_content:
        now = fresh_memory(chunk, problem, metric)
        head = head._replace(weight=head.weight + now.weight - memory.weight, rows=head.rows + now.rows - memory.rows)
        memory = now._replace(gradients=memory.gradients, visits=memory.visits, total=memory.total)
    elif memory.measured != (measured := (metric.rows, head.geometry)):
        memory = memory._replace(L=curvature_bound(chunk, metric, problem), measured=measured)
    head = head._replace(L=max(head.L, memory.L), window_L=max(head.window_L, memory.L))
    memory = memory._replace(visits=memory.visits + 1)
    if head.diverged or head.weight <= 0:
        return head, memory

    start, gradient_sum = to_solver(head.x, head.gradient_sum, metric)
    x, gradients = start.copy(), memory.gradients.copy()
    arrays = (x[0], gradient_sum[0], gradients.reshape(-1))
    order = row_order(seed, len(chunk.targets))
    if chunk.weights.size:
        # Rows without weight take no step, but a gradient from an earlier weight must go.
        order = order[(chunk.weights[order] > 0) | (gradients[order, 0] != 0)]
    half = len(order) // 2
    _run_pass(chunk, order[:half], *arrays, head, problem, metric)
    middle = x.copy()
    _run_pass(chunk, order[half:], *arrays, head, problem, metric)

    with np.errstate(invalid="ignore", over="ignore"):
        moves = [_squared_length(middle - start, metric), _squared_length(x - middle, metric)]
        x, gradient_sum = to_user(x, gradient_sum, metric)
        good = np.abs(x).max() < LARGEST_COEFFICIENT and np.isfinite(gradient_sum).all()  # False if NaN
    if not good:
        return head._replace(diverged=True), memory
    if memory.total is not None:
        memory = memory._replace(total=frozen(memory.total + (gradient_sum - head.gradient_sum)))
    head = head._replace(
        x=frozen(x),
        gradient_sum=frozen(gradient_sum),
        window_sum=frozen(head.window_sum + x),
        window_count=head.window_count + 1,
        window_settled=head.window_settled + bool(moves[0] > SETTLED_ABOVE * moves[1]),
        window_energy=head.window_energy + sum(moves),
    )
    return head, memory._replace(gradients=frozen(gradients))


def _squared_length(move: np.ndarray, metric: Metric) -> float:
    return float((move[:, :-1] ** 2 / metric.scale).sum() + (move[:, -1] ** 2).sum())


def _run_pass(chunk, order, x, gradient_sum, gradients, head, problem, metric):
    """Choose and call the kernel that updates the three arrays of one output in place."""
    kernels = kernels_for(problem.loss, problem.penalty)
    step = problem.step(head)
    steps = (step, step if problem.fit_intercept else 0.0, head.rows / head.weight, 1.0 / head.weight)
    before = (frozen(chunk.targets), frozen(chunk.weights), frozen(order), x, gradient_sum, gradients)
    after = (*steps, problem.loss, problem.penalty)
    scale = frozen(metric.scale)
    if sp.issparse(chunk.rows):
        kernels.sparse_pass(*_csr_arrays(chunk), *before, scale, frozen(metric.rarity), *after)
    else:
        kernels.dense_pass(frozen(chunk.rows), *before, frozen(metric.shift), scale, *after)


def chunk_gradient(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[float, np.ndarray]:
    """Exact sums over a chunk at one x: of w_i f(z_i), and of its gradient.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (1, p + 1)
        The intercept last, in the user's coordinates.
    problem : Problem

    Returns
    -------
    value : float
    gradient : ndarray of shape (1, p + 1)
    """
    kernels = kernels_for(problem.loss, problem.penalty)
    gradient = np.zeros_like(x)
    rest = (frozen(chunk.targets), frozen(chunk.weights), frozen(x[0]), gradient[0], problem.loss)
    if sp.issparse(chunk.rows):
        return kernels.sparse_gradient(*_csr_arrays(chunk), *rest), gradient
    return kernels.dense_gradient(frozen(chunk.rows), *rest), gradient


def _csr_arrays(chunk: Chunk) -> list[np.ndarray]:
    return [frozen(array) for array in (chunk.rows.data, chunk.rows.indices, chunk.rows.indptr)]


def visit(state: SAGAState, chunk_id: Hashable, chunk: Chunk, problem: Problem) -> SAGAState:
    """The state after one pass over one chunk that arrived, new or known.

    Raises
    ------
    ValueError
        If the id is known with other content.
    """
    memory = state.chunks.get(chunk_id)
    head, stats, window_ids = state.head, state.stats, state.window_ids
    if memory is None:
        stats = merge(stats, column_stats(chunk))
    metric = choose_metric(stats, problem)
    if window_is_due(chunk_id, window_ids, len(state.chunks), head.window_count):
        head, window_ids = open_window(head, problem, metric), frozenset()
    seed = visit_seed(state.seed, chunk_id, memory.visits if memory else 0)
    head, memory = chunk_saga(chunk, head, memory, problem, metric, seed)
    return SAGAState(
        head,
        stats,
        {**state.chunks, chunk_id: memory},
        window_ids | {chunk_id},
        visit_digest(state.digest, chunk_id, memory, problem),
        state.seed,
    )


def visit_digest(before: str, chunk_id: Hashable, memory: ChunkMemory, problem: Problem) -> str:
    """The digest of a state after one more visit."""
    return digest(before, "visit", chunk_id, memory.content, memory.weights_content, problem.token())
