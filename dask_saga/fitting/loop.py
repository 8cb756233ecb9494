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
from ..solver.subsample import subsample_step
from ..solver.visit import visit_digest
from .chunk_source import lanes
from .convergence import confirm, is_slow, may_step, newton_pass, norm_at_zero, tells_exactly
from .fit_state import FitSetup, arrived, initial_state, result, resume, roll_back, to_checkpoint, without_lineage
from .preparation import gradients_at
from .rounds import VisitSpec, draw_rounds, round_summary, visit_chunk

if TYPE_CHECKING:
    from ..solver.problem import Problem
    from .checkpoint import Checkpoint
    from .chunk_source import Source
    from .fit_state import FitState, Result
    from .preparation import Prepared
    from .rounds import VisitResult

__all__ = ["Info", "join_x", "run", "split_x"]


logger = logging.getLogger("dask_saga")


# Number of passes after which results are gathered and put on the cluster again. Otherwise the cluster keeps all tasks
# so far, to run them again if a worker is lost.
LINEAGE = 10


# A subsample step that leaves more than this fraction of the gradient norm is the last one, as a pass of steps leaves
# less.
SLOW = 0.5

# A pass of steps is undone if its gradient norm exceeds DIVERGING times the smallest one so far, the previous one, and
# FAR times the norm at zero. The last limit is needed because an earlier estimate may have been too small.
DIVERGING, FAR = 10.0, 0.1

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
    intercept: Any
    objective: float
    gradient_norm: float
    step_size: float
    seconds: float
    visits: int
    bytes_read: int
    chunks: Any


class Orders:
    """Rounds of each pass. The rounds of an epoch depend only on its number, not on the order of the requests."""

    def __init__(self, parts: list[range], seed: int | None):
        self.parts, self.rng, self.drawn = parts, None if seed is None else np.random.default_rng(seed), []

    def __getitem__(self, epoch: int) -> list[list[int]]:
        while len(self.drawn) < epoch:
            self.drawn.append(draw_rounds(self.parts, self.rng))
        return self.drawn[epoch - 1]


def split_x(x: np.ndarray) -> tuple[np.ndarray, Any]:
    """Split x into coefficients and intercept. With one output, the axis of outputs is dropped."""
    return (x[0, :-1], float(x[0, -1])) if len(x) == 1 else (x[:, :-1], x[:, -1])


def join_x(coef: np.ndarray, intercept: Any) -> np.ndarray:
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
    ids = number_occurrences(fact.content for fact in prepared.facts)
    weight = sum(fact.weight for fact in prepared.facts)
    width = min(source.width, len(prepared.groups))
    identity = {
        "data": digest(ids, [fact.weights_content for fact in prepared.facts], prepared.groups),
        "parameters": digest(problem.token(), shuffle),
        "n_parallel": None if source.n_parallel == "auto" else width,
        "random_state": seed,
    }
    saved = checkpoint.load(identity) if checkpoint else None
    seed = saved.facts["seed"] if saved else draw_seed(None) if seed is None else seed
    width = saved.facts["n_parallel"] if saved else width
    identity |= {"random_state": seed, "n_parallel": width}
    parts = lanes(len(prepared.groups), width)
    fit = FitSetup(source, prepared, problem, ids, weight, seed, parts, [])
    if checkpoint and not fit.has_room():
        size = fit.memory_bytes(sum(prepared.lengths))
        raise ValueError(
            f"checkpoint: the gradient memory, {size / 1e9:.1f} GB, is too large for this process to write"
        )
    at_zero = norm_at_zero(prepared, weight, problem)
    place = resume(fit, saved, tol) if saved else initial_state(fit, at_zero, start)
    orders = Orders(parts, seed if shuffle else None)
    began = time.perf_counter() - (place.history[-1]["seconds"] if place.history else 0.0)
    interrupted, over, ahead = False, place.converged or place.summary.diverged, None
    try:
        for epoch in range(len(place.history) + 1, 0 if over else max_iter + 1):
            is_exact = True
            if place.is_new:
                place = place._replace(is_new=False)
            elif place.newton:  # before a subsample step, which would leave the x of the Newton step
                place, ahead = newton_pass(fit, place), None
            elif place.refines:
                place = _refined(fit, place)
            else:
                is_exact, coming = False, ahead or _one_pass(fit, place, orders[epoch], epoch)
                # Submit the next pass before this one has ended, unless the lineage is cut in between.
                follows = source.holds and source.executor.is_asynchronous and epoch % LINEAGE and epoch < max_iter
                ahead = _one_pass(fit, coming, orders[epoch + 1], epoch + 1) if follows else None
                ended = _ended(fit, place, coming)
                if may_step(problem) and _is_diverging(place, ended, at_zero):
                    coming = ahead = None
                    ended = roll_back(fit, place, ended)
                place = ended
            place = _noted(fit, place, at_zero, began)
            norm = place.history[-1]["gradient_norm"]
            if not place.summary.diverged and norm <= tol and (epoch >= place.next_check or epoch == max_iter):
                known = is_exact and tells_exactly(prepared, weight, problem, tol * at_zero)
                place = confirm(fit, place, at_zero, tol, known)
            elif not is_exact and not place.summary.diverged and is_slow(fit, place):
                place = place._replace(newton=epoch)
            stop = place.summary.diverged or place.converged
            if callback is not None:
                answer = callback(_info(place, given))
                stop = stop or (isinstance(answer, (bool, np.bool_)) and bool(answer))
            if checkpoint and (stop or epoch == max_iter or checkpoint.is_due()):
                checkpoint.save(identity, to_checkpoint(fit, place))
            if stop:
                break
            if epoch % LINEAGE == 0:
                place = without_lineage(fit, place)
    except KeyboardInterrupt:
        if not place.history:
            raise
        interrupted = source.interrupted = True
    coming = ahead = None  # the cluster releases the passes that are no longer referenced
    source.executor.release_references()
    needs_float64 = not tells_exactly(prepared, weight, problem, tol * at_zero)
    return result(fit, place, interrupted)._replace(needs_float64=needs_float64)


