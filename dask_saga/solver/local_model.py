"""Model of F near x: a quadratic of most rows, and the exact losses of a few rows with extreme entries.

The models of chunks are computed in parallel and merged. See docs/algorithm/stopping.md, "The promised decrease".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.chunk import row_blocks
from ..data.immutable import immutable
from ..data.statistics import MOMENTS, column_stats, gram
from ..execution.threads import one_blas_thread
from ..kernels.column_moments import LARGEST_ENTRY, dense_leverages, sparse_leverages
from ..kernels.epoch import kernels_for
from ..kernels.intrinsics import scratch_for
from ..kernels.vectors import dense_predictions, sparse_predictions
from .hessian import coupled_hessian, shifted
from .optimality import chunk_gradient

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..data.statistics import ColumnStats
    from .preconditioned_problem import PreconditionedProblem
    from .problem import Problem

__all__ = [
    "MOST_ENTRIES",
    "Extremes",
    "LocalModel",
    "ModelPlan",
    "curvature_model",
    "has_extreme_columns",
    "join_extremes",
    "local_model",
    "merge_models",
    "plan_model",
    "predictions",
    "row_derivatives",
    "take_extremes",
    "usual_model",
]


# Largest number of entries of the Hessian, over all outputs. If there are more, only the diagonal is used.
MOST_ENTRIES = 2**22

# Number of rows from which the Hessian is computed: ROWS_PER_COLUMN for each column, but at least LEAST_HESSIAN_ROWS.
# They have at most MOST_USED entries. With up to FEW_COLUMNS columns, drawing fewer rows would save no time.
ROWS_PER_COLUMN, LEAST_HESSIAN_ROWS, MOST_USED, FEW_COLUMNS = 50, 2**13, 2**25, 40

# Least number of these rows that each chunk contributes.
LEAST_CHUNK_ROWS = 2**10

# Rows with more than the fraction APART of a column's curvature are kept apart: at most MOST_APART in all, but every
# chunk may keep at least LEAST_APART.
APART, MOST_APART, LEAST_APART = 1 / 250, 256, 4

# An entry is extreme if its squared distance from the column's mean exceeds the fraction EXTREME_SHARE of their sum. It
# must also exceed LEAST_EXTREME times their mean, or half of their sum. More than LARGEST_ENTRY times their mean is
# always enough.
EXTREME_SHARE, LEAST_EXTREME = 0.1, 40.0
# Rounding of a column's variance below that of a column with two values.
TWO_VALUES = 1e-9

# A row is far if an entry is more than FAR_WIDTHS interquartile ranges from its column's median. Only columns with a
# standard deviation above TAILS interquartile ranges are searched. Both are estimated from about QUARTILE_ROWS rows.
# Sparse data with more than MOST_DENSE columns are not searched.
FAR_WIDTHS, TAILS, QUARTILE_ROWS, MOST_DENSE = 20.0, 5.0, 2048, 2000
# If the rows kept apart together have more than this fraction of a column's curvature, the search is repeated.
RULES = 0.2

# Relative rounding error of the mean of a column.
ROUNDED_MEAN = 1e-13
# Weight of rows without curvature, relative to the largest weight.
NO_WEIGHT = 1e-30

# The search for rows to keep apart has at most PEELS rounds. Each round takes the rows whose share is above the
# fraction PEELED of the largest share.
PEELS, PEELED = 8, 0.3


class ModelPlan(NamedTuple):
    """Plan for a chunk's contribution to the Hessian.

    Parameters
    ----------
    rows : int
        Number of rows of the chunk that are used for a matrix.
    full : bool
        Whether the Hessian is a matrix. Otherwise it is the diagonal, computed from all rows.
    coupled : bool
        Whether the Hessian of the multinomial loss is one matrix for all classes. Otherwise each class has its own.
    extreme : bool
        Whether to search for rows with a large share of a column's curvature.
    apart : int
        Maximum number of such rows that are kept apart.
    """

    rows: int
    full: bool
    coupled: bool
    extreme: bool
    apart: int


@immutable
class Extremes(NamedTuple):
    """Rows that are kept apart because each has a large share of the curvature of a column.

    Parameters
    ----------
    rows : ndarray of shape (m, p)
    targets : ndarray of shape (m, 1) or (m, k)
    weights : ndarray of shape (m,)
    numbers : ndarray of shape (m, 2), int64
        Identity of each row: a digest of its chunk's content, and its number in the chunk.
    """

    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray


@immutable
class LocalModel(NamedTuple):
    """Second-order model of the sum of the losses near x. ``merge_models`` merges the models of chunks.

    Parameters
    ----------
    value : float
        Sum of the weighted losses at x.
    gradient : ndarray of shape (k, p + 1)
        Sum of the weighted gradients, the intercept last.
    curvature : ndarray of shape (k,)
        Sum of the weighted second derivatives.
    mean : ndarray of shape (k, p)
        Mean of the rows, weighted by the second derivatives. It is zero without an intercept.
    hessian : ndarray of shape (k, p, p), (k, p) or (1, k (p + 1), k (p + 1))
        Second moments of the rows about this mean with the same weights. This is the Hessian of each output if the
        intercept is always at its optimum, or the diagonal of this Hessian. If ``is_coupled``, it is that of
        ``coupled_hessian`` with `mean` as origin, which is then the same for all classes and models.
    extremes : Extremes
        Rows that `curvature`, `mean` and `hessian` leave out. Their exact losses are used instead of a quadratic.
    far : int
        Number of far rows.
    extent : ndarray of shape (p,)
        Largest distance of an entry from the point about which a matrix H was computed. Zero for a diagonal.
    """

    value: float
    gradient: np.ndarray
    curvature: np.ndarray
    mean: np.ndarray
    hessian: np.ndarray
    extremes: Extremes
    far: int
    extent: np.ndarray

    @property
    def is_coupled(self) -> bool:
        """Whether the Hessian is one matrix for all classes."""
        return self.hessian.shape[-1] > self.mean.shape[1]

    def without_rounding(self) -> LocalModel:
        """Set H to zero for columns that are constant in all rows with curvature, up to rounding of their mean.

        Otherwise these rounding errors would be taken for curvature, and a step would divide by them.
        """
        if self.hessian.ndim == 2:
            return self
        least = (ROUNDED_MEAN * self.extent) ** 2 * self.curvature[:, None]
        if self.is_coupled:
            least = np.column_stack([least, np.zeros(len(least))]).reshape(1, -1)
        varies = np.diagonal(self.hessian, axis1=1, axis2=2) > least
        return self._replace(hessian=np.where(varies[:, :, None] & varies[:, None, :], self.hessian, 0.0))


def has_extreme_columns(stats: ColumnStats) -> bool:
    """Return whether a column has an extreme entry.

    An entry is extreme if its squared distance from the column's mean is a large share of the sum of all squared
    distances, or far above their mean. A column of two values, such as a rare level in one-hot encoding, has none: all
    rows beside the rare ones are equal, so the rare ones hide nothing.
    """
    if not stats.rows:
        return False
    above, below = stats.high - stats.mean, stats.mean - stats.low
    far, usual = np.maximum(above, below) ** 2, stats.squares / stats.weight
    if stats.sparse:  # not every row stores each column: use the mean square of the stored entries
        stored = (usual + stats.mean**2) * stats.rows / np.maximum(stats.counts, 1)
        far, usual = np.where(stats.full, far, stats.high**2), np.where(stats.full, usual, stored)
    limits = np.clip(stats.counts * EXTREME_SHARE, np.minimum(LEAST_EXTREME, 0.5 * stats.counts), LARGEST_ENTRY)
    # The variance of a column is at most `above` times `below`, and equal only with two values (Bhatia, Davis 2000).
    two_values = stats.full & (usual >= (1.0 - TWO_VALUES) * above * below)
    return bool(((far > limits * usual) & ~two_values).any())


def plan_model(stats: ColumnStats, outputs: int, chunks: int) -> ModelPlan:
    """Return the plan for each of `chunks` chunks."""
    p = len(stats.mean)
    rows = MOST_USED // p if p <= FEW_COLUMNS else min(max(LEAST_HESSIAN_ROWS, ROWS_PER_COLUMN * p), MOST_USED // p)
    full = outputs * p**2 <= MOST_ENTRIES
    apart = max(MOST_APART // chunks, LEAST_APART)
    return ModelPlan(max(rows // chunks, LEAST_CHUNK_ROWS), full, False, has_extreme_columns(stats), apart)


def local_model(
    chunk: Chunk, x: np.ndarray, preconditioned: PreconditionedProblem, plan: ModelPlan, gradient: bool = True
) -> LocalModel:
    """Return the model of one chunk.

    If `gradient` is False, the value and the gradient are zero, and a matrix needs only some of the rows.
    """
    return _model_of(chunk, x, preconditioned, plan, int(far_rows(chunk).sum()), gradient)


def curvature_model(chunk: Chunk, x: np.ndarray, preconditioned: PreconditionedProblem, plan: ModelPlan) -> LocalModel:
    """Return the model of one chunk with the value and the gradient zero, and without a search for far rows."""
    return _model_of(chunk, x, preconditioned, plan, 0, gradient=False)


def _model_of(
    chunk: Chunk,
    x: np.ndarray,
    preconditioned: PreconditionedProblem,
    plan: ModelPlan,
    far: int,
    gradient: bool = True,
) -> LocalModel:
    problem, shift = preconditioned.problem, preconditioned.preconditioner.shift
    value, sums = chunk_gradient(chunk, x, problem) if gradient else (0.0, np.zeros_like(x))
    centre = shift if problem.fit_intercept else np.zeros_like(shift)
    if not plan.full:
        none = take_extremes(chunk, np.empty(0, int))
        return LocalModel(value, sums, *_diagonals(chunk, x, problem), none, far, np.zeros_like(centre))
    some, extremes = _drawn_rows(chunk, x, problem, plan)
    z = predictions(some.rows, x)
    curvatures = row_derivatives(some, z, problem)[1]
    if plan.coupled:
        loss: Any = problem.loss
        with one_blas_thread():
            hessian = coupled_hessian(some, loss.probability(z), centre)[None]
        mean = np.repeat(centre[None], len(x), axis=0)
        return LocalModel(value, sums, curvatures.sum(axis=0), mean, hessian, extremes, far, _extent(some.rows, centre))
    parts = [_centred_moments(some.rows, own, centre, problem) for own in np.ascontiguousarray(curvatures.T)]
    curvature, mean, hessian = (np.array(part) for part in zip(*parts, strict=True))
    return LocalModel(value, sums, curvature, mean, hessian, extremes, far, _extent(some.rows, centre))


def usual_model(chunk: Chunk, x: np.ndarray, preconditioned: PreconditionedProblem, plan: ModelPlan) -> LocalModel:
    """Return the model of the usual rows of one chunk, which are all rows but the far rows.

    Codes for missing values in many rows may together hide the curvature of the usual rows, even if no row does so
    alone.
    """
    far = far_rows(chunk)
    usual = chunk._replace(weights=np.where(far, 0.0, chunk.row_weights))
    return _model_of(usual, x, preconditioned, plan._replace(extreme=False), int(far.sum()))


def far_rows(chunk: Chunk) -> np.ndarray:
    """Return a boolean mask of shape (n,) of the far rows. They have an entry far outside its column's quartiles.

    Only columns whose standard deviation is far above the interquartile range are searched. Both are estimated from
    some of the rows.
    """
    rows, (n, p) = chunk.rows, chunk.rows.shape
    far, few = np.zeros(n, bool), rows[:: max(1, n // QUARTILE_ROWS)]
    if sp.issparse(few):
        if p > MOST_DENSE:
            return far
        few = few.toarray()
    if not n:
        return far
    low, middle, high = np.quantile(few.astype(np.float64), (0.25, 0.5, 0.75), axis=0)
    width = high - low
    for j in np.flatnonzero((few.std(axis=0, dtype=np.float64) > TAILS * width) & (width > 0)):
        column = rows[:, [j]].toarray().ravel() if sp.issparse(rows) else rows[:, j]
        far |= np.abs(column - middle[j]) > FAR_WIDTHS * width[j]
    return far


def merge_models(*models: LocalModel) -> LocalModel:
    """Merge models to the model of all their rows (Chan, Golub, LeVeque 1983, equation 2.1)."""
    whole = models[0]
    for other in models[1:]:
        curvature = whole.curvature + other.curvature
        safe = np.where(curvature > 0, curvature, 1.0)
        apart, share = other.mean - whole.mean, (other.curvature / safe)[:, None]
        factor = whole.curvature[:, None] * share
        if whole.is_coupled:
            between = 0.0
        elif whole.hessian.ndim == 3:
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
            whole.far + other.far,
            np.maximum(whole.extent, other.extent),
        )
    return whole


def row_derivatives(chunk: Chunk | Extremes, z: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weighted first and second derivatives of each row's loss at its predictions z.

    z and both results have shape (n, k).
    """
    slopes, curvatures = np.empty_like(z), np.empty_like(z)
    kernel, scratch = kernels_for(problem.loss, problem.penalty).derivatives, scratch_for(z.shape[1])
    with np.errstate(all="ignore"):
        kernel(z, chunk.targets, chunk.weights, slopes, curvatures, scratch, problem.loss)
    curvatures[~np.isfinite(curvatures)] = 0.0  # for example |z|^1.5 at zero
    return slopes, curvatures


