"""The problem in the solver's coordinates: step sizes, proximal gradient steps, and the distance from optimality.

See docs/algorithm/preconditioning.md and docs/algorithm/step_size.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import row_arrays
from ..execution.threads import even_slices, thread_count, threads
from ..kernels.column_moments import dense_norms, sparse_norms
from ..kernels.epoch import kernels_for
from ..kernels.jit import frozen
from .preconditioner import Preconditioner
from .problem import Problem
from .step_rule import STEP_RULE

if TYPE_CHECKING:
    from ..data.chunk import Chunk

__all__ = ["PreconditionedProblem", "row_norms"]


class PreconditionedProblem(NamedTuple):
    """A problem, and the coordinates in which the solver takes its steps.

    All arrays that the methods take and return have shape (outputs, p + 1), the intercept last.

    Parameters
    ----------
    problem : Problem
    preconditioner : Preconditioner
    """

    problem: Problem
    preconditioner: Preconditioner

    def x_to_solver(self, x: np.ndarray) -> np.ndarray:
        """Convert coefficients from the user's to the solver's coordinates."""
        return self.preconditioner.x_to_solver(x)

    def x_to_user(self, x: np.ndarray) -> np.ndarray:
        """Convert coefficients from the solver's to the user's coordinates."""
        return self.preconditioner.x_to_user(x)

    def sum_to_solver(self, gradient_sum: np.ndarray) -> np.ndarray:
        """Convert a sum of gradients from the user's to the solver's coordinates."""
        return self.preconditioner.sum_to_solver(gradient_sum)

    def sum_to_user(self, gradient_sum: np.ndarray) -> np.ndarray:
        """Convert a sum of gradients from the solver's to the user's coordinates."""
        return self.preconditioner.sum_to_user(gradient_sum)

    def step_size(self, step_multiplier: float = 1.0) -> float:
        """Return the step size, in units of x per unit of mean gradient in the solver's coordinates.

        "auto" is min(step_size_scale * step_multiplier * step_factor, max_step) / L. See
        docs/algorithm/step_size.md.
        """
        problem, preconditioner = self
        if not problem.automatic:
            return float(problem.step_size)
        factor = problem.step_size_scale * step_multiplier * preconditioner.step_factor
        return min(factor, preconditioner.max_step or 1.0) / preconditioner.L

    def proximal_gradient_step(self, x: np.ndarray, gradient: np.ndarray, step_multiplier: float) -> np.ndarray:
        """Take one proximal gradient step from x, with the step size of a visit but at most 0.3 / L.

        Parameters
        ----------
        x : ndarray
            In the user's coordinates, as the result.
        gradient : ndarray
            Mean gradient at x, without the penalty.
        step_multiplier : float
            ``SolverState.step_multiplier``.

        Returns
        -------
        ndarray
        """
        problem, preconditioner = self
        x, gradient = self.x_to_solver(x), self.sum_to_solver(gradient)
        step = min(self.step_size(step_multiplier), STEP_RULE.default_scale / preconditioner.L)
        proximal_step = kernels_for(problem.loss, problem.penalty).proximal_step
        out = np.empty_like(x)
        for row, direction, result in zip(x, gradient, out, strict=True):
            proximal_step(row[:-1], direction[:-1], preconditioner.scale, step, problem.penalty, result[:-1])
        out[:, -1] = x[:, -1] - step * gradient[:, -1] if problem.fit_intercept else x[:, -1]
        return self.x_to_user(out)

    def gradient_mapping_norm(self, x: np.ndarray, gradient: np.ndarray) -> float:
        """Compute the norm of the gradient mapping at x, in the solver's coordinates. It is zero only at the optimum.

        Parameters
        ----------
        x : ndarray
            In the user's coordinates.
        gradient : ndarray
            Mean gradient at x in the user's coordinates, or its estimate by the gradient memory.

        Returns
        -------
        float
        """
        problem, preconditioner = self
        step, squared_mapping = 0.3 / preconditioner.L, kernels_for(problem.loss, problem.penalty).squared_mapping
        x, gradient = self.x_to_solver(x), self.sum_to_solver(gradient)
        square = sum(
            squared_mapping(row[:-1], direction[:-1], preconditioner.scale, step, problem.penalty)
            for row, direction in zip(x, gradient, strict=True)
        )
        if problem.fit_intercept:
            square += step**2 * (gradient[:, -1] ** 2).sum()
        return math.sqrt(square) / step


def row_norms(chunk: Chunk, preconditioned: PreconditionedProblem) -> np.ndarray:
    """Compute the squared length of each row in the solver's coordinates, plus 1 if there is an intercept.

    This reads the rows once. float32 is precise enough, since the lengths determine steps but not the optimum.

    Parameters
    ----------
    chunk : Chunk
    preconditioned : PreconditionedProblem

    Returns
    -------
    ndarray of shape (n,)
        Of dtype float32.
    """
    problem, preconditioner = preconditioned
    n = len(chunk.targets)
    norms, shift, intercept = np.empty(n, np.float32), preconditioner.kernel_shift, float(problem.fit_intercept)

    def measure(part: slice) -> None:
        out = norms[part]
        if sp.issparse(chunk.rows):
            sparse_norms(*row_arrays(chunk.rows, part), shift, preconditioner.scale, intercept, out)
            return
        for block, rows, _ in preconditioner.rows_to_solver(chunk.rows[part]):
            dense_norms(rows, shift, preconditioner.scale, intercept, out[block])

    count = thread_count(problem.n_threads, chunk.entries)
    with threads(count) as each:
        list(each(measure, even_slices(n, count)))
    return frozen(norms)
