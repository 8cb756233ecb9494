"""Rounds: chunks that are visited at the same time, from one head, and the head that comes of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import frozen
from ..solver.averaging import averaged_iterate, begin_pass, open_window
from ..solver.optimality import chunk_gradient, gradient_mapping_norm, penalty_value, proximal_gradient_step
from ..solver.preconditioner import sum_to_solver, x_to_solver, x_to_user
from ..solver.visit import chunk_saga, fresh_memory

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..solver.preconditioner import Preconditioner
    from ..solver.problem import Problem
    from ..solver.state import ChunkMemory, SolverState

__all__ = ["EpochSummary", "VisitResult", "VisitSpec", "draw_rounds", "merge_round", "round_summary", "visit_chunk"]


# A round goes on from its start to the mean of its ends, and this power of their number times as far.
FURTHER = 0.25

# Rows of a chunk on which its loss is estimated.
SAMPLE = 256


class VisitResult(NamedTuple):
    """What a visit leaves. It is handed on whole: taking it apart would cost another task in the chain.

    Parameters
    ----------
    head : Head or None
    memory : ChunkMemory or None
        Both are there after a visit.
    start : Head or None
        Where the visits of its round began; None where it was alone.
    loss, earlier : float
        Sum of the weighted losses over the chunk, by a sample, and over those of the rounds before in this pass.
    """

    head: SolverState | None
    memory: ChunkMemory | None
    start: SolverState | None = None
    loss: float = 0.0
    earlier: float = 0.0


class VisitSpec(NamedTuple):
    """What is particular to one visit: the seed of its order, and whether it is the only one of its round, of the
    first round of its pass, and opens a new averaging window."""

    seed: int
    alone: bool
    first: bool
    opens: bool


class EpochSummary(NamedTuple):
    """What a client wants to know of a whole pass."""

    x: np.ndarray
    objective: float
    gradient_norm: float
    step_size: float
    diverged: bool


def draw_rounds(parts: list[range], rng: np.random.Generator | None) -> list[list[int]]:
    """The rounds of one pass over lanes: each in a new random order, or as it stands without `rng`."""
    orders = [part if rng is None else [part[k] for k in rng.permutation(len(part))] for part in parts]
    return [[k for k in row if k is not None] for row in itertools.zip_longest(*orders)]


def merge_round(problem: Problem, metric: Preconditioner, *visits: VisitResult) -> SolverState:
    """The head after a round: x beyond the mean by weight, and the sum of all changes of the gradient.

    Each task of the next round merges for itself: a task of its own would make the chain longer.
    """
    heads, start = [one.head for one in visits], visits[0].start
    if len(heads) == 1:
        return heads[0]
    weights = np.array([one.memory.weight for one in visits])
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(heads), 1 / len(heads))

    further = (1 / (weights**2).sum()) ** FURTHER  # of chunks of one weight their number

    def mean(name):
        return sum(w * getattr(head, name) for w, head in zip(weights, heads, strict=True))

    def total(name):
        return getattr(start, name) + sum(getattr(head, name) - getattr(start, name) for head in heads)

    head = start._replace(
        x=frozen(start.x + further * (mean("x") - start.x)),
        gradient_sum=frozen(total("gradient_sum")),
        step_multiplier=min(head.step_multiplier for head in heads),
        window_count=start.window_count + 1,
        visited_weight=total("visited_weight"),
        visited_sum=frozen(total("visited_sum")),
        window_ratio=mean("window_ratio"),
        window_energy=total("window_energy"),
        limits=frozen(np.min([head.limits for head in heads], axis=0)),
        diverged=any(head.diverged for head in heads),
    )
    if not head.diverged:
        # A mean of sparse coefficients is not sparse, and beyond it may be out of bounds.
        x, average = x_to_solver(head.x, metric), sum_to_solver(head.gradient_average, metric)
        step = min(problem.step(metric, head.step_multiplier), 0.3 / metric.L)
        head = head._replace(x=frozen(x_to_user(proximal_gradient_step(x, average, step, problem, metric), metric)))
    return head._replace(window_sum=frozen(start.window_sum + head.x))


def visit_chunk(
    problem: Problem,
    metric: Preconditioner,
    turn: VisitSpec,
    chunk: Chunk,
    norms: np.ndarray | None,
    own: tuple | None,
    *before: VisitResult,
) -> VisitResult:
    """A visit that follows the round before.

    Parameters
    ----------
    turn : Turn
    chunk : Chunk
    norms : ndarray of shape (n,) or None
    own : tuple or None
        What has this chunk's last memory at 1.
    before : Visited
        Of the round before.
    """
    head = merge_round(problem, metric, *before)
    if turn.opens:
        head = begin_pass(open_window(head, problem, metric))
    memory = fresh_memory(chunk, problem) if own is None else own[1]
    after, memory = chunk_saga(chunk, head, memory, problem, metric, turn.seed, norms)
    earlier = 0.0 if turn.first else _pass_loss(before)
    return VisitResult(after, memory, None if turn.alone else head, _sampled_loss(chunk, after.x, problem), earlier)


def _sampled_loss(chunk: Chunk, x: np.ndarray, problem: Problem) -> float:
    """Sum of the weighted losses over a chunk, from rows at equal distances."""
    every = slice(None, None, max(1, -(-len(chunk.targets) // SAMPLE)))
    if chunk.weights.size:  # rows that weigh nothing tell nothing
        weighty = np.flatnonzero(chunk.weights)
        every = weighty[:: max(1, -(-len(weighty) // SAMPLE))]
    rows, targets, weights = (part[every] if part.shape[0] else part for part in chunk[:3])
    rows = rows if sp.issparse(rows) else np.ascontiguousarray(rows)
    sample = chunk._replace(rows=rows, targets=np.ascontiguousarray(targets), weights=np.ascontiguousarray(weights))
    return chunk_gradient(sample, x, problem)[0] * chunk.weight / (sample.weight or 1.0)


def _pass_loss(visits: tuple[VisitResult, ...]) -> float:
    return visits[0].earlier + sum(one.loss for one in visits)


def round_summary(problem: Problem, metric: Preconditioner, *visits: VisitResult) -> EpochSummary:
    """The summary of a pass whose last round these are."""
    head = merge_round(problem, metric, *visits)
    with np.errstate(over="ignore", invalid="ignore"):  # where a refinement went astray
        norm = gradient_mapping_norm(head.x, head.gradient_average, problem, metric)
    x = averaged_iterate(head, problem, metric)[0]
    objective = _pass_loss(visits) / (head.weight or 1.0) + penalty_value(x, problem)
    return EpochSummary(x, objective, norm, problem.step(metric, head.step_multiplier), head.diverged)
