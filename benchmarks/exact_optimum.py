"""The exact objective of a problem, its minimum, and a proof of how near the minimum is.

F(x, c) = sum_i w_i f(a_i'x + c, y_i) + alpha R(x) with weights of sum one and an unpenalised
intercept. Nothing here is the package's, so that a mistake there cannot hide in its own reference.

1. Columns are centred at their median and divided by the median distance from it. Both ignore
   single wrong cells, so ordinary entries keep all their digits.
2. Newton's method with the full Hessian and a line search minimises F. For an L1 part, |x| is first
   replaced by a smooth function that approaches it (the log barrier of -t <= x <= t). Coefficients
   that end at zero are then fixed there, and Newton's method solves for the others.
3. ``suboptimality_bound`` proves how far F(w) may lie above the minimum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import expit, logsumexp, softmax

EPSILON = 1.35  # of Huber's loss
DENSE_COLUMNS = 100  # sparse rows of at most so many columns are stored densely
CERTAIN = 1e-10  # no further start is tried below this bound, relative to F(0) - F*


class Problem(NamedTuple):
    """One data set with the loss and penalty to fit.

    Parameters
    ----------
    name : str
    X : ndarray or csr_matrix of shape (n, p)
    y : ndarray of shape (n,)
        Labels 0 to k - 1, or targets.
    loss : str
        "log_loss" of more than two labels is multinomial.
    penalty : {"l2", "l1", "elasticnet"} or None
    alpha : float
    chunks : int
        Chunks of `fit`, or of a stream.
    weight : ndarray of shape (n,), default=None
        Weights of the rows.
    suspect : ndarray of shape (m,), default=()
        Numbers of the contaminated rows. The others give a second start to Newton's method.
    is_stream : bool, default=False
        Whether the chunks are given to ``partial_fit`` in turn.
    is_unbounded : bool, default=False
        Whether some rows or columns are of unbounded length: heavy tails, columns with one entry.
    """

    name: str
    X: np.ndarray | sp.csr_matrix
    y: np.ndarray
    loss: str = "log_loss"
    penalty: str | None = "l2"
    alpha: float = 1e-4
    chunks: int = 1
    weight: np.ndarray | None = None
    suspect: np.ndarray | tuple = ()
    is_stream: bool = False
    is_unbounded: bool = False

    @property
    def is_classification(self) -> bool:
        return self.loss in ("log_loss", "squared_hinge", "modified_huber")

    @property
    def outputs(self) -> int:
        classes = len(np.unique(self.y)) if self.is_classification else 2
        return classes if classes > 2 else 1

    @property
    def l1_ratio(self) -> float:
        """Share of the L1 part; 0.15 is the default of the estimators."""
        return {"l1": 1.0, "elasticnet": 0.15}.get(self.penalty, 0.0)


class Loss(NamedTuple):
    """A loss of linear predictions z of shape (n, k) and targets y of shape (n,).

    Parameters
    ----------
    values : callable
        ``values(z, y)`` of shape (n,).
    slopes : callable
        First derivatives ``slopes(z, y)`` of shape (n, k).
    curvature : callable
        ``curvature(z, y, reach)`` of shape (n, k, k): a lower bound of the second derivatives at all z' with
        ``|z' - z| <= reach``. It is exact for a reach of zero.
    """

    values: Callable
    slopes: Callable
    curvature: Callable


def _of_margin(value: Callable, slope: Callable, curvature: Callable) -> Loss:
    """A loss of the margin y z, y in {-1, 1}, from functions of the margin m (and of the reach)."""
    return Loss(
        lambda z, y: value(y * z[:, 0]),
        lambda z, y: (y * slope(y * z[:, 0]))[:, None],
        lambda z, y, reach: (1.0 * curvature(y * z[:, 0], reach))[:, None, None],
    )


def _of_residual(value: Callable, slope: Callable, curvature: Callable) -> Loss:
    """A loss of the residual z - y."""
    return Loss(
        lambda z, y: value(z[:, 0] - y),
        lambda z, y: slope(z[:, 0] - y)[:, None],
        lambda z, y, reach: (1.0 * curvature(z[:, 0] - y, reach))[:, None, None],
    )


def _multinomial_curvature(z: np.ndarray, y: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Probabilities change by a factor of exp(2 reach) at most, and the variance by no more."""
    chance = softmax(z, axis=1)
    exact = chance[:, :, None] * (np.eye(z.shape[1]) - chance[:, None, :])
    return exact * np.exp(-2.0 * np.broadcast_to(reach, len(z)))[:, None, None]


