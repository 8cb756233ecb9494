"""The steps of one visit: which rows in which order, and what comes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ._rows import dense_sum, largest_of, repeated, rows_of, shuffle_rows, squared_moves
from .inputs import Chunk, frozen
from .metric import Metric, row_norms, sum_to_solver, sum_to_user, x_to_solver, x_to_user
from .problem import Problem
from .sharing import ENTRIES_A_COEFFICIENT, share_dense_steps, share_sparse_steps
from .state import LARGEST_COEFFICIENT, ChunkMemory, Head
from .threads import even_slices, sharers, threads

__all__ = ["plan_visit", "row_order", "take_steps", "weighted_sum"]

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


class Plan(NamedTuple):
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
    head: Head,
    memory: ChunkMemory,
    problem: Problem,
    metric: Metric,
    seed: int,
    norms: np.ndarray | None = None,
) -> Plan:
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
    count = sharers(problem.n_threads, chunk.entries)
    count = count if chunk.entries >= count * ENTRIES_A_COEFFICIENT * head.x.size else 1
    return Plan(_orders(seed, taken, firsts, n, count), frozen(lengths), pull, often, most, step)


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


def take_steps(
    plan: Plan, chunk: Chunk, head: Head, memory: ChunkMemory, problem: Problem, metric: Metric
) -> tuple[Head, ChunkMemory] | None:
    """The head and memory after one visit, or None where it left finite numbers."""
    start, gradients = frozen(x_to_solver(head.x, metric)), memory.gradients.copy()
    past, left, end = _shares(head, memory, problem)
    anchor = frozen(x_to_solver(head.past_sum / head.past_weight, metric)) if past else start
    share = share_sparse_steps if sp.issparse(chunk.rows) else share_dense_steps
    x, middle, gradient_sum = share(
        plan.orders, start, frozen(sum_to_solver(head.gradient_sum, metric)), (left, end), anchor=anchor, past=past,
        gradients=gradients, plan=plan, chunk=chunk, head=head, problem=problem, metric=metric,
    )  # fmt: skip

    with np.errstate(invalid="ignore", over="ignore"):
        moves = squared_moves(start, middle, x, metric.scale)
        x, middle, gradient_sum = x_to_user(x, metric), x_to_user(middle, metric), sum_to_user(gradient_sum, metric)
        if metric.basis is not None:
            # Turned there and back, large columns would leave their rounding in small ones.
            gradient_sum = head.gradient_sum + weighted_sum(
                chunk.rows, gradients - memory.gradients.astype(float), problem, len(plan.orders)
            )
        good = largest_of(x, middle) < LARGEST_COEFFICIENT and np.isfinite(gradient_sum.sum())  # a sum tells NaN
    if not good:
        return None
    if memory.total is not None:
        memory = memory._replace(total=frozen(memory.total + (gradient_sum - head.gradient_sum)))
    past_sum = np.multiply(middle, memory.weight, out=middle)  # nobody else asks for x on the way
    tiny = np.finfo(float).tiny
    head = head._replace(
        x=frozen(x),
        gradient_sum=frozen(gradient_sum),
        window_sum=frozen(head.window_sum + x if head.window_count else x),
        window_count=head.window_count + 1,
        past_weight=head.past_weight + memory.weight,
        past_sum=frozen(head.past_sum + past_sum if head.past_weight else past_sum),
        window_ratio=head.window_ratio + float(np.log(max((moves[0] + tiny) / (moves[1] + tiny), tiny))),
        window_energy=head.window_energy + sum(moves),
    )
    return head, memory._replace(gradients=frozen(gradients))


def _shares(head: Head, memory: ChunkMemory, problem: Problem) -> tuple[float, float, float]:
    """Shares of all rows: of other chunks visited in this pass, and not yet visited before and after this visit."""
    # Slopes without bound, as exp(z), say nothing of those elsewhere.
    if not problem.automatic or problem.loss.curvature is None or head.past_weight == np.inf:
        return 0.0, 1.0, 1.0
    own = memory.weight / head.weight
    past = max(0.0, min(head.past_weight / head.weight, 1.0 - own))  # rounding may leave less than nothing
    return past, 1.0 - past, max(0.0, 1.0 - past - own)


def weighted_sum(rows: Any, factors: np.ndarray, problem: Problem, count: int = 1) -> np.ndarray:
    """sum_i factors_i a_i over rows, of shape (k, p + 1), by `count` threads."""
    if sp.issparse(rows):
        return np.column_stack([factors.T @ rows, factors.sum(axis=0)])

    def part(block: slice) -> np.ndarray:
        out = np.zeros((factors.shape[1], rows.shape[1] + 1))
        dense_sum(frozen(rows[block]), frozen(factors[block]), out)
        return out

    with threads(count) as each:
        return sum(each(part, even_slices(len(factors), count)))
