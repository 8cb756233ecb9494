"""The preparing pass: what must be known of all chunks before the first visit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from .chunk import chunk_gradient, count_outputs, fresh_memory
from .columns import ColumnStats, column_stats, merge
from .inputs import Chunk, frozen, join_chunks
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


def _grouped(sizes: list[tuple[int, bool]]) -> list[list[int]]:
    """Numbers of the chunks that are visited together: all where they are of one kind and small, else each alone."""
    nbytes, sparse = zip(*sizes, strict=True)
    if sum(nbytes) <= JOINED_BYTES and len(set(sparse)) == 1:
        return [list(range(len(sizes)))]
    return [[k] for k in range(len(sizes))]


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
        Whether small chunks that are held are visited together.
    """
    executor, examined = source.executor, []
    for _, chunk in source.each():
        examined.append(executor.submit(_examine, chunk, problem, name="saga-examine"))
        source.used(examined[-1])
    brief = executor.gather([executor.submit(_brief, one, name="saga-brief") for one in examined])
    facts, lengths, sizes, columns, outputs = zip(*brief, strict=True)
    for k in range(len(source)):
        if columns[k] != columns[0]:
            raise ValueError(f"chunk {k}: X has {columns[k]} features, but chunk 0 has {columns[0]}")
        if outputs[k] != outputs[0]:
            raise ValueError(f"chunk {k}: y has {outputs[k]} columns, but chunk 0 has {outputs[0]}")
    merged = examined
    while len(merged) > 1:
        parts = [merged[k : k + MERGED] for k in range(0, len(merged), MERGED)]
        merged = [executor.submit(_merge, *part, name="saga-merge") for part in parts]
    [(*_, stats, _, zero)] = executor.gather(merged)
    axes = choose_metric(stats, problem)
    groups = _grouped(sizes) if joins and source.holds else [[k] for k in range(len(source))]
    sums = [executor.submit(_axis_sums, axes, *(examined[k] for k in group), name="saga-axes") for group in groups]
    metric = limit_axes(axes, np.max(executor.gather(sums), axis=0), len(sums), stats, problem)
    source.join(groups, join_chunks)
    x = _start(axes, zero / stats.weight if stats.rows else zero, problem)
    norms, memories = [None] * len(groups), [None] * len(groups)
    if source.holds:
        norms = [executor.submit(row_norms, chunk, metric, problem, name="saga-norms") for _, chunk in source.each()]
    if x.any():
        for g, chunk in source.each():
            memories[g] = executor.submit(_remember, chunk, x, problem, name="saga-memory")
            source.used(memories[g])
    return Prepared(groups, norms, memories, list(lengths), list(facts), stats, axes, metric, zero, x)


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
