"""The main loop of a fit: passes over all chunks until the fit has converged.

``run`` is the only driver. It is the same in memory and on Dask.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..solver.averaging import window_is_due
from ..solver.identity import digest, draw_seed, number_occurrences, visit_seed
from ..solver.step_rule import STEP_RULE
from ..solver.subsample import subsample_step
from ..solver.visit import visit_digest
from .chunk_source import lanes
from .convergence import confirm, memory_is_exact, norm_at_zero
from .fit_state import (
    FitSetup,
    PendingPass,
    at_point,
    initial_state,
    result,
    resume,
    roll_back,
    to_checkpoint,
    without_lineage,
)
from .newton_passes import affordable_seconds, may_step, newton_pass
from .rounds import VisitSpec, draw_rounds, round_summary, visit_chunk

if TYPE_CHECKING:
    from ..solver.preconditioned_problem import PreconditionedProblem
    from ..solver.problem import Problem
    from ..solver.state import SolverState
    from ..solver.subsample import Subsample
    from .checkpoint import Checkpoint
    from .chunk_source import Source
    from .fit_state import FitState, Result
    from .preparation import Prepared

__all__ = ["Info", "join_x", "run", "split_x"]


logger = logging.getLogger("dask_saga")


# Number of passes after which results are gathered and put on the cluster again. Otherwise the cluster keeps all tasks
# so far, to run them again if a worker is lost.
LINEAGE = 10


# A subsample step that leaves more than this fraction of the gradient norm is the last one, as a pass of visits leaves
# less.
SUBSAMPLE_PAYS = 0.5

# Relative rise of F that counts as rounding.
RISE = 1e-12


class Info(NamedTuple):
    """Argument of the callback after each epoch.

    Parameters
    ----------
    epoch : int
        Number of passes made, from 1. After a subsample step or a Newton step without gain, the values of the previous
        pass are repeated.
    x : ndarray of shape (p,), or (k, p) for k outputs
        Coefficients that the fit would return now.
    intercept : float, or ndarray of shape (k,)
    objective : float
        Estimate of F: the sum of each chunk's loss after its visit in this pass, estimated from at most 256 rows, and
        the penalty at `x`. It is exact after subsample steps and Newton steps, and after a test for convergence by an
        exact pass.
    gradient_norm : float
        Norm of the proximal gradient, relative to its value at zero. It is exact whenever `objective` is.
    step_size : float
    seconds : float
        Seconds since the first pass began.
    visits : int
        Number of chunk visits so far.
    bytes_read : int
        Size of all chunks that this process has loaded so far. Chunks that are not held count at every load.
    chunks : sequence
        The chunks as the caller passed them.
    """

    epoch: int
    x: np.ndarray
    intercept: float | np.ndarray
    objective: float
    gradient_norm: float
    step_size: float
    seconds: float
    visits: int
    bytes_read: int
    chunks: Any


class Orders:
    """Rounds of each pass. The rounds of an epoch depend only on its number, not on the order of the requests."""

    def __init__(self, lanes: list[range], seed: int | None):
        self.lanes, self.rng = lanes, None if seed is None else np.random.default_rng(seed)
        self.drawn: list[list[list[int]]] = []

    def __getitem__(self, epoch: int) -> list[list[int]]:
        while len(self.drawn) < epoch:
            self.drawn.append(draw_rounds(self.lanes, self.rng))
        return self.drawn[epoch - 1]


def split_x(x: np.ndarray) -> tuple[np.ndarray, float | np.ndarray]:
    """Split x into coefficients and intercept. With one output, the axis of outputs is dropped."""
    return (x[0, :-1], float(x[0, -1])) if len(x) == 1 else (x[:, :-1], x[:, -1])


def join_x(coef: np.ndarray, intercept: float | np.ndarray) -> np.ndarray:
    """Join coefficients and intercept to the solver's x, with the intercept in the last column. Undo ``split_x``."""
    return np.column_stack([np.atleast_2d(coef), np.ravel(intercept)])


