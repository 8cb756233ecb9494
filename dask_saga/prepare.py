"""The preparing pass: what must be known of all chunks before the first visit."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from .chunk import chunk_gradient, count_outputs, fresh_memory
from .columns import ColumnStats, column_stats, merge
from .inputs import Chunk, frozen
from .metric import Metric, axis_sums, choose_metric, limit_axes, row_norms, to_solver, to_user
from .problem import Problem
from .source import Source
from .state import ChunkMemory

__all__ = ["Prepared", "prepare"]

# Chunks whose statistics one task merges.
MERGED = 16
# Data up to this size are one chunk, however they are blocked: a visit costs 0.25 ms of Python, on a cluster some ms.
JOINED_BYTES = 2**22


class Prepared(NamedTuple):
    """What is known before the first visit.

    Parameters
    ----------
    groups : list of list of int
        Numbers of the chunks that are visited together.
    norms : list
        Of each group, a reference to its ``RowNorms``, or None where chunks are not held.
    memories : list
        Of each group, a reference to (sum of gradients, ChunkMemory) at `x`, or None where x is zero.
    lengths : list of int
        Rows of each chunk.
    facts : list of ChunkMemory
        Of each chunk, without gradients.
    stats : ColumnStats
    axes : Metric
        The coordinates that the columns suggest, and ``metric``, those that also suit the chunks.
    metric : Metric
    zero : ndarray of shape (k, p + 1)
        Sum of the gradients at x = 0.
    x : ndarray of shape (k, p + 1)
        Where the passes begin.
    largest_sums : ndarray of shape (p,)
        As in ``Head``, of single chunks.
    """

    groups: list[list[int]]
    norms: list
    memories: list
    lengths: list[int]
    facts: list[ChunkMemory]
    stats: ColumnStats
    axes: Metric
    metric: Metric
    zero: np.ndarray
    x: np.ndarray
    largest_sums: np.ndarray


class _Examined(NamedTuple):
    """What one chunk tells, or several as one, which have no facts."""

    facts: ChunkMemory | None
    length: int
    nbytes: int
    is_sparse: bool
    stats: ColumnStats
    zero: np.ndarray


def _examine(chunk: Chunk, problem: Problem) -> _Examined:
    memory = fresh_memory(chunk, problem)
    zero = np.zeros((count_outputs(chunk, problem), chunk.rows.shape[1] + 1))
    facts = memory._replace(gradients=np.empty((0, len(zero))), total=None)
    gradient = chunk_gradient(chunk, zero, problem)[1]
    stats = column_stats(chunk, problem)
    return _Examined(facts, len(chunk.targets), chunk.nbytes, sp.issparse(chunk.rows), stats, gradient)


def _merge(*examined: _Examined) -> _Examined:
    """It carries p x p products, which a client need not see of each."""
    stats, zero = functools.reduce(merge, [one.stats for one in examined]), sum(one.zero for one in examined)
    return examined[0]._replace(facts=None, stats=stats, zero=zero)


def _brief(examined: _Examined) -> tuple:
    return *examined[:4], len(examined.stats.mean), len(examined.zero)


def _axis_sums(examined: _Examined, metric: Metric) -> np.ndarray:
    return axis_sums(examined.stats, metric)


def _remember(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, ChunkMemory]:
    """The sum of the gradients at x, and the memory of a chunk that holds them."""
    memory = fresh_memory(chunk, problem)
    gradients = np.empty_like(memory.gradients)
    total = frozen(chunk_gradient(chunk, x, problem, gradients)[1])
    return total, memory._replace(gradients=frozen(gradients), total=None if memory.total is None else total)


def prepare(source: Source, problem: Problem, *, joins: bool = True) -> Prepared:
    """The preparing pass, in parallel: column statistics, coordinates and the gradient at zero.

    Parameters
    ----------
    source : Source
    problem : Problem
    joins : bool, default=True
        Whether small chunks are visited together.
    """
    executor, examined = source.executor, source.map(_examine, problem, name="saga-examine")
    brief = executor.gather([executor.submit(_brief, one, name="saga-brief") for one in examined])
    facts, lengths, nbytes, sparse, columns, outputs = zip(*brief, strict=True)
    for k in range(len(source)):
        if columns[k] != columns[0]:
            raise ValueError(f"chunk {k}: X has {columns[k]} features, but chunk 0 has {columns[0]}")
        if outputs[k] != outputs[0]:
            raise ValueError(f"chunk {k}: y has {outputs[k]} columns, but chunk 0 has {outputs[0]}")
    source.sizes = list(nbytes)
    source.expected = [(fact.content, fact.weights_content) for fact in facts]
    merged = examined
    while len(merged) > 1:
        parts = [merged[k : k + MERGED] for k in range(0, len(merged), MERGED)]
        merged = [executor.submit(_merge, *part, name="saga-merge") for part in parts]
    [(*_, stats, zero)] = executor.gather(merged)
    axes = choose_metric(stats, problem)
    sums = executor.gather([executor.submit(_axis_sums, one, axes, name="saga-axes") for one in examined])
    groups, largest_sums = [[k] for k in range(len(source))], np.max(sums, axis=0)
    if joins and len(source) > 1 and sum(nbytes) <= JOINED_BYTES and len(set(sparse)) == 1:
        # Whether `persist` or not: it must not change the bits.
        if not source.holds:
            source.hold()
        groups, sums = [list(range(len(source)))], [sum(sums)]
        source.join()
    metric = limit_axes(axes, np.max(sums, axis=0), len(groups), stats, problem)
    x = _start(axes, zero / stats.weight if stats.rows else zero, problem)
    norms, memories = [None] * len(groups), [None] * len(groups)
    if source.holds:
        norms = source.map(row_norms, metric, problem, name="saga-norms")
    if x.any():
        memories = source.map(_remember, x, problem, name="saga-memory")
    return Prepared(groups, norms, memories, list(lengths), list(facts), stats, axes, metric, zero, x, largest_sums)


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
