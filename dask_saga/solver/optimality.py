"""Gradients, and how far a point is from optimal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..data.chunk import Chunk, frozen, row_blocks
from ..execution.threads import even_slices, thread_count, threads
from ..kernels.epoch import kernels_for
from ..kernels.intrinsics import room_for
from ..kernels.vectors import dense_sum
from ..penalties import penalty_values
from .preconditioner import sum_to_solver, x_to_solver

if TYPE_CHECKING:
    from .preconditioner import Preconditioner
    from .problem import Problem

__all__ = [
    "chunk_gradient",
    "count_outputs",
    "factors_at_zero",
    "gradient_mapping_norm",
    "penalty_value",
    "proximal_gradient_step",
    "weighted_sum",
]


def proximal_gradient_step(
    x: np.ndarray, gradient: np.ndarray, step: float, problem: Problem, metric: Preconditioner
) -> Any:
    """One proximal gradient step from x, both of shape (outputs, p + 1) in the solver's coordinates."""
    out = np.empty_like(x)
    kernels = kernels_for(problem.loss, problem.penalty)
    for row, direction, result in zip(x, gradient, out, strict=True):
        kernels.proximal_step(
            frozen(row[:-1]), frozen(direction[:-1]), frozen(metric.scale), step, problem.penalty, result[:-1]
        )
    out[:, -1] = x[:, -1] - step * gradient[:, -1] if problem.fit_intercept else x[:, -1]
    return out


def gradient_mapping_norm(
    x: np.ndarray, gradient_average: np.ndarray, problem: Problem, metric: Preconditioner
) -> float:
    """Norm of the proximal gradient at x, scaled by the metric; zero at the optimum only."""
    step, squared_mapping = 0.3 / metric.L, kernels_for(problem.loss, problem.penalty).squared_mapping
    x, gradient = x_to_solver(x, metric), sum_to_solver(gradient_average, metric)
    square = sum(
        squared_mapping(frozen(row[:-1]), frozen(direction[:-1]), frozen(metric.scale), step, problem.penalty)
        for row, direction in zip(x, gradient, strict=True)
    )
    if problem.fit_intercept:
        square += step**2 * (gradient[:, -1] ** 2).sum()
    return math.sqrt(square) / step


def penalty_value(x: np.ndarray, problem: Problem) -> float:
    """The penalty of coefficients of shape (outputs, p + 1), the intercept last."""
    return float(penalty_values(problem.penalty, x[:, :-1]).sum())


def weighted_sum(rows: Any, factors: np.ndarray, problem: Problem, count: int = 1) -> np.ndarray:
    """sum_i factors_i a_i over rows, of shape (k, p + 1), by `count` threads."""
    if sp.issparse(rows):
        return np.column_stack([factors.T @ rows, factors.sum(axis=0)])

    def part(block: slice) -> np.ndarray:
        out = np.zeros((factors.shape[1], rows.shape[1] + 1))
        dense_sum(frozen(rows[block]), frozen(factors[block]), out)
        return out

    with threads(count) as each:
        return sum(each(part, even_slices(len(factors), count)))


def count_outputs(chunk: Chunk, problem: Problem) -> int:
    """Linear predictions of a row: those of the loss, or one for each column of targets."""
    return max(problem.outputs, chunk.targets.shape[1])


def chunk_gradient(
    chunk: Chunk, x: np.ndarray, problem: Problem, gradients: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Exact sums over a chunk at one x: of w_i f(z_i), and of its gradient.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (k, p + 1)
        The intercept last, in the user's coordinates.
    problem : Problem
    gradients : ndarray of shape (n, k), default=None
        Is overwritten by w_i f'(z_i), whose rounded values then make the sum.

    Returns
    -------
    value : float
    gradient : ndarray of shape (k, p + 1)
    """
    if gradients is None:
        gradients = np.empty((0, len(x)), dtype=problem.memory_dtype)
    kernels = kernels_for(problem.loss, problem.penalty)
    add = kernels.sparse_gradient if sp.issparse(chunk.rows) else kernels.dense_gradient

    def part(rows: slice) -> tuple[float, np.ndarray]:
        total, gradient, room = 0.0, np.zeros_like(x), room_for(len(x))
        for block, arrays in row_blocks(chunk.rows, rows):
            targets, weights = frozen(chunk.targets[block]), frozen(chunk.weights[block])
            total = add(*arrays, targets, weights, frozen(x), gradient, gradients[block], total, room, problem.loss)
        return total, gradient

    count = thread_count(problem.n_threads, chunk.entries)
    with threads(count) as each:
        values, sums = zip(*each(part, even_slices(len(chunk.targets), count)), strict=True)
    return sum(values), sum(sums)


def factors_at_zero(chunk: Chunk, problem: Problem) -> tuple[float, np.ndarray]:
    """The sum of w_i f(0), and w_i f'(0) of each row, of one output: of two labels all rows know the same two."""
    labels, targets, weights, which = getattr(problem.loss, "labels", None), chunk.targets, chunk.weights, None
    if labels and len(labels) == 2:
        which = (targets[:, 0] == labels[1]).astype(np.intp)
        weights = np.bincount(which, weights if weights.size else None, minlength=2).astype(float)
        targets = np.array(labels, float)[:, None]
    few = Chunk(np.zeros((len(targets), 0)), targets, weights, "", "")
    gradients = np.empty((len(targets), 1))
    value, _ = chunk_gradient(few, np.zeros((1, 1)), problem, gradients)
    if which is None:
        return value, gradients
    slopes = gradients / np.where(weights > 0, weights, 1.0)[:, None]
    return value, slopes[which] * chunk.weights[:, None] if chunk.weights.size else slopes[which]