EXACT_LOSSES = {
    "log_loss": _of_margin(
        lambda m: np.logaddexp(0.0, -m),
        lambda m: -expit(-m),
        lambda m, reach: expit(np.abs(m) + reach) * expit(-np.abs(m) - reach),
    ),
    "squared_hinge": _of_margin(
        lambda m: np.maximum(0.0, 1.0 - m) ** 2,
        lambda m: -2.0 * np.maximum(0.0, 1.0 - m),
        lambda m, reach: 2.0 * (m + reach < 1.0),
    ),
    "modified_huber": _of_margin(
        lambda m: np.where(m > -1.0, np.maximum(0.0, 1.0 - m) ** 2, -4.0 * m),
        lambda m: -2.0 * np.clip(1.0 - m, 0.0, 2.0),
        lambda m, reach: 2.0 * ((m + reach < 1.0) & (m - reach > -1.0)),
    ),
    "multinomial": Loss(
        lambda z, y: logsumexp(z, axis=1) - z[np.arange(len(z)), y],
        lambda z, y: softmax(z, axis=1) - (y[:, None] == np.arange(z.shape[1])),
        _multinomial_curvature,
    ),
    "squared_error": _of_residual(
        lambda r: 0.5 * r**2,
        lambda r: r,
        lambda r, reach: np.ones_like(r),
    ),
    "huber": _of_residual(
        lambda r: np.where(np.abs(r) <= EPSILON, 0.5 * r**2, EPSILON * (np.abs(r) - 0.5 * EPSILON)),
        lambda r: np.clip(r, -EPSILON, EPSILON),
        lambda r, reach: np.abs(r) + reach <= EPSILON,
    ),
    "poisson": Loss(
        lambda z, y: np.exp(z[:, 0]) - y * z[:, 0],
        lambda z, y: np.exp(z) - y[:, None],
        lambda z, y, reach: np.exp(z[:, 0] - reach)[:, None, None],
    ),
}


