"""The grid of penalties of a path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq

from ..losses import MultinomialLogLoss

if TYPE_CHECKING:
    from ..data.statistics import ColumnStats
    from .problem import Problem

__all__ = ["alpha_grid"]


# Smallest alpha of a grid, relative to the largest: with and without an L1 part.
L1_SPAN, L2_SPAN = 1e-3, 1e-6

# Share by which the largest alpha is raised, so that rounding leaves no coefficient.
ROUNDED = 1e-10

# Largest absolute intercept, in units of the linear prediction, that is searched for.
LARGEST_INTERCEPT = 1e3


def alpha_grid(count: int, l1_share: float, zero: np.ndarray, stats: ColumnStats, problem: Problem) -> np.ndarray:
    """Return a geometric grid of alphas, from the largest to the smallest.

    With an L1 part it begins at the smallest alpha at which all coefficients are zero. This is the largest entry of the
    mean gradient at zero, where the intercept is at its optimum, divided by the share of the L1 part. Without one, it
    begins at the median curvature of the columns: the bound of the loss times the variance.

    Parameters
    ----------
    count : int
        Number of alphas.
    l1_share : float
        Share of the L1 part in the penalty.
    zero : ndarray of shape (k, p + 1)
        Sum of the gradients at x = 0.
    stats : ColumnStats
    problem : Problem

    Returns
    -------
    ndarray of shape (count,)
    """
    if l1_share > 0:
        gradient = _gradient_without_coefficients(zero, stats, problem)
        largest, span = float(np.abs(gradient).max()) * (1.0 + ROUNDED) / l1_share, L1_SPAN
    else:
        bound = problem.loss.curvature
        variances = stats.squares[stats.squares > 0] / stats.weight
        largest = float(np.median(variances)) * (stats.target if bound is None else bound) if len(variances) else 0.0
        span = L2_SPAN
    largest = largest if largest > 0 else 1.0  # y does not depend on any column
    return np.geomspace(largest, largest * span, count)


def _gradient_without_coefficients(zero: np.ndarray, stats: ColumnStats, problem: Problem) -> np.ndarray:
    """Return the mean gradient of the coefficients at zero, with the intercept at its optimum.

    There the derivatives of the rows sum to zero. For squared error, Poisson and log losses the intercept adds a
    multiple of the sum of the rows to the gradient, so that this multiple is known. For other losses with two labels it
    changes the derivative of each label: the gradient is proportional to the difference of the mean rows of both
    labels. For other losses (Huber, a user's own) the result is an estimate.
    """
    mean = zero / stats.weight
    if not problem.fit_intercept:
        return mean[:, :-1]
    centred = mean[:, :-1] - mean[:, -1:] * stats.mean
    loss, labels = problem.loss, getattr(problem.loss, "labels", None)
    if isinstance(loss, MultinomialLogLoss) or not labels or len(labels) != 2:
        return centred
    return centred * np.array([[_label_factor(loss, labels, own)] for own in mean[:, -1]])


def _label_factor(loss: Any, labels: tuple, slope: float) -> float:
    """Return the factor of the centred gradient of one output, from the mean derivative at zero."""
    at_zero = [loss.derivative(0.0, label) for label in labels]
    share = (slope - at_zero[0]) / (at_zero[1] - at_zero[0])  # of the weight that has the second label
    if not 0.0 < share < 1.0:
        return 1.0

    def derivative(c: float) -> float:
        return (1.0 - share) * loss.derivative(c, labels[0]) + share * loss.derivative(c, labels[1])

    ends = -LARGEST_INTERCEPT, LARGEST_INTERCEPT
    if not derivative(ends[0]) < 0.0 < derivative(ends[1]):
        return 1.0
    c = brentq(derivative, *ends)
    return float((loss.derivative(c, labels[0]) - loss.derivative(c, labels[1])) / (at_zero[0] - at_zero[1]))
