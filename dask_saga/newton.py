"""Newton steps: what is left to gain at x, and the step that gains it.

The gradient norm that the passes estimate is scaled by the columns' variances. A column with one huge entry has a huge
variance, so its gradient hardly counts, whatever could still be gained along it. Curvature at x sees it: the huge row
is saturated there, and the second derivatives of all other rows tell the column's true scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ._intrinsics import room_for
from ._kernels import kernels_for
from ._rows import LARGEST_ENTRY, dense_leverages, dense_predictions, sparse_leverages, sparse_predictions
from .chunk import chunk_gradient
from .columns import MOMENTS, ColumnStats, column_stats, gram
from .inputs import Chunk, frozen, row_blocks
from .losses import MultinomialLogLoss
from .metric import Metric, sum_to_solver, x_to_solver
from .penalties import ElasticNet, penalty_values
from .problem import Problem
from .rounds import penalty_value
from .threads import one_blas_thread

__all__ = [
    "STEPS",
    "Direction",
    "LocalModel",
    "ModelPlan",
    "best_on_line",
    "chunk_values",
    "has_extreme_columns",
    "join_extremes",
    "local_model",
    "merge_models",
    "newton_direction",
    "plan_model",
    "rising_rows",
    "sample_decrease",
]

# The Hessian has at most so many entries, over all outputs; else only its diagonal is used.
MOST_ENTRIES = 2**22
# Rows that the Hessian is the sum of, for each column, and at least; and entries that they have at most.
ROWS_PER_COLUMN, LEAST_ROWS, MOST_USED = 50, 2**13, 2**25
# A chunk gives at least so many of them.
LEAST_CHUNK_ROWS = 2**10
# Rows are kept apart whose share of a column's curvature is above the first: so many at most, and so many of a chunk
# at least.
APART, MOST_APART, LEAST_APART = 1 / 250, 256, 4
# Rounds in which rows whose losses rise get their curvature back.
FREE_ROUNDS = 6
# Columns whose extreme rows are tried apart from the others, at most.
FREE_COLUMNS = 16
# An entry is extreme whose square is such a share of the column's squares, if that is so many times their mean.
EXTREME_SHARE, LEAST_EXTREME = 0.1, 40.0
# Where they have such a share of one column together, more are looked for.
RULES = 0.2
# In each of so many rounds, those whose share is so much of the largest one.
PEELS, PEELED = 8, 0.3
# Relative ridge that keeps Cholesky factors of dependent columns positive.
RIDGE = 1e-11
# Lengths of the step at which F is evaluated, where the quadratic model may be wrong.
STEPS = (*4.0 ** np.arange(-6.0, 0.0), 0.5, 1.0, 2.0, *4.0 ** np.arange(1.0, 7.0))
# And shorter ones, for the losses of extreme rows: a step may end where one of them gets its curvature.
SHORT_STEPS = tuple(4.0 ** np.arange(-24.0, -6.0))
# Sweeps of coordinate descent, and rounds of it with an exact solution on the support.
SWEEPS, SUPPORT_ROUNDS = 50, 30
# What coordinate descent may leave of the decrease.
LEFT = 1e-6
# Newton steps on the model with extreme rows, at least and at most, the multiplications that they may take in all, and
# what the last one may gain of the decrease. A step keeps its length where it achieves this share of what it promises;
# else the length is refined so often.
INNER_STEPS, INNER_WORK, INNER_LEFT, KEPT_WORD, REFINED = (20, 100), 2**33, 1e-2, 0.25, 3


class ModelPlan(NamedTuple):
    """How a chunk's share of the Hessian is found.

    Parameters
    ----------
    rows : int
        Rows of the chunk that are used.
    full : bool
        Whether the Hessian is a matrix. Else it is its diagonal, of all rows.
    extreme : bool
        Whether rows with a large part of a column's curvature are looked for.
    apart : int
        How many of these are kept apart, at most.
    """

    rows: int
    full: bool
    extreme: bool
    apart: int


class Extremes(NamedTuple):
    """A few rows, each of which makes up much of the curvature of a column.

    Parameters
    ----------
    rows : ndarray of shape (m, p)
    targets : ndarray of shape (m, 1) or (m, k)
    weights : ndarray of shape (m,)
    numbers : ndarray of shape (m, 2), int64
        What tells a row from others: of its chunk's content, and its own.
    """

    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray


class LocalModel(NamedTuple):
    """The sum of the losses near x, to second order. Sums of the models of chunks are models of all.

    Parameters
    ----------
    value : float
        Sum of the weighted losses at x.
    gradient : ndarray of shape (k, p + 1)
        Sum of the weighted gradients, the intercept last.
    curvature : ndarray of shape (k,)
        Sum of the weighted second derivatives.
    mean : ndarray of shape (k, p)
        Mean of the rows, weighted by these; zero without an intercept.
    hessian : ndarray of shape (k, p, p) or (k, p)
        Second moments of the rows about this mean, weighted so: the Hessian of each output, where the intercept
        follows the coefficients. Or the diagonals.
    extremes : Extremes
        Rows that are not part of these three. Their losses are no quadratic: they are kept as they are.
    """

    value: float
    gradient: np.ndarray
    curvature: np.ndarray
    mean: np.ndarray
    hessian: np.ndarray
    extremes: Extremes


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
    """

    move: np.ndarray
    decrease: float
    value: float
    gradient: np.ndarray


