"""Minimise a quadratic plus the penalty, for one output.

A smooth penalty needs one Cholesky factor. Other penalties use coordinate descent with exact solutions on the support.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ..kernels.epoch import kernels_for
from ..penalties import ElasticNet, Penalty, penalty_values

if TYPE_CHECKING:
    from .problem import Problem

__all__ = ["is_free", "is_smooth", "proximal_step", "smooth_step", "step_with_intercepts"]


# Ridge that keeps the Cholesky factors of dependent columns positive. Unit: diagonal of the matrix.
RIDGE = 1e-11

# Maximum number of sweeps in a round of coordinate descent; maximum number of rounds. With ElasticNet,
# each round ends with an exact solution on the support.
SWEEPS, SUPPORT_ROUNDS = 50, 30
# Maximum number of Cholesky factors of one exact solution. Coordinate descent continues from its result.
FACTORS = 5

# Coordinate descent ends if a round gains at most this fraction of the decrease.
LEFT = 1e-6


def is_smooth(penalty: Penalty) -> bool:
    """Return whether the penalty is smooth: L2 or none, without bounds."""
    return isinstance(penalty, ElasticNet) and penalty.rotates


def is_free(penalty: Penalty) -> bool:
    """Return whether the coefficients have neither a penalty nor bounds."""
    return isinstance(penalty, ElasticNet) and penalty.rotates and penalty.l2 == 0


def smooth_step(hessian: np.ndarray, slope: np.ndarray, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, float]:
    """Minimise ``slope'd + d'H d / 2`` plus a smooth penalty of ``x + d``.

    Return d and the decrease. H is a matrix of shape (p, p) or a diagonal of shape (p,).
    """
    l2 = cast(ElasticNet, problem.penalty).l2  # no other penalty ``is_smooth``
    slope = slope + l2 * x
    if hessian.ndim == 1:
        curvature = hessian + l2
        move = np.divide(-slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
    else:
        move = _solve(hessian + l2 * np.eye(len(x)), -slope)
    return move, float(-0.5 * slope @ move)


def step_with_intercepts(
    hessian: np.ndarray, slope: np.ndarray, x: np.ndarray, intercepts: np.ndarray, problem: Problem
) -> tuple[np.ndarray, float]:
    """Minimise ``slope'd + d'H d / 2`` plus the penalty of the coefficients, which intercepts do not have.

    For given coefficients the best intercepts follow from a small linear system. What remains is a problem of the
    coefficients alone, whose Hessian is a Schur complement.

    Parameters
    ----------
    hessian : ndarray of shape (blocks, d, d)
    slope : ndarray of shape (blocks, d)
    x : ndarray of shape (k, p + 1)
        Coefficients from which the step starts.
    intercepts : ndarray of bool of shape (d,)
        Mask of the intercepts.
    problem : Problem

    Returns
    -------
    step : ndarray of shape (blocks, d)
    decrease : float
    """
    step, decrease, inner = np.zeros_like(slope), 0.0, ~intercepts
    solve = smooth_step if is_smooth(problem.penalty) else proximal_step
    start = x[:, :-1].reshape(len(hessian), -1)
    for own, h, g, coefficients in zip(step, hessian, slope, start, strict=True):
        across, corner = h[np.ix_(inner, intercepts)], h[np.ix_(intercepts, intercepts)]
        reduced, down = h[np.ix_(inner, inner)], g[inner]
        if problem.fit_intercept:
            inverse = _inverse(corner)
            ratios, alone = inverse @ across.T, -inverse @ g[intercepts]
            reduced, down = reduced - across @ ratios, down + across @ alone
            decrease -= 0.5 * float(g[intercepts] @ alone)
        own[inner], gain = solve(reduced, down, coefficients, problem)
        decrease += gain
        if problem.fit_intercept:
            own[intercepts] = alone - ratios @ own[inner]
    return step, decrease


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a small positive semidefinite matrix. It is zero in directions without curvature."""
    if len(matrix) > 1:
        return np.linalg.pinv(matrix, rcond=RIDGE, hermitian=True)
    return np.divide(1.0, matrix, out=np.zeros_like(matrix), where=matrix > 0)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a linear system with a positive semidefinite matrix. The solution is zero where the diagonal is zero."""
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
    """Minimise ``slope'd + d'H d / 2`` plus a penalty of ``x + d`` that need not be smooth.

    Return d and the decrease. H is a matrix of shape (p, p) or a diagonal of shape (p,). A diagonal needs one proximal
    step. A matrix needs coordinate descent, which alternates with exact solutions on the support.
    """
    penalty, descend = problem.penalty, kernels_for(problem.loss, problem.penalty).coordinate_descent
    if hessian.ndim == 1:  # the coordinates are independent
        step = np.divide(1.0, hessian, out=np.zeros(len(x)), where=hessian > 0)
        out = np.empty_like(x)
        kernels_for(problem.loss, penalty).proximal_step(x, slope, step, 1.0, penalty, out)
        move = np.where(step > 0, out - x, 0.0)
        gains = slope * move + 0.5 * hessian * move**2 + penalty_values(penalty, x + move) - penalty_values(penalty, x)
        return move, max(-float(gains.sum()), 0.0)

    before_move = penalty_values(penalty, x)

    def left(move: np.ndarray) -> float:
        change = (penalty_values(penalty, x + move) - before_move).sum()
        return float(slope @ move + 0.5 * move @ hessian @ move + change)

    move, best = np.zeros_like(x), 0.0
    for _ in range(SUPPORT_ROUNDS):
        before = best
        now = slope + hessian @ move
        descend(hessian, now, x, move, penalty, SWEEPS, LEFT * abs(best) / len(x))
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
    """Minimise over the support: the coefficients that are not at a bound and, with L1, not at zero.

    The step stops where the first coefficient reaches zero or a bound. This coefficient leaves the support, and the
    next step is computed without it.
    """
    move = move.copy()
    for _ in range(min(len(x), FACTORS)):
        there = x + move
        free = (there > penalty.lower) & (there < penalty.upper) & ((there != 0) | (penalty.l1 == 0))
        if not free.any():
            break
        now = (slope + hessian @ move + penalty.l1 * np.sign(there) + penalty.l2 * there)[free]
        toward = _solve(hessian[np.ix_(free, free)] + penalty.l2 * np.eye(free.sum()), -now)
        own = there[free]
        ends = np.where(toward > 0, penalty.upper, penalty.lower)
        if penalty.l1:  # a coefficient must not change its sign
            ends = np.where(own * toward < 0, np.clip(0.0, penalty.lower, penalty.upper), ends)
        reach = np.divide(ends - own, toward, out=np.full_like(own, np.inf), where=toward != 0)
        share = min(1.0, reach.min())
        new = own + share * toward
        new = np.where(reach <= share, ends, new)
        move[free] = new - x[free]
        if share == 1.0:
            break
    return move
