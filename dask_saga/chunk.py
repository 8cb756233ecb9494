"""One SAGA pass over one chunk as a pure function, and what surrounds it."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import scipy.sparse as sp

from ._intrinsics import room_for
from ._kernels import kernels_for
from .columns import ColumnStats, column_stats, merge, typical, without
from .inputs import Chunk, frozen, row_blocks
from .mapping import SharedMap
from .metric import (
    STALE,
    Metric,
    axis_limits,
    choose_metric,
    limit_axes,
    staleness,
)
from .problem import Problem, digest
from .state import ChunkMemory, Head, SAGAState, adapt, visit_seed
from .steps import plan_visit, take_steps, weighted_sum
from .threads import even_slices, sharers, threads
from .windows import end_pass, open_pass, open_window, stream_window_is_due, window_is_due

__all__ = ["chunk_gradient", "chunk_saga", "counted_stats", "factors_at_zero", "fresh_memory", "split_memory", "visit"]

# In a stream a chunk's first step is its share of the rows; that of each visit more is so many times longer.
TRUSTED = 3.0
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


def _stats_pay(memory: ChunkMemory) -> bool:
    """Whether column statistics, 49 bytes a column, are small beside the gradients, with the total."""
    return memory.total is not None and memory.total.nbytes + 49 * memory.total.shape[1] <= memory.gradients.nbytes / 4


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
    norms: np.ndarray | None = None,
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
        metric = metric._replace(pace=min(metric.pace, 1.0))
    if memory.weight < head.weight:
        metric = limit_axes(metric, head.limits, problem, min(head.cut, 1.0))
    for _ in range(RETRIES if problem.automatic else 1):
        moved = take_steps(plan, chunk, head, memory, problem, metric)
        if moved is not None:
            return moved
        head = head._replace(cut=head.cut * RETRY_CUT)
    return head._replace(diverged=True), memory


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
    add = kernels.sparse_gradient if sp.issparse(chunk.rows) else kernels.dense_gradient

    def part(rows: slice) -> tuple[float, np.ndarray]:
        total, gradient, room = 0.0, np.zeros_like(x), room_for(len(x))
        for block, arrays in row_blocks(chunk.rows, rows):
            targets, weights = frozen(chunk.targets[block]), frozen(chunk.weights[block])
            total = add(*arrays, targets, weights, frozen(x), gradient, gradients[block], total, room, problem.loss)
        return total, gradient

    count = sharers(problem.n_threads, chunk.entries)
    with threads(count) as each:
        values, sums = zip(*each(part, even_slices(len(chunk.targets), count)), strict=True)
    return sum(values), sum(sums)


def factors_at_zero(chunk: Chunk, problem: Problem) -> tuple[float, np.ndarray]:
    """The sum of w_i f(0), and w_i f'(0) of each row, of one output: of two labels all rows know the same two."""
    labels, targets, weights, which = getattr(problem.loss, "labels", None), chunk.targets, chunk.weights, None
    if labels and len(labels) == 2:
        which = (targets[:, 0] == labels[1]).astype(np.intp)
        weights = np.bincount(which, weights if weights.size else None, minlength=2).astype(float)
        targets = np.array(labels, float)[:, None]
    few = Chunk(np.zeros((len(targets), 0)), targets, weights, "", "")
    gradients = np.empty((len(targets), 1))
    value, _ = chunk_gradient(few, np.zeros((1, 1)), problem, gradients)
    if which is None:
        return value, gradients
    slopes = gradients / np.where(weights > 0, weights, 1.0)[:, None]
    return value, slopes[which] * chunk.weights[:, None] if chunk.weights.size else slopes[which]


def visit(state: SAGAState, chunk_id: Hashable, chunk: Chunk, problem: Problem) -> SAGAState:
    """The state after one pass over one chunk that arrived, new or known.

    Raises
    ------
    ValueError
        If the id is known with other content.
    """
    memory = state.chunks.get(chunk_id)
    head, stats, window_ids, own = state.head, state.stats, state.window_ids, None
    geometry, stale = state.metric_for
    if memory is None or memory.weights_content != chunk.weights_content:
        own = column_stats(chunk, problem)
        stats = merge(stats if memory is None else without(stats, counted_stats(memory, chunk, stats, problem)), own)
        stale += staleness(state.stats, stats, problem)
    axes = state.metric
    if axes is None or geometry != problem.geometry or stale > STALE:
        axes, stale = choose_metric(stats, problem), 0.0
        head = head._replace(limits=frozen(np.full(len(axes.scale), np.inf)))
    if own is not None:
        head = head._replace(limits=frozen(np.minimum(head.limits, axis_limits(own, axes, problem))))
    visits, known, metric = memory.visits if memory else 0, len(state.chunks), axes
    if problem.average:
        # A new chunk may lie far from the others: x follows it by its share first.
        share = len(chunk.targets) / max(stats.rows, 1)
        metric = metric._replace(pace=min(metric.pace, share * TRUSTED ** min(visits, 99)))
    returns = window_is_due(chunk_id, window_ids, known, head.window_count)
    if returns or stream_window_is_due(window_ids, known, head.window_count, first=memory is None):
        head, window_ids, returns = open_window(head, problem, metric), SharedMap(), memory is not None
    if returns:
        head = open_pass(head)
    elif chunk_id in window_ids or (memory is None and known):
        head = end_pass(head)
    seed = visit_seed(state.seed, chunk_id, visits)
    head, memory = chunk_saga(chunk, head, memory, problem, metric, seed)
    if own is not None:
        memory = memory._replace(stats=own._replace(products=None) if _stats_pay(memory) else None)
    return SAGAState(
        head,
        stats,
        axes,
        (problem.geometry, stale),
        state.chunks.having(chunk_id, memory),
        window_ids.having(chunk_id, visits == 0),
        visit_digest(state.digest, chunk_id, memory, problem),
        state.seed,
    )


def counted_stats(memory: ChunkMemory, chunk: Chunk | None, whole: ColumnStats, problem: Problem) -> ColumnStats:
    """The statistics with which a chunk counts among the whole's, as far as they are known, or its data given."""
    if memory.stats is not None and (chunk is None or memory.weights_content):
        return memory.stats
    if chunk is None:
        return typical(whole, memory.rows)
    stats = column_stats(chunk._replace(weights=np.empty(0)), problem)  # of weights only the sum is known
    factor = memory.weight / stats.weight
    return stats._replace(
        rows=memory.rows,
        weight=memory.weight,
        squares=stats.squares * factor,
        cross=stats.cross * factor,
        products=None if stats.products is None else stats.products * factor,
    )


def visit_digest(before: str, chunk_id: Hashable, memory: ChunkMemory, problem: Problem) -> str:
    """The digest of a state after one more visit."""
    return digest(before, "visit", chunk_id, memory.content, memory.weights_content, problem.token())
