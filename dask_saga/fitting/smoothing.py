"""Fit a loss with corners: it is smoothed, and the width of the smoothing shrinks until the loss itself is minimal.

Let f_h be the Moreau envelope of width h of a loss f. At the optimum x of F_h, the derivatives of f_h are a feasible
point of the dual problem of F. The duality gap there is the weighted mean over the rows of

    f(z) - f_h(z) - h f_h'(z)^2 / 2,

which is zero for all rows beyond the corners. See docs/algorithm/smoothing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..solver.line_search import row_values
from ..solver.local_model import predictions, row_derivatives
from ..solver.optimality import chunk_gradient, penalty_value
from .loop import Info, run
from .preparation import prepared_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.chunk import Chunk
    from ..solver.problem import Problem
    from .chunk_source import Source
    from .fit_state import Result
    from .preparation import Prepared

__all__ = ["run_smoothed"]


# Width of which the smoothed loss counts as the loss itself.
EXACT = 1e-100

# The mean loss counts as at least this fraction of the decrease of F: it may go to zero, as that of separable classes.
LEAST_SHARE = 1e-3

# The next width is this fraction of the current one at most, and at least.
LARGEST_CUT, LEAST_CUT = 0.1, 0.5


def run_smoothed(
    source: Source,
    prepared: Prepared,
    problem: Problem,
    *,
    max_iter: int,
    tol: float,
    callback: Callable[[Info], Any] | None = None,
    start: np.ndarray | None = None,
    checkpoint: Any = None,
    **how: Any,
) -> Result:
    """Fit a loss that has ``smoothed``: fits of smaller and smaller width, each from the optimum of the one before.

    The fit has converged if the duality gap and the error of the last fit are each at most half of `tol`, relative to
    the mean loss or the decrease of F so far. The smaller of the two counts, because a decrease that the intercept
    brings may be far larger than the errors of the predictions.

    Parameters
    ----------
    source, prepared, problem, callback, start
        As for ``run``.
    max_iter : int
        Maximum number of passes of all these fits.
    tol : float
        Tolerance for the loss itself.
    checkpoint : None
        Not possible for these losses.
    **how
        Further arguments of ``run``.

    Returns
    -------
    Result
        Result of the last fit, with the history of all.

    Raises
    ------
    ValueError
        If a checkpoint is given.
    """
    if checkpoint is not None:
        raise ValueError(f"checkpoint: a fit with loss={problem.loss} cannot be resumed; fit without a checkpoint")
    weight = sum(fact.weight for fact in prepared.facts)
    value, zero = _at_zero(source, prepared, problem)
    width, share = value / weight or 1.0, 1.0
    history: list[dict] = []
    while True:
        smooth: Any = problem._replace(loss=problem.loss.smoothed(width))  # type: ignore[attr-defined]
        stage, made = prepared_for(source, prepared, smooth, value, zero), len(history)
        result = run(
            source, stage, smooth,
            max_iter=max_iter - made, tol=0.5 * tol * share, callback=_counting_on(callback, history), start=start,
            **how,
        )  # fmt: skip
        history += [_counted_on(row, history[made - 1 : made]) for row in result.history]
        result = result._replace(history=history)
        if not result.converged or len(history) == made:  # without a pass, zero is the optimum
            return result
        exact, gap = (total / weight for total in _exact_and_gap(source, result.x, smooth))
        gain = value / weight - exact - penalty_value(result.x, smooth)
        # Bounds may exclude zero, and F may be above F(0). The decrease then says nothing.
        scale = min(gain, max(exact, LEAST_SHARE * gain)) if gain > 0 else exact
        if gap <= 0.5 * tol * scale or len(history) == max_iter:
            return result._replace(converged=bool(gap <= 0.5 * tol * scale))
        # The gap is proportional to the square of the width where the targets are dense. But if the width exceeds
        # most residuals, it is their mean size.
        cut = np.clip(np.sqrt(0.25 * tol * scale / gap), LARGEST_CUT, LEAST_CUT)
        share, width, start = scale / max(gain, scale), min(width * cut, max(exact, EXACT)), result.x


def _at_zero(source: Source, prepared: Prepared, problem: Problem) -> tuple[float, np.ndarray]:
    """Return the sum of the losses at x = 0, and that of their gradients, without smoothing."""
    zero = np.zeros_like(prepared.zero)
    sums = source.map(chunk_gradient, zero, _without_smoothing(problem), name="saga-zero", nbytes=zero.nbytes)
    values, gradients = zip(*source.executor.gather(sums), strict=True)
    return sum(values), np.sum(gradients, axis=0)


def _without_smoothing(problem: Problem) -> Problem:
    loss: Any = problem.loss
    return problem._replace(loss=loss.smoothed(EXACT))


def _exact_and_gap(source: Source, x: np.ndarray, problem: Problem) -> np.ndarray:
    """Return the sum of the losses at x without smoothing, and the sum of the gaps of the rows. This is one pass."""
    sums = source.map(_chunk_gap, x, problem, name="saga-gap", nbytes=100.0)
    return np.sum(source.executor.gather(sums), axis=0)


def _chunk_gap(chunk: Chunk, x: np.ndarray, problem: Problem) -> np.ndarray:
    loss: Any = problem.loss
    z, weights = predictions(chunk.rows, x), chunk.row_weights
    exact, smooth = row_values(chunk, z, _without_smoothing(problem)), row_values(chunk, z, problem)
    slopes, _ = row_derivatives(chunk, z, problem)
    squares = np.divide((slopes**2).sum(axis=1), weights, out=np.zeros(len(weights)), where=weights > 0)
    gaps = exact - smooth - 0.5 * loss.width * squares
    return np.array([exact.sum(), np.maximum(gaps, 0.0).sum()])


def _counting_on(callback: Callable[[Info], Any] | None, history: list[dict]) -> Callable[[Info], Any] | None:
    """Return the callback for a further fit, whose passes count on from the last one of `history`."""
    last = history[-1:]
    if callback is None or not last:
        return callback
    return lambda info: callback(info._replace(**_counted_on(info._asdict(), last)))


def _counted_on(row: dict, last: list[dict]) -> dict:
    """Return a row of the history with the passes, visits and seconds of the fits before, which ended with `last`."""
    return {**row, **{key: row[key] + one[key] for one in last for key in ("epoch", "visits", "seconds")}}