def predictions(rows: Any, x: np.ndarray) -> np.ndarray:
    """Compute the predictions of dense or sparse rows at x, of shape (n, k)."""
    predict = sparse_predictions if sp.issparse(rows) else dense_predictions
    z = np.empty((rows.shape[0], len(x)))
    for block, arrays in row_blocks(rows, slice(0, rows.shape[0])):
        predict(*arrays, x, z[block])
    return z


def _drawn_rows(chunk: Chunk, x: np.ndarray, problem: Problem, plan: ModelPlan) -> tuple[Chunk, Extremes]:
    """Draw the rows for the Hessian at random. Return them and the rows that are kept apart.

    Each drawn row is weighted by the inverse of its chance, so that the expectation of a sum is the sum over the chunk.
    Rows are drawn evenly. If the plan has extreme columns, half of the chance of a row is proportional to its diagonal
    leverage, and rows with a large share of any column's curvature are kept apart.
    """
    used, n = np.flatnonzero(chunk.weights) if chunk.weights.size else np.arange(len(chunk.targets)), len(chunk.targets)
    apart, shares = used[:0], np.zeros(n)
    if plan.extreme and len(used):
        apart, shares = _peeled(chunk, x, problem, plan)
        used = np.setdiff1d(used, apart, assume_unique=True)
    elif plan.rows < len(used):
        shares = row_derivatives(chunk, predictions(chunk.rows, x), problem)[1].sum(axis=1)
        used = np.flatnonzero(shares)
    chance, total = np.full(len(used), min(1.0, plan.rows / max(len(used), 1))), shares[used].sum()
    if plan.rows < len(used) and 0.0 < total < np.inf:  # a leverage is not finite if a loss is not
        chance = np.minimum(1.0, 0.5 * (chance + plan.rows * shares[used] / total))
    extremes = take_extremes(chunk, apart)
    if len(used) == n and plan.rows >= n:
        return chunk, extremes
    drawn = np.random.default_rng(list(chunk.content.encode())).random(len(used)) < chance
    some, weights = used[drawn], chunk.row_weights
    return chunk._replace(
        rows=chunk.rows[some], targets=chunk.targets[some], weights=weights[some] / chance[drawn]
    ), extremes


