"""A visit that uses curvature: it minimises the chunk's own loss plus the quadratic models of all other chunks.

This is incremental Newton (Rodomanov, Kropotov 2016; Mokhtari, Eisen, Ribeiro 2018). Its first pass is renewable
estimation (Luo, Song 2020). See docs/algorithm/curvature.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..execution.threads import one_blas_thread
from .curvature import KEPT_SIZE, ROUNDED_WEIGHT, ChunkCurvature, Curvature, chunk_hessian, newton_move, times
from .line_search import EXCEEDED, LONGER, line_values, penalties_within, points_on_line
from .local_model import predictions, row_derivatives
from .optimality import weighted_sum
from .state import LARGEST_COEFFICIENT
from .visit import counted

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from .problem import Problem
    from .state import ChunkMemory, SolverState

__all__ = ["InnerProblem", "curvature_visit"]


# A visit takes at most MOST_STEPS Newton steps. They end if a step promises at most the fraction LEFT_OF_GAIN of what
# the visit has gained and LEFT_OF_LOSS of the objective, or at most ROUNDED_LOSS of it. The objective is that at the
# start, scaled to the weight of the chunk.
MOST_STEPS, LEFT_OF_GAIN, LEFT_OF_LOSS, ROUNDED_LOSS = 20, 1e-3, 1e-5, 1e-13

# A full step is the last one if the curvatures of the rows have then changed by at most this fraction, because the next
# step would gain little. This applies if the other models weigh more than the chunk.
SETTLED = 0.02

# The Hessian of the chunk is computed again if the curvatures of its rows have changed by more than this fraction, or
# after a step that was shortened.
CHANGED = 0.1

# A full step is taken if it achieves between the fractions KEPT_FULL and EXCEEDED of its promise. Otherwise the best of
# SHORTER or LONGER lengths is.
KEPT_FULL, SHORTER = 0.25, (*4.0 ** np.arange(-12.0, 0.0), 0.5, 1.0)


def curvature_visit(
    chunk: Chunk,
    head: SolverState,
    memory: ChunkMemory | None,
    others: Curvature,
    problem: Problem,
    is_first: bool,
) -> tuple[SolverState, ChunkMemory, Curvature] | None:
    """Move x to the minimum of the chunk's loss, the models of the other chunks and the penalty.

    This is a pure function, like ``chunk_saga``.

    Parameters
    ----------
    chunk : Chunk
    head : SolverState
    memory : ChunkMemory or None
        Memory of the chunk after its last visit. None for a new chunk.
    others : Curvature
        Sums of the models of all other chunks.
    problem : Problem
    is_first : bool
        Whether the chunk had no model before, or no other model is left.

    Returns
    -------
    tuple of SolverState, ChunkMemory and Curvature, or None
        None if a number is not finite, or x is too large.
    """
    head, memory = counted(chunk, head, memory, problem)
    if head.weight <= 0 or not head.rows:
        return head, memory, others
    with np.errstate(all="ignore"), one_blas_thread():
        inner = InnerProblem(chunk, head, memory, others, problem, is_first)
        inner.minimise()
        gradients = inner.slopes.astype(memory.gradients.dtype)
        total = weighted_sum(chunk.rows, gradients.astype(float), problem)
        hessian = inner.hessian
        if is_first and not inner.is_floored:
            hessian = chunk_hessian(chunk, inner.z_of_hessian, others, problem, True)
        product = times(hessian, others.to_centred(inner.x))
    largest = np.abs(inner.x).max()  # NaN propagates
    if not (largest < LARGEST_COEFFICIENT and np.isfinite(total.sum()) and np.isfinite(hessian.sum())):
        return None
    kept = hessian if hessian.nbytes <= KEPT_SIZE * gradients.nbytes else None
    own = ChunkCurvature(inner.x_of_hessian, product, kept, memory.weight, is_first)
    head = head._replace(
        x=inner.x,
        gradient_sum=inner.gradient_sum + total,
        window_start=inner.x,
        window_sum=np.zeros_like(inner.x),
        window_count=0,
        visited_weight=np.inf,
        diverged=False,
    )
    memory = memory._replace(gradients=gradients, total=None if memory.total is None else total, curvature=own)
    whole = others._replace(
        hessian=others.hessian + hessian, product=others.product + product, weight=others.weight + memory.weight
    )
    return head, memory, whole


class InnerProblem:
    """The problem of one visit: loss of the chunk, models of the other chunks, and penalty.

    Attributes
    ----------
    x : ndarray of shape (k, p + 1)
        Current coefficients.
    gradient_sum : ndarray of shape (k, p + 1)
        Sum of the memory gradients of all other chunks times their rows.
    slopes : ndarray of shape (n, k)
        Derivatives of the rows' losses at `x`.
    hessian : ndarray of shape (blocks, d, d)
        Hessian of the chunk at `x_of_hessian`, where the predictions are `z_of_hessian`.
    promise : float
        Decrease that the first step promised, 0 before it.
    is_floored : bool
        Whether `hessian` has the least curvature of rows of a first visit. It has if the other models weigh more than
        the chunk, because the steps then hardly change. Otherwise it gets it after the last step. Classes of the
        multinomial loss have no least curvature.
    """

    def __init__(
        self,
        chunk: Chunk,
        head: SolverState,
        memory: ChunkMemory,
        others: Curvature,
        problem: Problem,
        is_first: bool,
    ):
        self.chunk, self.others, self.problem, self.x = chunk, others, problem, head.x
        self.weight, self.lacking = head.weight, head.weight - memory.weight - others.weight
        total = memory.total
        if total is None:
            total = weighted_sum(chunk.rows, memory.gradients.astype(float), problem)
        self.gradient_sum = head.gradient_sum - total
        self.is_floored = is_first and (others.is_coupled or others.weight > memory.weight)
        self.slopes = self.z_of_hessian = np.empty((0, len(self.x)))
        self.hessian, self.x_of_hessian = others.hessian, self.x
        self.promise = 0.0
        self.curvatures: np.ndarray | None = None  # of the rows, where the Hessian was computed

    def keep_hessian(self, other: InnerProblem) -> None:
        """Begin with the Hessian of another problem of the same rows. It is computed anew where it has changed."""
        self.hessian, self.x_of_hessian, self.z_of_hessian = other.hessian, other.x_of_hessian, other.z_of_hessian
        self.curvatures = other.curvatures

    def minimise(self) -> None:
        """Take Newton steps on the inner problem, until a step promises little."""
        others, problem, z = self.others, self.problem, predictions(self.chunk.rows, self.x)
        gained, loss, length, value = 0.0, 0.0, 0.0, None
        for count in range(MOST_STEPS + 1):
            z, change = self._differentiate(z, renew=0.0 < length < 1.0)
            settled = length == 1.0 and change <= SETTLED and others.weight > self.chunk.weight
            if settled or count == MOST_STEPS:
                break
            u = others.to_centred(self.x)
            if count == 0:
                model, linear = self._models(u)
            slope_of_models = linear + times(model, u)
            slope = slope_of_models + others.sum_to_centred(weighted_sum(self.chunk.rows, self.slopes, problem))
            step, promise = newton_move(others, model + self.hessian, slope, self.weight, self.x, problem)
            self.promise = promise if count == 0 else self.promise
            least = max(min(LEFT_OF_GAIN * gained, LEFT_OF_LOSS * loss), ROUNDED_LOSS * loss)
            if not (np.isfinite(step).all() and least < promise < np.inf):
                break
            line = _Line(self, z, step, (slope_of_models * step).sum(), (times(model, step) * step).sum())
            if value is None:
                value = line.values(np.zeros(1))[0]
                loss = abs(value) * self.weight / self.chunk.weight
            length, after = line.best_length(value, promise)
            if not after < value:
                break
            gained += value - after
            self.x, z = line.points(np.array([length]))[0], z + length * line.dz
            value = after - line.model_value(length)  # the next line measures the models from its own start

    def _differentiate(self, z: np.ndarray, renew: bool) -> tuple[np.ndarray, float]:
        """Compute slopes of the rows, and the Hessian anew if it has changed or if `renew`.

        Return z, and the relative change of the rows' curvatures since the Hessian was computed. It is inf at first.
        """
        self.slopes, curvatures = row_derivatives(self.chunk, z, self.problem)
        change = np.inf
        if self.curvatures is not None:
            change = np.abs(curvatures - self.curvatures).sum() / max(self.curvatures.sum(), np.finfo(float).tiny)
        if change > CHANGED or renew:
            if self.curvatures is not None:  # from x, so that ``without_model`` computes the same Hessian later
                z = predictions(self.chunk.rows, self.x)
                self.slopes, curvatures = row_derivatives(self.chunk, z, self.problem)
            self.hessian = chunk_hessian(self.chunk, z, self.others, self.problem, self.is_floored)
            self.x_of_hessian, self.z_of_hessian, self.curvatures = self.x, z, curvatures
        return z, change

    def _models(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the Hessian and the linear part of the other chunks' models.

        Chunks without a model, for example those of a ``fit``, are assumed to have the mean curvature of the chunks
        with one about the present x, or that of the visited chunk if there is none.
        """
        others = self.others
        model, linear = others.hessian, others.sum_to_centred(self.gradient_sum) - others.product
        if not self.problem.fit_intercept:
            linear[:, others.intercepts] = 0.0
        if self.lacking > ROUNDED_WEIGHT * self.weight:
            like = others.hessian / others.weight if others.weight > 0 else self.hessian / self.chunk.weight
            model, linear = model + self.lacking * like, linear - times(self.lacking * like, u)
        return model, linear


