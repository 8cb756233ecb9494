"""Evaluate F along a Newton step, and find the rows whose losses rise there.

The sums over chunks are computed in parallel. They show whether the step achieves the decrease that it promises.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.epoch import kernels_for
from ..kernels.intrinsics import scratch_for
from ..penalties import ElasticNet, penalty_values
from .local_model import predictions, take_extremes

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .local_model import Extremes
    from .problem import Problem

__all__ = [
    "EXCEEDED",
    "LONGER",
    "STEPS",
    "best_on_line",
    "chunk_values",
    "line_values",
    "penalties_within",
    "points_on_line",
    "rising_rows",
    "row_values",
    "within",
]


# Distance beyond a bound that counts as rounding, relative to the bound, or absolute if the bound is below 1.
BOUND_ROUNDING = 1e-12
# Lengths at which F is evaluated where the quadratic model may be wrong. Unit: length of the full step.
STEPS = (*4.0 ** np.arange(-6.0, 0.0), 0.5, 1.0, 2.0, *4.0 ** np.arange(1.0, 7.0))

# A step that achieves more than the fraction EXCEEDED of its promise is tried at the lengths LONGER. The curvature
# falls along such a step, for example if classes are nearly separable.
EXCEEDED, LONGER = 1.05, (2.0, 4.0, 8.0)


def chunk_values(chunk: Chunk, x: np.ndarray, move: np.ndarray, lengths: np.ndarray, problem: Problem) -> np.ndarray:
    """Compute the sum of the weighted losses of a chunk at ``x + length * move`` for each length."""
    return line_values(chunk, predictions(chunk.rows, x), predictions(chunk.rows, move), lengths, problem)


def rising_rows(chunk: Chunk, x: np.ndarray, move: np.ndarray, problem: Problem, count: int, least: float) -> Extremes:
    """Find the rows whose losses rise most from x to ``x + move``.

    Return at most `count` rows. Each of their losses rises by at least `least`, or is not finite. These rows have more
    curvature along the move than at x.
    """
    z = predictions(chunk.rows, x)
    rises = row_values(chunk, z + predictions(chunk.rows, move), problem) - row_values(chunk, z, problem)
    found = np.flatnonzero(~(rises < least))
    most = np.argsort(-np.nan_to_num(rises[found], nan=np.inf), kind="stable")[:count]
    return take_extremes(chunk, np.sort(found[most]))


def row_values(chunk: Chunk | Extremes, z: np.ndarray, problem: Problem) -> np.ndarray:
    """Compute the weighted loss of each row at its predictions z of shape (n, k)."""
    kernel, values = kernels_for(problem.loss, problem.penalty).row_values, np.empty(len(z))
    with np.errstate(all="ignore"):
        kernel(z, chunk.targets, chunk.weights, values, scratch_for(z.shape[1]), problem.loss)
    return values


def line_values(
    chunk: Chunk | Extremes, z: np.ndarray, dz: np.ndarray, steps: np.ndarray, problem: Problem
) -> np.ndarray:
    """Compute the sum of the weighted losses at the predictions ``z + step * dz`` for each step."""
    values, kernel = np.zeros(len(steps)), kernels_for(problem.loss, problem.penalty).values_on_line
    arrays = (np.ascontiguousarray(part) for part in (z, dz, chunk.targets, chunk.weights))
    with np.errstate(all="ignore"):
        kernel(*arrays, steps, values, scratch_for(z.shape[1]), problem.loss)
    return values


def best_on_line(
    x: np.ndarray, move: np.ndarray, lengths: np.ndarray, sums: np.ndarray, weight: float, problem: Problem
) -> tuple[np.ndarray, float]:
    """Return the point with the least F, and the decrease of F from x to there.

    Parameters
    ----------
    x, move : ndarray of shape (k, p + 1)
    lengths : ndarray of shape (n_lengths,)
        Lengths of the move. The first one must be zero.
    sums : ndarray of shape (n_lengths,)
        Sums of ``chunk_values`` over all chunks.
    weight : float
        Total weight of the rows.
    problem : Problem

    Returns
    -------
    point : ndarray of shape (k, p + 1)
    decrease : float
    """
    points = points_on_line(x, move, lengths, problem)
    values = sums / weight + penalties_within(points[..., :-1], problem)
    values[~np.isfinite(values)] = np.inf
    best = int(np.argmin(values))
    return points[best].copy(), float(values[0] - values[best])


def points_on_line(x: np.ndarray, move: np.ndarray, lengths: np.ndarray, problem: Problem) -> np.ndarray:
    """Return the points ``x + length * move``, of shape (n_lengths, k, p + 1). Rounding does not leave the bounds."""
    return within(x + lengths[:, None, None] * move, problem)


def within(x: np.ndarray, problem: Problem) -> np.ndarray:
    """Return x of shape (..., p + 1), with coefficients set to a bound if they are beyond it only by rounding."""
    penalty = problem.penalty
    if not isinstance(penalty, ElasticNet) or penalty.rotates:
        return x
    inner = x[..., :-1]
    for bound, beyond in ((penalty.lower, inner < penalty.lower), (penalty.upper, inner > penalty.upper)):
        if math.isfinite(bound):
            inner = np.where(beyond & (np.abs(inner - bound) <= BOUND_ROUNDING * max(1.0, abs(bound))), bound, inner)
    return np.concatenate([inner, x[..., -1:]], axis=-1)


def penalties_within(coefficients: np.ndarray, problem: Problem) -> np.ndarray:
    """Compute the penalty of each matrix of coefficients of shape (k, p). It is inf out of bounds."""
    penalty = problem.penalty
    values = penalty_values(penalty, coefficients).sum(axis=(-2, -1))
    if isinstance(penalty, ElasticNet) and not penalty.rotates:
        beyond = (coefficients < penalty.lower) | (coefficients > penalty.upper)
        values = np.where(beyond.any(axis=(-2, -1)), math.inf, values)
    return values
