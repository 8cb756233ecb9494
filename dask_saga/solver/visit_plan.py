"""The steps of one visit: which rows in which order, and what comes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.chunk import frozen
from ..execution.threads import thread_count
from ..kernels.row_order import repeated, rows_of, shuffle_rows
from .preconditioner import row_norms
from .threaded_visit import ENTRIES_A_COEFFICIENT

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .preconditioner import Preconditioner
    from .problem import Problem
    from .state import ChunkMemory, SolverState

__all__ = ["RowSchedule", "plan_visit", "row_order"]


# A row is visited once for every ROW_BOUND times the mean Lipschitz constant that its own has.
ROW_BOUND = 2.0

# Neighbouring rows that are visited about the same time, as they share lines of the cache; and how many such blocks,
# from all over the chunk, are mixed. Larger blocks are quicker, but rows sorted by a category would bring each level's
# column all its visits at once.
NEIGHBOURS, BLOCKS = 4, 256

# Rows whose numbers agree but for the last so many bits have one thread, so that the lines of the cache with their
# memory gradients do not go to and fro.
BLOCK_BITS = 6


def row_order(seed: Any, rows: np.ndarray, firsts: int) -> np.ndarray:
    """Bring rows, of which those after so many are there once more, into the order of a visit with this seed.

    In place. Further visits, and rows that fill no block, change places with any.
    """
    blocks = max(-(-len(rows) // NEIGHBOURS), 1)
    size = NEIGHBOURS * -(-blocks // -(-blocks // BLOCKS))  # of a group; none is much smaller
    [state] = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    shuffle_rows(rows, state, firsts - firsts % NEIGHBOURS, NEIGHBOURS, size)
    return rows


class RowSchedule(NamedTuple):
    """How a visit takes its rows.

    Parameters
    ----------
    orders : list of ndarray of int
        Row numbers in the order of their visits, for each thread its own rows.
    lengths : ndarray of shape (n,) or (0,)
    pull, often, most : float
        As the kernels take them.
    step : float
        What the problem's step is multiplied by.
    """

    orders: list[np.ndarray]
    lengths: np.ndarray
    pull: float
    often: float
    most: float
    step: float


def plan_visit(
    chunk: Chunk,
    head: SolverState,
    memory: ChunkMemory,
    problem: Problem,
    metric: Preconditioner,
    seed: int,
    norms: np.ndarray | None = None,
) -> RowSchedule:
    """Rows in a new random order, those with large bounds several times."""
    n, pull, step = len(chunk.targets), head.rows / head.weight, 1.0
    taken = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)  # plans are small beside short rows, too
    if chunk.weights.size:
        # Rows without weight take no step, but a gradient from an earlier weight must go.
        taken = taken[(chunk.weights > 0) | memory.gradients.any(axis=1)]
    firsts, lengths, often, most = len(taken), np.empty(0, np.float32), np.inf, float(len(taken))
    if problem.automatic:
        lengths = row_norms(chunk, metric, problem) if norms is None else norms
        # Sampling by bounds (Schmidt et al. 2015, section 3): then the largest row does not rule the step.
        often = ROW_BOUND * (metric.mean_square or 1.0) / pull
        rest = (frozen(lengths), frozen(chunk.weights), often)
        visits = repeated(taken, *rest, taken[:0])
        if visits > len(taken):
            step = len(taken) / visits
            every = np.empty(visits, taken.dtype)
            repeated(taken, *rest, every)
            taken, pull = every, pull / step
    count = thread_count(problem.n_threads, chunk.entries)
    count = count if chunk.entries >= count * ENTRIES_A_COEFFICIENT * head.x.size else 1
    return RowSchedule(_orders(seed, taken, firsts, n, count), frozen(lengths), pull, often, most, step)


def _orders(seed: int, taken: np.ndarray, firsts: int, n: int, count: int) -> list[np.ndarray]:
    """The rows of each thread, of n drawn at random: no memory gradient has two writers."""
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