class _Line:
    """The inner problem along a step from its x."""

    def __init__(self, inner: InnerProblem, z: np.ndarray, step: np.ndarray, linear: float, quadratic: float):
        self.inner, self.z, self.move = inner, z, inner.others.to_user(step)
        self.dz = predictions(inner.chunk.rows, self.move)
        self.linear, self.quadratic = linear, quadratic

    def points(self, lengths: np.ndarray) -> np.ndarray:
        return points_on_line(self.inner.x, self.move, lengths, self.inner.problem)

    def model_value(self, lengths: Any) -> Any:
        """Return the change of the other chunks' models at each length."""
        return (lengths * self.linear + 0.5 * lengths**2 * self.quadratic) / self.inner.weight

    def values(self, lengths: np.ndarray) -> np.ndarray:
        """Return the objective at each length, up to a constant."""
        inner = self.inner
        losses = line_values(inner.chunk, self.z, self.dz, lengths, inner.problem) / inner.weight
        values = losses + self.model_value(lengths) + penalties_within(self.points(lengths)[..., :-1], inner.problem)
        return np.where(np.isfinite(values), values, np.inf)

    def best_length(self, value: float, promise: float) -> tuple[float, float]:
        """Return the length of the step, and the objective there. `value` is the objective at length zero."""
        after = float(self.values(np.ones(1))[0])
        gained = value - after
        if KEPT_FULL * promise <= gained <= EXCEEDED * promise:
            return 1.0, after
        lengths = np.array((1.0, *LONGER) if gained > EXCEEDED * promise else SHORTER)
        values = self.values(lengths)
        best = int(np.argmin(values))
        return lengths[best], values[best]
