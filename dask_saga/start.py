"""Where the passes of a fit begin: at the optimum of a sample of the rows, or of all of them where it is known."""

from __future__ import annotations

import numpy as np

from .chunk import visit
from .inputs import Chunk, frozen
from .metric import Metric, to_solver, to_user
from .problem import Problem
from .state import new_state

__all__ = ["newton_start", "sample_rows", "sample_start"]

# The sample holds no more bytes of all chunks, nor a larger share of the rows of one.
SAMPLE_BYTES, SAMPLE_SHARE = 2**24, 1 / 8
# It must have so many rows, and so many for each column, else its optimum is too far from that of all rows.
LEAST_ROWS, ROWS_A_COLUMN = 2000, 20
# Passes over it.
PASSES = 4


def sample_rows(chunk: Chunk, chunks: int) -> Chunk:
    """Rows drawn at random from one of so many chunks, which weigh as much as all of it."""
    n = len(chunk.targets)
    fit = int(SAMPLE_BYTES / chunks / max(chunk.nbytes / max(n, 1), 1.0))
    count = min(n, max(1, min(fit, int(n * SAMPLE_SHARE))))
    rng = np.random.default_rng(list(chunk.content.encode()))
    some = np.sort(rng.choice(n, count, replace=False, shuffle=False))
    weights = chunk.weights[some] if chunk.weights.size else np.ones(count)
    factor = chunk.weight / weights.sum() if weights.any() else 0.0
    return Chunk(chunk.rows[some], frozen(chunk.targets[some]), frozen(weights * factor), chunk.content, "sample")


def sample_start(sample: Chunk, problem: Problem) -> np.ndarray:
    """The optimum of a sample, nearly: what is left is small beside its distance to that of all rows.

    A first stage of growing samples (Daneshmand, Lucchi, Hofmann 2016, section 3): it costs less than one pass,
    and the passes begin as near as so many rows can tell. Zero where these are too few.
    """
    p, outputs = sample.rows.shape[1], max(problem.outputs, sample.targets.shape[1])
    state, weights = new_state(p, outputs, 0), sample.weights
    if not weights.any() or weights.sum() ** 2 / (weights**2).sum() < max(LEAST_ROWS, ROWS_A_COLUMN * p):
        return state.head.x
    for _ in range(PASSES):
        state = visit(state, 0, sample, problem)
    return np.zeros_like(state.head.x) if state.head.diverged else state.head.x


def newton_start(metric: Metric, gradient: np.ndarray, problem: Problem) -> np.ndarray:
    """The optimum of a quadratic loss, whose gradient at zero this is: along the axes its Hessian is diagonal."""
    x = np.zeros_like(gradient)
    _, gradient = to_solver(x, gradient, metric)
    x[:, :-1] = -gradient[:, :-1] * metric.scale / metric.curvature
    if problem.fit_intercept:
        x[:, -1] = -gradient[:, -1] / metric.curvature
    return to_user(x, gradient, metric)[0]
