"""The row schedule of a visit: which rows it takes, how often, in which order and by which thread.

See docs/algorithm/step_size.md and docs/algorithm/without_replacement.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..execution.threads import thread_count
from ..kernels.row_order import repeated, rows_of, shuffle_rows
from .preconditioned_problem import row_norms
from .step_rule import STEP_RULE
from .threaded_visit import ENTRIES_A_COEFFICIENT

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .preconditioned_problem import PreconditionedProblem
    from .state import ChunkMemory, SolverState

__all__ = ["RowSchedule", "plan_visit", "row_order"]


# Number of neighbouring rows in a block, which are visited at about the same time because they share cache lines;
# number of blocks, from all over the chunk, whose rows are shuffled together. Larger blocks are faster, but in rows
# sorted by a category all visits of a level would follow each other.
NEIGHBOURS, BLOCKS = 4, 256

# Up to 2**BLOCK_BITS neighbouring rows belong to one thread, so that threads hardly share cache lines of the gradient
# memory.
BLOCK_BITS = 6


def row_order(seed: int | tuple[int, ...], rows: np.ndarray, firsts: int) -> np.ndarray:
    """Shuffle row numbers, in place, into the order of one visit.

    Blocks of neighbours are shuffled, then the rows within groups of blocks. Repeated visits, and rows that do not
    fill a block, swap places with any row.

    Parameters
    ----------
    seed : int or tuple of int
    rows : ndarray of int
        Row numbers: first each row once, then the repeated visits.
    firsts : int
        Number of rows before the repeated visits.

    Returns
    -------
    ndarray of int
        `rows` itself.
    """
    blocks = max(-(-len(rows) // NEIGHBOURS), 1)
    size = NEIGHBOURS * -(-blocks // -(-blocks // BLOCKS))  # rows per group, such that groups are about equal
    [state] = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    shuffle_rows(rows, state, firsts - firsts % NEIGHBOURS, NEIGHBOURS, size)
    return rows


class RowSchedule(NamedTuple):
    """Schedule of the rows of a visit.

    Parameters
    ----------
    orders : list of ndarray of int
        Row numbers in the order of their visits, one array per thread.
    lengths : ndarray of shape (n,) or (0,)
        ``row_norms`` of the chunk. Empty for a float ``step_size``.
    change_scale : float
        Factor of the change of a row's gradient in a step: number of rows over their weight, times the mean number
        of visits of a row.
    length_threshold : float
        A row is visited ceil(weight * squared length / length_threshold) times. inf for a float ``step_size``.
    max_visits : float
        Maximum number of visits of a row.
    step : float
        Factor of the problem's step, the inverse of the mean number of visits of a row.
    """

    orders: list[np.ndarray]
    lengths: np.ndarray
    change_scale: float
    length_threshold: float
    max_visits: float
    step: float


def plan_visit(
    chunk: Chunk,
    head: SolverState,
    memory: ChunkMemory,
    preconditioned: PreconditionedProblem,
    seed: int,
    norms: np.ndarray | None = None,
) -> RowSchedule:
    """Draw the row schedule of a visit: a random order in which rows with large bounds occur several times.

    Parameters
    ----------
    chunk : Chunk
    head : SolverState
    memory : ChunkMemory
    preconditioned : PreconditionedProblem
    seed : int
    norms : ndarray of shape (n,), default=None
        ``row_norms`` of the chunk. By default they are computed if needed.

    Returns
    -------
    RowSchedule
    """
    problem, preconditioner = preconditioned
    n, change_scale, step = len(chunk.targets), head.rows / head.weight, 1.0
    taken = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)  # int32 keeps schedules small even for short rows
    if chunk.weights.size:
        # Skip rows with zero weight, except if their memory still holds a gradient of an earlier weight to be removed.
        taken = taken[(chunk.weights > 0) | memory.gradients.any(axis=1)]
    firsts, lengths, length_threshold = len(taken), np.empty(0, np.float32), np.inf
    if problem.automatic:
        lengths = row_norms(chunk, preconditioned) if norms is None else norms
        # Sample rows by their bounds (Schmidt et al. 2015, section 3), so that the largest row does not determine
        # the step.
        length_threshold = STEP_RULE.row_bound * (preconditioner.mean_square or 1.0) / change_scale
        visits = repeated(taken, lengths, chunk.weights, length_threshold, taken[:0])
        if visits > len(taken):
            step = len(taken) / visits
            every = np.empty(visits, taken.dtype)
            repeated(taken, lengths, chunk.weights, length_threshold, every)
            taken, change_scale = every, change_scale / step
    count = thread_count(problem.n_threads, chunk.entries)
    count = count if chunk.entries >= count * ENTRIES_A_COEFFICIENT * head.x.size else 1
    orders = _orders(seed, taken, firsts, n, count)
    return RowSchedule(orders, lengths, change_scale, length_threshold, float(firsts), step)


def _orders(seed: int, taken: np.ndarray, firsts: int, n: int, count: int) -> list[np.ndarray]:
    """Distribute the scheduled rows over `count` threads at random, and order the rows of each.

    Every row has one owner, so that no memory gradient has two writers. Owners are drawn per block of
    neighbouring rows among the `n` rows of the chunk.
    """
    if count == 1:
        return [row_order(seed, taken, firsts)]
    bits = min(max(1, n // (16 * count)).bit_length() - 1, BLOCK_BITS)
    owners = np.random.default_rng(seed).permutation(np.arange((n >> bits) + 1, dtype=np.int32) % count)

    def order(k: int) -> np.ndarray:
        own = np.empty_like(taken)
        here = rows_of(k, owners, bits, taken[:firsts], own)
        there = rows_of(k, owners, bits, taken[firsts:], own[here:])
        return row_order((seed, k), own[: here + there], here)

    return [order(k) for k in range(count)]
