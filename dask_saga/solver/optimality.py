"""Exact gradients of chunks, weighted sums of rows, and the value of the penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..data.chunk import Chunk, row_blocks
from ..execution.threads import even_slices, thread_count, threads
from ..kernels.epoch import kernels_for
from ..kernels.intrinsics import scratch_for
from ..kernels.vectors import dense_sum
from ..penalties import penalty_values

if TYPE_CHECKING:
    from .problem import Problem

__all__ = [
    "chunk_gradient",
    "count_outputs",
    "factors_at_zero",
    "penalty_value",
    "weighted_sum",
]


def penalty_value(x: np.ndarray, problem: Problem) -> float:
    """Return the penalty of coefficients of shape (outputs, p + 1). The intercept, in the last column, has none."""
    return float(penalty_values(problem.penalty, x[:, :-1]).sum())


def weighted_sum(rows: Any, factors: np.ndarray, problem: Problem, count: int = 1) -> np.ndarray:
    """Compute sum_i factors_i (a_i, 1) over the rows.

    Parameters
    ----------
    rows : ndarray or CSR of shape (n, p)
    factors : ndarray of shape (n, k)
    problem : Problem
    count : int, default=1
        Number of threads for dense rows.

    Returns
    -------
    ndarray of shape (k, p + 1)
        The last column is for the intercept.
    """
    if sp.issparse(rows):
        return np.column_stack([factors.T @ rows, factors.sum(axis=0)])

    def part(block: slice) -> np.ndarray:
        out = np.zeros((factors.shape[1], rows.shape[1] + 1))
        dense_sum(rows[block], factors[block], out)
        return out

    with threads(count) as each:
        return sum(each(part, even_slices(len(factors), count)))


def count_outputs(chunk: Chunk, problem: Problem) -> int:
    """Return the number of linear predictions per row: that of the problem, or the number of target columns."""
    return max(problem.outputs, chunk.targets.shape[1])


def chunk_gradient(
    chunk: Chunk, x: np.ndarray, problem: Problem, gradients: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Compute the sum of w_i f(z_i) over a chunk at x, and its gradient sum_i w_i f'(z_i) a_i.

    Parameters
    ----------
    chunk : Chunk
    x : ndarray of shape (k, p + 1)
        Coefficients in the user's coordinates, the intercept last.
    problem : Problem
    gradients : ndarray of shape (n, k), default=None
        If given, it is overwritten with w_i f'(z_i). The gradient is then the sum of these values after rounding
        to its dtype, so that it is consistent with them as gradient memory.

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
        total, gradient, scratch = 0.0, np.zeros_like(x), scratch_for(len(x))
        for block, arrays in row_blocks(chunk.rows, rows):
            targets, weights = chunk.targets[block], chunk.weights[block]
            total = add(*arrays, targets, weights, x, gradient, gradients[block], total, scratch, problem.loss)
        return total, gradient

    count = thread_count(problem.n_threads, chunk.entries)
    with threads(count) as each:
        values, sums = zip(*each(part, even_slices(len(chunk.targets), count)), strict=True)
    return sum(values), sum(sums)


def factors_at_zero(chunk: Chunk, problem: Problem) -> tuple[float, np.ndarray]:
    """Compute the sum of w_i f(0), and w_i f'(0) for each row, for one output.

    At zero f' depends on the target only. For a loss with two labels it is therefore computed once per label instead of
    once per row, unless there are offsets.

    Parameters
    ----------
    chunk : Chunk
    problem : Problem

    Returns
    -------
    value : float
    factors : ndarray of shape (n, 1)
    """
    labels, targets, weights, which = getattr(problem.loss, "labels", None), chunk.targets, chunk.weights, None
    if labels and len(labels) == 2 and not np.iscomplexobj(targets):
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