def _refined(fit: FitSetup, place: FitState) -> FitState:
    """Take a subsample step, and return the new state with the exact gradient.

    If the gradient norm does not fall or F rises, the step is rejected and the previous iterate is kept. Subsample
    steps end when a pass of steps would gain more.
    """
    source, executor, problem, epoch = fit.source, fit.source.executor, fit.problem, len(place.history) + 1
    [before] = place.visits
    x = executor.submit(_subsample_step, fit.prepared.sample[0], before, problem, epoch, name="saga-refine")
    own = source.map(gradients_at, x, problem, epoch, name="saga-memory", nbytes=fit.remembered_bytes())
    text = place.text
    for k, fact in enumerate(fit.prepared.facts):
        text = visit_digest(text, fit.ids[k], fact, problem)
    there, last = arrived(fit, place._replace(own=own, text=text), x), place.summary
    norm, rise = there.summary.gradient_norm, there.summary.objective - last.objective
    better = norm < last.gradient_norm and rise <= RISE * (abs(last.objective) + abs(fit.prepared.value) / fit.weight)
    if not better:
        there = place._replace(in_vain=place.in_vain + 1)
    goes_on = better and norm <= SLOW * last.gradient_norm
    if not goes_on:
        fit.prepared.sample.clear()
    return there._replace(refines=goes_on)


def _subsample_step(sample: Any, before: VisitResult, problem: Problem, turn: int) -> np.ndarray:
    return subsample_step(sample, before.head.x, before.head.gradient_average, problem, turn)


def _one_pass(fit: FitSetup, place: FitState, rounds: list[list[int]], epoch: int) -> FitState:
    """Submit one visit of every chunk, and return the state after it. Its summary is a reference."""
    source, executor, facts = fit.source, fit.source.executor, fit.prepared.facts
    visits, own, window, count, text = place.visits, list(place.own), place.window, place.count, place.text
    coming, norms = source.each(list(itertools.chain(*rounds))), fit.row_norms()
    for members in rounds:
        opens = any(window_is_due(g, window, len(own), count) for g in members)
        window, count = (frozenset(), 0) if opens else (window, count)
        calls = []
        for g, chunk in itertools.islice(coming, len(members)):
            seed = visit_seed(fit.seed, fit.ids[fit.prepared.groups[g][0]], epoch - 1 - place.in_vain)
            turn = VisitSpec(seed, len(members) == 1, members is rounds[0], opens)
            calls.append((fit.problem, fit.prepared.metric, turn, chunk, norms[g], own[g], *visits))
            window, count = window | {g}, count + 1
            for k in fit.prepared.groups[g]:
                text = visit_digest(text, fit.ids[k], facts[k], fit.problem)
        visits = executor.map_parallel(visit_chunk, calls, name="saga-chunk")
        for g, visited in zip(members, visits, strict=True):
            own[g] = visited
            source.used(visited)
    summary = executor.submit(round_summary, fit.problem, fit.prepared.metric, *visits, name="saga-summary")
    return place._replace(visits=visits, own=own, summary=summary, window=window, count=count, text=text)


def _ended(fit: FitSetup, place: FitState, coming: FitState) -> FitState:
    """Wait for the end of a pass, and return its state with the history and the checks of the current state."""
    [summary] = fit.source.executor.gather([coming.summary])
    known = {name: getattr(place, name) for name in ("history", "next_check", "wait", "newton_check", "newton_wait")}
    return coming._replace(summary=summary, **known)


def _is_diverging(place: FitState, ended: FitState, at_zero: float) -> bool:
    """Return whether a pass of steps is diverging and must be undone. Shorter steps follow then."""
    norms = [row["gradient_norm"] * at_zero for row in place.history]
    norm = ended.summary.gradient_norm
    least = max(norms[-1], DIVERGING * min(norms), FAR * at_zero) if norms else np.inf
    return bool(norm > least) and not ended.summary.diverged


def _noted(fit: FitSetup, place: FitState, at_zero: float, began: float) -> FitState:
    """Return the state with one more row of history, and log this row."""
    epoch, norm, seconds = len(place.history) + 1, place.summary.gradient_norm / at_zero, time.perf_counter() - began
    logger.info("epoch %d: gradient norm %.2e, %.2f s", epoch, norm, seconds)
    row = {
        "epoch": epoch,
        "objective": place.summary.objective,
        "gradient_norm": norm,
        "seconds": seconds,
        "visits": epoch * len(place.own),
        "bytes_read": fit.source.bytes_read,
    }
    return place._replace(history=(*place.history, row))


def _info(place: FitState, given: Any) -> Info:
    """Return the argument of the callback."""
    x, intercept = split_x(place.summary.x)
    return Info(**place.history[-1], x=x, intercept=intercept, step_size=place.summary.step_size, chunks=given)