class Objective(NamedTuple):
    """F and its derivatives at scaled coefficients w of shape (k, p + 1), the intercept last.

    Parameters
    ----------
    rows : ndarray or csr_matrix of shape (n, p + 1)
        Centred and scaled, with a last column of ones.
    y : ndarray of shape (n,)
        Labels -1 and 1, class numbers, or targets.
    weight : ndarray of shape (n,)
        Of sum one.
    loss : Loss
    outputs : int
    ridge, l1 : ndarray of shape (p + 1,)
        What multiplies half the square, and the absolute value, of each scaled coefficient.
    centre, scale : ndarray of shape (p,)
        A scaled column is ``(column - centre) / scale``.
    """

    rows: np.ndarray | sp.csr_matrix
    y: np.ndarray
    weight: np.ndarray
    loss: Loss
    outputs: int
    ridge: np.ndarray
    l1: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        return np.zeros((self.outputs, len(self.ridge)))

    def scaled(self, coefficients: np.ndarray, intercept: np.ndarray | float) -> np.ndarray:
        """Scaled coefficients of raw ones."""
        coefficients = np.atleast_2d(coefficients)
        # The products may be large and cancel.
        shift = coefficients.astype(np.longdouble) @ self.centre.astype(np.longdouble)
        return np.column_stack([coefficients * self.scale, (np.atleast_1d(intercept) + shift).astype(float)])

    def without(self, some: np.ndarray) -> Objective:
        """The objective of the other rows."""
        kept = np.setdiff1d(np.arange(len(self.y)), some)
        weight = self.weight[kept] / self.weight[kept].sum()
        return self._replace(rows=self.rows[kept], y=self.y[kept], weight=weight)

    def smooth(self, w: np.ndarray) -> float:
        """F without the L1 part."""
        with np.errstate(over="ignore", invalid="ignore"):
            losses = self.loss.values(self.rows @ w.T, self.y)
        return float(self.weight @ losses + 0.5 * (self.ridge * w**2).sum())

    def value(self, w: np.ndarray) -> float:
        return self.smooth(w) + float((self.l1 * np.abs(w)).sum())

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Gradient of the smooth part."""
        slopes = self.weight[:, None] * self.loss.slopes(self.rows @ w.T, self.y)
        return (self.rows.T @ slopes).T + self.ridge * w

    def hessian(self, w: np.ndarray, reach: np.ndarray | float = 0.0) -> np.ndarray:
        """Second derivatives of the smooth part, or a lower bound of them where no prediction moves by more than reach.

        The shape is (k (p + 1), k (p + 1)).
        """
        curvature = self.weight[:, None, None] * self.loss.curvature(self.rows @ w.T, self.y, reach)
        k, size = w.shape
        hessian = np.empty((k, size, k, size))
        for a in range(k):
            for b in range(a + 1):
                block = self.rows.T @ _times(self.rows, curvature[:, a, b])
                block = block.toarray() if sp.issparse(block) else block
                hessian[a, :, b], hessian[b, :, a] = block, block.T
            hessian[a, :, a] += np.diag(self.ridge)
        if k > 1:
            # A constant added to the coefficients of all classes changes the penalty only. This keeps it at zero.
            for j in np.flatnonzero((self.ridge == 0) & (self.l1 == 0)):
                hessian[:, j, :, j] += 1.0
        return hessian.reshape(w.size, w.size)


def _times(rows: np.ndarray | sp.csr_matrix, factor: np.ndarray) -> np.ndarray | sp.csr_matrix:
    """Each row times its factor."""
    return sp.diags_array(factor) @ rows if sp.issparse(rows) else rows * factor[:, None]


def objective(problem: Problem, scaled: bool = True) -> Objective:
    """F of a problem, with scaled columns or with the columns as they are."""
    X, p = problem.X, problem.X.shape[1]
    centre, scale = np.zeros(p), np.ones(p)
    if scaled:
        X = X.toarray() if sp.issparse(X) and p <= DENSE_COLUMNS else X
        centre, scale = _centre_and_scale(X)
    if sp.issparse(X):
        rows = X.astype(float).tocsr(copy=True)
        rows.data = (rows.data - centre[rows.indices]) / scale[rows.indices]
        rows = sp.csr_array(sp.hstack([rows, np.ones((X.shape[0], 1))], format="csr"))
    else:
        rows = np.c_[(X - centre) / scale, np.ones(len(X))]
    weight = np.ones(len(problem.y)) if problem.weight is None else problem.weight
    alpha = 0.0 if problem.penalty is None else problem.alpha
    y, name = problem.y, problem.loss
    if problem.outputs > 1:
        y, name = y.astype(int), "multinomial"
    elif problem.is_classification:
        y = np.where(y == y.max(), 1.0, -1.0)
    return Objective(
        rows, y, weight / weight.sum(), EXACT_LOSSES[name], problem.outputs,
        np.append(alpha * (1.0 - problem.l1_ratio) / scale**2, 0.0),
        np.append(alpha * problem.l1_ratio / scale, 0.0), centre, scale,
    )  # fmt: skip


def _centre_and_scale(X: np.ndarray | sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The median of each column that is stored in full, and the median distance of its entries from there."""
    n, p = X.shape
    centre, scale = np.zeros(p), np.ones(p)
    columns = X.tocsc() if sp.issparse(X) else X
    for j in range(p):
        entries = columns.data[columns.indptr[j] : columns.indptr[j + 1]] if sp.issparse(X) else columns[:, j]
        centre[j] = np.median(entries) if len(entries) == n else 0.0
        distance = np.abs(entries - centre[j])
        scale[j] = np.median(distance[distance > 0]) if distance.any() else 1.0
    return centre, scale


class Factor:
    """Cholesky factor of a positive semidefinite matrix, scaled to a diagonal of ones.

    A singular matrix gets the least multiple of the identity that makes it positive definite.
    """

    def __init__(self, matrix: np.ndarray):
        diagonal = np.sqrt(np.diag(matrix))
        self.diagonal = np.where(diagonal > 0, diagonal, 1.0)
        scaled = matrix / self.diagonal / self.diagonal[:, None]
        for shift in (0.0, *10.0 ** np.arange(-15, 1)):
            try:
                self.lower = cho_factor(scaled + shift * np.eye(len(scaled)), lower=True)[0]
                return
            except np.linalg.LinAlgError:
                continue
        raise np.linalg.LinAlgError("the matrix is not finite, or far from positive semidefinite")

    def solve(self, vector: np.ndarray) -> np.ndarray:
        return cho_solve((self.lower, True), vector / self.diagonal) / self.diagonal

    def squared_norms(self, vectors: np.ndarray) -> np.ndarray:
        """v' M^-1 v of each row v."""
        half = solve_triangular(self.lower, (vectors / self.diagonal).T, lower=True)
        return (half**2).sum(axis=0)


