"""Passes over all chunks, in memory and on Dask, and when to stop.

``run`` is the one driver. It works with references to chunks, heads and memories that
an executor hands out: values in memory, futures on a cluster.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .checkpoint import Checkpoint, Saved
from .chunk import chunk_gradient, split_memory, visit_digest
from .inputs import frozen
from .prepare import Prepared
from .problem import Problem, digest
from .rounds import Summary, Turn, Visited, draw_rounds, merge_round, penalty_value, round_summary, visit_chunk
from .source import Source, lanes
from .state import (
    ChunkMemory,
    SAGAState,
    adapt,
    draw_seed,
    gradient_mapping_norm,
    new_head,
    number_occurrences,
    visit_seed,
    window_is_due,
)

__all__ = ["Info", "Result", "run"]

logger = logging.getLogger("dask_saga")


# Passes after which results are taken from the cluster and put there anew: it would keep every task since, to run
# them all again if a worker were lost.
LINEAGE = 10


class Info(NamedTuple):
    """What a callback sees after each epoch.

    Parameters
    ----------
    epoch : int
        Passes made, from 1.
    x : ndarray of shape (p,), or (k, p) for k outputs
        Coefficients as they would be returned now.
    intercept : float, or ndarray of shape (k,)
    objective : float
        F, estimated: each chunk's loss after its visit in this pass, on a sample of 256 rows, and the penalty at `x`.
        Exact where a stop was to be confirmed.
    gradient_norm : float
        Estimated norm of the proximal gradient, relative to its value at zero.
    step_size : float
    seconds : float
        Since the first pass began.
    visits : int
        Chunk visits so far.
    bytes_read : int
        Size of the chunks that were loaded so far by this process, again and again where they are not held.
    chunks : sequence
        What the caller gave as chunks.
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


class Result(NamedTuple):
    """What ``run`` returns."""

    state: SAGAState
    x: np.ndarray
    step_size: float
    converged: bool
    diverged: bool
    interrupted: bool
    history: list[dict]


def split_x(x: np.ndarray) -> tuple[np.ndarray, Any]:
    """Coefficients and intercept, of one output without its axis."""
    return (x[0, :-1], float(x[0, -1])) if len(x) == 1 else (x[:, :-1], x[:, -1])


class _Fit(NamedTuple):
    """What is the same in every pass."""

    source: Source
    prepared: Prepared
    problem: Problem
    metric: Any  # a reference, as it may be large
    ids: list
    weight: float
    seed: int
    parts: list[range]


class _Place(NamedTuple):
    """Where a fit stands after a whole pass: references to what is on the executor, and what is known here."""

    visits: list  # of the last round
    own: list  # of each group, its own last
    summary: Summary
    window: frozenset
    count: int
    text: str
    history: tuple = ()
    next_check: int = 1  # the epoch from which a stop may be confirmed, and how long to wait after one that was not
    wait: int = 1
    converged: bool = False


