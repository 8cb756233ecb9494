"""The preparing pass: one parallel pass over all chunks before the first visit.

It computes column statistics, the preconditioner, the gradient at zero and the subsample.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp
from dask.sizeof import sizeof

from ..data.chunk import join_chunks
from ..data.immutable import immutable
from ..data.statistics import check_values, measure, merge, wants_products
from ..data.validation import blame
from ..execution.executor import merged
from ..solver.optimality import chunk_gradient, count_outputs, factors_at_zero
from ..solver.preconditioned_problem import PreconditionedProblem
from ..solver.preconditioner_choice import axis_limits, choose_preconditioner
from ..solver.subsample import effective_rows, make_sample, sample_rows
from ..solver.visit import fresh_memory

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..data.statistics import ColumnStats
    from ..execution.protocol import Reference
    from ..solver.preconditioner import Preconditioner
    from ..solver.problem import Problem
    from ..solver.state import ChunkMemory
    from ..solver.subsample import Subsample
    from .chunk_source import Source

__all__ = ["ChunkGradients", "Handover", "Prepared", "gradients_at", "prepare", "prepared_for"]


T = TypeVar("T")

# Draws the sample of a chunk, given the chunk and the number of chunks.
Draw = Callable[["Chunk", int], "Chunk"]

# Number of chunks whose statistics one task merges; number of chunks whose limits per axis one task computes.
MERGED_CHUNKS, LIMITED_CHUNKS = 32, 16

# Largest size, in bytes, of a preconditioner that is sent along with the first tasks that need it. They then do not
# wait until it is stored on the executor.
SENT_PRECONDITIONER_BYTES = 2**16

# Data up to this size, in bytes, are joined into one chunk, however they are blocked. A visit has an overhead of
# 0.25 ms in Python, and of some ms on a cluster.
JOINED_BYTES = 2**22


class Handover:
    """References that only the start of a fit needs, until it takes them.

    The result of the preparing pass lives as long as the fit. A cluster could not free what it still refers to.

    Parameters
    ----------
    limits : list of Reference
        References to the ``axis_limits`` of groups of chunks, whose minimum becomes ``SolverState.limits``.
    sample : Reference or None
        Reference to the `sample` argument of ``subsample_step``. None if no subsample step is used.
    """

    def __init__(
        self, limits: list[Reference[np.ndarray]], sample: Reference[Subsample | PreconditionedProblem] | None
    ):
        self._limits, self._sample, self._is_taken = limits, sample, False

    def take(self) -> tuple[list[Reference[np.ndarray]], Reference[Subsample | PreconditionedProblem] | None]:
        """Return the limits and the sample, and forget them. This is possible once."""
        if self._is_taken:
            raise RuntimeError("this preparing pass was already used by a fit; call prepare again for another one")
        limits, sample = self._limits, self._sample
        self._limits, self._sample, self._is_taken = [], None, True
        return limits, sample


class Prepared(NamedTuple):
    """Result of the preparing pass. Only `preconditioned`, and what `handover` has, are references.

    Parameters
    ----------
    groups : list of list of int
        Numbers of the chunks that are visited together as one.
    lengths : list of int
        Number of rows of each chunk.
    facts : list of ChunkMemory
        Facts of each chunk, without gradients.
    stats : ColumnStats
        Column statistics of all chunks.
    axes : Preconditioner
        Preconditioner chosen from `stats`.
    preconditioned : Reference
        Reference to the problem and `axes` on the executor, since a preconditioner may be large.
    value : float
        Sum of the weighted losses at x = 0.
    zero : ndarray of shape (k, p + 1)
        Sum of the gradients at x = 0.
    gradient : ndarray of shape (k, p + 1) or None
        The `gradient` argument of ``subsample_step`` at x = 0.
    handover : Handover
        References for the start of the fit.
    """

    groups: list[list[int]]
    lengths: list[int]
    facts: list[ChunkMemory]
    stats: ColumnStats
    axes: Preconditioner
    preconditioned: Reference[PreconditionedProblem]
    value: float
    zero: np.ndarray
    gradient: np.ndarray | None
    handover: Handover


@immutable
class ChunkGradients(NamedTuple):
    """Gradients of one chunk at one x."""

    total: np.ndarray  # sum of the gradients, of shape (k, p + 1)
    memory: ChunkMemory  # holds the gradients of the single rows
    value: float  # sum of the weighted losses


class _Shape(NamedTuple):
    length: int
    nbytes: int
    is_sparse: bool
    columns: int
    outputs: int


class _Examined(NamedTuple):
    """Result of the preparing pass for one chunk, or merged for several."""

    facts: list[ChunkMemory]
    shapes: list[_Shape]
    value: float
    stats: ColumnStats
    zero: np.ndarray
    samples: list[Chunk]


def _examine(
    chunk: Chunk, problem: Problem, chunks: int, labels: Sequence | None, name: int | None, draw: Draw | None = None
) -> _Examined:
    memory = fresh_memory(chunk, problem)
    facts = memory._replace(gradients=np.empty((0, memory.gradients.shape[1])), total=None)
    outputs, factors = count_outputs(chunk, problem), None
    if outputs == 1:  # for several outputs the factors might need more memory than the rows
        value, factors = factors_at_zero(chunk, problem)
    with blame("X", name):
        try:
            stats, gradient = measure(chunk, problem, chunks, factors)
        except ValueError:
            check_values(chunk.rows, labels=labels)  # raises the same error, but with the names of the columns
            raise
    if outputs > 1:
        value, gradient = chunk_gradient(chunk, np.zeros((outputs, chunk.rows.shape[1] + 1)), problem)
    samples = [(draw or sample_rows)(chunk, chunks)] if problem.automatic or draw else []
    shape = _Shape(len(chunk.targets), chunk.nbytes, sp.issparse(chunk.rows), chunk.rows.shape[1], len(gradient))
    return _Examined([facts], [shape], value, stats, gradient, samples)


def _bytes_examined(columns: float, problem: Problem) -> float:
    """Estimate the size of a result of ``_examine`` without sampled rows: statistics, gradient sums and products."""
    return 8.0 * columns * (10 + problem.outputs + (columns if wants_products(columns, problem) else 0))


def _merge(*examined: _Examined) -> _Examined:
    """Merge results on the workers, so that the client does not receive p x p products for every chunk."""
    parts = zip(*((one.facts, one.shapes, one.samples) for one in examined), strict=True)
    facts, shapes, samples = (list(itertools.chain(*part)) for part in parts)
    if len({shape[-2:] for shape in shapes}) > 1:  # `prepare` raises an error for this
        return examined[0]._replace(facts=facts, shapes=shapes)
    stats = functools.reduce(merge, [one.stats for one in examined])
    zero = np.asarray(sum(one.zero for one in examined))
    return _Examined(facts, shapes, sum(one.value for one in examined), stats, zero, samples)


def _whole(*examined: _Examined) -> tuple[_Examined, float]:
    whole = _merge(*examined)
    return whole._replace(samples=[]), effective_rows(whole.samples)


def _limits(preconditioned: PreconditionedProblem, *examined: _Examined) -> np.ndarray:
    return np.min([axis_limits(one.stats, preconditioned) for one in examined], axis=0)


def _join_samples(*examined: _Examined) -> Chunk | None:
    """Join the samples of all chunks. None if some are sparse and others are dense."""
    samples = [*itertools.chain(*(one.samples for one in examined))]
    return join_chunks(*samples) if len({sp.issparse(one.rows) for one in samples}) == 1 else None


def _make_sample(preconditioned: PreconditionedProblem, *examined: _Examined) -> Subsample:
    return make_sample(join_chunks(*itertools.chain(*(one.samples for one in examined))), preconditioned)


def gradients_at(chunk: Chunk, x: np.ndarray, problem: Problem, visits: int) -> ChunkGradients:
    """Compute the gradients of a chunk at x, and a memory that holds them as if after `visits` visits.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (k, p + 1)
    problem : Problem
    visits : int

    Returns
    -------
    ChunkGradients
    """
    memory = fresh_memory(chunk, problem)
    gradients = np.empty_like(memory.gradients)
    value, total = chunk_gradient(chunk, x, problem, gradients)
    memory = memory._replace(gradients=gradients, visits=visits, total=None if memory.total is None else total)
    return ChunkGradients(total if memory.total is None else memory.total, memory, value)  # one array in a pickle


def prepare(
    source: Source, problem: Problem, *, joins: bool = True, labels: Sequence | None = None, draw: Draw | None = None
) -> Prepared:
    """Run the preparing pass over all chunks in parallel.

    Parameters
    ----------
    source : Source
    problem : Problem
    joins : bool, default=True
        Whether to join small data into one chunk.
    labels : sequence of length p, default=None
        Names of the columns for error messages. None stands for their numbers.
    draw : callable, default=None
        ``draw(chunk, chunks)`` draws the sample of a chunk. The handover then has the joined samples, without anything
        else. None draws the rows for ``subsample_step``.

    Returns
    -------
    Prepared

    Raises
    ------
    ValueError
        If chunks differ in their numbers of columns or outputs.
    """
    executor, size = source.executor, _bytes_examined(source.columns, problem)
    examine = functools.partial(_examine, draw=draw) if draw else _examine
    examined = source.map(examine, problem, len(source), labels, name="saga-examine", named=True, nbytes=size)
    few = merged(executor, _merge, examined, MERGED_CHUNKS, most=MERGED_CHUNKS)  # few enough for one task
    [(whole, sampled)] = executor.gather([executor.submit(_whole, *few, name="saga-whole")])
    _check_shapes(whole.shapes)
    source.expect(
        [shape.nbytes for shape in whole.shapes], [(fact.content, fact.weights_content) for fact in whole.facts]
    )
    axes = choose_preconditioner(whole.stats, problem, sampled)
    is_sent = sizeof(axes) <= SENT_PRECONDITIONER_BYTES
    preconditioned = PreconditionedProblem(problem, axes)
    near: Any = preconditioned if is_sent else executor.put([preconditioned])[0]  # for the first tasks
    is_quadratic = problem.automatic and axes.rotation is not None and getattr(problem.loss, "quadratic", False)
    sample: Any = None
    if draw:
        sample, is_quadratic = executor.submit(_join_samples, *few, name="saga-sample"), False
    elif sampled and not is_quadratic:
        sample = executor.submit(_make_sample, near, *few, name="saga-sample")
    parts = _split(examined, LIMITED_CHUNKS)
    limits = [executor.submit(_limits, near, *part, name="saga-limits") for part in parts]
    [reference] = executor.put([preconditioned]) if is_sent else [near]
    return Prepared(
        groups=_join_small(source, whole.shapes) if joins else [[k] for k in range(len(source))],
        lengths=[shape.length for shape in whole.shapes],
        facts=whole.facts,
        stats=whole.stats,
        axes=axes,
        preconditioned=reference,
        value=whole.value,
        zero=whole.zero,
        gradient=whole.zero / whole.stats.weight if is_quadratic else None,
        handover=Handover(limits, reference if is_quadratic else sample),
    )


def prepared_for(source: Source, prepared: Prepared, problem: Problem, value: float, zero: np.ndarray) -> Prepared:
    """Return the result of the preparing pass for a loss of another curvature, without another pass.

    Parameters
    ----------
    source : Source
    prepared : Prepared
        Result of ``prepare`` for the same rows.
    problem : Problem
    value : float
        Sum of the weighted losses at x = 0.
    zero : ndarray of shape (k, p + 1)
        Sum of the gradients at x = 0.
    """
    axes = choose_preconditioner(prepared.stats, problem, 0.0)
    preconditioned = PreconditionedProblem(problem, axes)
    [reference] = source.executor.put([preconditioned])
    limits = [source.executor.submit(axis_limits, prepared.stats, preconditioned, name="saga-limits")]
    return prepared._replace(
        axes=axes, preconditioned=reference, value=value, zero=zero, gradient=None, handover=Handover(limits, None)
    )


def _split(items: list[T], size: int) -> list[list[T]]:
    return [items[k : k + size] for k in range(0, len(items), size)]


def _check_shapes(shapes: list[_Shape]) -> None:
    """Raise a ValueError if chunks differ in their numbers of columns or outputs."""
    for k, shape in enumerate(shapes):
        if shape.columns != shapes[0].columns:
            raise ValueError(
                f"chunk {k}: X has {shape.columns} features, but chunk 0 has {shapes[0].columns}; give all chunks the "
                "same columns"
            )
        if shape.outputs != shapes[0].outputs:
            raise ValueError(
                f"chunk {k}: y has {shape.outputs} columns, but chunk 0 has {shapes[0].outputs}; give all chunks the "
                "same outputs"
            )


def _join_small(source: Source, shapes: list[_Shape]) -> list[list[int]]:
    """Join the chunks of small data into one. Return the numbers of the chunks that are visited together."""
    numbers, is_mixed = list(range(len(shapes))), len({shape.is_sparse for shape in shapes}) > 1
    if len(shapes) == 1 or is_mixed or sum(shape.nbytes for shape in shapes) > JOINED_BYTES:
        return [[k] for k in numbers]
    if not source.holds:  # join regardless of `persist`, which must not change the result
        source.hold()
    source.join()
    return [numbers]
