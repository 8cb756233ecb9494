"""Rounds: chunks that are visited at the same time from one state, and the merge of the states that result.

See docs/algorithm/parallelism.md.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from ..data.immutable import immutable
from ..solver.averaging import averaged_iterate, begin_pass, open_window
from ..solver.optimality import chunk_gradient, penalty_value
from ..solver.visit import chunk_saga, fresh_memory

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..solver.preconditioned_problem import PreconditionedProblem
    from ..solver.problem import Problem
    from ..solver.state import ChunkMemory, SolverState

__all__ = [
    "EpochSummary",
    "HasMemory",
    "StoredMemory",
    "VisitResult",
    "VisitSpec",
    "draw_rounds",
    "merge_round",
    "round_summary",
    "visit_chunk",
]


# Exponent of the extrapolation after a round of W visits: x moves W**FURTHER times as far as the mean of the visits.
FURTHER = 0.25

# Number of rows of a chunk from which its loss is estimated.
SAMPLE = 256


class HasMemory(Protocol):
    """Last result of a chunk, which has its gradient memory: a VisitResult, a ChunkGradients or a StoredMemory."""

    @property
    def memory(self) -> ChunkMemory | None:
        """Memory of the chunk."""


class StoredMemory(NamedTuple):
    """A gradient memory that was put on the executor without the result that it comes from."""

    memory: ChunkMemory


class VisitResult(NamedTuple):
    """Result of a visit. Tasks pass it on as a whole, because taking it apart would need another task in the chain.

    Parameters
    ----------
    head : SolverState
        State after the visit.
    memory : ChunkMemory or None
        Memory of the chunk after the visit. None for a state that was not reached by a visit.
    start : SolverState or None
        State from which all visits of the round started. None if the visit was alone in its round.
    loss : float
        Sum of the weighted losses over the chunk, estimated from some of its rows.
    earlier : float
        Sum of the losses of the earlier rounds of this pass.
    """

    head: SolverState
    memory: ChunkMemory | None
    start: SolverState | None = None
    loss: float = 0.0
    earlier: float = 0.0


class VisitSpec(NamedTuple):
    """Parameters of a single visit.

    Parameters
    ----------
    seed : int
        Seed of the row order.
    alone : bool
        Whether it is the only visit of its round.
    first : bool
        Whether its round is the first of the pass.
    opens : bool
        Whether it opens a new averaging window.
    """

    seed: int
    alone: bool
    first: bool
    opens: bool


@immutable
class EpochSummary(NamedTuple):
    """Summary of a whole pass, small enough to be sent to the client.

    Parameters
    ----------
    x : ndarray of shape (outputs, p + 1)
        Averaged iterate.
    objective : float
        Estimated objective.
    gradient_norm : float
        Norm of the gradient mapping at the last x, with the gradient memory as gradient.
    step_size : float
    diverged : bool
    """

    x: np.ndarray
    objective: float
    gradient_norm: float
    step_size: float
    diverged: bool


def draw_rounds(parts: list[range], rng: np.random.Generator | None) -> list[list[int]]:
    """Draw the rounds of one pass. Each round takes one chunk of every lane.

    Parameters
    ----------
    parts : list of range
        Chunk numbers of each lane.
    rng : numpy.random.Generator or None
        Shuffles the chunks within each lane. None keeps their order.

    Returns
    -------
    list of list of int
        Chunk numbers of each round.
    """
    orders = [part if rng is None else [part[k] for k in rng.permutation(len(part))] for part in parts]
    return [[k for k in row if k is not None] for row in itertools.zip_longest(*orders)]


def merge_round(preconditioned: PreconditionedProblem, *visits: VisitResult) -> SolverState:
    """Merge the states after the visits of a round.

    x moves W**FURTHER times as far as the weighted mean of the W visits, followed by one proximal gradient step. The
    gradient sum receives the changes of all visits. Each visit knows only its own chunk, so the mean of the moves
    is too short and their sum too long.

    Every task of the next round calls this for itself, because a separate task would make the chain longer.

    Parameters
    ----------
    preconditioned : PreconditionedProblem
    *visits : VisitResult
        All visits of the round. A single one has its state returned unchanged.

    Returns
    -------
    SolverState
    """
    heads, start = [one.head for one in visits], visits[0].start
    if len(heads) == 1 or start is None:  # the visit was alone in its round
        return heads[0]
    weights = np.array([one.memory.weight for one in visits if one.memory is not None])
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(heads), 1 / len(heads))

    further = (1 / (weights**2).sum()) ** FURTHER  # W**FURTHER for chunks of equal weight

    def mean(name: str) -> Any:
        return sum(w * getattr(head, name) for w, head in zip(weights, heads, strict=True))

    def total(name: str) -> Any:
        return getattr(start, name) + sum(getattr(head, name) - getattr(start, name) for head in heads)

    head = start._replace(
        x=start.x + further * (mean("x") - start.x),
        gradient_sum=total("gradient_sum"),
        step_multiplier=min(head.step_multiplier for head in heads),
        window_count=start.window_count + 1,
        visited_weight=total("visited_weight"),
        visited_sum=total("visited_sum"),
        window_ratio=mean("window_ratio"),
        window_energy=total("window_energy"),
        limits=np.min([head.limits for head in heads], axis=0),
        diverged=any(head.diverged for head in heads),
    )
    if not head.diverged:
        # The mean of sparse coefficients is not sparse, and a point beyond it may violate bounds.
        x = preconditioned.proximal_gradient_step(head.x, head.gradient_average, head.step_multiplier)
        head = head._replace(x=x)
    return head._replace(window_sum=start.window_sum + head.x)


def visit_chunk(
    preconditioned: PreconditionedProblem,
    spec: VisitSpec,
    chunk: Chunk,
    norms: np.ndarray | None,
    last: HasMemory | None,
    *before: VisitResult,
) -> VisitResult:
    """Merge the previous round, then visit one chunk. A SAGA pass calls this once per chunk, each as one task.

    Parameters
    ----------
    preconditioned : PreconditionedProblem
    spec : VisitSpec
    chunk : Chunk
    norms : ndarray of shape (n,) or None
        ``row_norms`` of the chunk, if known.
    last : HasMemory or None
        Last result of the chunk, of which only `memory` is used. None before the first visit.
    *before : VisitResult
        Visits of the previous round.

    Returns
    -------
    VisitResult
    """
    problem, head = preconditioned.problem, merge_round(preconditioned, *before)
    if spec.opens:
        head = begin_pass(open_window(head, preconditioned))
    memory = fresh_memory(chunk, problem) if last is None else last.memory
    after, memory = chunk_saga(chunk, head, memory, *preconditioned, spec.seed, norms)
    earlier = 0.0 if spec.first else _pass_loss(before)
    return VisitResult(after, memory, None if spec.alone else head, _sampled_loss(chunk, after.x, problem), earlier)


def _sampled_loss(chunk: Chunk, x: np.ndarray, problem: Problem) -> float:
    """Estimate the sum of the weighted losses over a chunk from about SAMPLE rows at equal distances."""
    every: slice | np.ndarray = slice(None, None, max(1, -(-len(chunk.targets) // SAMPLE)))
    if chunk.weights.size:  # skip rows with zero weight
        positive = np.flatnonzero(chunk.weights)
        every = positive[:: max(1, -(-len(positive) // SAMPLE))]
    rows, targets, weights = (part[every] if part.shape[0] else part for part in chunk[:3])
    rows = rows if sp.issparse(rows) else np.ascontiguousarray(rows)
    sample = chunk._replace(rows=rows, targets=np.ascontiguousarray(targets), weights=np.ascontiguousarray(weights))
    return chunk_gradient(sample, x, problem)[0] * chunk.weight / (sample.weight or 1.0)


def _pass_loss(visits: tuple[VisitResult, ...]) -> float:
    return visits[0].earlier + sum(one.loss for one in visits)


def round_summary(preconditioned: PreconditionedProblem, *visits: VisitResult) -> EpochSummary:
    """Summarise a pass from the visits of its last round.

    Parameters
    ----------
    preconditioned : PreconditionedProblem
    *visits : VisitResult
        Visits of the last round.

    Returns
    -------
    EpochSummary
    """
    head = merge_round(preconditioned, *visits)
    with np.errstate(over="ignore", invalid="ignore"):  # a diverging subsample step overflows
        norm = preconditioned.gradient_mapping_norm(head.x, head.gradient_average)
    x = averaged_iterate(head, preconditioned)[0]
    objective = _pass_loss(visits) / (head.weight or 1.0) + penalty_value(x, preconditioned.problem)
    return EpochSummary(x, objective, norm, preconditioned.step_size(head.step_multiplier), head.diverged)
