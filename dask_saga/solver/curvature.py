"""Quadratic models of the chunks' losses, whose sums are part of the state.

A chunk has a gradient g_k at x_k, where its last visit ended, and a Hessian H_k from there or shortly before. Its model
is

    g_k'(x - x_k) + (x - x_k)'H_k (x - x_k) / 2.

The sum of g_k is the gradient sum of SAGA. The sums of H_k and of H_k x_k are kept in a ``Curvature``. For each chunk
a ``ChunkCurvature`` has what is needed to subtract its model. The optimum is a fixed point whatever the H_k are,
because all x_k agree there, and the gradients are exact. The H_k only decide how fast visits get there. Therefore they
may come from some of the rows. See docs/algorithm/curvature.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..data.immutable import immutable
from ..losses import LogLoss, MultinomialLogLoss
from .hessian import block_hessians, coupled_hessian
from .local_model import predictions, row_derivatives
from .quadratic_step import is_free, step_with_intercepts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.chunk import Chunk
    from ..data.statistics import ColumnStats
    from .problem import Problem

__all__ = [
    "BLAS_SECONDS",
    "ENTRY_SECONDS",
    "KEPT_SIZE",
    "ROUNDED_WEIGHT",
    "ChunkCurvature",
    "Curvature",
    "block_shape",
    "chunk_hessian",
    "empty_curvature",
    "new_curvature",
    "newton_move",
    "times",
    "uses_curvature",
    "without_model",
]


# Largest size d of a Hessian with curvature="auto".
MOST_COEFFICIENTS = 640

# Assumed times in seconds: a multiplication in BLAS, the visit of one entry, and the overhead of a visit in a stream.
# The solution of the linear system may take up to SLOWER times as long as a visit of SAGA steps.
BLAS_SECONDS, ENTRY_SECONDS, STREAM_VISIT_SECONDS, SLOWER = 1e-10, 2e-9, 3e-4, 6.0

# The Hessian of a chunk of n dense rows comes from all rows if d is at most ALL_ROWS, and from n ALL_ROWS / d rows
# otherwise, so that the visit costs about as much as one of SAGA steps. At least LEAST_ROWS rows are used.
ALL_ROWS, LEAST_ROWS = 320, 256

# Largest size of a Hessian that is kept for a chunk. Unit: size of its memory gradients.
KEPT_SIZE = 8

# Number of rows from which the medians of columns are estimated.
MEDIAN_ROWS = 1000

# A total weight below this fraction of the former one is a rounding error.
ROUNDED_WEIGHT = 1e-9

# Digits may be lost if a subtraction leaves less than the fraction CANCELLED_SHARE of a diagonal entry. They are if
# what is left differs from the sum over the other chunks by more than the fraction LOST.
CANCELLED_SHARE, LOST = 1e-11, 1e-3

# In the model of a first visit, a row has at least the fraction FLOOR of the curvature of the secant from prediction 0.
# A saturated row has no curvature, and later chunks could undo what was learned from it. If the second derivative of
# the loss may be zero (hinge losses, Huber, a user's own), each row has at least the fraction FLOOR of its bound at
# every visit, because models without curvature have no minimum. Classes of the multinomial loss have no such floor.
FLOOR = 0.05


@immutable
class Curvature(NamedTuple):
    """Sums of the quadratic models of chunks.

    Coordinates are those of the rows ``(a - origin, 1)``. The classes of the multinomial loss share a block of d
    coordinates: the coefficients of a class and its intercept, then those of the next class. Other outputs do not
    depend on each other. Each is a block, and d is p + 1.

    Parameters
    ----------
    key : str
        ``Problem.loss_key`` of the models.
    origin : ndarray of shape (p,)
        Subtracted from the rows, so that columns far from zero lose no digits: the medians of the first chunk. Zero
        without an intercept, and for columns that not every sparse row stores.
    hessian : ndarray of shape (blocks, d, d)
        Sum of H_k.
    product : ndarray of shape (blocks, d)
        Sum of H_k x_k.
    weight : float
        Total weight of the chunks in these sums.
    """

    key: str
    origin: np.ndarray
    hessian: np.ndarray
    product: np.ndarray
    weight: float

    @property
    def is_coupled(self) -> bool:
        """Whether the outputs share a block."""
        return self.hessian.shape[1] > len(self.origin) + 1

    @property
    def intercepts(self) -> np.ndarray:
        """Mask of shape (d,) of the intercepts."""
        return np.arange(self.hessian.shape[1]) % (len(self.origin) + 1) == len(self.origin)

    def to_centred(self, x: np.ndarray) -> np.ndarray:
        """Convert coefficients of shape (k, p + 1) to centred coordinates of shape (blocks, d)."""
        u = x.copy()
        u[:, -1] += (x[:, :-1] * self.origin).sum(axis=1)
        return u.reshape(self.product.shape)

    def without_common(self, u: np.ndarray, coefficients: bool = True) -> np.ndarray:
        """Subtract from the classes of the multinomial loss what they have in common, which changes no probability.

        Without `coefficients`, do so only for the intercepts, as a penalty decides what coefficients have in common.
        """
        if not self.is_coupled:
            return u
        by_class = u.reshape(-1, len(self.origin) + 1)
        common = by_class.mean(axis=0)
        if not coefficients:
            common[:-1] = 0.0
        return (by_class - common).reshape(u.shape)

    def to_user(self, u: np.ndarray) -> np.ndarray:
        """Convert centred coordinates of shape (blocks, d) to coefficients of shape (k, p + 1)."""
        x = u.reshape(-1, len(self.origin) + 1).copy()
        x[:, -1] -= (x[:, :-1] * self.origin).sum(axis=1)
        return x

    def sum_to_centred(self, gradient: np.ndarray) -> np.ndarray:
        """Convert a sum of gradients of shape (k, p + 1) to centred coordinates of shape (blocks, d)."""
        gradient = gradient.copy()
        gradient[:, :-1] -= gradient[:, -1:] * self.origin
        return gradient.reshape(self.product.shape)


@immutable
class ChunkCurvature(NamedTuple):
    """What the model of one chunk has added to a ``Curvature``.

    Parameters
    ----------
    x : ndarray of shape (outputs, p + 1)
        Coefficients at which H_k was computed. The visit may have ended elsewhere.
    product : ndarray of shape (blocks, d)
        H_k x_k.
    hessian : ndarray of shape (blocks, d, d) or None
        H_k. None if it is more than KEPT_SIZE times as large as the memory gradients. It is then computed again from
        the rows at `x`.
    weight : float
        Weight of the chunk.
    is_first : bool
        Whether H_k is that of a first visit, with a least curvature for each row.
    """

    x: np.ndarray
    product: np.ndarray
    hessian: np.ndarray | None
    weight: float
    is_first: bool


def uses_curvature(problem: Problem, chunk: Chunk, outputs: int) -> bool:
    """Return whether a visit of ``partial_fit`` uses curvature instead of SAGA steps.

    With ``curvature="auto"`` it does unless the user has chosen a step, the Hessian is large, the chunk does not have
    more rows than columns, or the visit would take too long for so few rows.
    """
    loss, names = problem.loss, ("second_derivative", "curvature_at")
    # A user's own loss of coupled outputs gives only the diagonal of its second derivatives.
    coupled = isinstance(loss, MultinomialLogLoss)
    known = getattr(loss, "quadratic", False) or any(hasattr(loss, name) for name in names)
    if problem.curvature is False or not (coupled or known):
        return False
    if problem.curvature is True:
        return True
    p = chunk.rows.shape[1]
    blocks, d = block_shape(problem, p, outputs)
    solution = BLAS_SECONDS * blocks * d**3
    steps = STREAM_VISIT_SECONDS + ENTRY_SECONDS * chunk.entries * outputs
    is_long = len(chunk.targets) > p
    return problem.takes_default_steps and is_long and d <= MOST_COEFFICIENTS and solution <= SLOWER * steps


def block_shape(problem: Problem, p: int, outputs: int) -> tuple[int, int]:
    """Return the number of blocks and the number d of coordinates of each."""
    return (1, outputs * (p + 1)) if isinstance(problem.loss, MultinomialLogLoss) else (outputs, p + 1)


def new_curvature(problem: Problem, outputs: int, chunk: Chunk, stats: ColumnStats) -> Curvature:
    """Return sums that are zero, with the origin at the medians of a chunk's columns."""
    n, origin = len(chunk.targets), np.zeros(len(stats.mean))
    if problem.fit_intercept:
        few = chunk.rows[:: max(1, n // MEDIAN_ROWS)]
        few = few.toarray() if sp.issparse(few) else few
        origin = np.where(stats.full, np.median(few, axis=0), 0.0)
    return empty_curvature(problem, outputs, origin)


def empty_curvature(problem: Problem, outputs: int, origin: np.ndarray) -> Curvature:
    """Return sums that are zero, with the given origin."""
    blocks, d = block_shape(problem, len(origin), outputs)
    return Curvature(problem.loss_key, origin, np.zeros((blocks, d, d)), np.zeros((blocks, d)), 0.0)


def without_model(
    whole: Curvature,
    own: ChunkCurvature,
    chunk: Chunk | None,
    problem: Problem,
    others: Callable[[], list[ChunkCurvature]],
) -> Curvature | None:
    """Subtract the model of a chunk.

    Parameters
    ----------
    whole : Curvature
    own : ChunkCurvature
    chunk : Chunk or None
        The chunk with the weights that it had. Needed if its Hessian was not kept.
    problem : Problem
    others : callable
        Returns the models of all other chunks. It is called if next to nothing is left of a diagonal entry.

    Returns
    -------
    Curvature or None
        None if no model is left, or if the model cannot be subtracted: its Hessian was not kept and the chunk is not
        given or the loss has changed, or the digits of the others are lost.
    """
    weight = whole.weight - own.weight
    if not weight > ROUNDED_WEIGHT * whole.weight:
        return None
    hessian = own.hessian
    if hessian is None:
        if chunk is None or whole.key != problem.loss_key:
            return None
        hessian = chunk_hessian(chunk, predictions(chunk.rows, own.x), whole, problem, own.is_first)
    left = whole.hessian - hessian
    before, after = _diagonal(whole.hessian), _diagonal(left)
    if (after < CANCELLED_SHARE * before).any():
        # Other chunks may have nothing to tell of a column, such as a rare level. Otherwise their digits are lost. This
        # is seen only if their Hessians are known.
        rest = [one.hessian for one in others()]
        known = sum((_diagonal(one) for one in rest if one is not None), np.zeros_like(after))
        if all(one is not None for one in rest) and (np.abs(after - known) > LOST * known)[known > 0].any():
            return None
    return whole._replace(hessian=left, product=whole.product - own.product, weight=weight)


def _diagonal(hessian: np.ndarray) -> np.ndarray:
    return np.diagonal(hessian, axis1=1, axis2=2)


def times(hessian: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Multiply each block by its vector."""
    return np.matmul(hessian, u[:, :, None])[:, :, 0]


def newton_move(
    coordinates: Curvature, hessian: np.ndarray, slope: np.ndarray, weight: float, x: np.ndarray, problem: Problem
) -> tuple[np.ndarray, float]:
    """Return the step from x to the minimum of a quadratic and the penalty, and the decrease that it promises.

    What the classes of the multinomial loss have in common is subtracted. In the slope it is a rounding error. In the
    step it changes no probability.

    Parameters
    ----------
    coordinates : Curvature
        Defines the coordinates of the quadratic.
    hessian : ndarray of shape (blocks, d, d)
    slope : ndarray of shape (blocks, d)
    weight : float
        Weight of the rows that `hessian` and `slope` are sums over.
    x : ndarray of shape (k, p + 1)
    problem : Problem

    Returns
    -------
    step : ndarray of shape (blocks, d)
    promise : float
        inf, with a step of zero, if the quadratic is not finite.
    """
    slope, hessian = coordinates.without_common(slope) / weight, hessian / weight
    if not np.isfinite(slope.sum() + hessian.sum()):
        return np.zeros_like(slope), math.inf
    step, promise = step_with_intercepts(hessian, slope, x, coordinates.intercepts, problem)
    return coordinates.without_common(step, is_free(problem.penalty)), promise


def chunk_hessian(chunk: Chunk, z: np.ndarray, whole: Curvature, problem: Problem, is_first: bool) -> np.ndarray:
    """Compute the Hessian of a chunk's loss, from some of its rows if d is large.

    Parameters
    ----------
    chunk : Chunk
    z : ndarray of shape (n, k)
        Predictions of the rows.
    whole : Curvature
        Defines the coordinates.
    problem : Problem
    is_first : bool
        Whether each row has at least the fraction FLOOR of its secant's curvature.

    Returns
    -------
    ndarray of shape (blocks, d, d)
    """
    chunk, z = _some_rows(chunk, z, whole.hessian.shape[1])
    if whole.is_coupled:
        loss: Any = problem.loss
        hessian = coupled_hessian(chunk, loss.probability(z), whole.origin)[None]
    else:
        hessian = block_hessians(chunk, np.maximum(_floored(chunk, z, problem, is_first), 0.0), whole.origin)
    if not problem.fit_intercept:
        hessian[:, whole.intercepts, :] = hessian[:, :, whole.intercepts] = 0.0
    return hessian


def _some_rows(chunk: Chunk, z: np.ndarray, d: int) -> tuple[Chunk, np.ndarray]:
    """Draw the rows for the Hessian at random, the same ones each time. Their weights make up for the others."""
    n = len(z)
    most = max(int(n * ALL_ROWS / d), LEAST_ROWS)
    if n <= most or sp.issparse(chunk.rows):
        return chunk, z
    some = np.sort(np.random.default_rng((n, d)).choice(n, most, replace=False, shuffle=False))
    weights = chunk.row_weights[some] * (n / most)
    return chunk._replace(rows=chunk.rows[some], targets=chunk.targets[some], weights=weights), z[some]


def _floored(chunk: Chunk, z: np.ndarray, problem: Problem, is_first: bool) -> np.ndarray:
    """Return the second derivative of each row, but at least the fraction FLOOR of the secant's or of the bound."""
    (slopes, curvatures), loss = row_derivatives(chunk, z, problem), problem.loss
    if is_first:
        rise = slopes - row_derivatives(chunk, np.zeros_like(z), problem)[0]
        secants = np.divide(rise, z, out=np.zeros_like(z), where=z != 0)
        curvatures = np.maximum(curvatures, FLOOR * secants)
    if loss.curvature is not None and not isinstance(loss, LogLoss) and not getattr(loss, "quadratic", False):
        curvatures = np.maximum(curvatures, FLOOR * loss.curvature * chunk.row_weights[:, None])
    return curvatures