def _peeled(chunk: Chunk, x: np.ndarray, problem: Problem, plan: ModelPlan) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that have a large share of a column's curvature.

    If the rows found have much of a column's curvature, other rows may have a large share of what remains. The search
    is then repeated without the rows found.

    Returns
    -------
    apart : ndarray of shape (m,)
        Numbers of the rows found.
    leverages : ndarray of shape (n,)
        Diagonal leverage of each other row, and zero for the rows found.
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
    """Shares of each row in the columns' curvatures: their sum, which is the diagonal leverage, and the largest."""

    def __init__(self, chunk: Chunk, curvatures: np.ndarray, problem: Problem):
        self.chunk, self.curvatures = chunk, curvatures
        # A tiny weight instead of zero, since rows of weight zero would be copied out and checked each time.
        tiny = NO_WEIGHT * (curvatures.max() or 1.0)
        weights = np.maximum(curvatures, tiny)
        stats = column_stats(chunk._replace(weights=weights), problem._replace(precondition=False))
        self.centre, squares = stats.mean, stats.squares
        if stats.sparse:
            self.centre = np.where(stats.full, self.centre, 0.0)
            squares = np.where(stats.full, squares, squares + stats.weight * stats.mean**2)
        # A column that varies only among rows of tiny weight has no curvature. Its scale would be infinite.
        least = len(weights) * tiny * (stats.high - stats.low) ** 2
        self.scale = np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > least)
        self.sums, self.largest = np.empty((2, len(curvatures)))
        measure = sparse_leverages if sp.issparse(chunk.rows) else dense_leverages
        for block, arrays in row_blocks(chunk.rows, slice(0, len(curvatures))):
            measure(*arrays, self.centre, self.scale, self.sums[block], self.largest[block])
        self.sums *= curvatures
        self.largest *= curvatures

    def of(self, some: np.ndarray) -> np.ndarray:
        """Return the shares of the rows `some` in each column, of shape (m, p)."""
        rows = take_extremes(self.chunk, some).rows
        return np.where(rows != 0, (rows - self.centre) ** 2 * self.scale, 0.0) * self.curvatures[some, None]


