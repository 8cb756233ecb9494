"""The exact objective of a data set of trust.py, and its minimum by Newton's method.

F(x) = mean of the losses + 0.5 ALPHA |x|^2, the intercept unpenalised; nothing here is
the package's, so that a mistake there cannot hide in its own reference.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import scipy.sparse as sp
from scipy.linalg import solve
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import entr, expit, logsumexp, softmax
from trust_sets import DataSet

ALPHA, EPSILON = 1e-4, 1.35  # the defaults of the estimators and of Huber's loss
EXACT_COLUMNS = 2000  # above, conjugate gradients in place of the Hessian


class Objective(NamedTuple):
    """F and its derivatives at coefficients of shape (outputs, p + 1), the intercept last.

    Parameters
    ----------
    rows : ndarray or csr_matrix of shape (n, p + 1)
        With a last column of ones.
    y : ndarray of shape (n,)
    loss : str
    outputs : int
    ridge : ndarray of shape (p + 1,)
        What multiplies half the square of each coefficient.
    """

    rows: np.ndarray | sp.csr_matrix
    y: np.ndarray
    loss: str
    outputs: int
    ridge: np.ndarray

    def value(self, w: np.ndarray) -> float:
        z, y = self.rows @ w.T, self.y[:, None]
        if self.loss == "squared_error":
            losses = 0.5 * (z - y) ** 2
        elif self.loss == "huber":
            r = np.abs(z - y)
            losses = np.where(r <= EPSILON, 0.5 * r**2, EPSILON * r - 0.5 * EPSILON**2)
        elif self.outputs == 1:
            losses = np.logaddexp(0, np.where(y == 1, -z, z))
        else:
            losses = logsumexp(z, axis=1) - z[np.arange(len(z)), self.y]
        return float(losses.mean() + 0.5 * (self.ridge * w**2).sum())

    def gradient(self, w: np.ndarray) -> np.ndarray:
        z, y = self.rows @ w.T, self.y[:, None]
        if self.loss == "squared_error":
            slopes = z - y
        elif self.loss == "huber":
            slopes = np.clip(z - y, -EPSILON, EPSILON)
        elif self.outputs == 1:
            slopes = np.where(y == 1, -expit(-z), expit(z))
        else:
            slopes = softmax(z, axis=1) - (y == np.arange(self.outputs))
        return (self.rows.T @ slopes).T / len(z) + self.ridge * w

    def curvature(self, w: np.ndarray) -> np.ndarray:
        """Second derivatives of each row's loss in its linear predictions, (n, outputs, outputs)."""
        z = self.rows @ w.T
        if self.loss == "squared_error":
            return np.ones((len(z), 1, 1))
        if self.loss == "huber":
            return 1.0 * (np.abs(z - self.y[:, None]) <= EPSILON)[:, :, None]
        if self.outputs == 1:
            return (expit(z) * expit(-z))[:, :, None]
        chance = softmax(z, axis=1)
        return chance[:, :, None] * (np.eye(self.outputs) - chance[:, None, :])

    def newton_step(self, w: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        curvature, n = self.curvature(w), len(self.y)
        size = self.rows.shape[1]
        if size > EXACT_COLUMNS:  # one output
            weight = curvature[:, 0, 0]
            diagonal = np.asarray(weight @ self.rows.power(2)).ravel() / n + self.ridge

            def product(v: np.ndarray) -> np.ndarray:
                return self.rows.T @ (weight * (self.rows @ v)) / n + self.ridge * v

            hessian = LinearOperator((size, size), matvec=product, dtype=float)
            by_diagonal = LinearOperator((size, size), matvec=lambda v: v / diagonal, dtype=float)
            return cg(hessian, gradient[0], rtol=1e-4, maxiter=2000, M=by_diagonal)[0][None]
        hessian = np.empty((self.outputs, size, self.outputs, size))
        for a in range(self.outputs):
            for b in range(a + 1):
                block = self.rows.T @ (curvature[:, a, b, None] * self.rows) / n
                hessian[a, :, b], hessian[b, :, a] = block, block.T
            hessian[a, :, a] += np.diag(self.ridge)
        if self.outputs > 1:
            # A constant added to all intercepts changes nothing; this keeps it at zero.
            hessian[:, -1, :, -1] += 1.0
        hessian = hessian.reshape(gradient.size, gradient.size)
        return solve(hessian, gradient.ravel(), assume_a="pos").reshape(gradient.shape)


class Optimum(NamedTuple):
    """The minimum of F for a data set.

    Parameters
    ----------
    best : float
    start : float
        F at zero.
    w : ndarray of shape (outputs, p + 1)
    error : float
        Newton's estimate of (F(w) - F*) / (F(0) - F*).
    seconds : float
    """

    best: float
    start: float
    w: np.ndarray
    error: float
    seconds: float

    def gap(self, value: float) -> float:
        """Relative suboptimality of a value of F."""
        return (value - self.best) / (self.start - self.best)


def objective(data: DataSet) -> Objective:
    """F of a data set in the columns as they are."""
    outputs = len(np.unique(data.y)) if data.task == "multiclass" else 1
    ones = np.ones((len(data.y), 1))
    rows = sp.hstack([data.X, ones], format="csr") if sp.issparse(data.X) else np.c_[data.X, ones]
    return Objective(rows, data.y, data.loss, outputs, np.append(np.full(data.X.shape[1], ALPHA), 0))


def l1_gap(F: Objective, w: np.ndarray, alpha: float) -> float:
    """A bound of how far the mean log loss + alpha |x|_1 at w lies above its minimum, by a point of the dual.

    It is that of the slopes at w, but for the intercept at which they sum to zero, shortened until none of the columns'
    sums exceeds alpha.
    """
    n, sign, offset = len(F.y), np.where(F.y == 1, 1.0, -1.0), 0.0
    z = sign * (F.rows @ w[0])
    slopes = expit(-z)
    while abs(sign @ slopes) > 1e-13 * n:  # Newton's method for the intercept alone
        offset += (sign @ slopes) / (slopes * (1.0 - slopes)).sum()
        slopes = expit(-(z + sign * offset))
    slopes *= min(1.0, alpha * n / np.abs((F.rows.T @ (sign * slopes))[:-1]).max())
    value = np.logaddexp(0.0, -z).mean() + alpha * np.abs(w[0, :-1]).sum()
    return float(value - (entr(slopes) + entr(1.0 - slopes)).mean())


def optimum(data: DataSet, cache: Path | None = None) -> Optimum:
    """F* to about 1e-14 of F(0) - F*, from `cache` where the same data were solved before."""
    kept = cache and cache / f"optimum-{joblib.hash((data.X, data.y, data.loss, ALPHA))}.npz"
    if kept and kept.exists():
        with np.load(kept) as file:
            return Optimum(*(file[name] if name == "w" else float(file[name]) for name in Optimum._fields))
    found = _solve(data)
    if kept:
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **found._asdict())
    return found


