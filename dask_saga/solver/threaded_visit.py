"""Runs the kernels over the rows of a visit, in one thread or in several that share the rows.

Threads work on copies of x and the gradient sum, which are merged several times in a visit. See
docs/algorithm/parallelism.md.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.chunk import row_arrays
from ..execution.threads import even_slices, run_together, threads
from ..kernels.column_table import empty_tables, fill_table, read_table
from ..kernels.epoch import Pass, kernels_for
from ..kernels.intrinsics import GROUP, scratch_for
from ..kernels.table_merge import TableMerge, merge_tables
from ..penalties import ElasticNet

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .preconditioned_problem import PreconditionedProblem
    from .problem import Problem
    from .state import SolverState
    from .visit_plan import RowSchedule

    Copy = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, x halfway and gradient sum of one thread

__all__ = ["ENTRIES_A_COEFFICIENT", "share_dense_steps", "share_sparse_steps"]


# Longest step of a row, in units of its inverse curvature, for which groups of rows take their derivatives at the same
# x. Four implicit steps h / (1 + h) along one direction then overshoot by at most their initial distance.
SHORT = 1.0

# Largest number of merges of the threads in each half of a visit: for dense rows, for sparse rows.
DENSE_ROUNDS, SPARSE_ROUNDS = 16, 3

# Columns of sparse rows with at least this many visits per thread and round are merged after every round.
OFTEN = 2

# Assumed curvature in units of its bound, to predict how far a round moves a column. The bound is rarely reached.
MOVED = 0.25

# Largest extrapolation factor of a column: how many times as far as the mean of the threads' moves it goes.
FARTHEST = 1.5

# Least number of stored entries of a thread's dense rows in a round: in all, and per coefficient. Each round copies x
# and the gradient sum, and averages what the threads learned separately.
ROUND_ENTRIES, ENTRIES_A_COEFFICIENT = 2**17, 32

# The same for sparse rows: in all, and per column that is merged after every round.
SPARSE_ROUND_ENTRIES, ENTRIES_A_COLUMN = 2**15, 8


def share_dense_steps(
    orders: list[np.ndarray],
    start: np.ndarray,
    start_sum: np.ndarray,
    left: tuple[float, float],
    *,
    plan: RowSchedule,
    chunk: Chunk,
    **how: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the steps of a visit of dense rows, and store the new gradients of the rows.

    In every round each thread starts from the same x and gradient sum and works on its own copies. Then x becomes the
    mean of the threads' x, weighted by their numbers of row visits, and the gradient sum receives all changes. A
    mean moves less than its parts, so "auto" steps are multiplied by sqrt(threads).

    Parameters
    ----------
    orders : list of ndarray of int
        Row numbers in the order of their visits, one array per thread.
    start, start_sum : ndarray of shape (k, p + 1)
        x and gradient sum at the start of the visit, in the solver's coordinates.
    left : tuple of float
        Fraction of the total weight that the pass has not visited, at the start and at the end of the visit.
    plan : RowSchedule
    chunk : Chunk
    **how
        Further arguments of ``_run_steps``, as in ``share_sparse_steps``.

    Returns
    -------
    x, middle, gradient_sum : ndarray of shape (k, p + 1)
        x at the end of the visit, x halfway, and the gradient sum at the end.
    """
    x, middle, gradient_sum = start.copy(), start.copy(), start_sum.copy()
    if len(orders) == 1:
        _run_steps(orders[0], x, middle, gradient_sum, left, plan=plan, chunk=chunk, **how)
        return x, middle, gradient_sum
    plan = _lengthened(plan, len(orders), how["preconditioned"].problem)
    rounds = 2 * _rounds_of_half(chunk, len(orders), max(ROUND_ENTRIES, ENTRIES_A_COEFFICIENT * x.size), DENSE_ROUNDS)
    with threads(len(orders)) as each, np.errstate(over="ignore", invalid="ignore"):
        for k, (share, parts) in enumerate(zip(*_split_rounds(orders, left, rounds), strict=True)):
            if k == rounds // 2:
                middle[:] = x
            copies = [(x.copy(), middle.copy(), gradient_sum.copy()) for _ in parts]

            def run(part: np.ndarray, copy: Copy, share: tuple[float, float] = share) -> None:
                _run_steps(part, *copy, share, plan=plan, chunk=chunk, **how)

            list(each(run, parts, copies))
            counts = np.array([len(part) for part in parts])
            if not counts.any():  # no row has positive weight, or there are fewer rows than rounds
                continue
            x[:] = sum(count / counts.sum() * own for count, (own, *_) in zip(counts, copies, strict=True))
            gradient_sum += sum(own - gradient_sum for *_, own in copies)
    return x, middle, gradient_sum


