"""Where the passes of a fit begin, and how far a sample of the rows brings them: a pass over all rows tells the exact
gradient, and the sample, which stands for their curvature, what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import Chunk, frozen
from .averaging import begin_pass, open_window
from .optimality import chunk_gradient, gradient_mapping_norm
from .preconditioner import Preconditioner, row_norms, solver_rows, sum_to_solver, x_to_solver, x_to_user
from .state import new_solver_state
from .visit import chunk_saga, fresh_memory

if TYPE_CHECKING:
    from .problem import Problem
    from .state import SolverState

__all__ = ["Subsample", "effective_rows", "make_sample", "sample_rows", "subsample_step"]


# The sample holds this share of all chunks, but at least so many bytes and no more, nor a larger share of one.
SAMPLE_PART, LEAST_BYTES, MOST_BYTES, SAMPLE_SHARE = 1 / 32, 2**24, 2**26, 1 / 8

# It must have so many rows, and so many for each column, else its optimum is too far from that of all rows.
LEAST_ROWS, ROWS_A_COLUMN = 2000, 20

# It is visited until this share of what it cannot tell is left of the gradient, and so often at least and at most; or
# a visit leaves more than this share of what was left.
SOLVED, LEAST_VISITS, MOST_VISITS, STALLED = 0.2, 2, 8, 0.9


class Subsample(NamedTuple):
    """Rows that stand for all.

    Parameters
    ----------
    chunk : Chunk
        Turned to the axes where they have a basis. Its rows weigh as much as all do.
    axes : Metric
        The solver's coordinates for all rows.
    metric : Metric
        Those for the chunk.
    norms : ndarray of shape (n,)
        ``row_norms`` of the chunk.
    """

    chunk: Chunk
    axes: Preconditioner
    metric: Preconditioner
    norms: np.ndarray


def sample_rows(chunk: Chunk, chunks: int) -> Chunk:
    """Rows drawn at random from one of so many chunks, of those that weigh anything, which weigh as much as all of it.

    Bytes of dense rows count as float64's, as that is what turned ones are. None are drawn where all that fit would
    not be enough, which of several sparse chunks, each of another density, none can tell.
    """
    weighty = np.flatnonzero(chunk.weights) if chunk.weights.size else np.arange(len(chunk.targets))
    n, p = len(weighty), chunk.rows.shape[1]
    nbytes = chunk.nbytes / max(len(chunk.targets), 1) if sp.issparse(chunk.rows) else 8.0 * p
    least, fit = (limit / max(nbytes, 1.0) for limit in (LEAST_BYTES, MOST_BYTES))
    wanted = min(max(n * SAMPLE_PART, least / chunks), fit / chunks, n * SAMPLE_SHARE)
    most = wanted if chunks == 1 else np.inf if sp.issparse(chunk.rows) else fit
    count = 0 if most < _least_rows(p) else min(n, max(1, int(wanted)))
    rng = np.random.default_rng(list(chunk.content.encode()))
    drawn = np.zeros(n, bool)
    drawn[rng.choice(n, count, replace=False, shuffle=False) if n else []] = True
    some = weighty[drawn]  # in order
    weights = chunk.weights[some] if chunk.weights.size else np.ones(count)
    weights = weights * (chunk.weight / weights.sum()) if count else weights
    rows = chunk.rows[some] if sp.issparse(chunk.rows) else np.ascontiguousarray(chunk.rows[some])
    return Chunk(rows, frozen(chunk.targets[some]), frozen(weights), chunk.content, "sample")


def effective_rows(samples: list[Chunk]) -> float:
    """Rows of equal weight that the samples of all chunks are worth, or 0: their optimum is not near that of all."""
    weight, squares = (sum((chunk.weights**power).sum() for chunk in samples) for power in (1, 2))
    if not weight or len({sp.issparse(chunk.rows) for chunk in samples}) > 1:
        return 0.0
    rows = weight**2 / squares
    return float(rows) if rows >= _least_rows(samples[0].rows.shape[1]) else 0.0


def _least_rows(p: int) -> int:
    return max(LEAST_ROWS, ROWS_A_COLUMN * p)


def make_sample(chunk: Chunk, axes: Preconditioner, problem: Problem) -> Subsample:
    """The sample of all rows, given those coordinates."""
    metric, n = axes, len(chunk.targets)
    if axes.rotation is not None:
        turned = np.concatenate([rows.copy() for _, rows, _ in solver_rows(chunk.rows, axes)])
        chunk, metric = chunk._replace(rows=turned), axes.unshifted._replace(rotation=None)
    elif sp.issparse(chunk.rows):
        counts = np.bincount(chunk.rows.indices, minlength=chunk.rows.shape[1])
        metric = axes._replace(inverse_density=n / np.maximum(counts, 1))
    return Subsample(chunk, axes, metric, row_norms(chunk, metric, problem))


def subsample_step(
    sample: Subsample | Preconditioner, x: np.ndarray, gradient: np.ndarray | None, problem: Problem, turn: int
) -> np.ndarray:
    """The optimum, nearly, of the sample's objective with a linear term that corrects its gradient at x.

    What the sample lacks is then only how the curvature of all rows differs from its own: each refinement leaves a
    share of the distance that falls with the number of its rows (Shamir, Srebro, Zhang 2014, section 3; Hendrikx,
    Xiao, Bubeck, Bach, Massoulié 2020, section 2). The linear term needs no code: it is what a gradient sum
    holds beyond the sum of its rows' memory.

    Parameters
    ----------
    sample : Sample or Metric
        Coordinates alone where they and the gradient tell all, of however few rows: Newton's step for a quadratic loss.
    x : ndarray of shape (k, p + 1)
    gradient : ndarray of shape (k, p + 1) or None
        Mean of the gradients of all rows at x. None for that of the sample: the start of growing samples (Daneshmand,
        Lucchi, Hofmann 2016, section 3).
    problem : Problem
    turn : int
        Number of the refinement, for the order of the rows.

    Returns
    -------
    ndarray of shape (k, p + 1)
        `x` itself where steps diverged.
    """
    if isinstance(sample, Preconditioner):
        return _newton_step(x, sample, gradient, problem)
    chunk, axes, metric, norms = sample
    if not sp.issparse(chunk.rows):  # of which so few are not worth more
        problem = problem._replace(n_threads=1)
    weight, turned = chunk.weight, metric.rotation is not axes.rotation
    there, total = x, np.zeros_like(x) if gradient is None else gradient * weight
    if turned:
        there, total = x_to_solver(x, axes), sum_to_solver(total, axes)
    memory = fresh_memory(chunk, problem)
    gradients = np.empty_like(memory.gradients)
    own = chunk_gradient(chunk, there, problem, gradients)[1]
    memory = memory._replace(gradients=frozen(gradients), total=None)
    head = new_solver_state(
        x.shape[1] - 1, len(x), weight=weight, rows=memory.rows, preconditioner_key=problem.preconditioner_key
    )
    head = head._replace(
        x=frozen(there), window_start=frozen(there), gradient_sum=frozen(own if gradient is None else total)
    )
    left = _left(head, problem, metric)
    enough = SOLVED * (x.size / len(norms)) ** 0.5 * left
    for visit in range(MOST_VISITS):
        if visit:
            head = begin_pass(open_window(head, problem, metric))
        head, memory = chunk_saga(chunk, head, memory, problem, metric, MOST_VISITS * turn + visit, norms)
        before, left = left, _left(head, problem, metric)
        if visit + 1 >= LEAST_VISITS and not enough < left < STALLED * before:
            break
    if head.diverged:
        return x
    return frozen(x_to_user(head.x, axes)) if turned else head.x


def _left(head: SolverState, problem: Problem, metric: Preconditioner) -> float:
    return gradient_mapping_norm(head.x, head.gradient_average, problem, metric)


def _newton_step(x: np.ndarray, metric: Preconditioner, gradient: np.ndarray, problem: Problem) -> np.ndarray:
    """The optimum of a quadratic loss, whose mean gradient at x this is: along the axes its Hessian is diagonal."""
    gradient = gradient.copy()
    gradient[:, :-1] += getattr(problem.penalty, "l2", 0.0) * x[:, :-1]
    move = np.zeros_like(gradient)
    gradient = sum_to_solver(gradient, metric)
    move[:, :-1] = -gradient[:, :-1] * metric.scale / metric.curvature
    if problem.fit_intercept:
        move[:, -1] = -gradient[:, -1] / metric.curvature
    return frozen(x + x_to_user(move, metric))
