"""One SAGA pass over one chunk as a pure function, and what surrounds it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ._kernels import kernels_for
from .columns import column_stats, merge
from .inputs import Chunk, frozen
from .metric import (
    Metric,
    RowNorms,
    choose_metric,
    csr_arrays,
    limit_axes,
    row_norms,
    shift_of,
    solver_rows,
    to_solver,
    to_user,
)
from .problem import Problem, digest
from .state import (
    LARGEST_COEFFICIENT,
    ChunkMemory,
    Head,
    SAGAState,
    adapt,
    open_window,
    visit_seed,
    window_is_due,
)

__all__ = ["chunk_gradient", "chunk_saga", "fresh_memory", "row_order", "split_memory", "visit"]

# A row is visited once for every ROW_BOUND times the mean Lipschitz constant that its own has.
ROW_BOUND = 2.0
# How often a step that left finite numbers is cut and tried again.
RETRIES, RETRY_CUT = 5, 0.1


def row_order(seed: int, rows: np.ndarray) -> np.ndarray:
    """The order in which a visit with this seed takes rows, given with their repetitions."""
    return np.random.default_rng(seed).permutation(rows)


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


def count_outputs(chunk: Chunk, problem: Problem) -> int:
    """Linear predictions of a row: those of the loss, or one for each column of targets."""
    return max(problem.outputs, chunk.targets.shape[1])


def chunk_saga(
    chunk: Chunk,
    head: Head,
    memory: ChunkMemory | None,
    problem: Problem,
    metric: Metric,
    seed: int,
    norms: RowNorms | None = None,
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
    norms : RowNorms, default=None
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
        head = head._replace(weight=head.weight + memory.weight, rows=head.rows + memory.rows)
    elif memory.content != chunk.content:
        raise ValueError("memory belongs to a chunk of other content")
    elif memory.weights_content != chunk.weights_content:
        now = fresh_memory(chunk, problem)
        head = head._replace(weight=head.weight + now.weight - memory.weight, rows=head.rows + now.rows - memory.rows)
        memory = now._replace(gradients=memory.gradients, visits=memory.visits, total=memory.total)
    memory = memory._replace(visits=memory.visits + 1)
    if head.diverged or head.weight <= 0:
        return head, memory
    plan = _plan(chunk, head, memory, problem, metric, seed, norms)
    if memory.visits == 1:
        # The memory is not yet that of steps, or there is none: no variance reduction would allow it.
        metric = metric._replace(boost=1.0)
    head = head._replace(largest_sums=frozen(np.maximum(head.largest_sums, plan.sums)))
    for _ in range(RETRIES if problem.automatic else 1):
        moved = _take_steps(plan, chunk, head, memory, problem, metric)
        if moved is not None:
            return moved
        head = head._replace(cut=head.cut * RETRY_CUT)
    return head._replace(diverged=True), memory


class _Plan(NamedTuple):
    """How a visit takes its rows."""

    order: np.ndarray
    pull: np.ndarray
    step: float
    sums: np.ndarray


def _plan(chunk, head, memory, problem, metric, seed, norms):
    n = len(chunk.targets)
    taken = np.arange(n)
    if chunk.weights.size:
        # Rows without weight take no step, but a gradient from an earlier weight must go.
        taken = np.flatnonzero((chunk.weights > 0) | memory.gradients.any(axis=1))
    pull = np.zeros((n, 2))
    pull[:, 0] = head.rows / head.weight
    if not problem.automatic:
        return _Plan(row_order(seed, taken), pull, 1.0, head.largest_sums)
    norms = norms or row_norms(chunk, metric, problem)
    pull[:, 1] = norms.squared_lengths
    # Sampling by bounds (Schmidt et al. 2015, section 3): then the largest row does not rule the step.
    bounds = pull[:, 0] * pull[:, 1] * (chunk.weights if chunk.weights.size else 1.0)
    times = np.ceil(bounds / (ROW_BOUND * (metric.mean_square or 1.0)))
    times = np.clip(times, 1, max(len(taken), 1)).astype(np.int64)
    order = row_order(seed, np.repeat(taken, times[taken]))
    more = max(len(order), 1) / max(len(taken), 1)
    pull[:, 0] *= more / times
    return _Plan(order, pull, 1.0 / more, norms.sums)


def _take_steps(plan, chunk, head, memory, problem, metric):
    """The head and memory after one visit, or None where it left finite numbers."""
    start, gradient_sum = to_solver(head.x, head.gradient_sum, metric)
    x, gradients = start.copy(), memory.gradients.copy()
    half = len(plan.order) // 2
    _run_pass(plan, plan.order[:half], x, gradient_sum, gradients, chunk, head, problem, metric)
    middle = x.copy()
    _run_pass(plan, plan.order[half:], x, gradient_sum, gradients, chunk, head, problem, metric)

    with np.errstate(invalid="ignore", over="ignore"):
        moves = [_squared_length(middle - start, metric), _squared_length(x - middle, metric)]
        x, gradient_sum = to_user(x, gradient_sum, metric)
        if metric.basis is not None:
            # Turned there and back, large columns would leave their rounding in small ones.
            gradient_sum = head.gradient_sum + weighted_sum(
                chunk.rows, gradients - memory.gradients.astype(float), problem
            )
        good = np.abs(x).max() < LARGEST_COEFFICIENT and np.isfinite(gradient_sum).all()  # False if NaN
    if not good:
        return None
    if memory.total is not None:
        memory = memory._replace(total=frozen(memory.total + (gradient_sum - head.gradient_sum)))
    tiny = np.finfo(float).tiny
    head = head._replace(
        x=frozen(x),
        gradient_sum=frozen(gradient_sum),
        window_sum=frozen(head.window_sum + x),
        window_count=head.window_count + 1,
        window_ratio=head.window_ratio + float(np.log((moves[0] + tiny) / (moves[1] + tiny))),
        window_energy=head.window_energy + sum(moves),
    )
    return head, memory._replace(gradients=frozen(gradients))


def _squared_length(move: np.ndarray, metric: Metric) -> float:
    return float((move[:, :-1] ** 2 / metric.scale).sum() + (move[:, -1] ** 2).sum())


def _run_pass(plan, order, x, gradient_sum, gradients, chunk, head, problem, metric):
    """Choose and call the kernel that updates the three arrays in place."""
    kernels = kernels_for(problem.loss, problem.penalty)
    step = problem.step(metric, head.cut) * plan.step
    rest = (x, gradient_sum, gradients, shift_of(metric), frozen(metric.scale))
    steps = (step, step if problem.fit_intercept else 0.0, 1.0 / head.weight)
    after = (*steps, float(problem.loss.curvature or 0.0), problem.loss, problem.penalty)
    for block, rows, gathered in solver_rows(chunk, metric, order):
        before = (frozen(chunk.targets), frozen(chunk.weights), frozen(order[block]), frozen(plan.pull))
        if sp.issparse(rows):
            kernels.sparse_pass(*csr_arrays(rows), *before, *rest, frozen(metric.rarity), *after)
        else:
            kernels.dense_pass(frozen(rows), gathered, *before, *rest, *after)


def weighted_sum(rows: Any, factors: np.ndarray, problem: Problem) -> np.ndarray:
    """sum_i factors_i a_i over rows, of shape (k, p + 1)."""
    if sp.issparse(rows):
        return np.column_stack([factors.T @ rows, factors.sum(axis=0)])
    out = np.zeros((factors.shape[1], rows.shape[1] + 1))
    kernels_for(problem.loss, problem.penalty).dense_sum(frozen(rows), frozen(factors), out)
    return out


def chunk_gradient(
    chunk: Chunk, x: np.ndarray, problem: Problem, gradients: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Exact sums over a chunk at one x: of w_i f(z_i), and of its gradient.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (k, p + 1)
        The intercept last, in the user's coordinates.
    problem : Problem
    gradients : ndarray of shape (n, k), default=None
        Is overwritten by w_i f'(z_i), whose rounded values then make the sum.

    Returns
    -------
    value : float
    gradient : ndarray of shape (k, p + 1)
    """
    if gradients is None:
        gradients = np.empty((0, len(x)), dtype=problem.memory_dtype)
    kernels = kernels_for(problem.loss, problem.penalty)
    gradient = np.zeros_like(x)
    rest = (frozen(chunk.targets), frozen(chunk.weights), frozen(x), gradient, gradients, problem.loss)
    if sp.issparse(chunk.rows):
        return kernels.sparse_gradient(*csr_arrays(chunk.rows), *rest), gradient
    return kernels.dense_gradient(frozen(chunk.rows), *rest), gradient


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
        stats = merge(stats, column_stats(chunk, problem))
    axes, axes_for = state.metric, (stats.rows, problem.geometry)
    if axes_for != state.metric_for:
        axes = choose_metric(stats, problem)
        head = head._replace(largest_sums=frozen(np.zeros(len(axes.scale))))
    metric = limit_axes(axes, head.largest_sums, len(state.chunks), stats, problem)
    if window_is_due(chunk_id, window_ids, len(state.chunks), head.window_count):
        head, window_ids = open_window(head, problem, metric), frozenset()
    seed = visit_seed(state.seed, chunk_id, memory.visits if memory else 0)
    head, memory = chunk_saga(chunk, head, memory, problem, metric, seed)
    return SAGAState(
        head,
        stats,
        axes,
        axes_for,
        {**state.chunks, chunk_id: memory},
        window_ids | {chunk_id},
        visit_digest(state.digest, chunk_id, memory, problem),
        state.seed,
    )


def visit_digest(before: str, chunk_id: Hashable, memory: ChunkMemory, problem: Problem) -> str:
    """The digest of a state after one more visit."""
    return digest(before, "visit", chunk_id, memory.content, memory.weights_content, problem.token())
