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
import scipy.sparse as sp

from .chunk import chunk_gradient, chunk_saga, count_outputs, fresh_memory, split_memory, visit_digest
from .columns import ColumnStats, column_stats, merge
from .inputs import Chunk, frozen, join_chunks
from .metric import Metric, axis_sums, choose_metric, limit_axes, row_norms, to_solver, to_user
from .problem import Problem, digest
from .state import (
    ChunkMemory,
    SAGAState,
    candidate,
    gradient_mapping_norm,
    new_head,
    number_occurrences,
    open_window,
    visit_seed,
    window_is_due,
)

__all__ = ["Info", "Loaded", "Result", "load", "run"]

logger = logging.getLogger("dask_saga")

# Chunks whose statistics one task merges.
MERGED = 16
# Data up to this size are one chunk, however they are blocked: a visit costs 0.25 ms of Python, on a cluster some ms.
JOINED_BYTES = 2**22


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
    history: list[dict]


class Loaded(NamedTuple):
    """Chunks on an executor, small ones joined, and what a client needs to know.

    ``joined`` has for each of ``chunks``, ``norms`` and ``memories`` the numbers of those that were given;
    ``lengths`` and ``facts`` are of these.
    """

    chunks: list
    norms: list
    memories: list
    joined: list[list[int]]
    lengths: list[int]
    facts: list[ChunkMemory]
    stats: ColumnStats
    axes: Metric
    metric: Metric
    zero: tuple[float, np.ndarray]
    x: np.ndarray


def split_x(x: np.ndarray) -> tuple[np.ndarray, Any]:
    """Coefficients and intercept, of one output without its axis."""
    return (x[0, :-1], float(x[0, -1])) if len(x) == 1 else (x[:, :-1], x[:, -1])


class _Summary(NamedTuple):
    x: np.ndarray
    gradient_norm: float
    step_size: float
    diverged: bool


# Tasks. A visit's result is a (head, memory) pair, handed on whole: taking it apart
# would cost another task in the chain.


def _examine(chunk: Chunk, problem: Problem) -> tuple:
    memory = fresh_memory(chunk, problem)
    zero = np.zeros((count_outputs(chunk, problem), chunk.rows.shape[1] + 1))
    facts = memory._replace(gradients=np.empty((0, len(zero))), total=None)
    size = chunk.nbytes, sp.issparse(chunk.rows)
    return facts, len(chunk.targets), size, column_stats(chunk, problem), *chunk_gradient(chunk, zero, problem)


def _merge(*examined: tuple) -> tuple:
    """What is known of several chunks as one; it carries p x p products, which a client need not see of each."""
    stats, value, gradient = examined[0][3:]
    for *_, more, v, g in examined[1:]:
        stats, value, gradient = merge(stats, more), value + v, gradient + g
    return None, None, None, stats, value, gradient


def _brief(examined: tuple) -> tuple:
    return *examined[:3], len(examined[3].mean), len(examined[5])


def _axis_sums(metric: Metric, *examined: tuple) -> np.ndarray:
    return sum(axis_sums(one[3], metric) for one in examined)


def _joined(sizes: list[tuple[int, bool]]) -> list[list[int]]:
    """Numbers of the chunks that are visited together: all where they are of one kind and small, else each alone."""
    nbytes, sparse = zip(*sizes, strict=True)
    if sum(nbytes) <= JOINED_BYTES and len(set(sparse)) == 1:
        return [list(range(len(sizes)))]
    return [[k] for k in range(len(sizes))]