def take_extremes(chunk: Chunk, some: np.ndarray) -> Extremes:
    """Return the rows `some` of a chunk as dense float64 rows that are kept apart."""
    rows = chunk.rows[some]
    rows = (rows.toarray() if sp.issparse(rows) else rows).astype(np.float64)
    numbers = np.column_stack([np.full(len(some), int(chunk.content[:15] or "0", 16)), some])
    return Extremes(rows, chunk.targets[some], chunk.row_weights[some], numbers)


def join_extremes(*parts: Extremes) -> Extremes:
    """Join the rows of all parts, and drop duplicates."""
    some = [part for part in parts if len(part.weights)]
    if len(some) < 2:
        return some[0] if some else parts[0]
    joined = Extremes(*map(np.concatenate, zip(*some, strict=True)))
    _, first = np.unique(joined.numbers, axis=0, return_index=True)
    return Extremes(*(part[np.sort(first)] for part in joined))


def _centred_moments(
    rows: Any, weights: np.ndarray, centre: np.ndarray, problem: Problem
) -> tuple[float, np.ndarray, np.ndarray]:
    """Compute the sum of the weights, the weighted mean of the rows, and the weighted second moments about it.

    Columns that every row stores are centred twice, because values far from zero lose digits otherwise.
    """
    total, intercept = float(weights.sum()), problem.fit_intercept
    if total <= 0:
        return 0.0, np.zeros(len(centre)), np.zeros((len(centre), len(centre)))
    if not sp.issparse(rows):
        if not intercept:
            return total, centre, gram(rows, weights, centre, problem.n_threads)
        blocks = [slice(start, start + MOMENTS) for start in range(0, len(weights), MOMENTS)]
        # The order of a sum, and so its last bits, depend on the memory order of the rows.
        sums = (((np.ascontiguousarray(rows[b]) - centre) * weights[b, None]).sum(axis=0) for b in blocks)
        mean = centre + sum(sums) / total
        return total, mean, gram(rows, weights, mean, problem.n_threads)
    mean = np.zeros_like(centre)
    if intercept:
        stored = centre != 0
        apart = shifted(rows, centre)
        centre = np.where(stored, centre + (apart.T @ weights) / total, 0.0)
        rows = shifted(rows, centre)
        mean = (rows.T @ weights) / total
    scaled = sp.diags_array(np.sqrt(weights)) @ rows
    moments = (scaled.T @ scaled).toarray() - total * np.outer(mean, mean)
    return total, centre + mean if intercept else mean, moments


def _extent(rows: Any, centre: np.ndarray) -> np.ndarray:
    """Return the largest distance of an entry of each column from the centre."""
    if not rows.shape[0]:
        return np.zeros_like(centre)
    low, high = rows.min(axis=0), rows.max(axis=0)
    low, high = (one.toarray().ravel() if sp.issparse(one) else one for one in (low, high))
    return np.maximum(high - centre, centre - low)


def _diagonals(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the same as ``_centred_moments`` for each output, with the diagonals of the second moments."""
    parts = []
    for own in np.ascontiguousarray(row_derivatives(chunk, predictions(chunk.rows, x), problem)[1].T):
        stats = column_stats(chunk._replace(weights=own), problem._replace(precondition=False))
        apart = problem.fit_intercept
        squares = stats.squares if apart else stats.squares + stats.weight * stats.mean**2
        parts.append((stats.weight, stats.mean if apart else np.zeros_like(stats.mean), squares))
    curvature, mean, hessian = (np.array(part) for part in zip(*parts, strict=True))
    return curvature, mean, hessian