# What a checkpoint keeps of a place beside head and memories.
FACTS = ("window", "count", "text", "history", "next_check", "wait", "converged")


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
) -> Result:
    """SAGA over all chunks, round by round, epoch by epoch.

    Parameters
    ----------
    source : Source
    prepared : Prepared
        From ``prepare``, of rows whose weights do not sum to zero.
    problem : Problem
    seed : int or None
        Entropy of all orders; None draws some, or goes on with that of the checkpoint.
    max_iter : int
        Passes at most.
    tol : float
        Stop where the norm of the proximal gradient is below `tol` times that at zero.
        The memory's estimate of it is confirmed by one exact pass first.
    shuffle : bool, default=True
        Whether each epoch visits the chunks in a new random order.
    callback : callable, default=None
        ``callback(info)`` after each epoch; True stops.
    given : object, default=None
        What ``info.chunks`` shows.
    checkpoint : Checkpoint, default=None
        Where to go on from, and to save to.

    Returns
    -------
    Result
        After KeyboardInterrupt that of the last whole pass, if there was one.
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
    fit = _Fit(source, prepared, problem, *source.executor.put([prepared.metric]), ids, weight, seed, parts)
    at_zero = _norm_at_zero(prepared, weight, problem)
    place = _resume(fit, saved, tol) if saved else _begin(fit, at_zero)
    rng = np.random.default_rng(seed) if shuffle else None
    for _ in place.history:
        draw_rounds(parts, rng)
    began = time.perf_counter() - (place.history[-1]["seconds"] if place.history else 0.0)
    interrupted = False
    try:
        for epoch in range(len(place.history) + 1, 0 if place.converged else max_iter + 1):
            place = _one_pass(fit, place, draw_rounds(parts, rng), at_zero, began)
            norm = place.history[-1]["gradient_norm"]
            if not place.summary.diverged and norm <= tol and (epoch >= place.next_check or epoch == max_iter):
                place = _confirm(fit, place, at_zero, tol)
            stop = place.summary.diverged or place.converged
            if callback is not None:
                answer = callback(_info(place, given))
                stop = stop or (isinstance(answer, (bool, np.bool_)) and bool(answer))
            if checkpoint and (stop or epoch == max_iter or checkpoint.is_due()):
                checkpoint.save(identity, _gathered(fit, place))
            if stop:
                break
            if epoch % LINEAGE == 0:
                place = _without_lineage(fit, place)
    except KeyboardInterrupt:
        if not place.history:
            raise
        interrupted = True
    # What an interrupted pass had submitted is released with its references.
    return _result(fit, place, interrupted)


def _begin(fit: _Fit, at_zero: float) -> _Place:
    """Before the first pass."""
    prepared, executor = fit.prepared, fit.source.executor
    rows = sum(fact.rows for fact in prepared.facts)
    head = new_head(len(prepared.stats.mean), len(prepared.zero), weight=fit.weight, rows=rows)
    if prepared.x.any():
        sums = executor.gather([executor.submit(_first, pair, name="saga-sum") for pair in prepared.memories])
        head = head._replace(x=prepared.x, gradient_sum=frozen(sum(sums)), window_start=prepared.x)
    start, own = Visited(adapt(head, fit.problem), None), list(prepared.memories)
    prepared.memories.clear()  # else the first ones would stay beside those of the visits
    text = digest("fit", fit.ids, fit.problem.token(), len(fit.parts))
    summary = round_summary(fit.problem, prepared.metric, start)
    return _Place([start], own, summary, frozenset(), 0, text, converged=at_zero == 0)


def _resume(fit: _Fit, saved: Saved, tol: float) -> _Place:
    """Where a checkpoint was written."""
    start = Visited(saved.head, None)
    own = fit.source.executor.put([Visited(None, memory) for memory in saved.memories])
    fit.prepared.memories.clear()
    facts = {name: saved.facts[name] for name in FACTS}
    facts["window"], facts["history"] = frozenset(facts["window"]), tuple(facts["history"])
    facts["converged"] = facts["converged"] and facts["history"][-1]["gradient_norm"] <= tol
    return _Place([start], own, round_summary(fit.problem, fit.prepared.metric, start), **facts)


def _one_pass(fit: _Fit, place: _Place, rounds: list[list[int]], at_zero: float, began: float) -> _Place:
    """The place after one more visit of every chunk."""
    source, executor, facts = fit.source, fit.source.executor, fit.prepared.facts
    visits, own, window, count, text = place.visits, list(place.own), place.window, place.count, place.text
    epoch, coming = len(place.history) + 1, source.each(list(itertools.chain(*rounds)))
    for members in rounds:
        opens = any(window_is_due(g, window, len(own), count) for g in members)
        window, count = (frozenset(), 0) if opens else (window, count)
        calls = []
        for g, chunk in itertools.islice(coming, len(members)):
            seed = visit_seed(fit.seed, fit.ids[fit.prepared.groups[g][0]], epoch - 1)
            turn = Turn(seed, len(members) == 1, members is rounds[0], opens)
            calls.append((fit.problem, fit.metric, turn, chunk, fit.prepared.norms[g], own[g], *visits))
            window, count = window | {g}, count + 1
            for k in fit.prepared.groups[g]:
                text = visit_digest(text, fit.ids[k], facts[k], fit.problem)
        visits = executor.submit_all(visit_chunk, calls, name="saga-chunk")
        for g, visited in zip(members, visits, strict=True):
            own[g] = visited
            source.used(visited)
    [summary] = executor.gather([executor.submit(round_summary, fit.problem, fit.metric, *visits, name="saga-summary")])
    norm, seconds = summary.gradient_norm / at_zero, time.perf_counter() - began
    logger.info("epoch %d: gradient norm %.2e, %.2f s", epoch, norm, seconds)
    row = {
        "epoch": epoch,
        "objective": summary.objective,
        "gradient_norm": norm,
        "seconds": seconds,
        "visits": epoch * len(own),
        "bytes_read": source.bytes_read,
    }
    return place._replace(
        visits=visits, own=own, summary=summary, window=window, count=count, text=text, history=(*place.history, row)
    )


def _confirm(fit: _Fit, place: _Place, at_zero: float, tol: float) -> _Place:
    """The place with the exact norm, by one parallel pass; after one that was in vain the next waits longer."""
    source, problem, metric, x = fit.source, fit.problem, fit.prepared.metric, place.summary.x
    sums = source.executor.gather(source.map(chunk_gradient, x, problem, name="saga-confirm"))
    loss, gradient = (sum(part) / fit.weight for part in zip(*sums, strict=True))
    norm = gradient_mapping_norm(x, gradient, problem, metric) / at_zero
    exact = {"objective": float(loss) + penalty_value(x, problem), "gradient_norm": norm}
    exact["bytes_read"] = source.bytes_read
    return place._replace(
        history=(*place.history[:-1], {**place.history[-1], **exact}),
        converged=norm <= tol,
        next_check=len(place.history) + place.wait,
        wait=2 * place.wait,
    )


def _info(place: _Place, given: Any) -> Info:
    """What the callback sees."""
    x, intercept = split_x(place.summary.x)
    return Info(**place.history[-1], x=x, intercept=intercept, step_size=place.summary.step_size, chunks=given)


def _gathered(fit: _Fit, place: _Place) -> Saved:
    """The place as values."""
    executor = fit.source.executor
    [head] = executor.gather([_head(fit, place)])
    memories = executor.gather([executor.submit(_second, pair, name="saga-gather") for pair in place.own])
    facts = {name: getattr(place, name) for name in FACTS}
    facts["window"] = sorted(place.window)
    return Saved(head, memories, {**facts, "epoch": len(place.history), "seed": fit.seed, "n_parallel": len(fit.parts)})


def _head(fit: _Fit, place: _Place) -> Any:
    return fit.source.executor.submit(merge_round, fit.problem, fit.metric, *place.visits, name="saga-head")


def _without_lineage(fit: _Fit, place: _Place) -> _Place:
    """The place put anew on the executor, where it keeps the tasks that made it and has room for the values."""
    outputs, itemsize = len(fit.prepared.zero), np.dtype(fit.problem.memory_dtype).itemsize
    if not fit.source.executor.forget_lineage(sum(fit.prepared.lengths) * outputs * itemsize):
        return place
    head, memories, _ = _gathered(fit, place)
    own = fit.source.executor.put([Visited(None, memory) for memory in memories])
    return place._replace(visits=[Visited(head, None)], own=own)


def _result(fit: _Fit, place: _Place, interrupted: bool) -> Result:
    """The result, with the memory of each chunk, joined or not."""
    executor, prepared, problem = fit.source.executor, fit.prepared, fit.problem
    [head] = executor.gather([_head(fit, place)])
    memories = []
    for g, group in enumerate(prepared.groups):
        facts, lengths = ([known[k] for k in group] for known in (prepared.facts, prepared.lengths))
        args = (fit.source.held[g] if len(group) > 1 else None, place.own[g], facts, lengths, problem)
        memories.append(executor.submit(_memories, *args, name="saga-gather"))
    memories = executor.gather(memories)
    if len(prepared.groups) < len(fit.ids):  # what was found for one chunk does not hold for its parts
        head = head._replace(largest_sums=frozen(prepared.largest_sums), cut=min(head.cut, 1.0))
    state = SAGAState(
        head,
        prepared.stats,
        prepared.axes,
        (prepared.stats.rows, problem.geometry),
        dict(zip(fit.ids, itertools.chain(*memories), strict=True)),
        frozenset(fit.ids[k] for g in place.window for k in prepared.groups[g]),
        place.text,
        fit.seed,
    )
    x, *_, step_size, diverged = place.summary
    return Result(state, x, step_size, place.converged, diverged, interrupted, list(place.history))


# Tasks beside those of the rounds.


def _first(pair: tuple) -> Any:
    return pair[0]


def _second(pair: tuple) -> Any:
    return pair[1]


def _memories(chunk, own, facts, lengths, problem) -> list[ChunkMemory]:
    if own is None:  # there was no pass
        zeros = [
            np.zeros((n, fact.gradients.shape[1]), problem.memory_dtype) for n, fact in zip(lengths, facts, strict=True)
        ]
        return [fact._replace(gradients=frozen(zero)) for fact, zero in zip(facts, zeros, strict=True)]
    return split_memory(chunk, own[1], facts, lengths, problem)


def _norm_at_zero(prepared: Prepared, weight: float, problem: Problem) -> float:
    """What `tol` is relative to: the norm at x = 0, of the coefficients alone where these count.

    An intercept that is far from zero would else hide them: centred columns do not feel it.
    """
    gradient = prepared.zero / weight
    zero, metric = np.zeros_like(gradient), prepared.metric.unshifted
    whole = gradient_mapping_norm(zero, gradient, problem, metric)
    if not problem.fit_intercept:
        return whole
    inner = gradient[:, :-1] - gradient[:, -1:] * prepared.stats.mean
    inner = gradient_mapping_norm(zero, np.column_stack([inner, zero[:, -1]]), problem, metric)
    return inner if inner > 1e-12 * whole else whole