def _remember(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[np.ndarray | None, ChunkMemory]:
    """The memory of a chunk before its first visit: zero at x = 0, else the gradients at x, and before it their sum."""
    memory = fresh_memory(chunk, problem)
    if not x.any():
        return None, memory
    gradients = np.empty_like(memory.gradients)
    total = frozen(chunk_gradient(chunk, x, problem, gradients)[1])
    return total, memory._replace(gradients=frozen(gradients), total=None if memory.total is None else total)


def _visit(chunk, norms, previous, own, problem, metric, seed, opens):
    head = open_window(previous[0], problem, metric) if opens else previous[0]
    return chunk_saga(chunk, head, own[1], problem, metric, seed, norms)


def _summary(previous: tuple, problem: Problem, metric: Metric) -> _Summary:
    head = previous[0]
    norm = gradient_mapping_norm(head.x, head.gradient_average, problem, metric)
    return _Summary(candidate(head, problem, metric)[0], norm, problem.step(metric, head.cut), head.diverged)


def _head(previous: tuple) -> Any:
    return previous[0]


def _memories(chunk: Chunk, previous: tuple, facts: list, lengths: list, problem: Problem) -> list[ChunkMemory]:
    return split_memory(chunk, previous[1], facts, lengths, problem)


def load(executor: Any, chunks: list, problem: Problem, *, joins: bool = True) -> Loaded:
    """The preparing pass, in parallel: column statistics, coordinates and the gradient at zero.

    Parameters
    ----------
    executor : LocalExecutor or ClientExecutor
    chunks : list
        References to ``Chunk`` on the executor.
    problem : Problem
    joins : bool, default=True
        Whether small chunks are visited together.
    """
    examined = [executor.submit(_examine, chunk, problem, name="saga-examine") for chunk in chunks]
    brief = executor.gather([executor.submit(_brief, one, name="saga-brief") for one in examined])
    facts, lengths, sizes, columns, outputs = zip(*brief, strict=True)
    for k in range(len(chunks)):
        if columns[k] != columns[0]:
            raise ValueError(f"chunk {k}: X has {columns[k]} features, but chunk 0 has {columns[0]}")
        if outputs[k] != outputs[0]:
            raise ValueError(f"chunk {k}: y has {outputs[k]} columns, but chunk 0 has {outputs[0]}")
    merged = examined
    while len(merged) > 1:
        groups = [merged[k : k + MERGED] for k in range(0, len(merged), MERGED)]
        merged = [executor.submit(_merge, *group, name="saga-merge") for group in groups]
    [(*_, stats, value, gradient)] = executor.gather(merged)
    axes = choose_metric(stats, problem)
    joined = _joined(sizes) if joins else [[k] for k in range(len(chunks))]
    sums = [executor.submit(_axis_sums, axes, *(examined[k] for k in group), name="saga-axes") for group in joined]
    metric = limit_axes(axes, np.max(executor.gather(sums), axis=0), len(sums), stats, problem)
    chunks = [
        executor.submit(join_chunks, *(chunks[k] for k in group), name="saga-join")
        if len(group) > 1
        else chunks[group[0]]
        for group in joined
    ]
    x = _start(axes, gradient / stats.weight if stats.rows else gradient, problem)
    memories = [executor.submit(_remember, chunk, x, problem, name="saga-memory") for chunk in chunks]
    norms = [executor.submit(row_norms, chunk, metric, problem, name="saga-norms") for chunk in chunks]
    return Loaded(
        chunks, norms, memories, joined, list(lengths), list(facts), stats, axes, metric, (value, gradient), x
    )


def _start(metric: Metric, gradient: np.ndarray, problem: Problem) -> np.ndarray:
    """Where the passes begin: at zero, but where the loss is quadratic and the axes are known at its optimum."""
    x = np.zeros_like(gradient)
    if metric.basis is None or not (problem.automatic and getattr(problem.loss, "quadratic", False)):
        return frozen(x)
    # Newton's step from zero: along the axes the Hessian is diagonal, and the scale its inverse.
    _, gradient = to_solver(x, gradient, metric)
    x[:, :-1] = -gradient[:, :-1] * metric.scale / metric.curvature
    if problem.fit_intercept:
        x[:, -1] = -gradient[:, -1] / metric.curvature
    return frozen(to_user(x, gradient, metric)[0])


def run(
    executor: Any,
    loaded: Loaded,
    problem: Problem,
    *,
    seed: int,
    max_iter: int,
    tol: float,
    shuffle: bool = True,
    callback: Callable[[Info], Any] | None = None,
    given: Any = None,
) -> Result:
    """SAGA over all chunks, one after another, epoch by epoch.

    Parameters
    ----------
    executor : LocalExecutor or ClientExecutor
    loaded : Loaded
        From ``load``, of rows whose weights do not sum to zero.
    problem : Problem
    seed : int
        Entropy of all orders.
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
    """
    facts, metric = loaded.facts, loaded.metric
    ids = number_occurrences(fact.content for fact in facts)
    weight = sum(fact.weight for fact in facts)
    head = new_head(
        len(loaded.stats.mean),
        len(loaded.zero[1]),
        weight=weight,
        rows=sum(f.rows for f in facts),
    )
    if loaded.x.any():
        sums = executor.gather([executor.submit(_head, pair, name="saga-sum") for pair in loaded.memories])
        head = head._replace(x=loaded.x, gradient_sum=frozen(sum(sums)), window_start=loaded.x)
    at_zero = _norm_at_zero(loaded, weight, problem)
    rng = np.random.default_rng(seed)

    previous, own = (head, None), list(loaded.memories)
    loaded.memories.clear()  # else the empty ones would stay beside the real ones
    window, count, history = frozenset(), 0, []
    text = digest("fit", ids, problem.token())
    began, converged, next_check, wait = time.perf_counter(), at_zero == 0, 1, 1
    summary = _Summary(head.x, at_zero, problem.step(metric), False)
    for epoch in range(1, max_iter + 1 if at_zero else 1):
        for g in rng.permutation(len(own)).tolist() if shuffle else range(len(own)):
            opens = window_is_due(g, window, len(own), count)
            window, count = (frozenset() if opens else window) | {g}, 1 if opens else count + 1
            order_seed = visit_seed(seed, ids[loaded.joined[g][0]], epoch - 1)
            args = (loaded.chunks[g], loaded.norms[g], previous, own[g], problem, metric, order_seed, opens)
            previous = own[g] = executor.submit(_visit, *args, name="saga-chunk")
            for k in loaded.joined[g]:
                text = visit_digest(text, ids[k], facts[k], problem)
        [summary] = executor.gather([executor.submit(_summary, previous, problem, metric, name="saga-summary")])
        norm, seconds = summary.gradient_norm / at_zero, time.perf_counter() - began
        history.append({"epoch": epoch, "gradient_norm": norm, "seconds": seconds, "visits": epoch * len(own)})
        logger.info("epoch %d: gradient norm %.2e, %.2f s", epoch, norm, seconds)
        stop = summary.diverged
        if not stop and norm <= tol and (epoch >= next_check or epoch == max_iter):
            exact = _exact_norm(executor, loaded.chunks, weight, summary, problem, metric)
            history[-1]["gradient_norm"] = norm = exact / at_zero
            stop = converged = norm <= tol
            next_check, wait = epoch + wait, 2 * wait
        if callback is not None:
            x, intercept = split_x(summary.x)
            info = Info(epoch, x, intercept, norm, summary.step_size, seconds, epoch * len(own), given)
            answer = callback(info)
            stop = stop or (isinstance(answer, (bool, np.bool_)) and bool(answer))
        if stop:
            break
    [head] = executor.gather([executor.submit(_head, previous, name="saga-head")])
    memories = executor.gather([
        executor.submit(
            _memories, chunk, pair, [facts[k] for k in group], [loaded.lengths[k] for k in group], problem,
            name="saga-gather",
        )
        for chunk, pair, group in zip(loaded.chunks, own, loaded.joined, strict=True)
    ])  # fmt: skip
    state = SAGAState(
        head,
        loaded.stats,
        loaded.axes,
        (loaded.stats.rows, problem.geometry),
        dict(zip(ids, itertools.chain(*memories), strict=True)),
        frozenset(ids[k] for g in window for k in loaded.joined[g]),
        text,
        seed,
    )
    return Result(state, summary.x, summary.step_size, converged, head.diverged, history)


def _norm_at_zero(loaded: Loaded, weight: float, problem: Problem) -> float:
    """What `tol` is relative to: the norm at x = 0, of the coefficients alone where these count.

    An intercept that is far from zero would else hide them: centred columns do not feel it.
    """
    gradient = loaded.zero[1] / weight
    zero, metric = np.zeros_like(gradient), loaded.metric.unshifted
    whole = gradient_mapping_norm(zero, gradient, problem, metric)
    if not problem.fit_intercept:
        return whole
    inner = gradient[:, :-1] - gradient[:, -1:] * loaded.stats.mean
    inner = gradient_mapping_norm(zero, np.column_stack([inner, zero[:, -1]]), problem, metric)
    return inner if inner > 1e-12 * whole else whole


def _exact_norm(executor, chunks, weight, summary, problem, metric):
    """Norm of the exact proximal gradient at the summary's x, by one parallel pass."""
    tasks = [executor.submit(chunk_gradient, chunk, summary.x, problem, name="saga-confirm") for chunk in chunks]
    gradient = sum(gradient for _, gradient in executor.gather(tasks)) / weight
    return gradient_mapping_norm(summary.x, gradient, problem, metric)