def has_extreme_columns(stats: ColumnStats) -> bool:
    """Whether the square of an entry, from its column's mean, is much of the sum of all, or far above their mean."""
    if not stats.rows:
        return False
    far = np.maximum(stats.high - stats.mean, stats.mean - stats.low) ** 2
    usual = stats.squares / stats.weight
    if stats.sparse:  # of columns that not every row stores, the mean square of what is stored
        stored = (usual + stats.mean**2) * stats.rows / np.maximum(stats.counts, 1)
        far, usual = np.where(stats.full, far, stats.high**2), np.where(stats.full, usual, stored)
    limits = np.clip(stats.counts * EXTREME_SHARE, np.minimum(LEAST_EXTREME, 0.5 * stats.counts), LARGEST_ENTRY)
    return bool((far > limits * usual).any())


def plan_model(stats: ColumnStats, outputs: int, chunks: int) -> ModelPlan:
    """The plan for each of so many chunks."""
    p = len(stats.mean)
    rows = min(max(LEAST_ROWS, ROWS_PER_COLUMN * p), MOST_USED // p)
    full = outputs * p**2 <= MOST_ENTRIES
    apart = max(MOST_APART // chunks, LEAST_APART)
    return ModelPlan(max(rows // chunks, LEAST_CHUNK_ROWS), full, has_extreme_columns(stats), apart)


def local_model(
    chunk: Chunk, x: np.ndarray, problem: Problem, metric: Metric, plan: ModelPlan, gradient: bool = True
) -> LocalModel:
    """The model of one chunk; without `gradient` its value and gradient are zero, and only some rows are read."""
    value, sums = chunk_gradient(chunk, x, problem) if gradient else (0.0, np.zeros_like(x))
    centre = metric.shift if problem.fit_intercept else np.zeros_like(metric.shift)
    if not plan.full:
        return LocalModel(value, sums, *_diagonals(chunk, x, problem), take_extremes(chunk, np.empty(0, int)))
    some, extremes = _drawn_rows(chunk, x, problem, plan)
    curvatures = row_derivatives(some, predictions(some.rows, x), problem)[1]
    parts = [_centred_moments(some.rows, own, centre, problem) for own in np.ascontiguousarray(curvatures.T)]
    return LocalModel(value, sums, *(np.array(part) for part in zip(*parts, strict=True)), extremes)


def merge_models(*models: LocalModel) -> LocalModel:
    """The model of all rows (Chan, Golub, LeVeque 1983, equation 2.1)."""
    whole = models[0]
    for other in models[1:]:
        curvature = whole.curvature + other.curvature
        safe = np.where(curvature > 0, curvature, 1.0)
        apart, share = other.mean - whole.mean, (other.curvature / safe)[:, None]
        factor = whole.curvature[:, None] * share
        if whole.hessian.ndim == 3:
            between = factor[:, :, None] * apart[:, :, None] * apart[:, None, :]
        else:
            between = factor * apart**2
        whole = LocalModel(
            whole.value + other.value,
            whole.gradient + other.gradient,
            curvature,
            whole.mean + share * apart,
            whole.hessian + other.hessian + between,
            join_extremes(whole.extremes, other.extremes),
        )
    return whole


def row_derivatives(chunk: Chunk | Extremes, z: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Weighted first and second derivatives of each row's loss at its predictions z, both of shape (n, k)."""
    slopes, curvatures = np.empty_like(z), np.empty_like(z)
    kernel, room = kernels_for(problem.loss, problem.penalty).derivatives, room_for(z.shape[1])
    with np.errstate(all="ignore"):
        kernel(frozen(z), frozen(chunk.targets), frozen(chunk.weights), slopes, curvatures, room, problem.loss)
    return slopes, curvatures


def predictions(rows: Any, x: np.ndarray) -> np.ndarray:
    predict = sparse_predictions if sp.issparse(rows) else dense_predictions
    z = np.empty((rows.shape[0], len(x)))
    for block, arrays in row_blocks(rows, slice(0, rows.shape[0])):
        predict(*arrays, frozen(x), z[block])
    return z


def _drawn_rows(chunk: Chunk, x: np.ndarray, problem: Problem, plan: ModelPlan) -> tuple[Chunk, Extremes]:
    """Rows at random, whose weighted sums have those of the chunk as expectations, and those that are kept apart.

    Where columns have extreme entries, the chance of a row is its share of the columns' curvatures (its diagonal
    leverage). Rows that have a large share of any column's are kept apart.
    """
    used = np.flatnonzero(chunk.weights) if chunk.weights.size else np.arange(len(chunk.targets))
    chance, apart = np.full(len(used), min(1.0, plan.rows / max(len(used), 1))), used[:0]
    if plan.extreme and len(used):
        apart, leverages = _peeled(chunk, x, problem, plan)
        used = np.setdiff1d(used, apart, assume_unique=True)
        chance = np.full(len(used), min(1.0, plan.rows / max(len(used), 1)))
        total = leverages[used].sum()
        if plan.rows < len(used) and 0.0 < total < np.inf:  # where a loss is not finite, nothing is known
            chance = np.minimum(1.0, 0.5 * (chance + plan.rows * leverages[used] / total))
    extremes = take_extremes(chunk, apart)
    if plan.rows >= len(used) and not len(apart):
        return chunk, extremes
    drawn = np.random.default_rng(list(chunk.content.encode())).random(len(used)) < chance
    some, weights = used[drawn], chunk.row_weights
    return chunk._replace(
        rows=chunk.rows[some], targets=chunk.targets[some], weights=weights[some] / chance[drawn]
    ), extremes


def _peeled(chunk: Chunk, x: np.ndarray, problem: Problem, plan: ModelPlan) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of rows that have a large share of a column's curvature, and the diagonal leverage of each of the others.

    Where they have most of it, others may have a large share of what remains: they are looked for again.
    """
    curvatures = row_derivatives(chunk, predictions(chunk.rows, x), problem)[1].sum(axis=1)
    apart = np.empty(0, int)
    for _ in range(PEELS):
        shares = _Shares(chunk, curvatures, problem)
        far = np.flatnonzero(shares.largest > max(APART, PEELED * shares.largest.max()))
        far = far[np.argsort(-shares.largest[far], kind="stable")[: plan.apart - len(apart)]]
        if not len(far):
            break
        apart, rules = np.append(apart, far), (shares.of(far).sum(axis=0) > RULES).any()
        curvatures[far] = 0.0
        if not rules:
            break
    return np.sort(apart), np.where(curvatures > 0, shares.sums, 0.0)


class _Shares:
    """Each row's shares of the columns' curvatures: their sum, which is its diagonal leverage, and the largest."""

    def __init__(self, chunk: Chunk, curvatures: np.ndarray, problem: Problem):
        self.chunk, self.curvatures = chunk, curvatures
        stats = column_stats(chunk._replace(weights=curvatures), problem._replace(precondition=False))
        self.centre, squares = stats.mean, stats.squares
        if stats.sparse:
            self.centre = np.where(stats.full, self.centre, 0.0)
            squares = np.where(stats.full, squares, squares + stats.weight * stats.mean**2)
        self.scale = np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)
        self.sums, self.largest = np.empty((2, len(curvatures)))
        measure = sparse_leverages if sp.issparse(chunk.rows) else dense_leverages
        for block, arrays in row_blocks(chunk.rows, slice(0, len(curvatures))):
            measure(*arrays, frozen(self.centre), frozen(self.scale), self.sums[block], self.largest[block])
        self.sums *= curvatures
        self.largest *= curvatures

    def of(self, some: np.ndarray) -> np.ndarray:
        """The shares of some rows, of shape (m, p)."""
        rows = take_extremes(self.chunk, some).rows
        return np.where(rows != 0, (rows - self.centre) ** 2 * self.scale, 0.0) * self.curvatures[some, None]


def take_extremes(chunk: Chunk, some: np.ndarray) -> Extremes:
    rows = chunk.rows[some]
    rows = (rows.toarray() if sp.issparse(rows) else rows).astype(np.float64)
    numbers = np.column_stack([np.full(len(some), int(chunk.content[:15] or "0", 16)), some])
    return Extremes(rows, chunk.targets[some], chunk.row_weights[some], numbers)


def join_extremes(*parts: Extremes) -> Extremes:
    """Extreme rows of all parts, each once."""
    joined = Extremes(*map(np.concatenate, zip(*parts, strict=True)))
    _, first = np.unique(joined.numbers, axis=0, return_index=True)
    return Extremes(*(part[np.sort(first)] for part in joined))


def _centred_moments(
    rows: Any, weights: np.ndarray, centre: np.ndarray, problem: Problem
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum of the weights, weighted mean of the rows, and weighted second moments about it.

    Columns that every row stores are centred twice, as values far from zero would lose their digits.
    """
    total, intercept = float(weights.sum()), problem.fit_intercept
    if total <= 0:
        return 0.0, np.zeros(len(centre)), np.zeros((len(centre), len(centre)))
    if not sp.issparse(rows):
        if not intercept:
            return total, centre, gram(rows, weights, centre, problem.n_threads)
        blocks = [slice(start, start + MOMENTS) for start in range(0, len(weights), MOMENTS)]
        mean = centre + sum(((rows[b] - centre) * weights[b, None]).sum(axis=0) for b in blocks) / total
        return total, mean, gram(rows, weights, mean, problem.n_threads)
    mean = np.zeros_like(centre)
    if intercept:
        stored = centre != 0
        apart = _shifted(rows, centre)
        centre = np.where(stored, centre + (apart.T @ weights) / total, 0.0)
        rows = _shifted(rows, centre)
        mean = (rows.T @ weights) / total
    scaled = sp.diags_array(np.sqrt(weights)) @ rows
    moments = (scaled.T @ scaled).toarray() - total * np.outer(mean, mean)
    return total, centre + mean if intercept else mean, moments


def _shifted(rows: Any, centre: np.ndarray) -> Any:
    """Sparse rows less a centre that is zero in columns that not every row stores."""
    return sp.csr_array((rows.data - centre[rows.indices], rows.indices, rows.indptr), shape=rows.shape)


def _diagonals(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with diagonals of the second moments."""
    parts = []
    for own in np.ascontiguousarray(row_derivatives(chunk, predictions(chunk.rows, x), problem)[1].T):
        stats = column_stats(chunk._replace(weights=own), problem._replace(precondition=False))
        apart = problem.fit_intercept
        squares = stats.squares if apart else stats.squares + stats.weight * stats.mean**2
        parts.append((stats.weight, stats.mean if apart else np.zeros_like(stats.mean), squares))
    return tuple(np.array(part) for part in zip(*parts, strict=True))


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
    return Direction(frozen(move), float(decrease), float(value), model.gradient / weight)


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
        m, k = len(self.z), len(self.x)
        scale = np.maximum(np.diagonal(self.model.hessian, axis1=1, axis2=2).sum(axis=0), np.finfo(float).tiny)
        sizes = (self.model.extremes.rows - self.mean.mean(axis=0)) ** 2 / scale
        owners, largest = np.argmax(sizes, axis=1), sizes.max(axis=1)
        columns = list(dict.fromkeys(owners[np.argsort(-largest, kind="stable")].tolist()))  # the farthest rows' first
        work = k * self.x.shape[1] ** 2 * (self.x.shape[1] + m)
        few = columns[: int(np.clip(INNER_WORK // (50 * work), 2, FREE_COLUMNS))]
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
        (k, p), kinds, stalled = self.x.shape, self._candidates(), 0
        for _ in range(int(np.clip(INNER_WORK // (k * p**2 * (p + len(self.z))), *INNER_STEPS)) + len(kinds)):
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
        penalties = [penalty_within(there[:, inner] + t * step[:, inner], self.problem) for t in lengths]
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


def is_smooth(penalty: Any) -> bool:
    return isinstance(penalty, ElasticNet) and penalty.rotates


def smooth_step(hessian: np.ndarray, slope: np.ndarray, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, float]:
    l2 = problem.penalty.l2
    slope = slope + l2 * x
    if hessian.ndim == 1:
        curvature = hessian + l2
        move = np.divide(-slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
    else:
        move = _solve(hessian + l2 * np.eye(len(x)), -slope)
    return move, float(-0.5 * slope @ move)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution for a positive semidefinite matrix; zero where its diagonal is."""
    known = np.diag(matrix) > 0
    units = np.sqrt(np.where(known, np.diag(matrix), 1.0))
    scaled = np.where(np.outer(known, known), matrix / np.outer(units, units), 0.0)
    for ridge in (RIDGE, 1e-8, 1e-5):
        np.fill_diagonal(scaled, 1.0 + ridge)
        try:
            factor = cho_factor(scaled, lower=True)
        except (LinAlgError, ValueError):
            continue
        return np.where(known, cho_solve(factor, np.where(known, right, 0.0) / units) / units, 0.0)
    return np.where(known, right / units**2, 0.0)


def proximal_step(hessian: np.ndarray, slope: np.ndarray, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, float]:
    penalty, descend = problem.penalty, kernels_for(problem.loss, problem.penalty).coordinate_descent
    if hessian.ndim == 1:  # no coordinate depends on another
        hessian = hessian[:, None]
        parts = [proximal_step(hessian[j : j + 1], slope[j : j + 1], x[j : j + 1], problem) for j in range(len(x))]
        return np.concatenate([move for move, _ in parts]), sum(gain for _, gain in parts)

    def left(move: np.ndarray) -> float:
        return float(slope @ move + 0.5 * move @ hessian @ move + (penalty_of(x + move) - penalty_of(x)).sum())

    def penalty_of(values: np.ndarray) -> np.ndarray:
        return penalty_values(penalty, values)

    move, best = np.zeros_like(x), 0.0
    for _ in range(SUPPORT_ROUNDS):
        before = best
        now = slope + hessian @ move
        descend(frozen(hessian), now, frozen(x), move, penalty, SWEEPS, LEFT * abs(best) / len(x))
        best = left(move)
        if isinstance(penalty, ElasticNet):
            exact = _on_support(hessian, slope, x, move, penalty)
            if left(exact) < best:
                move, best = exact, left(exact)
        if before - best <= LEFT * abs(best):
            break
    return move, max(-best, 0.0)


def _on_support(
    hessian: np.ndarray, slope: np.ndarray, x: np.ndarray, move: np.ndarray, penalty: ElasticNet
) -> np.ndarray:
    """The minimum among the coefficients that are not at zero or a bound, as far as none of them gets there."""
    move = move.copy()
    for _ in range(len(x)):
        there = x + move
        free = (there > penalty.lower) & (there < penalty.upper) & ((there != 0) | (penalty.l1 == 0))
        if not free.any():
            break
        now = (slope + hessian @ move + penalty.l1 * np.sign(there) + penalty.l2 * there)[free]
        toward = _solve(hessian[np.ix_(free, free)] + penalty.l2 * np.eye(free.sum()), -now)
        own = there[free]
        ends = np.where(toward > 0, penalty.upper, penalty.lower)
        if penalty.l1:  # the sign stays
            ends = np.where(own * toward < 0, np.clip(0.0, penalty.lower, penalty.upper), ends)
        reach = np.divide(ends - own, toward, out=np.full_like(own, np.inf), where=toward != 0)
        share = min(1.0, reach.min())
        new = own + share * toward
        new = np.where(reach <= share, ends, new)
        move[free] = new - x[free]
        if share == 1.0:
            break
    return move


def sample_decrease(sample: Any, x: np.ndarray, gradient: np.ndarray, problem: Problem, plan: ModelPlan) -> float:
    """By how much F can still fall, by the curvature of the sample and the mean gradient of all rows at x."""
    chunk, axes, metric, _ = sample
    if metric.basis is not axes.basis:  # its rows are rotated
        x, gradient = frozen(x_to_solver(x, axes)), sum_to_solver(gradient, axes)
    model = local_model(chunk, x, problem, metric, plan, gradient=False)
    model = model._replace(gradient=gradient * chunk.weight)
    return newton_direction(model, x, chunk.weight, problem).decrease


def chunk_values(chunk: Chunk, x: np.ndarray, move: np.ndarray, lengths: np.ndarray, problem: Problem) -> np.ndarray:
    """Sums of the weighted losses of a chunk at ``x + length * move``, for each of the lengths."""
    return line_values(chunk, predictions(chunk.rows, x), predictions(chunk.rows, move), lengths, problem)


def rising_rows(chunk: Chunk, x: np.ndarray, move: np.ndarray, problem: Problem, count: int, least: float) -> Extremes:
    """The rows, so many at most, whose losses rise most from x to ``x + move``, by so much at least.

    Along the move they have more curvature than at x.
    """
    z = predictions(chunk.rows, x)
    rises = row_values(chunk, z + predictions(chunk.rows, move), problem) - row_values(chunk, z, problem)
    found = np.flatnonzero(~(rises < least))
    most = np.argsort(-np.nan_to_num(rises[found], nan=np.inf), kind="stable")[:count]
    return take_extremes(chunk, np.sort(found[most]))


def row_values(chunk: Chunk | Extremes, z: np.ndarray, problem: Problem) -> np.ndarray:
    """The weighted loss of each row at its predictions."""
    kernel, values = kernels_for(problem.loss, problem.penalty).row_values, np.empty(len(z))
    with np.errstate(all="ignore"):
        kernel(frozen(z), frozen(chunk.targets), frozen(chunk.weights), values, room_for(z.shape[1]), problem.loss)
    return values


def line_values(
    chunk: Chunk | Extremes, z: np.ndarray, dz: np.ndarray, steps: np.ndarray, problem: Problem
) -> np.ndarray:
    values, kernel = np.zeros(len(steps)), kernels_for(problem.loss, problem.penalty).values_on_line
    arrays = (np.ascontiguousarray(part) for part in (z, dz, chunk.targets, chunk.weights))
    with np.errstate(all="ignore"):
        kernel(*map(frozen, arrays), steps, values, room_for(z.shape[1]), problem.loss)
    return values


def best_on_line(
    x: np.ndarray, move: np.ndarray, lengths: np.ndarray, sums: np.ndarray, weight: float, problem: Problem
) -> tuple[np.ndarray, float]:
    """The best of the points of ``chunk_values``, and by how much F is less there than at x, of length zero."""
    points = [x + length * move for length in lengths]
    penalties = [penalty_within(point[:, :-1], problem) for point in points]
    values = sums / weight + np.array(penalties)
    values[~np.isfinite(values)] = np.inf
    best = int(np.argmin(values))
    return frozen(points[best]), float(values[0] - values[best])


def penalty_within(coefficients: np.ndarray, problem: Problem) -> float:
    """The penalty, infinite out of bounds."""
    penalty = problem.penalty
    if isinstance(penalty, ElasticNet) and (
        (coefficients < penalty.lower).any() or (coefficients > penalty.upper).any()
    ):
        return math.inf
    return float(penalty_values(penalty, coefficients).sum())