def run(
    source: Source,
    prepared: Prepared,
    problem: Problem,
    *,
    seed: int | None,
    max_iter: int,
    tol: float,
    shuffle: bool = True,
    callback: Callable[[Info], Any] | None = None,
    given: Any = None,
    checkpoint: Checkpoint | None = None,
    start: np.ndarray | None = None,
) -> Result:
    """Fit by SAGA over all chunks, with subsample steps and Newton steps where they gain more.

    Parameters
    ----------
    source : Source
    prepared : Prepared
        Result of ``prepare``. The weights of the rows must not sum to zero.
    problem : Problem
    seed : int or None
        Seed of all random orders. None uses the seed of the checkpoint, or draws one.
    max_iter : int
        Maximum number of passes.
    tol : float
        Tolerance of the two measures of convergence (docs/algorithm/stopping.md). The gradient norm that the gradient
        memory estimates decides when the exact test is made.
    shuffle : bool, default=True
        If True, each epoch visits the chunks in a new random order.
    callback : callable, default=None
        ``callback(info)`` is called after each epoch. The fit stops if it returns True.
    given : object, default=None
        Value of ``info.chunks``.
    checkpoint : Checkpoint, default=None
        Checkpoint to resume from and to save to.
    start : ndarray of shape (k, p + 1), default=None
        Coefficients to start from. Ignored if zero is better or if the fit resumes from a checkpoint.

    Returns
    -------
    Result
        Result of the last complete pass. A KeyboardInterrupt before the first one is raised again.
    """
    fit, state, identity = _open(source, prepared, problem, seed, shuffle, tol, checkpoint, start)
    passes = _Passes(fit, Orders(fit.lanes, fit.seed if shuffle else None), max_iter, state)
    interrupted, is_over = False, state.converged or state.summary.diverged
    try:
        for epoch in range(len(state.history) + 1, 0 if is_over else max_iter + 1):
            state, is_exact = passes.make(state)
            state = _tested(fit, state, tol, is_exact, is_last=epoch == max_iter)
            is_over = state.summary.diverged or state.converged
            if callback is not None:
                answer = callback(_info(state, given))
                is_over = is_over or (isinstance(answer, (bool, np.bool_)) and bool(answer))
            if checkpoint and (is_over or epoch == max_iter or checkpoint.is_due()):
                checkpoint.save(identity, to_checkpoint(fit, state))
            if is_over:
                break
            if epoch % LINEAGE == 0:
                state = without_lineage(fit, state)
    except KeyboardInterrupt:
        if not state.history:
            raise
        interrupted = True
        source.interrupt()
    passes.release()
    return result(fit, state, interrupted=interrupted, needs_float64=not _memory_suffices(fit, tol))


def _open(
    source: Source,
    prepared: Prepared,
    problem: Problem,
    seed: int | None,
    shuffle: bool,
    tol: float,
    checkpoint: Checkpoint | None,
    start: np.ndarray | None,
) -> tuple[FitSetup, FitState, dict]:
    """Return the set-up of a fit, its first state, and what a checkpoint must share with it."""
    ids = number_occurrences(fact.content for fact in prepared.facts)
    width = min(source.width, len(prepared.groups))
    identity = {
        "data": digest(ids, [fact.weights_content for fact in prepared.facts], prepared.groups),
        "parameters": digest(problem.token(), shuffle),
        "n_parallel": None if source.n_parallel == "auto" else width,
        "random_state": seed,
    }
    saved = checkpoint.load(identity) if checkpoint else None
    if saved:
        seed, width = saved.facts["seed"], saved.facts["n_parallel"]
    elif seed is None:
        seed = draw_seed(None)
    identity |= {"random_state": seed, "n_parallel": width}
    weight = sum(fact.weight for fact in prepared.facts)
    at_zero = norm_at_zero(prepared, weight, problem)
    fit = FitSetup(source, prepared, problem, ids, weight, seed, lanes(len(prepared.groups), width), at_zero)
    if checkpoint and not fit.can_gather_memory():
        raise ValueError(
            f"checkpoint: the gradient memory, {fit.all_memory_bytes / 1e9:.1f} GB, is too large for this process to "
            "write; fit without a checkpoint, or in a process with more memory"
        )
    if saved:
        return fit, resume(fit, saved, tol), identity
    state = initial_state(fit, start)
    return fit, state._replace(newton=affordable_seconds(fit, state, is_exact=True)), identity


