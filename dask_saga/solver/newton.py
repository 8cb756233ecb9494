"""Newton steps: what is left to gain at x, and the step that gains it.

The gradient norm that the passes estimate is scaled by the columns' variances. A column with one huge entry has a huge
variance, so its gradient hardly counts, whatever could still be gained along it. Curvature at x sees it: the huge row
is saturated there, and the second derivatives of all other rows tell the column's true scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.chunk import frozen
from ..execution.threads import one_blas_thread
from ..losses import MultinomialLogLoss
from .line_search import STEPS, line_values, penalty_within, row_values, within
from .local_model import join_extremes, local_model, row_derivatives
from .optimality import penalty_value
from .preconditioner import sum_to_solver, x_to_solver
from .quadratic_step import is_smooth, proximal_step, smooth_step

if TYPE_CHECKING:
    from .local_model import Extremes, LocalModel, ModelPlan
    from .problem import Problem

__all__ = ["Direction", "newton_direction", "sample_decrease"]


# Rounds in which rows whose losses rise get their curvature back.
FREE_ROUNDS = 6

# Columns whose extreme rows are tried apart from the others, at most.
FREE_COLUMNS = 16

# And shorter ones, for the losses of extreme rows: a step may end where one of them gets its curvature.
SHORT_STEPS = tuple(4.0 ** np.arange(-24.0, -6.0))

# Newton steps on the model with extreme rows, at least and at most, the multiplications that they may take in all, and
# what the last one may gain of the decrease. A step keeps its length where it achieves this share of what it promises;
# else the length is refined so often.
# A penalty that is not smooth takes about so many solutions.
PROXIMAL_SOLUTIONS = 20
INNER_STEPS, INNER_WORK, INNER_LEFT, KEPT_WORD, REFINED = (3, 100), 2**32, 1e-2, 0.25, 3


class Direction(NamedTuple):
    """A Newton step from x.

    Parameters
    ----------
    move : ndarray of shape (k, p + 1)
    decrease : float
        By how much the quadratic model says that F falls.
    value : float
        F at x.
    gradient : ndarray of shape (k, p + 1)
        Mean gradient of the losses at x.
    far : int
        The model's number of far rows.
    """

    move: np.ndarray
    decrease: float
    value: float
    gradient: np.ndarray
    far: int


def newton_direction(
    model: LocalModel, x: np.ndarray, weight: float, problem: Problem, more: Extremes | None = None
) -> Direction:
    """The step to the minimum of the model and the penalty.

    Minimises ``g'd + d'H d / 2 + penalty(x + d)`` for each output, where g and H are of all rows but the extreme ones,
    plus the losses of these. That takes some Newton steps, but no pass over the rows. A smooth penalty needs one
    Cholesky factor each, others coordinate descent with exact solutions on the support. Coordinates of which the model
    knows no curvature stay.
    """
    value = model.value / weight + penalty_value(x, problem)
    if more is not None:
        model = model._replace(extremes=join_extremes(model.extremes, more))
    with np.errstate(all="ignore"), one_blas_thread():
        near = _Near(model, x, weight, problem)
        move, decrease = near.minimum() if len(near.z) else near.step(np.zeros_like(x))
        move = near.in_user_coordinates(move)
    if not (np.isfinite(move).all() and np.isfinite(decrease)):
        move, decrease = np.zeros_like(x), math.inf
    return Direction(frozen(move), float(decrease), float(value), model.gradient / weight, model.far)


class _Near:
    """The objective near x: a quadratic, the losses of extreme rows, and the penalty.

    Moves have shape (k, p + 1). Their last column is how far the prediction at the mean of the rows moves, so the
    quadratic does not couple it with the others.
    """

    def __init__(self, model: LocalModel, x: np.ndarray, weight: float, problem: Problem):
        self.model, self.x, self.weight, self.problem = model, x, weight, problem
        self.curvature = model.curvature / weight
        self.mean = model.mean if problem.fit_intercept else np.zeros_like(model.mean)
        self.z = model.extremes.rows @ x[:, :-1].T + x[:, -1]
        (k, p), solutions = x.shape, 1 if is_smooth(problem.penalty) else PROXIMAL_SOLUTIONS
        self.work = solutions * k * p**2 * (p + len(self.z))  # multiplications of a step
        self.rows = [np.column_stack([model.extremes.rows - mean, np.ones(len(self.z))]) for mean in self.mean]
        # The quadratic's slope, without the extreme rows, whose losses are counted as they are.
        slopes, _ = row_derivatives(model.extremes, self.z, problem)
        self.slope = self._centred(model.gradient / weight) - self._sums(slopes)

    def _centred(self, gradient: np.ndarray) -> np.ndarray:
        slope = gradient.copy()
        slope[:, :-1] -= gradient[:, -1:] * self.mean
        if not self.problem.fit_intercept:
            slope[:, -1] = 0.0
        return slope

    def _sums(self, factors: np.ndarray) -> np.ndarray:
        """Sums of the extreme rows times factors, of shape (m, k)."""
        sums = np.array([own @ rows for own, rows in zip(factors.T, self.rows, strict=True)]) / self.weight
        if not self.problem.fit_intercept:
            sums[:, -1] = 0.0
        return sums.reshape(self.x.shape)

    def _predictions(self, move: np.ndarray) -> np.ndarray:
        """How far a move moves those of the extreme rows, of shape (m, k)."""
        return np.column_stack([rows @ own for rows, own in zip(self.rows, move, strict=True)])

    def _times_hessian(self, move: np.ndarray) -> np.ndarray:
        hessian = self.model.hessian / self.weight
        inner = [h @ own if h.ndim == 2 else h * own for h, own in zip(hessian, move[:, :-1], strict=True)]
        return np.column_stack([np.array(inner), self.curvature * move[:, -1]])

    def step(self, move: np.ndarray) -> tuple[np.ndarray, float]:
        """A Newton step from a move, and the decrease that it promises."""
        slopes, curvatures = row_derivatives(self.model.extremes, self.z + self._predictions(move), self.problem)
        return self._step(move, self._smooth_slope(move) + self._sums(slopes), curvatures)

    def free_step(self, move: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, float]:
        """A step that counts on it that some extreme rows are soon saturated, without slope and curvature.

        A row at z = 10 would else be passed in many short steps. Rows whose losses rise keep their slope, and get at
        least the curvature of the line to where the step leads.

        Parameters
        ----------
        move : ndarray of shape (k, p + 1)
        free : ndarray of bool of shape (m,)
        """
        extremes, z = self.model.extremes, self.z + self._predictions(move)
        slopes, curvatures = row_derivatives(extremes, z, self.problem)
        values, smooth, free = row_values(extremes, z, self.problem), self._smooth_slope(move), free.copy()
        for _ in range(FREE_ROUNDS):
            bound = ~free[:, None]
            step, promise = self._step(move, smooth + self._sums(slopes * bound), curvatures * bound)
            dz = self._predictions(step)
            rise = free & (row_values(extremes, z + dz, self.problem) > values)
            if not rise.any():
                break
            secants = (row_derivatives(extremes, z + dz, self.problem)[0] - slopes) / np.where(dz, dz, 1.0)
            curvatures = np.where(rise[:, None], np.maximum(curvatures, secants), curvatures)
            free &= ~rise
        return step, promise

    def _smooth_slope(self, move: np.ndarray) -> np.ndarray:
        return self.slope + self._times_hessian(move)

    def _candidates(self) -> list[Callable]:
        """Kinds of steps: Newton's, one that frees all extreme rows, and those that free the rows of one column."""
        m = len(self.z)
        scale = np.maximum(np.diagonal(self.model.hessian, axis1=1, axis2=2).sum(axis=0), np.finfo(float).tiny)
        sizes = (self.model.extremes.rows - self.mean.mean(axis=0)) ** 2 / scale
        owners, largest = np.argmax(sizes, axis=1), sizes.max(axis=1)
        columns = list(dict.fromkeys(owners[np.argsort(-largest, kind="stable")].tolist()))  # the farthest rows' first
        few = columns[: int(np.clip(INNER_WORK // (50 * self.work), 2, FREE_COLUMNS))]
        frees = [np.ones(m, bool), *(owners == column for column in few if len(columns) > 1)]
        return [self.step, *(functools.partial(self.free_step, free=free) for free in frees)]

    def _step(self, move: np.ndarray, slope: np.ndarray, curvatures: np.ndarray) -> tuple[np.ndarray, float]:
        problem, step, decrease = self.problem, np.zeros_like(move), 0.0
        solve = smooth_step if is_smooth(problem.penalty) else proximal_step
        for k, rows in enumerate(self.rows):
            hessian, scale, across = self.model.hessian[k] / self.weight, self.curvature[k], 0.0
            down, some = slope[k, :-1], curvatures[:, k] > 0
            if some.any():
                sums = (rows[some].T * curvatures[some, k]) @ rows[some] / self.weight
                hessian, scale, across = hessian + sums[:-1, :-1], scale + sums[-1, -1], sums[:-1, -1]
                if problem.fit_intercept and scale > 0:
                    hessian = hessian - np.outer(across, across) / scale
                    down = down - across * (slope[k, -1] / scale)
            step[k, :-1], gain = solve(hessian, down, self.x[k, :-1] + move[k, :-1], problem)
            if problem.fit_intercept and scale > 0:
                gain += 0.5 * slope[k, -1] ** 2 / scale
                step[k, -1] = -(slope[k, -1] + (across * step[k, :-1]).sum()) / scale
            decrease += gain
        return step, decrease

    def minimum(self) -> tuple[np.ndarray, float]:
        """The minimum, nearly, and by how much it is below the value at x."""
        move, decrease, promised = np.zeros_like(self.x), 0.0, 0.0
        kinds, stalled = self._candidates(), 0
        for _ in range(int(np.clip(INNER_WORK // self.work, *INNER_STEPS)) + len(kinds)):
            step, promise = kinds[stalled](move)
            gained, length = self._best_length(move, step, promise)
            promised = promised if stalled else promise
            if gained > 0.0:
                move, decrease = move + length * step, decrease + gained
            if gained > INNER_LEFT * decrease or (gained > 0.0 and not stalled and promised > INNER_LEFT * decrease):
                stalled = 0
            elif stalled + 1 < len(kinds):
                stalled += 1
            else:
                break
        # What is promised, but not achieved, may be there as well.
        return move, max(decrease, promised)

    def _best_length(self, move: np.ndarray, step: np.ndarray, promised: float) -> tuple[float, float]:
        """By how much the best of some lengths of a step lowers the value, and that length; 1 if it keeps its word."""
        gained, length, _ = self._best_of(np.array((0.0, 1.0)), move, step)
        if gained >= KEPT_WORD * promised:
            return gained, length
        lengths = np.array((0.0, *SHORT_STEPS, *STEPS))
        for _ in range(REFINED):  # between the neighbours of the best one; losses may have corners
            gained, length, best = self._best_of(lengths, move, step)
            ends = lengths[max(best - 1, 0)], lengths[min(best + 1, len(lengths) - 1)]
            lengths = np.append(0.0, np.linspace(*ends, 17))
        return gained, length

    def _best_of(self, lengths: np.ndarray, move: np.ndarray, step: np.ndarray) -> tuple[float, float, int]:
        z, dz = self.z + self._predictions(move), self._predictions(step)
        linear = (self.slope * step).sum() + (self._times_hessian(move) * step).sum()
        quadratic = 0.5 * (self._times_hessian(step) * step).sum()
        there, inner = self.x + move, slice(None, -1)
        penalties = [penalty_within(within(there + t * step, self.problem)[:, inner], self.problem) for t in lengths]
        values = line_values(self.model.extremes, z, dz, lengths, self.problem) / self.weight
        values = values + lengths * linear + lengths**2 * quadratic + np.array(penalties)
        values[~np.isfinite(values)] = np.inf
        best = int(np.argmin(values))
        return float(values[0] - values[best]), lengths[best], best

    def in_user_coordinates(self, move: np.ndarray) -> np.ndarray:
        """The move with that of the intercept last.

        What all classes of the multinomial loss have in common changes no probability: it is taken out, so that
        coefficients stay those nearest to zero. A penalty that is not smooth may want it in the coefficients.
        """
        move = move.copy()
        move[:, -1] -= (self.mean * move[:, :-1]).sum(axis=1)
        if isinstance(self.problem.loss, MultinomialLogLoss):
            common = move.mean(axis=0)
            common[:-1] *= is_smooth(self.problem.penalty)
            move -= common
        return move


def sample_decrease(sample: Any, x: np.ndarray, gradient: np.ndarray, problem: Problem, plan: ModelPlan) -> float:
    """By how much F can still fall, by the curvature of the sample and the mean gradient of all rows at x."""
    chunk, axes, metric, _ = sample
    if metric.rotation is not axes.rotation:  # its rows are rotated
        x, gradient = frozen(x_to_solver(x, axes)), sum_to_solver(gradient, axes)
    model = local_model(chunk, x, problem, metric, plan, gradient=False)
    model = model._replace(gradient=gradient * chunk.weight)
    return math.inf if model.far else newton_direction(model, x, chunk.weight, problem).decrease
