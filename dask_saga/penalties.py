"""Separable penalties: each is a NamedTuple class in plain scalar Python that numba compiles.

A penalty sees one coefficient at a time; ``Penalty`` has its two methods. The intercept is never penalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numba.extending import register_jitable

__all__ = ["PENALTIES", "ElasticNet", "Penalty", "penalty_values", "resolve_penalty"]


Values = TypeVar("Values", float, np.ndarray)


class Penalty(Protocol):
    """The two methods of a penalty, which may be any NamedTuple class that has them.

    - ``value(x)``: the penalty of one coefficient.
    - ``prox(v, step)``: its proximal operator, the minimiser over x of ``(x - v)^2 / 2 + step * value(x)``.
    """

    def value(self, x: float, /) -> float:
        """Return the penalty of one coefficient."""

    def prox(self, v: float, step: float, /) -> float:
        """Return the minimiser over x of ``(x - v)^2 / 2 + step * value(x)``."""


@register_jitable
def _bounded(penalty: ElasticNet, v: float, threshold: float, shrink: float) -> float:
    """Soft-threshold v, multiply the result by `shrink`, and clip it to the bounds."""
    if penalty.l1 == 0.0 and penalty.lower == -math.inf and penalty.upper == math.inf:
        return shrink * v  # the compiler hoists this test out of the loop over columns
    # Conditional expressions instead of min and max: their NaN handling would prevent vectorisation of the loops. Each
    # expression selects one of two numbers, so it compiles without a branch that processors could mispredict.
    taken = v if v < threshold else threshold
    x = shrink * (v - (taken if taken > -threshold else -threshold))
    x = x if x > penalty.lower else penalty.lower
    return x if x < penalty.upper else penalty.upper


class ElasticNet(NamedTuple):
    """Elastic net penalty ``l1 |x| + l2 x^2 / 2`` with optional bounds on x.

    All built-in penalties are instances of this class.

    Parameters
    ----------
    l1, l2 : float, default=0.0
        Weights of the L1 and L2 parts relative to the mean loss. Raise `l1` for sparser coefficients, and `l2` for
        smaller ones.
    lower, upper : float, default=-inf and inf
        Bounds of every coefficient, in the units of the coefficients. ``ElasticNet(l2=1e-4, lower=0.0)`` keeps
        coefficients non-negative.
    """

    l1: float = 0.0
    l2: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf

    @property
    def rotates(self) -> bool:
        """Whether the penalty is rotation-invariant: it has no L1 part and no bounds."""
        return self.l1 == 0.0 and self.lower == -math.inf and self.upper == math.inf

    def value(self, x: Values) -> Values:
        return self.l1 * abs(x) + 0.5 * self.l2 * x * x

    def shrink(self, step: float) -> float:
        return 1.0 / (1.0 + step * self.l2)

    def prox(self, v: float, step: float, shrink: float | None = None) -> float:
        if shrink is None:
            shrink = 1.0 / (1.0 + step * self.l2)
        return _bounded(self, v, step * self.l1, shrink)

    def prox_of_move(self, x: float, move: float, step: float) -> float:
        return _bounded(self, x - self.l2 * step * x - move, step * self.l1, 1.0)

    def conjugate(self, v: np.ndarray) -> np.ndarray:
        """Return the convex conjugate, elementwise: the maximum of ``v x - value(x)`` over x; l2 must be positive."""
        x = np.sign(v) * np.maximum(np.abs(v) - self.l1, 0.0) / self.l2
        x = np.clip(x, self.lower, self.upper)
        return v * x - self.value(x)


# Function of alpha and l1_ratio that creates the penalty, for each name that the estimators accept.
PENALTIES: dict[str | None, Callable[[float, float], Penalty]] = {
    None: lambda alpha, l1_ratio: ElasticNet(),
    "l2": lambda alpha, l1_ratio: ElasticNet(0.0, float(alpha)),
    "l1": lambda alpha, l1_ratio: ElasticNet(float(alpha), 0.0),
    "elasticnet": lambda alpha, l1_ratio: ElasticNet(float(alpha * l1_ratio), float(alpha * (1.0 - l1_ratio))),
}


def resolve_penalty(penalty: Any, alpha: float = 1.0, l1_ratio: float = 0.15) -> Penalty:
    """Return the penalty object for a name, or check and return the user's own penalty.

    Parameters
    ----------
    penalty : str, None or object
        A key of ``PENALTIES``, or an object with ``value(x)`` and ``prox(v, step)``. `alpha` and `l1_ratio` are not
        used for an object.
    alpha : float, default=1.0
        Factor of the whole penalty, relative to the mean loss.
    l1_ratio : float, default=0.15
        Share of the L1 part in "elasticnet", from 0 to 1.

    Returns
    -------
    NamedTuple
        An ``ElasticNet``, or the user's object.

    Raises
    ------
    ValueError
        If the name is unknown, or the weights or bounds of an ``ElasticNet`` are invalid.
    TypeError
        If the object is not a NamedTuple with both methods.
    """
    if penalty is None or isinstance(penalty, str):
        if penalty not in PENALTIES:
            raise ValueError(f"penalty={penalty!r} is unknown; choose one of {list(PENALTIES)}")
        return PENALTIES[penalty](alpha, l1_ratio)
    if not (issubclass(type(penalty), tuple) and hasattr(penalty, "value") and hasattr(penalty, "prox")):
        raise TypeError(
            f"penalty is a {type(penalty).__name__}; it must be one of {list(PENALTIES)} or an instance of a "
            "typing.NamedTuple class with value and prox"
        )
    if isinstance(penalty, ElasticNet):
        finite = 0 <= penalty.l1 < math.inf and 0 <= penalty.l2 < math.inf
        if not (finite and penalty.lower <= penalty.upper and penalty.lower < math.inf and penalty.upper > -math.inf):
            raise ValueError(
                f"penalty={penalty} needs finite l1 >= 0 and l2 >= 0, and lower <= upper with room between"
            )
        return ElasticNet(*map(float, penalty))
    return penalty


def penalty_values(penalty: Penalty, values: np.ndarray) -> np.ndarray:
    """Return the penalty of each coefficient in an array."""
    if isinstance(penalty, ElasticNet):
        return penalty.value(values)
    return np.array([penalty.value(float(one)) for one in values.ravel()]).reshape(values.shape)