class _Passes:
    """Make the passes of a fit, one after the other.

    On a cluster, a pass of visits is submitted before the previous one has ended.

    Parameters
    ----------
    fit : FitSetup
    orders : Orders
    max_iter : int
    state : FitState
        State before the first of these passes.
    """

    def __init__(self, fit: FitSetup, orders: Orders, max_iter: int, state: FitState):
        self.fit, self.orders, self.max_iter = fit, orders, max_iter
        self.next_pass: PendingPass | None = None  # the pass that was submitted early
        self.began = time.perf_counter() - (state.history[-1]["seconds"] if state.history else 0.0)

    def make(self, state: FitState) -> tuple[FitState, bool]:
        """Make one pass. Return the state with one more row of history, and whether its gradient norm is exact."""
        if state.is_new:  # `initial_state` has made this pass
            after = state._replace(is_new=False)
        elif state.newton:  # before a subsample step, which would leave the x of the Newton step
            after, self.next_pass = newton_pass(self.fit, state), None
        elif state.refines:
            after = _subsample_pass(self.fit, state)
        else:
            return _noted(self.fit, self._visit_all(state), self.began), False
        return _noted(self.fit, after, self.began), True

    def _visit_all(self, state: FitState) -> FitState:
        """Visit every chunk. Undo this if the steps diverge."""
        source, epoch = self.fit.source, len(state.history) + 1
        current = self.next_pass or self._submit(state, epoch, state.in_vain)
        # Submit the next pass before this one has ended, unless the lineage is cut in between.
        is_early = source.holds and source.executor.is_asynchronous and epoch % LINEAGE and epoch < self.max_iter
        self.next_pass = self._submit(current, epoch + 1, state.in_vain) if is_early else None
        after = _ended(self.fit, state, current)
        if may_step(self.fit.problem) and _is_diverging(state, after, self.fit.norm_at_zero):
            del current  # the cluster releases what nothing refers to
            self.next_pass = None
            after = roll_back(self.fit, state, after)
        return after

    def _submit(self, before: FitState | PendingPass, epoch: int, in_vain: int) -> PendingPass:
        return _submit_pass(self.fit, before, self.orders[epoch], epoch - 1 - in_vain)

    def release(self) -> None:
        """Release the pass that was submitted early, and the references that the executor keeps."""
        self.next_pass = None
        self.fit.source.executor.release_references()


def _memory_suffices(fit: FitSetup, tol: float) -> bool:
    """Return whether the gradient memory is accurate enough for this tolerance."""
    return memory_is_exact(fit.prepared, fit.weight, fit.problem, tol * fit.norm_at_zero)


def _tested(fit: FitSetup, state: FitState, tol: float, is_exact: bool, is_last: bool) -> FitState:
    """Return the state after the test for convergence, or before a Newton step where passes of visits are slow.

    The test is made if the gradient norm is small enough, except if an earlier test has failed and the wait is not
    over. `is_exact` says whether the state has the gradient norm of a pass at x.
    """
    epoch, norm = len(state.history), state.history[-1]["gradient_norm"]
    if state.summary.diverged:
        return state
    if norm <= tol and (epoch >= state.next_check or is_last):
        return confirm(fit, state, tol, is_exact and _memory_suffices(fit, tol))
    return state if state.newton else state._replace(newton=affordable_seconds(fit, state, is_exact))


def _subsample_pass(fit: FitSetup, state: FitState) -> FitState:
    """Take a subsample step, and return the new state with the exact gradient.

    If the gradient norm does not fall or F rises, the step is rejected and the previous iterate is kept. Subsample
    steps end when a pass of visits would gain more.
    """
    epoch, last = len(state.history) + 1, state.summary
    call = (state.sample, state.head, fit.problem, epoch)
    x = fit.source.executor.submit(_subsample_step, *call, name="saga-refine")
    [before] = state.last_round
    arrival = at_point(fit, before, x, epoch)
    norm, rise = arrival.summary.gradient_norm, arrival.summary.objective - last.objective
    rounding = RISE * (abs(last.objective) + abs(fit.prepared.value) / fit.weight)
    if norm < last.gradient_norm and rise <= rounding:
        so_far = state.digest
        for k, fact in enumerate(fit.prepared.facts):
            so_far = visit_digest(so_far, fit.ids[k], fact, fit.problem)
        after = state._replace(**arrival._asdict(), visits=[], digest=so_far)
        return after if norm <= SUBSAMPLE_PAYS * last.gradient_norm else after._replace(sample=None)
    return state._replace(in_vain=state.in_vain + 1, sample=None)