def suboptimality_bound(F: Objective, w: np.ndarray) -> float:
    """A bound of F(w) - F*, exact but for rounding; infinite where none is found.

    Let v be a subgradient of F at w. Let H be a lower bound of the Hessian as long as no prediction moves by more than
    its reach. There, F(u) >= F(w) + v'(u - w) + |u - w|_H^2 / 2. Where |u - w|_H = 2 |v|_{H^-1}, the right side is at
    least F(w). So if this ellipsoid lies within all reaches, it holds a minimum, and F* >= F(w) - |v|_{H^-1}^2 / 2.
    """
    gradient, l1 = F.gradient(w).ravel(), np.tile(F.l1, F.outputs)
    fixed = (w.ravel() == 0) & (l1 > 0)
    v, free, reach = gradient + l1 * np.sign(w.ravel()), ~fixed, np.zeros(len(F.y))
    for _ in range(6):
        hessian = F.hessian(w, reach)
        # Where w is zero, v may be chosen. This choice is the best one if it is a subgradient.
        step = Factor(hessian[np.ix_(free, free)]).solve(v[free])
        v[fixed] = np.clip(hessian[np.ix_(fixed, free)] @ step, (gradient - l1)[fixed], (gradient + l1)[fixed])
        factor = Factor(hessian)
        squared = float(factor.squared_norms(v[None])[0])
        needed = 2.0 * np.sqrt(squared * _leverages(F, factor))
        if (needed <= reach).all():
            return 0.5 * squared
        reach = np.maximum(reach, 2.0 * needed)
    return np.inf


def _leverages(F: Objective, factor: Factor, block: int = 4096) -> np.ndarray:
    """a_i' H^-1 a_i of each row, the largest over the outputs."""
    found, size = np.zeros(len(F.y)), len(F.ridge)
    for start in range(0, len(F.y), block):
        some = F.rows[start : start + block]
        some = some.toarray() if sp.issparse(some) else some
        for k in range(F.outputs):
            vectors = np.zeros((len(some), F.outputs * size))
            vectors[:, k * size : (k + 1) * size] = some
            norms = factor.squared_norms(vectors)
            found[start : start + block] = np.maximum(found[start : start + block], norms)
    return found