def _solve(data: DataSet) -> Optimum:
    began, raw = time.perf_counter(), objective(data)
    # A change of variables only: raw columns would cost Newton's method its last digits.
    rows, p = raw.rows, data.X.shape[1]
    if sp.issparse(rows) and p > EXACT_COLUMNS:
        mean, scale = np.zeros(p), np.sqrt(np.asarray(data.X.power(2).mean(axis=0)).ravel())
    else:
        rows = rows.toarray() if sp.issparse(rows) else rows.copy()
        mean, scale = rows[:, :-1].mean(axis=0), rows[:, :-1].std(axis=0)
    scale[scale <= 1e-12 * np.abs(mean)] = 1.0
    scale = np.append(np.where(scale > 0, scale, 1.0), 1.0)
    if sp.issparse(rows):
        rows = sp.csr_matrix(rows @ sp.diags(1 / scale))
    else:
        rows[:, :-1] -= mean
        rows /= scale
    solver = raw._replace(rows=rows, ridge=raw.ridge / scale**2)
    w = np.zeros((raw.outputs, p + 1))
    value = start = solver.value(w)
    decrement, stuck = np.inf, 0
    for _ in range(200):
        gradient = solver.gradient(w)
        step = solver.newton_step(w, gradient)
        decrement = 0.5 * float((gradient * step).sum())
        if decrement <= 1e-16 * (start - value) or stuck == 3:
            break
        t, new = 1.0, solver.value(w - step)
        # Near the end F no longer tells; full steps are right there.
        while not new <= value - 1e-4 * t * decrement + 1e-14 * abs(value) and t > 1e-10:
            t /= 2
            new = solver.value(w - t * step)
        stuck = stuck + 1 if new >= value else 0
        w, value = w - t * step, new
    x = w / scale
    x[:, -1] -= x[:, :-1] @ mean
    best = raw.value(x)
    error = max(decrement, 0.0) / (start - best)
    return Optimum(best, start, x, error, time.perf_counter() - began)
