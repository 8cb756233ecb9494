"""The preparing pass: what must be known of all chunks before the first visit."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from dask.sizeof import sizeof

from ..data.chunk import frozen, join_chunks
from ..data.statistics import measure, merge, wants_products
from ..data.validation import blame, check_finite
from ..solver.optimality import chunk_gradient, count_outputs, factors_at_zero
from ..solver.preconditioner_choice import axis_limits, choose_preconditioner
from ..solver.subsample import effective_rows, make_sample, sample_rows
from ..solver.visit import fresh_memory

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..data.statistics import ColumnStats
    from ..solver.preconditioner import Preconditioner
    from ..solver.problem import Problem
    from ..solver.state import ChunkMemory
    from ..solver.subsample import Subsample
    from .chunk_source import Source

__all__ = ["ChunkGradients", "Prepared", "gradients_at", "prepare"]


# Chunks whose statistics one task merges, and of which it finds the limits of axes.
MERGED, LIMITED = 32, 16

# Coordinates of so few bytes go with the tasks that want them first: these need not wait until they are put.
TRAVELS = 2**16

# Data up to this size are one chunk, however they are blocked: a visit costs 0.25 ms of Python, on a cluster some ms.
JOINED_BYTES = 2**22


class Prepared(NamedTuple):
    """What is known before the first visit.

    Parameters
    ----------
    groups : list of list of int
        Numbers of the chunks that are visited together.
    lengths : list of int
        Rows of each chunk.
    facts : list of ChunkMemory
        Of each chunk, without gradients.
    stats : ColumnStats
    axes : Metric
        The coordinates that the columns suggest.
    metric : object
        Reference to them, as they may be large.
    value : float
        Sum of the weighted losses at x = 0.
    zero : ndarray of shape (k, p + 1)
        Sum of the gradients there.
    sample : list
        A reference to what ``subsample_step`` takes, as long as it is needed, if there is one.
    gradient : ndarray of shape (k, p + 1) or None
        What ``subsample_step`` takes at zero.
    limits : list
        References to what is so named in ``SolverState``, of single chunks, until that has it.
    """

    groups: list[list[int]]
    lengths: list[int]
    facts: list[ChunkMemory]
    stats: ColumnStats
    axes: Preconditioner
    metric: Any
    value: float
    zero: np.ndarray
    sample: list
    gradient: np.ndarray | None
    limits: list


class ChunkGradients(NamedTuple):
    """What a chunk tells at one x."""

    total: np.ndarray  # sum of the gradients, of shape (k, p + 1)
    memory: ChunkMemory  # which holds them
    value: float  # sum of the weighted losses


class _Shape(NamedTuple):
    length: int
    nbytes: int
    is_sparse: bool
    columns: int
    outputs: int


class _Examined(NamedTuple):
    """What one chunk tells, or several as one."""

    facts: list[ChunkMemory]
    shapes: list[_Shape]
    value: float
    stats: ColumnStats
    zero: np.ndarray
    samples: list[Chunk]


def _examine(chunk: Chunk, problem: Problem, chunks: int, estimator: str | None, name: int | None) -> _Examined:
    memory = fresh_memory(chunk, problem)
    facts = memory._replace(gradients=np.empty((0, memory.gradients.shape[1])), total=None)
    outputs, factors = count_outputs(chunk, problem), None
    if outputs == 1:  # else they would take more room than the rows
        value, factors = factors_at_zero(chunk, problem)
    with blame("X", name):
        try:
            stats, gradient = measure(chunk, problem, chunks, factors)
        except ValueError:
            check_finite(chunk.rows, estimator)  # the same error of NaN, but naming the estimator
            raise
    if outputs > 1:
        value, gradient = chunk_gradient(chunk, np.zeros((outputs, chunk.rows.shape[1] + 1)), problem)
    samples = [sample_rows(chunk, chunks)] if problem.automatic else []
    shape = _Shape(len(chunk.targets), chunk.nbytes, sp.issparse(chunk.rows), chunk.rows.shape[1], len(gradient))
    return _Examined([facts], [shape], value, stats, gradient, samples)


def _bytes_examined(columns: float, problem: Problem) -> float:
    """About what ``_examine`` tells of so many columns, beside a few rows: statistics, sums of gradients, products."""
    return 8.0 * columns * (10 + problem.outputs + (columns if wants_products(columns, problem) else 0))


def _merge(*examined: _Examined) -> _Examined:
    """It carries p x p products, which a client need not see of each."""
    parts = zip(*((one.facts, one.shapes, one.samples) for one in examined), strict=True)
    facts, shapes, samples = (list(itertools.chain(*part)) for part in parts)
    if len({shape[-2:] for shape in shapes}) > 1:  # which an error will tell
        return examined[0]._replace(facts=facts, shapes=shapes)
    stats, zero = functools.reduce(merge, [one.stats for one in examined]), sum(one.zero for one in examined)
    return _Examined(facts, shapes, sum(one.value for one in examined), stats, zero, samples)


def _whole(*examined: _Examined) -> tuple[_Examined, float]:
    whole = _merge(*examined)
    return whole._replace(samples=[]), effective_rows(whole.samples)


def _limits(metric: Preconditioner, problem: Problem, *examined: _Examined) -> np.ndarray:
    return np.min([axis_limits(one.stats, metric, problem) for one in examined], axis=0)


def _make_sample(metric: Preconditioner, problem: Problem, *examined: _Examined) -> Subsample:
    return make_sample(join_chunks(*itertools.chain(*(one.samples for one in examined))), metric, problem)


def gradients_at(chunk: Chunk, x: np.ndarray, problem: Problem, visits: int) -> ChunkGradients:
    """What a chunk tells at x, remembered as after so many visits."""
    memory = fresh_memory(chunk, problem)
    gradients = np.empty_like(memory.gradients)
    value, total = chunk_gradient(chunk, x, problem, gradients)
    total = frozen(total)
    memory = memory._replace(gradients=frozen(gradients), visits=visits, total=None if memory.total is None else total)
    return ChunkGradients(total, memory, value)


def prepare(source: Source, problem: Problem, *, joins: bool = True, estimator: str | None = None) -> Prepared:
    """The preparing pass, in parallel: column statistics, coordinates and the gradient at zero.

    Parameters
    ----------
    source : Source
    problem : Problem
    joins : bool, default=True
        Whether small chunks are visited together.
    estimator : str, default=None
        Names the estimator in error messages.
    """
    executor, size = source.executor, _bytes_examined(source.columns, problem)
    examined = source.map(_examine, problem, len(source), estimator, name="saga-examine", named=True, nbytes=size)
    merged = examined
    while len(merged) > MERGED:
        parts = [merged[k : k + MERGED] for k in range(0, len(merged), MERGED)]
        merged = [executor.submit(_merge, *part, name="saga-merge") for part in parts]
    [(whole, sampled)] = executor.gather([executor.submit(_whole, *merged, name="saga-whole")])
    facts, shapes, value, stats, zero, _ = whole
    for k, shape in enumerate(shapes):
        if shape.columns != shapes[0].columns:
            raise ValueError(f"chunk {k}: X has {shape.columns} features, but chunk 0 has {shapes[0].columns}")
        if shape.outputs != shapes[0].outputs:
            raise ValueError(f"chunk {k}: y has {shape.outputs} columns, but chunk 0 has {shapes[0].outputs}")
    source.sizes = [shape.nbytes for shape in shapes]
    source.expected = [(fact.content, fact.weights_content) for fact in facts]
    axes = choose_preconditioner(stats, problem, sampled)
    near = axes if sizeof(axes) <= TRAVELS else executor.put([axes])[0]
    sample, gradient = [], None
    if problem.automatic and axes.rotation is not None and getattr(problem.loss, "quadratic", False):
        sample, gradient = [near], zero / stats.weight
    elif sampled:
        sample = [executor.submit(_make_sample, near, problem, *merged, name="saga-sample")]
    parts = [examined[k : k + LIMITED] for k in range(0, len(examined), LIMITED)]
    limits = [executor.submit(_limits, near, problem, *part, name="saga-limits") for part in parts]
    [there] = executor.put([axes]) if near is axes else [near]
    groups, nbytes = [[k] for k in range(len(source))], sum(source.sizes)
    if joins and len(source) > 1 and nbytes <= JOINED_BYTES and len({shape.is_sparse for shape in shapes}) == 1:
        # Whether `persist` or not: it must not change the bits.
        if not source.holds:
            source.hold()
        groups = [list(range(len(source)))]
        source.join()
    lengths = [shape.length for shape in shapes]
    return Prepared(groups, lengths, facts, stats, axes, there, value, zero, sample, gradient, limits)
