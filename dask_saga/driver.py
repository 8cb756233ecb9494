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
from .chunk import chunk_gradient, chunk_saga, fresh_memory, split_memory, visit_digest
from .inputs import frozen
from .metric import Metric
from .prepare import Prepared
from .problem import Problem, digest
from .source import Source
from .state import (
    ChunkMemory,
    SAGAState,
    candidate,
    draw_seed,
    gradient_mapping_norm,
    new_head,
    number_occurrences,
    open_window,
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
    gradient_norm : float
        Estimated norm of the proximal gradient, relative to its value at zero.
    step_size : float
    seconds : float
        Since the first pass began.
    visits : int
        Chunk visits so far.
    chunks : sequence
        What the caller gave as chunks.
    """

    epoch: int
    x: np.ndarray
    intercept: Any
    gradient_norm: float
    step_size: float
    seconds: float
    visits: int
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


class _Pass(NamedTuple):
    """What a whole pass left: references to the last visit's result and to each group's own, and what is known."""

    previous: Any
    own: list
    window: frozenset
    count: int
    text: str
    summary: _Summary


class _Summary(NamedTuple):
    x: np.ndarray
    gradient_norm: float
    step_size: float
    diverged: bool


# Tasks. A visit's result is a (head, memory) pair, handed on whole: taking it apart
# would cost another task in the chain.


def _visit(chunk, norms, previous, own, problem, metric, seed, opens):
    head = open_window(previous[0], problem, metric) if opens else previous[0]
    memory = fresh_memory(chunk, problem) if own is None else own[1]
    return chunk_saga(chunk, head, memory, problem, metric, seed, norms)


def _summary(previous: tuple, problem: Problem, metric: Metric) -> _Summary:
    head = previous[0]
    norm = gradient_mapping_norm(head.x, head.gradient_average, problem, metric)
    return _Summary(candidate(head, problem, metric)[0], norm, problem.step(metric, head.cut), head.diverged)


def _first(pair: tuple) -> Any:
    return pair[0]


def _second(pair: tuple) -> Any:
    return pair[1]


def _memories(chunk, previous, facts, lengths, problem) -> list[ChunkMemory]:
    if previous is None:  # there was no pass
        zeros = [
            np.zeros((n, fact.gradients.shape[1]), problem.memory_dtype) for n, fact in zip(lengths, facts, strict=True)
        ]
        return [fact._replace(gradients=frozen(zero)) for fact, zero in zip(facts, zeros, strict=True)]
    return split_memory(chunk, previous[1], facts, lengths, problem)


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
    """SAGA over all chunks, one after another, epoch by epoch.

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
    executor, facts, groups, metric = source.executor, prepared.facts, prepared.groups, prepared.metric
    ids = number_occurrences(fact.content for fact in facts)
    weight, rows = (sum(getattr(fact, name) for fact in facts) for name in ("weight", "rows"))
    head = new_head(len(prepared.stats.mean), len(prepared.zero), weight=weight, rows=rows)
    if prepared.x.any():
        sums = executor.gather([executor.submit(_first, pair, name="saga-sum") for pair in prepared.memories])
        head = head._replace(x=prepared.x, gradient_sum=frozen(sum(sums)), window_start=prepared.x)
    at_zero = _norm_at_zero(prepared, weight, problem)

    previous, own = (head, None), list(prepared.memories)
    prepared.memories.clear()  # else the first ones would stay beside those of the visits
    window, count, history, interrupted = frozenset(), 0, [], False
    text = digest("fit", ids, problem.token())
    converged, next_check, wait = at_zero == 0, 1, 1
    memory_bytes = rows * len(prepared.zero) * np.dtype(problem.memory_dtype).itemsize
    identity = {
        "data": digest(ids, [fact.weights_content for fact in facts], groups),
        "parameters": digest(problem.token(), shuffle),
        "random_state": seed,
    }
    saved = checkpoint.load(identity) if checkpoint else None
    if saved:
        previous, facts_then = (saved.head, None), saved.facts
        own = executor.put([(None, memory) for memory in saved.memories])
        window, count, text, seed = (facts_then[name] for name in ("window", "count", "text", "seed"))
        window, history = frozenset(window), facts_then["history"]
        next_check, wait = facts_then["next_check"], facts_then["wait"]
        converged = history[-1]["gradient_norm"] <= tol and facts_then["converged"]
    seed = draw_seed(None) if seed is None else seed
    identity["random_state"] = seed
    rng = np.random.default_rng(seed)
    for _ in history if shuffle else ():
        rng.permutation(len(own))
    began = time.perf_counter() - (history[-1]["seconds"] if history else 0.0)
    whole = _Pass(previous, own, window, count, text, _summary(previous, problem, metric))
    try:
        for epoch in range(len(history) + 1, 0 if converged else max_iter + 1):
            own = list(own)
            for g, chunk in source.each(rng.permutation(len(own)).tolist() if shuffle else None):
                opens = window_is_due(g, window, len(own), count)
                window, count = (frozenset() if opens else window) | {g}, 1 if opens else count + 1
                order_seed = visit_seed(seed, ids[groups[g][0]], epoch - 1)
                args = (chunk, prepared.norms[g], previous, own[g], problem, metric, order_seed, opens)
                previous = own[g] = executor.submit(_visit, *args, name="saga-chunk")
                source.used(previous)
                for k in groups[g]:
                    text = visit_digest(text, ids[k], facts[k], problem)
            [summary] = executor.gather([executor.submit(_summary, previous, problem, metric, name="saga-summary")])
            norm, seconds = summary.gradient_norm / at_zero, time.perf_counter() - began
            history.append({"epoch": epoch, "gradient_norm": norm, "seconds": seconds, "visits": epoch * len(own)})
            whole = _Pass(previous, own, window, count, text, summary)
            logger.info("epoch %d: gradient norm %.2e, %.2f s", epoch, norm, seconds)
            stop = summary.diverged
            if not stop and norm <= tol and (epoch >= next_check or epoch == max_iter):
                exact = _exact_norm(source, weight, summary, problem, metric)
                history[-1]["gradient_norm"] = norm = exact / at_zero
                stop = converged = norm <= tol
                next_check, wait = epoch + wait, 2 * wait
            if callback is not None:
                x, intercept = split_x(summary.x)
                info = Info(epoch, x, intercept, norm, summary.step_size, seconds, epoch * len(own), given)
                answer = callback(info)
                stop = stop or (isinstance(answer, (bool, np.bool_)) and bool(answer))
            if checkpoint and (stop or epoch == max_iter or checkpoint.is_due()):
                known = dict(
                    epoch=epoch, window=sorted(window), count=count, text=text, seed=seed, history=history,
                    next_check=next_check, wait=wait, converged=converged,
                )  # fmt: skip
                checkpoint.save(identity, _gathered(executor, whole, known))
            if stop:
                break
            if epoch % LINEAGE == 0 and executor.forget_lineage(memory_bytes):
                head, memories, _ = _gathered(executor, whole, {})
                previous, own = (head, None), executor.put([(None, memory) for memory in memories])
                whole = whole._replace(previous=previous, own=own)
    except KeyboardInterrupt:
        if not history:
            raise
        interrupted = True
    # What an interrupted pass had submitted is released with its references.
    previous, own, window, _, text, summary = whole
    [head] = executor.gather([executor.submit(_first, previous, name="saga-head")])
    memories = []
    for g, group in enumerate(groups):
        parts, lengths = ([known[k] for k in group] for known in (facts, prepared.lengths))
        args = (source.held[g] if len(group) > 1 else None, own[g], parts, lengths, problem)
        memories.append(executor.submit(_memories, *args, name="saga-gather"))
    memories = executor.gather(memories)
    if len(groups) < len(facts):  # what was found for one chunk does not hold for its parts
        head = head._replace(largest_sums=frozen(prepared.largest_sums), cut=min(head.cut, 1.0))
    state = SAGAState(
        head,
        prepared.stats,
        prepared.axes,
        (prepared.stats.rows, problem.geometry),
        dict(zip(ids, itertools.chain(*memories), strict=True)),
        frozenset(ids[k] for g in window for k in groups[g]),
        text,
        seed,
    )
    return Result(state, summary.x, summary.step_size, converged, head.diverged, interrupted, history)


def _gathered(executor: Any, whole: _Pass, facts: dict) -> Saved:
    [head] = executor.gather([executor.submit(_first, whole.previous, name="saga-head")])
    memories = executor.gather([executor.submit(_second, pair, name="saga-gather") for pair in whole.own])
    return Saved(head, memories, facts)


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


def _exact_norm(source, weight, summary, problem, metric):
    """Norm of the exact proximal gradient at the summary's x, by one parallel pass."""
    tasks = source.map(chunk_gradient, summary.x, problem, name="saga-confirm")
    gradient = sum(gradient for _, gradient in source.executor.gather(tasks)) / weight
    return gradient_mapping_norm(summary.x, gradient, problem, metric)