def _barrier(l1: np.ndarray, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, slopes and curvatures of the least l1 t - mu log(t^2 - w^2) over t, which nears l1 |w| as mu falls."""
    root = np.sqrt(mu**2 + (l1 * w) ** 2)
    value = float((root - mu * np.log(mu + root)).sum())
    return value, l1**2 * w / (mu + root), l1**2 * mu / (root * (mu + root))


def _newton(F: Objective, w: np.ndarray, mu: float, enough: float) -> np.ndarray:
    """Newton's method on the smooth part, with the barrier of mu in place of the L1 part."""

    def value(w: np.ndarray) -> float:
        return F.smooth(w) + (_barrier(F.l1, w, mu)[0] if mu else 0.0)

    progress = Progress(enough)
    for _ in range(500):
        gradient, hessian = F.gradient(w), F.hessian(w)
        if mu:
            _, slopes, curvatures = _barrier(F.l1, w, mu)
            gradient = gradient + slopes
            hessian[np.diag_indices(w.size)] += curvatures.ravel()
        step = Factor(hessian).solve(gradient.ravel()).reshape(w.shape)
        decrement = float((gradient * step).sum())
        if progress.ends(w, decrement):
            break
        w = w - _line_search(value, w, step, decrement) * step
    return progress.w


class Progress:
    """The best point so far, by the squared Newton decrement, and whether to go on.

    A run ends where the decrement is below `enough`, or no longer halves in a few steps near the end.
    """

    def __init__(self, enough: float):
        self.enough, self.best, self.w, self.steps = enough, np.inf, None, 0

    def ends(self, w: np.ndarray, decrement: float) -> bool:
        self.steps = 0 if decrement < 0.5 * self.best else self.steps + 1
        if decrement < self.best:
            self.best, self.w = decrement, w
        return decrement <= self.enough or self.steps == (5 if self.best < 1e8 * self.enough else 50)


def _line_search(value: Callable, w: np.ndarray, step: np.ndarray, decrement: float, longest: float = 1.0) -> float:
    """The length t, at most `longest`, by which w - t step is accepted."""
    here, t = value(w), longest
    slack = 1e-14 * abs(here)  # near the end values no longer tell; whole steps are right there
    while t > 1e-12 and not value(w - t * step) <= here - 1e-4 * t * decrement + slack:
        t /= 2
    return t


def _polish(F: Objective, w: np.ndarray, active: np.ndarray, enough: float) -> np.ndarray:
    """Newton's method on the active coefficients of an L1 part; the others are zero.

    Whenever the active ones are at their optimum, the inactive one with the most to gain becomes active.
    """
    signs = np.where(active, np.sign(w), 0.0)
    for _ in range(2 * w.size):
        w, active, signs = _settled(F, np.where(active, w, 0.0), active, signs, enough)
        gradient, curvature = F.gradient(w), np.diag(F.hessian(w)).reshape(w.shape)
        excess = np.where(active, 0.0, np.maximum(np.abs(gradient) - F.l1, 0.0))
        gain = excess**2 / np.where(curvature > 0, curvature, 1.0)
        worst = np.unravel_index(gain.argmax(), w.shape)
        if gain[worst] <= enough:
            break
        active, signs = active.copy(), signs.copy()
        active[worst], signs[worst] = True, -np.sign(gradient[worst])
    return w


def _settled(
    F: Objective, w: np.ndarray, active: np.ndarray, signs: np.ndarray, enough: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The optimum of the active coefficients; one that reaches zero is no longer active."""
    progress = Progress(enough)
    for _ in range(500):
        v = np.where(active, F.gradient(w) + F.l1 * signs, 0.0)
        free, step = active.ravel(), np.zeros(w.size)
        step[free] = Factor(F.hessian(w)[np.ix_(free, free)]).solve(v.ravel()[free])
        step = step.reshape(w.shape)
        decrement = float((v * step).sum())
        if progress.ends(w, decrement):
            break
        shrinks = active & (F.l1 > 0) & (step * signs > 0)
        crossing = np.where(shrinks, w, np.inf) / np.where(shrinks, step, 1.0)
        first = np.unravel_index(crossing.argmin(), w.shape)
        longest = min(1.0, float(crossing[first]))
        t = _line_search(F.value, w, step, decrement, longest) if longest > 0 else 0.0
        w = w - t * step
        if t == crossing[first]:
            w[first], active, signs = 0.0, active.copy(), signs.copy()
            active[first], signs[first] = False, 0.0
            progress = Progress(enough)
    return progress.w, active, signs


class Optimum(NamedTuple):
    """The minimum of F.

    Parameters
    ----------
    best, start : float
        F at the minimum, and at zero.
    error : float
        Proven bound of (best - F*) / (start - best).
    seconds : float
    """

    best: float
    start: float
    error: float
    seconds: float

    @property
    def is_zero(self) -> bool:
        """Whether zero is the optimum up to rounding, so that no suboptimality is defined."""
        return self.start - self.best <= 1e-13 * abs(self.start)

    def gap(self, value: float) -> float:
        """Relative suboptimality of a value of F."""
        return (value - self.best) / (self.start - self.best)


def optimum(problem: Problem, F: Objective, cache: Path | None = None) -> Optimum:
    """The minimum of the problem, from `cache` where the same one was solved before."""
    key = problem.X, problem.y, problem.weight, problem.loss, problem.penalty, problem.alpha
    kept = cache and cache / f"exact-{joblib.hash(key)}.npz"
    if kept and kept.exists():
        with np.load(kept) as file:
            return Optimum(*(float(file[name]) for name in Optimum._fields))
    began, found = time.perf_counter(), None
    for w in _minima(F, np.asarray(problem.suspect, dtype=int)):
        value, start = F.value(w), F.value(F.zero)
        bound = suboptimality_bound(F, w) / (start - value) if start > value else np.inf
        if found is None or (value, bound) < (found.best, found.error):
            found = Optimum(value, start, bound, time.perf_counter() - began)
        if found.error <= CERTAIN or found.is_zero:
            break
    if kept:
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **found._asdict())
    return found


def _minima(F: Objective, suspect: np.ndarray) -> Iterator[np.ndarray]:
    """Minima found from zero, and from the optimum without the contaminated rows."""
    yield _minimum(F, F.zero)
    if len(suspect):
        yield _minimum(F, _minimum(F.without(suspect), F.zero))


def _minimum(F: Objective, w: np.ndarray) -> np.ndarray:
    if not F.l1.any():
        return _newton(F, w, 0.0, 1e-20 * F.value(F.zero))
    scale = abs(F.value(F.zero))
    for mu in scale / w.size * 10.0 ** -np.arange(1, 14):
        w = _newton(F, w, mu, max(0.1 * mu, 1e-20 * scale))
    shrunk = np.abs(_barrier(F.l1, w, mu)[1])
    felt = w**2 * np.diag(F.hessian(w)).reshape(w.shape)  # what it costs to set a coefficient to zero
    active = (shrunk >= 0.9 * F.l1) | (felt > 100.0 * mu) | (F.l1 == 0)
    return _polish(F, w, active, 1e-26 * scale)