def _subsample_step(
    sample: Subsample | PreconditionedProblem, head: SolverState, problem: Problem, epoch: int
) -> np.ndarray:
    return subsample_step(sample, head.x, head.gradient_average, problem, epoch)


def _submit_pass(fit: FitSetup, before: FitState | PendingPass, rounds: list[list[int]], number: int) -> PendingPass:
    """Submit one visit of every chunk. `number` is that of the pass in the seeds of the visits."""
    source, executor, prepared = fit.source, fit.source.executor, fit.prepared
    results: list[Any] = [None] * len(prepared.groups)
    if before.results is not None:
        results = [*before.results]
    visits, window, count, so_far = before.last_round, before.window, before.window_visits, before.digest
    chunks, norms = source.each(list(itertools.chain(*rounds))), fit.row_norms
    for members in rounds:
        opens = any(window_is_due(g, window, len(results), count) for g in members)
        window, count = (frozenset(), 0) if opens else (window, count)
        calls = []
        for g, chunk in itertools.islice(chunks, len(members)):
            seed = visit_seed(fit.seed, fit.ids[prepared.groups[g][0]], number)
            spec = VisitSpec(seed, len(members) == 1, members is rounds[0], opens)
            calls.append((prepared.preconditioned, spec, chunk, norms[g], results[g], *visits))
            window, count = window | {g}, count + 1
            for k in prepared.groups[g]:
                so_far = visit_digest(so_far, fit.ids[k], prepared.facts[k], fit.problem)
        visits = executor.map_parallel(visit_chunk, calls, name="saga-chunk")
        for g, visit in zip(members, visits, strict=True):
            results[g] = visit
            source.used(visit)
    summary = executor.submit(round_summary, prepared.preconditioned, *visits, name="saga-summary")
    return PendingPass(visits, results, summary, window, count, so_far)


def _ended(fit: FitSetup, state: FitState, current: PendingPass) -> FitState:
    """Wait for the end of a pass, and return the state after it, with the history and the checks of `state`."""
    [summary] = fit.source.executor.gather([current.summary])
    return state._replace(**{**current._asdict(), "summary": summary, "head": None})


def _is_diverging(state: FitState, ended: FitState, at_zero: float) -> bool:
    """Return whether a pass of steps is diverging and must be undone. Shorter steps follow then.

    The norm at zero is a limit as well, because an earlier norm may be an estimate that was too small.
    """
    norms = [row["gradient_norm"] * at_zero for row in state.history]
    norm = ended.summary.gradient_norm
    limit = max(norms[-1], STEP_RULE.undo_ratio * min(norms), STEP_RULE.undo_share * at_zero) if norms else np.inf
    return bool(norm > limit) and not ended.summary.diverged


def _noted(fit: FitSetup, state: FitState, began: float) -> FitState:
    """Return the state with one more row of history, and log this row."""
    epoch, seconds = len(state.history) + 1, time.perf_counter() - began
    norm = state.summary.gradient_norm / fit.norm_at_zero
    logger.info("epoch %d: gradient norm %.2e, %.2f s", epoch, norm, seconds)
    row = {
        "epoch": epoch,
        "objective": state.summary.objective,
        "gradient_norm": norm,
        "seconds": seconds,
        "visits": epoch * len(fit.prepared.groups),
        "bytes_read": fit.source.bytes_read,
    }
    return state._replace(history=(*state.history, row))


def _info(state: FitState, given: Any) -> Info:
    """Return the argument of the callback."""
    x, intercept = split_x(state.summary.x)
    return Info(**state.history[-1], x=x, intercept=intercept, step_size=state.summary.step_size, chunks=given)
