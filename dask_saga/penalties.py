"""Separable penalties: one NamedTuple each, plain scalar Python.

A penalty sees one coefficient at a time. ``value`` must also work elementwise on
arrays; ``prox(v, step)`` is the minimiser over x of ``(x - v)^2 / 2 + step * value(x)``.
The intercept is never penalised.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

__all__ = ["PENALTIES", "ElasticNet", "penalty_values", "resolve_penalty"]


@register_jitable
def _bounded(penalty, v, threshold, shrink):
    """What is beyond the threshold, shrunk, within the bounds."""
    if penalty.l1 == 0.0 and penalty.lower == -math.inf and penalty.upper == math.inf:
        return shrink * v  # decided once a loop, not once an entry
    # Comparisons, not min and max, whose care for NaN would keep the loops from being vectorised; and each of them
    # a choice between two numbers, no branch, of which some processors guess every other one wrong.
    taken = v if v < threshold else threshold
    x = shrink * (v - (taken if taken > -threshold else -threshold))
    x = x if x > penalty.lower else penalty.lower
    return x if x < penalty.upper else penalty.upper


class ElasticNet(NamedTuple):
    """``l1 |x| + l2 x^2 / 2`` for x within bounds; the built-in penalties are values of this one type.

    Parameters
    ----------
    l1, l2 : float, default=0.0
        Weights of the two parts, in units of the mean loss per coefficient.
    lower, upper : float, default=-inf and inf
        Bounds of every coefficient: ``ElasticNet(l2=1e-4, lower=0.0)`` keeps them non-negative.
    """

    l1: float = 0.0
    l2: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf

    @property
    def rotates(self) -> bool:
        """Whether it is the same function in every orthonormal basis."""
        return self.l1 == 0.0 and self.lower == -math.inf and self.upper == math.inf

    def value(self, x):
        return self.l1 * abs(x) + 0.5 * self.l2 * x * x

    def shrink(self, step):
        return 1.0 / (1.0 + step * self.l2)

    def prox(self, v, step, shrink=None):
        if shrink is None:
            shrink = 1.0 / (1.0 + step * self.l2)
        return _bounded(self, v, step * self.l1, shrink)

    def prox_of_move(self, x, move, step):
        return _bounded(self, x - self.l2 * step * x - move, step * self.l1, 1.0)

    def conjugate(self, v):
        """The largest ``v x - value(x)`` over x, elementwise; finite for every v where l2 is positive."""
        x = np.sign(v) * np.maximum(np.abs(v) - self.l1, 0.0) / self.l2
        x = np.clip(x, self.lower, self.upper)
        return v * x - self.value(x)


PENALTIES = {
    None: lambda alpha, l1_ratio: ElasticNet(),
    "l2": lambda alpha, l1_ratio: ElasticNet(0.0, float(alpha)),
    "l1": lambda alpha, l1_ratio: ElasticNet(float(alpha), 0.0),
    "elasticnet": lambda alpha, l1_ratio: ElasticNet(float(alpha * l1_ratio), float(alpha * (1.0 - l1_ratio))),
}


def resolve_penalty(penalty: Any, alpha: float = 1.0, l1_ratio: float = 0.15) -> Any:
    """The penalty object behind a name, or the user's own object itself.

    Parameters
    ----------
    penalty : str, None or object
        A key of ``PENALTIES``, scaled by `alpha` and `l1_ratio`, or an object with
        ``value(x)`` and ``prox(v, step)``, for which the two are not used.
    alpha : float, default=1.0
        Multiplies the whole penalty.
    l1_ratio : float, default=0.15
        Share of the L1 part in "elasticnet".

    Returns
    -------
    NamedTuple
        An ``ElasticNet``, or the object.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If the object is not a NamedTuple with both methods.
    """
    if penalty is None or isinstance(penalty, str):
        if penalty not in PENALTIES:
            raise ValueError(f"penalty={penalty!r} is unknown; choose one of {list(PENALTIES)}")
        return PENALTIES[penalty](alpha, l1_ratio)
    if not (isinstance(penalty, tuple) and hasattr(penalty, "value") and hasattr(penalty, "prox")):
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


def penalty_values(penalty: Any, values: np.ndarray) -> np.ndarray:
    """The penalty of each of some coefficients."""
    if isinstance(penalty, ElasticNet):
        return penalty.value(values)
    return np.array([penalty.value(float(one)) for one in values.ravel()]).reshape(values.shape)
