"""Subsample steps: a small part of the rows serves as a model of the curvature of all rows.

Gradients are exact and computed over all rows. See docs/algorithm/subsample_steps.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import scipy.sparse as sp

from ..data.chunk import Chunk
from ..data.immutable import immutable
from ..losses import MultinomialLogLoss
from .averaging import begin_pass, open_window
from .curvature import empty_curvature
from .curvature_visit import curvature_visit
from .optimality import chunk_gradient
from .preconditioned_problem import PreconditionedProblem, row_norms
from .state import new_solver_state
from .visit import chunk_saga, fresh_memory

if TYPE_CHECKING:
    from .preconditioner import Preconditioner
    from .problem import Problem
    from .state import ChunkMemory, SolverState

__all__ = ["Subsample", "draw_rows", "effective_rows", "is_separated", "make_sample", "sample_rows", "subsample_step"]


# Size of the subsample: the fraction SAMPLE_PART of all rows, but at least LEAST_BYTES and at most MOST_BYTES of rows,
# and at most the fraction SAMPLE_SHARE of any chunk.
SAMPLE_PART, LEAST_BYTES, MOST_BYTES, SAMPLE_SHARE = 1 / 32, 2**24, 2**26, 1 / 8

# Least effective rows of a subsample, in all and per column. With fewer rows its optimum is too far from that of all.
LEAST_SAMPLE_ROWS, ROWS_A_COLUMN = 2000, 20

# Visits of the subsample end when the gradient norm is below SOLVED * sqrt(p / n_s) times the first one, or above
# STALLED times the previous one. n_s is the number of its rows. There are at least LEAST_VISITS and at most MOST_VISITS
# visits.
SOLVED, LEAST_VISITS, MOST_VISITS, STALLED = 0.2, 2, 8, 0.9

# If LEAST_VISITS are not enough, the classes are nearly separable and the size of the Hessian is at most NEWTON_SIZE,
# Newton steps replace further visits. The curvature of the rows is then far below its bound. Classes are nearly
# separable if F has fallen to the fraction SEPARATED of F(0).
NEWTON_SIZE, SEPARATED = 64, 0.25


@immutable
class Subsample(NamedTuple):
    """Subsample of all rows, prepared for ``subsample_step``.

    Parameters
    ----------
    chunk : Chunk
        The sampled rows, rotated if `axes` has a rotation. Their total weight is that of all rows.
    axes : Preconditioner
        Preconditioner of all rows.
    preconditioner : Preconditioner
        That of `chunk`. It has no rotation, since the chunk is already rotated. For sparse rows its
        ``inverse_density`` is that of the subsample.
    norms : ndarray of shape (n,)
        ``row_norms`` of `chunk`.
    """

    chunk: Chunk
    axes: Preconditioner
    preconditioner: Preconditioner
    norms: np.ndarray


def sample_rows(chunk: Chunk, chunks: int) -> Chunk:
    """Draw this chunk's part of the subsample at random from the rows with positive weight.

    The weights are scaled so that their sum is that of the whole chunk. The size of dense rows is computed for float64,
    because rotated rows are float64. No rows are drawn if even the largest subsample would be too small. For one of
    several sparse chunks this is unknown, because the density differs between chunks.

    Parameters
    ----------
    chunk : Chunk
    chunks : int
        Number of chunks of the fit.

    Returns
    -------
    Chunk
    """
    n, p = int(np.count_nonzero(chunk.weights)) if chunk.weights.size else len(chunk.targets), chunk.rows.shape[1]
    nbytes = chunk.nbytes / max(len(chunk.targets), 1) if sp.issparse(chunk.rows) else 8.0 * p
    least, fit = (limit / max(nbytes, 1.0) for limit in (LEAST_BYTES, MOST_BYTES))
    wanted = min(max(n * SAMPLE_PART, least / chunks), fit / chunks, n * SAMPLE_SHARE)
    most = wanted if chunks == 1 else np.inf if sp.issparse(chunk.rows) else fit
    return draw_rows(chunk, 0 if most < _least_rows(p) else min(n, max(1, int(wanted))))


def draw_rows(chunk: Chunk, count: int) -> Chunk:
    """Draw `count` rows at random from those with positive weight, in their order. The same chunk gives the same rows.

    The weights are scaled so that their sum is that of the whole chunk.
    """
    positive = np.flatnonzero(chunk.weights) if chunk.weights.size else np.arange(len(chunk.targets))
    n = len(positive)
    rng = np.random.default_rng(list(chunk.content.encode()))
    drawn = np.zeros(n, bool)
    drawn[rng.choice(n, count, replace=False, shuffle=False) if n else []] = True
    some = positive[drawn]  # keeps the order of the rows
    weights = chunk.weights[some] if chunk.weights.size else np.ones(count)
    weights = weights * (chunk.weight / weights.sum()) if count else weights
    rows = chunk.rows[some] if sp.issparse(chunk.rows) else np.ascontiguousarray(chunk.rows[some])
    folds = chunk.folds[some] if chunk.folds.size else chunk.folds
    return Chunk(rows, chunk.targets[some], weights, chunk.content, "sample", folds)


def effective_rows(samples: list[Chunk]) -> float:
    """Compute the effective rows (sum w)^2 / sum w^2 of the samples of all chunks.

    It is the number of rows of equal weight that would be worth as much. It is 0 if these are too few, so that the
    subsample step is not used, or if sparse and dense chunks are mixed.

    Parameters
    ----------
    samples : list of Chunk
        From ``sample_rows``.

    Returns
    -------
    float
    """
    weight, squares = (sum((chunk.weights**power).sum() for chunk in samples) for power in (1, 2))
    if not weight or len({sp.issparse(chunk.rows) for chunk in samples}) > 1:
        return 0.0
    rows = weight**2 / squares
    return float(rows) if rows >= _least_rows(samples[0].rows.shape[1]) else 0.0


def _least_rows(p: int) -> int:
    return max(LEAST_SAMPLE_ROWS, ROWS_A_COLUMN * p)


def make_sample(chunk: Chunk, preconditioned: PreconditionedProblem) -> Subsample:
    """Prepare the subsample: rotate its rows, adapt the preconditioner to it and compute the lengths of its rows.

    Parameters
    ----------
    chunk : Chunk
        Joined samples of all chunks.
    preconditioned : PreconditionedProblem
        With the preconditioner of all rows.

    Returns
    -------
    Subsample
    """
    problem, axes = preconditioned
    preconditioner, n = axes, len(chunk.targets)
    if axes.rotation is not None:
        rotated = np.concatenate([rows.copy() for _, rows, _ in axes.rows_to_solver(chunk.rows)])
        chunk, preconditioner = chunk._replace(rows=rotated), axes.unshifted._replace(rotation=None)
    elif sp.issparse(chunk.rows):
        counts = np.bincount(chunk.rows.indices, minlength=chunk.rows.shape[1])
        preconditioner = axes._replace(inverse_density=n / np.maximum(counts, 1))
    norms = row_norms(chunk, PreconditionedProblem(problem, preconditioner))
    return Subsample(chunk, axes, preconditioner, norms)


def subsample_step(
    sample: Subsample | PreconditionedProblem, x: np.ndarray, gradient: np.ndarray | None, problem: Problem, number: int
) -> np.ndarray:
    """Move x towards the optimum of all rows by minimising a corrected objective of the subsample.

    The objective is F_s(x') + (grad F(x) - grad F_s(x))' x', minimised approximately over x' by SAGA visits, where
    F_s is the objective on the subsample. The linear term corrects the gradient at x. The remaining error comes from
    how the curvature of the subsample differs from that of all rows, so it decreases with the number of its rows
    (Shamir, Srebro, Zhang 2014, section 3; Hendrikx, Xiao, Bubeck, Bach, Massoulié 2020, section 2).

    The linear term needs no code of its own. SAGA starts with the gradient sum of all rows, and the part of it
    that the memory of the subsample does not explain is the linear term.

    Parameters
    ----------
    sample : Subsample or PreconditionedProblem
        A PreconditionedProblem alone for a quadratic loss with rotation. The step is then Newton's and needs no rows.
    x : ndarray of shape (k, p + 1)
    gradient : ndarray of shape (k, p + 1) or None
        Mean gradient of all rows at x. With None there is no linear term, and the subsample itself is solved, as at
        the start of growing samples (Daneshmand, Lucchi, Hofmann 2016, section 3).
    problem : Problem
    number : int
        Number of the subsample step, used as seed of the row orders.

    Returns
    -------
    ndarray of shape (k, p + 1)
        The new x, or `x` itself if the steps diverged.
    """
    if isinstance(sample, PreconditionedProblem):
        return _newton_step(x, cast(np.ndarray, gradient), sample)  # None is only for rows
    chunk, axes, preconditioner, norms = sample
    if not sp.issparse(chunk.rows):  # the dense subsample is too small for several threads
        problem = problem._replace(n_threads=1)
    preconditioned = PreconditionedProblem(problem, preconditioner)
    weight, rotated = chunk.weight, preconditioner.rotation is not axes.rotation
    there, total = x, np.zeros_like(x) if gradient is None else gradient * weight
    if rotated:
        there, total = axes.x_to_solver(x), axes.sum_to_solver(total)
    memory = fresh_memory(chunk, problem)
    gradients = np.empty_like(memory.gradients)
    own = chunk_gradient(chunk, there, problem, gradients)[1]
    memory = memory._replace(gradients=gradients, total=None)
    head = new_solver_state(
        x.shape[1] - 1, len(x), weight=weight, rows=memory.rows, preconditioner_key=problem.preconditioner_key
    )
    head = head._replace(x=there, window_start=there, gradient_sum=own if gradient is None else total)
    left = _left(head, preconditioned)
    enough = SOLVED * (x.size / len(norms)) ** 0.5 * left
    for visit in range(MOST_VISITS):
        if visit:
            head = begin_pass(open_window(head, preconditioned))
        head, memory = chunk_saga(chunk, head, memory, *preconditioned, MOST_VISITS * number + visit, norms)
        before, left = left, _left(head, preconditioned)
        if visit + 1 < LEAST_VISITS:
            continue
        if not enough < left < STALLED * before:
            break
        if _takes_newton_steps(chunk, head.x, problem):
            head = _solved_by_newton_steps(chunk, head, memory, preconditioned)
            break
    if head.diverged:
        return x
    return axes.x_to_user(head.x) if rotated else head.x


def _takes_newton_steps(chunk: Chunk, x: np.ndarray, problem: Problem) -> bool:
    size = x.size if isinstance(problem.loss, MultinomialLogLoss) else x.shape[1]
    if size > NEWTON_SIZE or sp.issparse(chunk.rows):
        return False
    losses = [chunk_gradient(chunk, point, problem)[0] for point in (x, np.zeros_like(x))]
    return is_separated(problem, *losses)


def is_separated(problem: Problem, value: float, at_zero: float) -> bool:
    """Return whether the classes are nearly separable: the objective has fallen to the fraction SEPARATED of F(0)."""
    return hasattr(problem.loss, "labels") and value <= SEPARATED * at_zero


def _solved_by_newton_steps(
    chunk: Chunk, head: SolverState, memory: ChunkMemory, preconditioned: PreconditionedProblem
) -> SolverState:
    """Minimise the corrected objective of the subsample by Newton steps.

    It is the inner problem of ``curvature_visit`` without any other chunk: the linear term is the part of the gradient
    sum that the memory of the subsample does not explain.
    """
    problem, preconditioner = preconditioned
    origin = preconditioner.kernel_shift if problem.fit_intercept else np.zeros_like(preconditioner.shift)
    none = empty_curvature(problem, len(head.x), origin)
    visited = curvature_visit(chunk, head, memory, none, problem, is_first=False)
    return head if visited is None else visited[0]


def _left(head: SolverState, preconditioned: PreconditionedProblem) -> float:
    return preconditioned.gradient_mapping_norm(head.x, head.gradient_average)


def _newton_step(x: np.ndarray, gradient: np.ndarray, preconditioned: PreconditionedProblem) -> np.ndarray:
    """Return the optimum of a quadratic loss from the mean gradient of all rows at x.

    Newton's step x - H^-1 grad F(x) is exact for a quadratic loss. In rotated coordinates the Hessian H, which includes
    the L2 penalty, is diagonal.
    """
    problem, preconditioner = preconditioned
    gradient = gradient.copy()
    gradient[:, :-1] += getattr(problem.penalty, "l2", 0.0) * x[:, :-1]
    move = np.zeros_like(gradient)
    gradient = preconditioned.sum_to_solver(gradient)
    move[:, :-1] = -gradient[:, :-1] * preconditioner.scale / preconditioner.curvature
    if problem.fit_intercept:
        move[:, -1] = -gradient[:, -1] / preconditioner.curvature
    return x + preconditioned.x_to_user(move)
