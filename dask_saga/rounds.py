"""Rounds: chunks that are visited at the same time, from one head, and the head that comes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .chunk import chunk_saga, fresh_memory
from .inputs import Chunk, frozen
from .metric import Metric, RowNorms, to_solver, to_user
from .problem import Problem
from .state import ChunkMemory, Head, candidate, gradient_mapping_norm, open_window, proximal_gradient_step

EXPONENT, PROX = 0.5, True

__all__ = [
    "Summary",
    "Visited",
    "draw_rounds",
    "effective_number",
    "lanes",
    "merge_round",
    "round_summary",
    "visit_chunk",
]


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


def lanes(n: int, width: int) -> list[list[int]]:
    """Numbers 0 to n - 1 in `width` consecutive parts; a round has one of each."""
    return [part.tolist() for part in np.array_split(np.arange(n), width)]


def draw_rounds(parts: list[list[int]], rng: np.random.Generator | None) -> list[list[int]]:
    """The rounds of one pass: each part in a new random order, or as it stands without `rng`."""
    orders = [part if rng is None else [part[k] for k in rng.permutation(len(part))] for part in parts]
    return [[k for k in row if k is not None] for row in itertools.zip_longest(*orders)]


def effective_number(weights: Sequence[float]) -> float:
    """How many chunks of equal weight average as well."""
    squares = sum(weight**2 for weight in weights)
    return sum(weights) ** 2 / squares if squares else 1.0


def merge_round(problem: Problem, metric: Metric, *visits: Visited) -> Head:
    """The head after a round: the mean of x by weight, one proximal gradient step on, and the sum of all changes.

    Each task of the next round merges for itself: a task of its own would make the chain longer.
    """
    heads, start = [one.head for one in visits], visits[0].start
    if len(heads) == 1:
        return heads[0]
    weights = np.array([one.memory.weight for one in visits])
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(heads), 1 / len(heads))

    def mean(name):
        return sum(w * getattr(head, name) for w, head in zip(weights, heads, strict=True))

    def total(name):
        return getattr(start, name) + sum(getattr(head, name) - getattr(start, name) for head in heads)

    head = start._replace(
        x=frozen(mean("x")),
        gradient_sum=frozen(total("gradient_sum")),
        cut=min(head.cut for head in heads),
        window_count=start.window_count + 1,
        window_ratio=mean("window_ratio"),
        window_energy=total("window_energy"),
        largest_sums=frozen(np.max([head.largest_sums for head in heads], axis=0)),
        diverged=any(head.diverged for head in heads),
    )
    if PROX and not head.diverged:
        # A mean of sparse coefficients is not sparse.
        x, average = to_solver(head.x, head.gradient_average, metric)
        step = min(problem.step(metric, head.cut), 0.3 / metric.L)
        head = head._replace(
            x=frozen(to_user(proximal_gradient_step(x, average, step, problem, metric), average, metric)[0])
        )
    return head._replace(window_sum=frozen(start.window_sum + head.x))


def visit_chunk(
    problem: Problem,
    metric: Metric,
    weights: tuple,
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
    weights : tuple of float
        Of the chunks of this round. A mean over several allows longer steps.
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
    longer = metric._replace(boost=metric.boost * effective_number(weights) ** EXPONENT)
    return Visited(*chunk_saga(chunk, head, memory, problem, longer, seed, norms), head if len(weights) > 1 else None)


def round_summary(problem: Problem, metric: Metric, *visits: Visited) -> Summary:
    """The summary of a pass whose last round these are."""
    head = merge_round(problem, metric, *visits)
    norm = gradient_mapping_norm(head.x, head.gradient_average, problem, metric)
    return Summary(candidate(head, problem, metric)[0], norm, problem.step(metric, head.cut), head.diverged)
