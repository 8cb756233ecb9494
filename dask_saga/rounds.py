"""Rounds: chunks that are visited at the same time, from one head, and the head that comes of them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from .chunk import chunk_saga, fresh_memory
from .inputs import Chunk, frozen
from .metric import Metric, RowNorms, to_solver, to_user
from .problem import Problem
from .state import ChunkMemory, Head, candidate, gradient_mapping_norm, open_window, proximal_gradient_step

__all__ = [
    "Summary",
    "Visited",
    "draw_rounds",
    "merge_round",
    "round_summary",
    "visit_chunk",
]


# A round goes on from its start to the mean of its ends, and this power of their number times as far.
FURTHER = 0.25


class Visited(NamedTuple):
    """What a visit leaves. It is handed on whole: taking it apart would cost another task in the chain.

    Parameters
    ----------
    head : Head or None
    memory : ChunkMemory or None
        Both are there after a visit.
    start : Head or None
        Where the visits of its round began; None where it was alone.
    """

    head: Head | None
    memory: ChunkMemory | None
    start: Head | None = None


class Summary(NamedTuple):
    """What a client wants to know of a whole pass."""

    x: np.ndarray
    gradient_norm: float
    step_size: float
    diverged: bool


def draw_rounds(parts: list[range], rng: np.random.Generator | None) -> list[list[int]]:
    """The rounds of one pass over lanes: each in a new random order, or as it stands without `rng`."""
    orders = [part if rng is None else [part[k] for k in rng.permutation(len(part))] for part in parts]
    return [[k for k in row if k is not None] for row in itertools.zip_longest(*orders)]


def merge_round(problem: Problem, metric: Metric, *visits: Visited) -> Head:
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
        cut=min(head.cut for head in heads),
        window_count=start.window_count + 1,
        window_ratio=mean("window_ratio"),
        window_energy=total("window_energy"),
        largest_sums=frozen(np.max([head.largest_sums for head in heads], axis=0)),
        diverged=any(head.diverged for head in heads),
    )
    if not head.diverged:
        # A mean of sparse coefficients is not sparse, and beyond it may be out of bounds.
        x, average = to_solver(head.x, head.gradient_average, metric)
        step = min(problem.step(metric, head.cut), 0.3 / metric.L)
        head = head._replace(
            x=frozen(to_user(proximal_gradient_step(x, average, step, problem, metric), average, metric)[0])
        )
    return head._replace(window_sum=frozen(start.window_sum + head.x))


def visit_chunk(
    problem: Problem,
    metric: Metric,
    alone: bool,
    seed: int,
    opens: bool,
    chunk: Chunk,
    norms: RowNorms | None,
    own: tuple | None,
    *before: Visited,
) -> Visited:
    """A visit that follows the round before.

    Parameters
    ----------
    alone : bool
        Whether it is the only one of its round.
    opens : bool
        Whether a new averaging window opens.
    own : tuple or None
        What has this chunk's last memory at 1.
    before : Visited
        Of the round before.
    """
    head = merge_round(problem, metric, *before)
    if opens:
        head = open_window(head, problem, metric)
    memory = fresh_memory(chunk, problem) if own is None else own[1]
    return Visited(*chunk_saga(chunk, head, memory, problem, metric, seed, norms), None if alone else head)


def round_summary(problem: Problem, metric: Metric, *visits: Visited) -> Summary:
    """The summary of a pass whose last round these are."""
    head = merge_round(problem, metric, *visits)
    norm = gradient_mapping_norm(head.x, head.gradient_average, problem, metric)
    return Summary(candidate(head, problem, metric)[0], norm, problem.step(metric, head.cut), head.diverged)