def share_sparse_steps(
    orders: list[np.ndarray],
    start: np.ndarray,
    start_sum: np.ndarray,
    left: tuple[float, float],
    *,
    anchor: np.ndarray,
    past: float,
    gradients: np.ndarray,
    plan: RowSchedule,
    chunk: Chunk,
    head: SolverState,
    preconditioned: PreconditionedProblem,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the steps of a visit of sparse rows, and store the new gradients of the rows.

    Each thread keeps its copies in a table of columns. At the end of a round the threads merge the tables themselves,
    each for a part of the columns.

    Parameters
    ----------
    orders, start, start_sum, left, plan, chunk
        As in ``share_dense_steps``.
    anchor : ndarray of shape (k, p + 1)
        Mean x of the visits of other chunks in this pass.
    past : float
        Fraction of the total weight in chunks that this pass has already visited.
    gradients : ndarray of shape (n, k)
        Gradient memory of the chunk, updated in place.
    head : SolverState
    preconditioned : PreconditionedProblem

    Returns
    -------
    x, middle, gradient_sum : ndarray of shape (k, p + 1)
        x at the end of the visit, x halfway, and the gradient sum at the end.
    """
    problem, preconditioner = preconditioned
    (outputs, p), count = (len(start), start.shape[1] - 1), len(orders)
    x, middle, gradient_sum = np.empty_like(start), np.empty_like(start), np.empty_like(start_sum)
    plan, shift = _lengthened(plan, count, problem), preconditioner.kernel_shift
    step, shifted = _step(plan, head, preconditioned), bool(np.count_nonzero(shift))
    merge = _plan_merge(orders, chunk, step, preconditioned) if count > 1 else None
    lefts, parts = _split_rounds(orders, left, merge.rounds if merge else 2)

    sparse_pass = kernels_for(problem.loss, problem.penalty).sparse_pass
    rows = row_arrays(chunk.rows, slice(0, len(chunk.targets)))
    l2 = problem.penalty.l2 if isinstance(problem.penalty, ElasticNet) else 0.0
    scale, inverse_density = preconditioner.scale, preconditioner.inverse_density
    tables, ends = empty_tables(count, p, outputs, past == 0.0 and not shifted)

    def run(t: int, *counters: np.ndarray) -> bool:
        table, own, scratch = tables[t], ends[t], scratch_for(outputs)
        fill_table(start, start_sum, anchor, shift, scale, inverse_density, step, l2, table, own)
        if count > 1:
            mine = even_slices(p + 1, count)[t]
            x[:, mine], gradient_sum[:, mine] = start[:, mine], start_sum[:, mine]
        for k, pair in enumerate(lefts):
            params = _pass_of(len(parts[k][t]), pair, past, plan, head, preconditioned)
            sparse_pass(
                *rows, chunk.targets, chunk.weights, parts[k][t], plan.lengths, gradients, table, shifted, own, params,
                scratch, problem.loss, problem.penalty,
            )  # fmt: skip
            if count == 1:
                read_table(table, own, *((middle, gradient_sum[:0]) if k == 0 else (x, gradient_sum)))
            elif not merge_tables(t, k, *counters, merge, tables, ends, x, middle, gradient_sum):
                return False
        return True

    run_together(count, run)
    return x, middle, gradient_sum


def _plan_merge(
    orders: list[np.ndarray], chunk: Chunk, step: float, preconditioned: PreconditionedProblem
) -> TableMerge:
    """Plan how the threads merge their tables: the number of rounds, and the columns merged in each."""
    problem, preconditioner = preconditioned
    visits, count = np.array([len(order) for order in orders]), len(orders)
    # A thread visits a column about visits / inverse_density times.
    n_frequent = int(np.count_nonzero(preconditioner.inverse_density < visits.mean() / (2 * OFTEN * SPARSE_ROUNDS)))
    rounds = 2 * _rounds_of_half(chunk, count, max(SPARSE_ROUND_ENTRIES, ENTRIES_A_COLUMN * n_frequent), SPARSE_ROUNDS)
    limit = visits.mean() / (OFTEN * rounds)
    # With a user's own penalty use the plain mean, which stays in the domain of the penalty.
    limits = 1.0, np.inf, -np.inf, np.inf
    if isinstance(problem.penalty, ElasticNet):
        limits = FARTHEST, -math.log(FARTHEST - 1.0), problem.penalty.lower, problem.penalty.upper
    frequent = np.flatnonzero(preconditioner.inverse_density < limit).astype(np.int32)
    return TableMerge(
        visits / max(visits.sum(), 1), rounds, frequent, limit, preconditioner.inverse_density, preconditioner.spread,
        MOVED * preconditioner.curvature * visits.mean() / rounds, step, *limits,
    )  # fmt: skip


def _lengthened(plan: RowSchedule, count: int, problem: Problem) -> RowSchedule:
    return plan._replace(step=plan.step * count**0.5) if problem.automatic else plan


def _rounds_of_half(chunk: Chunk, count: int, least: int, most: int) -> int:
    """Return the number of rounds in half a visit: at most `most`, each with `least` entries or more per thread."""
    return min(max(chunk.entries // (count * least), 1), most)


def _split_rounds(
    orders: list[np.ndarray], left: tuple[float, float], rounds: int
) -> tuple[list[tuple[float, float]], list[tuple[np.ndarray, ...]]]:
    """Split a visit into rounds.

    Return the fractions not yet visited at the start and end of each round, and the rows of each thread in it.
    """
    parts = list(zip(*([order[part] for part in even_slices(len(order), rounds)] for order in orders), strict=True))
    done = np.cumsum([0, *(sum(map(len, some)) for some in parts)])
    lefts = left[0] + (left[1] - left[0]) * done / max(done[-1], 1)
    return list(itertools.pairwise(lefts.tolist())), parts


def _step(plan: RowSchedule, head: SolverState, preconditioned: PreconditionedProblem) -> float:
    return preconditioned.step_size(head.step_multiplier) * plan.step


def _pass_of(
    visits: int,
    left: tuple[float, float],
    past: float,
    plan: RowSchedule,
    head: SolverState,
    preconditioned: PreconditionedProblem,
) -> Pass:
    """Collect the parameters of a kernel call with this number of row visits."""
    problem = preconditioned.problem
    bound, step, less = float(problem.loss.curvature or 0.0), _step(plan, head, preconditioned), left[0] - left[1]
    short = problem.automatic and bound and step * plan.change_scale * plan.length_threshold * bound <= SHORT
    return Pass(
        step, step if problem.fit_intercept else 0.0, 1.0 / head.weight, left[0], less / max(visits, 1), past,
        plan.change_scale, plan.length_threshold, plan.max_visits, bound, GROUP if short else 1, 0,
    )  # fmt: skip


def _run_steps(
    order: np.ndarray,
    x: np.ndarray,
    middle: np.ndarray,
    gradient_sum: np.ndarray,
    left: tuple[float, float],
    *,
    anchor: np.ndarray,
    past: float,
    gradients: np.ndarray,
    plan: RowSchedule,
    chunk: Chunk,
    head: SolverState,
    preconditioned: PreconditionedProblem,
) -> None:
    """Run the dense kernel over the rows of `order`. It updates x, middle, gradient_sum and gradients in place."""
    problem, preconditioner = preconditioned
    dense_pass, shift = kernels_for(problem.loss, problem.penalty).dense_pass, preconditioner.kernel_shift
    params, scratch = _pass_of(len(order), left, past, plan, head, preconditioned), scratch_for(len(x))
    for block, rows, gathered in preconditioner.rows_to_solver(chunk.rows, order):
        still_left, half_visit = params.left - block.start * params.less, max(len(order) // 2 - block.start, -1)
        dense_pass(
            rows, gathered, chunk.targets, chunk.weights, order[block], plan.lengths, x, middle, anchor, gradient_sum,
            gradients, shift, preconditioner.scale, params._replace(left=still_left, half_visit=half_visit), scratch,
            problem.loss, problem.penalty,
        )  # fmt: skip
