"""Pointwise losses: one NamedTuple each, plain scalar Python.

A loss sees one row's linear prediction ``z`` and target ``y`` and knows nothing of
data, chunks or sparsity. The kernels reach its methods through the free functions
below, which numba compiles and inlines; calling the methods directly runs them as
ordinary Python, which is what the tests' oracles do.

A new loss is a class of this form: ``value(z, y)``, ``derivative(z, y)`` and ``curvature``,
an upper bound of the second derivative in z (a property where it depends on a field).
``labels = (-1.0, 1.0)`` makes it a classifier's: y then takes these two values. Where it
has ``probability(z)`` too, the classifier has ``predict_proba``. ``dask_saga`` takes an
instance wherever it takes a loss's name; it need not be registered here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from scipy.special import expit

__all__ = ["LOSSES", "LogLoss", "SquaredError", "derivative", "resolve_loss", "value"]

# Not True: that would also set nnan and ninf, which remove the isfinite checks.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


class LogLoss(NamedTuple):
    """Logistic loss ``log(1 + exp(-y z))`` of labels y in {-1, 1}.

    The loss of the post and of logistic regression (SAGA paper, section 5).
    """

    curvature = 0.25
    labels = (-1.0, 1.0)

    def value(self, z, y):
        margin = y * z
        if margin > 0:
            return math.log1p(math.exp(-margin))
        return -margin + math.log1p(math.exp(margin))

    def derivative(self, z, y):
        margin = y * z
        if margin > 0:
            e = math.exp(-margin)
            return -y * e / (1.0 + e)
        return -y / (1.0 + math.exp(margin))

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Probability of the label 1 at linear predictions ``z``."""
        return expit(z)


class SquaredError(NamedTuple):
    """Squared error ``(z - y)^2 / 2``, as in scikit-learn's ``SGDRegressor``."""

    curvature = 1.0
    labels = None

    def value(self, z, y):
        return 0.5 * (z - y) * (z - y)

    def derivative(self, z, y):
        return z - y


LOSSES: dict[str, type] = {"log_loss": LogLoss, "squared_error": SquaredError}


def resolve_loss(loss: Any) -> Any:
    """The loss object behind a name, or the user's own object itself.

    Parameters
    ----------
    loss : str or object
        A key of ``LOSSES``, or an object with ``value(z, y)``, ``derivative(z, y)``
        and ``curvature``, the upper bound of the second derivative in z.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If the object lacks one of the three, is no NamedTuple, or fails when called.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; choose one of {sorted(LOSSES)}")
        return LOSSES[loss]()
    kind = type(loss).__name__
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}; give an instance: {loss.__name__}()")
    missing = [name for name in ("value", "derivative", "curvature") if not hasattr(loss, name)]
    if missing:
        raise TypeError(f"loss is a {kind} without {', '.join(missing)}; give a name from {sorted(LOSSES)} or a loss")
    if not isinstance(loss, tuple):
        raise TypeError(f"loss is a {kind}, which numba cannot compile: make its class a typing.NamedTuple")
    for method in (loss.value, loss.derivative):
        for y in getattr(loss, "labels", None) or (0.0,):
            try:
                float(method(0.5, y))
            except Exception as error:
                raise TypeError(f"loss: {kind}.{method.__name__}(0.5, {y}) failed: {error!r}") from error
    return loss


def value(loss, z, y):
    """The loss at one linear prediction; callable from compiled code."""
    return loss.value(z, y)


def derivative(loss, z, y):
    """The loss's derivative in z at one linear prediction; callable from compiled code."""
    return loss.derivative(z, y)


# strict=False: the methods call their first argument self.
@overload(value, strict=False, jit_options={"fastmath": FASTMATH})
def _value(loss, z, y):
    return loss.instance_class.value


@overload(derivative, strict=False, jit_options={"fastmath": FASTMATH})
def _derivative(loss, z, y):
    return loss.instance_class.derivative
