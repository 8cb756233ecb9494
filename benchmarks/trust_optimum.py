"""The exact objective of a data set of trust.py, and its minimum by Newton's method.

F(x) = mean of the losses + 0.5 ALPHA |x|^2, the intercept unpenalised; nothing here is
the package's, so that a mistake there cannot hide in its own reference.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import exact_optimum
import joblib
import numpy as np
import scipy.sparse as sp
from exact_optimum import Objective, Problem
from scipy.linalg import solve
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import entr, expit
from trust_sets import DataSet

ALPHA = 1e-4  # the default of the estimators
EXACT_COLUMNS = 2000  # above, conjugate gradients in place of the Hessian


def newton_step(F: Objective, w: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The Hessian's inverse times the gradient: exact, or by conjugate gradients where columns are many."""
    if F.rows.shape[1] <= EXACT_COLUMNS:
        return solve(F.hessian(w), gradient.ravel(), assume_a="pos").reshape(gradient.shape)
    # One output.
    weight = F.weight * F.loss.curvature(F.rows @ w.T, F.y, 0.0)[:, 0, 0]
    diagonal = np.asarray(weight @ F.rows.power(2)).ravel() + F.ridge

    def product(v: np.ndarray) -> np.ndarray:
        return F.rows.T @ (weight * (F.rows @ v)) + F.ridge * v

    hessian = LinearOperator((w.size, w.size), matvec=product, dtype=float)
    by_diagonal = LinearOperator((w.size, w.size), matvec=lambda v: v / diagonal, dtype=float)
    return cg(hessian, gradient[0], rtol=1e-4, maxiter=2000, M=by_diagonal)[0][None]


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
    problem = Problem(data.name, data.X, data.y, data.loss, alpha=ALPHA)
    return exact_optimum.objective(problem, scaled=False)


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
        step = newton_step(solver, w, gradient)
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
