"""Newton steps: the decrease of F that is possible from x, and the step that achieves it.

The gradient norm of the passes is scaled by the columns' variances. One huge entry makes the variance of its column so
large that the column's gradient hardly counts. The curvature at x does not have this defect: the huge row is saturated
there, and the second derivatives of all other rows give the column's true scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..data.immutable import immutable
from ..execution.threads import one_blas_thread
from ..losses import MultinomialLogLoss
from .curvature import empty_curvature, newton_move
from .line_search import STEPS, line_values, penalties_within, points_on_line, row_values
from .local_model import join_extremes, local_model, row_derivatives
from .optimality import penalty_value
from .preconditioned_problem import PreconditionedProblem
from .quadratic_step import is_smooth, proximal_step, smooth_step

if TYPE_CHECKING:
    from .local_model import Extremes, LocalModel, ModelPlan
    from .problem import Problem
    from .subsample import Subsample

__all__ = ["Direction", "direction_of", "newton_direction", "sample_decrease"]


# Maximum number of rounds of a free step. In each round, rows whose losses rise get their curvature back.
FREE_ROUNDS = 6

# Maximum number of columns whose extreme rows are freed on their own, without those of other columns.
FREE_COLUMNS = 16

# Lengths of a step below those of STEPS. The losses of extreme rows need them, because a step may have to end where one
# of these rows gets its curvature.
SHORT_STEPS = tuple(4.0 ** np.arange(-24.0, -6.0))

# Number of linear systems that a step with a penalty that is not smooth costs. This is an estimate.
PROXIMAL_SOLUTIONS = 20
# Newton steps on a model with extreme rows. INNER_STEPS: least and largest limit of their number. INNER_WORK: number of
# multiplications that they may take in all. INNER_LEFT: they end if a step gains at most this fraction of the decrease.
# KEPT_WORD: a full step is taken if it achieves this fraction of its promise. Otherwise its length is refined REFINED
# times. FEW_STEPS: their number if they need not be thorough.
INNER_STEPS, INNER_WORK, INNER_LEFT, KEPT_WORD, REFINED = (3, 100), 2**32, 1e-2, 0.25, 3
FEW_STEPS = 5
# Extreme rows are settled if their curvatures change by at most the fraction SETTLED_CHANGE within SETTLED_STEPS times
# the Newton step.
SETTLED_STEPS, SETTLED_CHANGE = 4.0, 0.25


@immutable
class Direction(NamedTuple):
    """Newton step from x.

    Parameters
    ----------
    move : ndarray of shape (k, p + 1)
    decrease : float
        Decrease of F that the model promises.
    value : float
        F at x.
    gradient : ndarray of shape (k, p + 1)
        Mean gradient of the losses at x.
    far : int
        Number of far rows of the model.
    """

    move: np.ndarray
    decrease: float
    value: float
    gradient: np.ndarray
    far: int


def newton_direction(
    model: LocalModel,
    x: np.ndarray,
    weight: float,
    problem: Problem,
    more: Extremes | None = None,
    thorough: bool = True,
) -> Direction:
    """Compute the step to the minimum of the model and the penalty.

    Minimise ``g'd + d'H d / 2 + penalty(x + d)`` plus the losses of the extreme rows, where g and H are those of all
    other rows. Each output has its own H. Extreme rows need some Newton steps on the model, but no pass over the data.
    For each step, a smooth penalty needs one Cholesky factor. Other penalties use coordinate descent with exact
    solutions on the support. Coordinates without curvature in the model do not move, unless the penalty prefers zero.
    If the step is not finite, the move is zero and the decrease inf.

    Parameters
    ----------
    model : LocalModel
    x : ndarray of shape (k, p + 1)
    weight : float
        Total weight of the rows.
    problem : Problem
    more : Extremes, default=None
        Rows that are kept apart in addition to those of the model.
    thorough : bool, default=True
        Whether to search the minimum of the model thoroughly. The stopping test needs to know that no larger decrease
        is possible. For a step, a few Newton steps on the model are enough.

    Returns
    -------
    Direction
    """
    value = model.value / weight + penalty_value(x, problem)
    if more is not None:
        model = model._replace(extremes=join_extremes(model.extremes, more))
    with np.errstate(all="ignore"), one_blas_thread():
        model = model.without_rounding()
        if model.is_coupled:
            move, decrease = _coupled_step(model, x, weight, problem)
        else:
            near = _Near(model, x, weight, problem)
            move, decrease = near.minimum(thorough) if len(near.z) else near.step(np.zeros_like(x))
            move = near.in_user_coordinates(move)
    if not (np.isfinite(move).all() and np.isfinite(decrease)):
        move, decrease = np.zeros_like(x), math.inf
    return Direction(move, float(decrease), float(value), model.gradient / weight, model.far)


def _coupled_step(model: LocalModel, x: np.ndarray, weight: float, problem: Problem) -> tuple[np.ndarray, float]:
    """Return the Newton step of all classes together, and the decrease that it promises."""
    whole = empty_curvature(problem, len(x), model.mean[0])
    slope = whole.sum_to_centred(model.gradient)
    if not problem.fit_intercept:
        slope[:, whole.intercepts] = 0.0
    step, decrease = newton_move(whole, model.hessian, slope, weight, x, problem)
    return whole.to_user(step), decrease


def direction_of(model: LocalModel, x: np.ndarray, weight: float, problem: Problem, gradient: np.ndarray) -> Direction:
    """Return the Newton step of a model that has no gradient of its own, from the gradient sum of all rows."""
    return newton_direction(model._replace(gradient=gradient), x, weight, problem, thorough=False)


class _Near:
    """Objective near x: a quadratic, the losses of the extreme rows, and the penalty.

    Moves have shape (k, p + 1). Their last column is the change of the prediction at the mean of the rows. In these
    coordinates the quadratic does not couple the last column with the others.
    """

    def __init__(self, model: LocalModel, x: np.ndarray, weight: float, problem: Problem):
        self.model, self.x, self.weight, self.problem = model, x, weight, problem
        self.curvature = model.curvature / weight
        self.mean = model.mean if problem.fit_intercept else np.zeros_like(model.mean)
        self.z = model.extremes.rows @ x[:, :-1].T + x[:, -1]
        (k, p), solutions = x.shape, 1 if is_smooth(problem.penalty) else PROXIMAL_SOLUTIONS
        self.work = solutions * k * p**2 * (p + len(self.z))  # number of multiplications of a step
        self.rows = [np.column_stack([model.extremes.rows - mean, np.ones(len(self.z))]) for mean in self.mean]
        # Slope of the quadratic at x. It leaves out the extreme rows, because their exact losses are added.
        slopes, _ = row_derivatives(model.extremes, self.z, problem)
        self.slope = self._centred(model.gradient / weight) - self._sums(slopes)

    def _centred(self, gradient: np.ndarray) -> np.ndarray:
        slope = gradient.copy()
        slope[:, :-1] -= gradient[:, -1:] * self.mean
        if not self.problem.fit_intercept:
            slope[:, -1] = 0.0
        return slope

    def _sums(self, factors: np.ndarray) -> np.ndarray:
        """Return the sums of the extreme rows times `factors` of shape (m, k), for each output."""
        sums = np.array([own @ rows for own, rows in zip(factors.T, self.rows, strict=True)]) / self.weight
        if not self.problem.fit_intercept:
            sums[:, -1] = 0.0
        return sums.reshape(self.x.shape)

    def _predictions(self, move: np.ndarray) -> np.ndarray:
        """Return the change of the predictions of the extreme rows along a move, of shape (m, k)."""
        return np.column_stack([rows @ own for rows, own in zip(self.rows, move, strict=True)])

    def _times_hessian(self, move: np.ndarray) -> np.ndarray:
        hessian = self.model.hessian / self.weight
        inner = [h @ own if h.ndim == 2 else h * own for h, own in zip(hessian, move[:, :-1], strict=True)]
        return np.column_stack([np.array(inner), self.curvature * move[:, -1]])

    def step(self, move: np.ndarray) -> tuple[np.ndarray, float]:
        """Return a Newton step from ``x + move``, and the decrease that it promises."""
        slopes, curvatures = row_derivatives(self.model.extremes, self.z + self._predictions(move), self.problem)
        return self._step(move, self._smooth_slope(move) + self._sums(slopes), curvatures)

    def free_step(self, move: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, float]:
        """Return a step that ignores slope and curvature of some extreme rows, and the decrease that it promises.

        The step assumes that these rows are soon saturated. Otherwise it takes many short steps to pass a row at
        z = 10. Rows whose losses rise along the step get their slope back. Their curvature is then at least that of
        the secant between both ends of the step.

        Parameters
        ----------
        move : ndarray of shape (k, p + 1)
        free : ndarray of bool of shape (m,)
            Mask of the rows that are ignored.
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

    def _is_settled(self, step: np.ndarray) -> bool:
        """Return whether the extreme rows keep their curvature along a multiple of a Newton step, both ways.

        The quadratic model is then right for them too, and no decrease is hidden behind a row that saturates.
        """
        dz = SETTLED_STEPS * self._predictions(step)
        here, *around = (
            row_derivatives(self.model.extremes, self.z + t * dz, self.problem)[1] for t in (0.0, 1.0, -1.0)
        )
        return all((np.abs(there - here) <= SETTLED_CHANGE * here).all() for there in around)

    def _smooth_slope(self, move: np.ndarray) -> np.ndarray:
        return self.slope + self._times_hessian(move)

    def _candidates(self) -> list[Callable]:
        """Return the kinds of steps.

        They are the Newton step, the step that frees all extreme rows, and steps that free the rows of one column.
        """
        m = len(self.z)
        scale = np.maximum(np.diagonal(self.model.hessian, axis1=1, axis2=2).sum(axis=0), np.finfo(float).tiny)
        sizes = (self.model.extremes.rows - self.mean.mean(axis=0)) ** 2 / scale
        owners, largest = np.argmax(sizes, axis=1), sizes.max(axis=1)
        # The column of the farthest row is the first.
        columns = list(dict.fromkeys(owners[np.argsort(-largest, kind="stable")].tolist()))
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

    def minimum(self, thorough: bool) -> tuple[np.ndarray, float]:
        """Return a move close to the minimum, and the decrease from x to there.

        Take Newton steps while they gain enough. If `thorough`, begin with the best kind of step. If a kind of step
        stalls, try the next kind.
        """
        move, decrease, promised = np.zeros_like(self.x), 0.0, 0.0
        kinds: list[Callable] = [self.step]
        stalled, most = 0, FEW_STEPS
        if thorough:
            step, promised = self.step(move)
            if self._is_settled(step):
                return step, promised
            # Newton steps may gain a little each for a long time, where another kind of step gains much.
            kinds, most = self._candidates(), int(np.clip(INNER_WORK // self.work, *INNER_STEPS))
            move, decrease = self._best_of_steps([(step, promised), *(kind(move) for kind in kinds[1:])])
        for _ in range(most + len(kinds) - 1):
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
        # The decrease may be as large as promised, even if no step has achieved it.
        return move, max(decrease, promised)

    def _best_of_steps(self, steps: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
        """Return the best of several steps from x with their promises, at its best length, and what it achieves."""
        best, most = np.zeros_like(self.x), 0.0
        for step, promise in steps:
            gained, length = self._best_length(np.zeros_like(self.x), step, promise)
            if gained > most:
                best, most = length * step, gained
        return best, most

    def _best_length(self, move: np.ndarray, step: np.ndarray, promised: float) -> tuple[float, float]:
        """Return the decrease at the best length of a step, and this length.

        The length is 1 if the full step achieves enough of its promised decrease.
        """
        gained, length, _ = self._best_of(np.array((0.0, 1.0)), move, step)
        if gained >= KEPT_WORD * promised:
            return gained, length
        lengths = np.array((0.0, *SHORT_STEPS, *STEPS))
        for _ in range(REFINED):  # search between the neighbours of the best length, since losses may have corners
            gained, length, best = self._best_of(lengths, move, step)
            ends = lengths[max(best - 1, 0)], lengths[min(best + 1, len(lengths) - 1)]
            lengths = np.append(0.0, np.linspace(*ends, 17))
        return gained, length

    def _best_of(self, lengths: np.ndarray, move: np.ndarray, step: np.ndarray) -> tuple[float, float, int]:
        z, dz = self.z + self._predictions(move), self._predictions(step)
        linear = (self.slope * step).sum() + (self._times_hessian(move) * step).sum()
        quadratic = 0.5 * (self._times_hessian(step) * step).sum()
        penalties = penalties_within(points_on_line(self.x + move, step, lengths, self.problem)[..., :-1], self.problem)
        values = line_values(self.model.extremes, z, dz, lengths, self.problem) / self.weight
        values = values + lengths * linear + lengths**2 * quadratic + penalties
        values[~np.isfinite(values)] = np.inf
        best = int(np.argmin(values))
        return float(values[0] - values[best]), lengths[best], best

    def in_user_coordinates(self, move: np.ndarray) -> np.ndarray:
        """Return the move with the change of the intercept in the last column.

        With the multinomial loss, a move that all classes share changes no probability. It is subtracted, so that the
        coefficients stay as near to zero as possible. If the penalty is not smooth, it is subtracted only from the
        intercepts, because it may lower the penalty of the coefficients.
        """
        move = move.copy()
        move[:, -1] -= (self.mean * move[:, :-1]).sum(axis=1)
        if isinstance(self.problem.loss, MultinomialLogLoss):
            common = move.mean(axis=0)
            common[:-1] *= is_smooth(self.problem.penalty)
            move -= common
        return move


def sample_decrease(sample: Subsample, x: np.ndarray, gradient: np.ndarray, problem: Problem, plan: ModelPlan) -> float:
    """Return the promised decrease of F by the curvature of the subsample and the mean gradient of all rows at x.

    It is inf if the subsample has far rows.
    """
    chunk, axes, preconditioner, _ = sample
    if preconditioner.rotation is not axes.rotation:  # the rows of the subsample are rotated
        x, gradient = axes.x_to_solver(x), axes.sum_to_solver(gradient)
    model = local_model(chunk, x, PreconditionedProblem(problem, preconditioner), plan, gradient=False)
    model = model._replace(gradient=gradient * chunk.weight)
    return math.inf if model.far else newton_direction(model, x, chunk.weight, problem).decrease
