"""The steps of one visit: which rows in which order, the kernels run over them, and threads that share them."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ._intrinsics import GROUP, room_for
from ._kernels import Pass, kernels_for, room_of_columns
from ._rows import dense_sum, repeated, shuffle, squared_move
from .inputs import Chunk, frozen, row_arrays
from .metric import Metric, row_norms, shift_of, solver_rows, sum_to_solver, sum_to_user, x_to_solver, x_to_user
from .problem import Problem
from .state import LARGEST_COEFFICIENT, ChunkMemory, Head
from .threads import even_slices, sharers, threads

__all__ = ["plan_visit", "row_order", "take_steps", "weighted_sum"]

# A row is visited once for every ROW_BOUND times the mean Lipschitz constant that its own has.
ROW_BOUND = 2.0
# Random numbers that are drawn at a time, an even number, as two come from one draw of 64 bits.
DRAWS = 2**16
# Rows share x where the longest step of one is at most so long in units of the inverse of its curvature: four implicit
# ones along one direction, of h / (1 + h) each, then do not overshoot by more than they were off.
SHORT = 1.0
# Times that threads bring together what they found in each half of a visit, at most.
ROUNDS = 16
# Entries of a thread's rows in a round, at least: starting it costs as much as some thousands; and for each of x, as
# x and the sum are copied, and what threads find apart is only averaged.
ROUND_ENTRIES, ENTRIES_A_COEFFICIENT = 2**17, 32


def row_order(seed: Any, rows: np.ndarray) -> np.ndarray:
    """Rows, given with their repetitions, in the order in which a visit with this seed takes them: in place."""
    rng = np.random.default_rng(seed)
    for end in range(len(rows), 0, -DRAWS):
        draws = rng.integers(2**64, size=min(DRAWS, end + 1) // 2, dtype=np.uint64)
        shuffle(rows, draws.view(np.uint32)[:end], end)
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
    lengths, often, most = np.empty(0, np.float32), np.inf, float(len(taken))
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
    return Plan(_orders(seed, taken, n, count), frozen(lengths), pull, often, most, step)


def _orders(seed: int, taken: np.ndarray, n: int, count: int) -> list[np.ndarray]:
    """The rows of each thread, of n drawn at random: no memory gradient has two writers."""
    if count == 1:
        return [row_order(seed, taken)]
    owner = np.random.default_rng(seed).integers(count, size=n, dtype=np.uint8 if count < 256 else np.int64)[taken]

    def own(k: int) -> np.ndarray:
        return row_order((seed, k), taken[owner == k])

    with threads(count) as each:
        return list(each(own, range(count)))


def take_steps(
    plan: Plan, chunk: Chunk, head: Head, memory: ChunkMemory, problem: Problem, metric: Metric
) -> tuple[Head, ChunkMemory] | None:
    """The head and memory after one visit, or None where it left finite numbers."""
    start, gradient_sum = x_to_solver(head.x, metric), sum_to_solver(head.gradient_sum, metric).copy()
    x, middle, gradients = start.copy(), start.copy(), memory.gradients.copy()
    past, left, end = _shares(head, memory, problem)
    anchor = x_to_solver(head.past_sum / head.past_weight, metric) if past else start
    _share_steps(
        plan.orders, x, middle, gradient_sum, (left, end), anchor=frozen(anchor), past=past,
        gradients=gradients, plan=plan, chunk=chunk, head=head, problem=problem, metric=metric,
    )  # fmt: skip

    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.append(metric.scale, 1.0)
        moves = squared_move(start, middle, scale), squared_move(middle, x, scale)
        x, middle, gradient_sum = x_to_user(x, metric), x_to_user(middle, metric), sum_to_user(gradient_sum, metric)
        if metric.basis is not None:
            # Turned there and back, large columns would leave their rounding in small ones.
            gradient_sum = head.gradient_sum + weighted_sum(
                chunk.rows, gradients - memory.gradients.astype(float), problem, len(plan.orders)
            )
        largest = max(-x.min(), x.max(), -middle.min(), middle.max())
        # Sums tell NaN.
        good = largest < LARGEST_COEFFICIENT and np.isfinite(x.sum() + middle.sum() + gradient_sum.sum())
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
        past_weight=head.past_weight + memory.weight,
        past_sum=frozen(head.past_sum + memory.weight * middle),
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


def _share_steps(orders, x, middle, gradient_sum, left, *, plan, chunk, **how):
    """Steps over the rows of all threads, which write to x, the gradient sum and the gradients; x halfway to middle.

    Threads go on from one x and one sum, each on its own copies, and bring together the mean of the former
    and the changes of the latter, several times. As a mean moves less than its parts, steps are raised.
    """
    if len(orders) == 1:
        _run_steps(orders[0], x, middle, gradient_sum, left, plan=plan, chunk=chunk, **how)
        return
    if how["problem"].automatic:
        plan = plan._replace(step=plan.step * len(orders) ** 0.5)
    worth = chunk.entries // (len(orders) * max(ROUND_ENTRIES, ENTRIES_A_COEFFICIENT * x.size))
    with threads(len(orders)) as each, np.errstate(over="ignore", invalid="ignore"):
        rounds = 2 * min(max(worth, 1), ROUNDS)
        shares = itertools.pairwise(np.linspace(*left, rounds + 1).tolist())
        parts_of_rounds = zip(*(np.array_split(order, rounds) for order in orders), strict=True)
        for k, (share, parts) in enumerate(zip(shares, parts_of_rounds, strict=True)):
            if k == rounds // 2:
                middle[:] = x
            copies = [(x.copy(), middle.copy(), gradient_sum.copy()) for _ in parts]

            def run(part, copy, share=share):
                _run_steps(part, *copy, share, plan=plan, chunk=chunk, **how)

            list(each(run, parts, copies))
            counts = np.array([len(part) for part in parts])
            if not counts.any():  # no row has weight, or there are fewer rows than rounds
                continue
            x[:] = sum(count / counts.sum() * own for count, (own, *_) in zip(counts, copies, strict=True))
            gradient_sum += sum(own - gradient_sum for *_, own in copies)


def _run_steps(order, x, middle, gradient_sum, left, *, anchor, past, gradients, plan, chunk, head, problem, metric):
    """Choose and call the kernel that updates the four arrays in place."""
    kernels, step = kernels_for(problem.loss, problem.penalty), problem.step(metric, head.cut) * plan.step
    bound, less = float(problem.loss.curvature or 0.0), (left[0] - left[1]) / max(len(order), 1)
    short = problem.automatic and bound and step * plan.pull * plan.often * bound <= SHORT
    do = Pass(
        step, step if problem.fit_intercept else 0.0, 1.0 / head.weight, left[0], less, past,
        plan.pull, plan.often, plan.most, bound, GROUP if short else 1, 0,
    )  # fmt: skip
    written = (x, middle, anchor, gradient_sum, gradients)
    after = (room_for(len(x)), problem.loss, problem.penalty)
    for block, rows, gathered in solver_rows(chunk.rows, metric, order):
        own = do._replace(left=do.left - block.start * do.less, half=max(len(order) // 2 - block.start, -1))
        before = (frozen(chunk.targets), frozen(chunk.weights), frozen(order[block]), plan.lengths)
        if sp.issparse(rows):
            arrays = row_arrays(rows, slice(0, rows.shape[0]))
            table = room_of_columns(x.shape[1] - 1, len(x), past == 0.0 and not metric.shift.any())
            coordinates = (shift_of(metric), frozen(metric.scale), frozen(metric.rarity))
            kernels.sparse_pass(*arrays, *before, *written, *coordinates, table, own, *after)
        else:
            coordinates = (shift_of(metric), frozen(metric.scale))
            kernels.dense_pass(frozen(rows), gathered, *before, *written, *coordinates, own, *after)


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
