"""Losses: one NamedTuple each, plain Python.

A loss sees one row's linear prediction ``z`` and target ``y`` and knows nothing of
data, chunks or sparsity. The kernels reach its methods through the free functions
below, which numba compiles and inlines; calling the methods directly runs them as
ordinary Python, which is what the tests' oracles do.

A new loss is a class of this form: ``value(z, y)``, ``derivative(z, y)`` and ``curvature``,
an upper bound of the second derivative in z (a property where it depends on a field).
``labels = (-1.0, 1.0)`` makes it a classifier's: y then takes these two values. Where it
has ``probability(z)`` too, the classifier has ``predict_proba``. ``dask_saga`` takes an
instance wherever it takes a loss's name; it need not be registered here. ``least_target``
bounds y from below; ``quadratic = True`` tells that the curvature is the same everywhere;
``curvature_at(z, y)``, the second derivative itself, pays where it costs less than a derivative.
``second_derivative(z, y)`` is used by Newton steps and the stopping test; without it, and without
``curvature_at``, they take differences of derivatives. Give it where the loss has corners in its derivative.

Several outputs are so many independent problems on the same rows, unless the loss has
``outputs``, their number: it then sees them together, ``value(z, y)`` with ``z`` an array
and ``derivative(z, y, out)`` writing an array.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, softmax

__all__ = [
    "LOSSES",
    "Huber",
    "LogLoss",
    "ModifiedHuber",
    "MultinomialLogLoss",
    "PoissonLoss",
    "SmoothHinge",
    "SquaredError",
    "SquaredHinge",
    "resolve_loss",
]


class LogLoss(NamedTuple):
    """Logistic loss ``log(1 + exp(-y z))`` of labels y in {-1, 1}.

    The loss of the post and of logistic regression (SAGA paper, section 5).
    """

    curvature = 0.25
    labels = (-1.0, 1.0)

    def value(self, z, y):
        margin = y * z
        e = math.exp(-abs(margin))
        return max(-margin, 0.0) + (math.log(1.0 + e) if e > 1e-3 else math.log1p(e))  # log takes half the time

    def derivative(self, z, y):
        margin = y * z
        e = math.exp(-abs(margin))  # never beyond 1, and no branch around it
        return -y * (e if margin > 0 else 1.0) / (1.0 + e)

    def curvature_at(self, z, y):
        e = math.exp(-abs(y * z))
        return e / (1.0 + e) ** 2

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Probability of the label 1 at linear predictions ``z``."""
        return expit(z)


class SquaredHinge(NamedTuple):
    """Squared hinge ``max(0, 1 - y z)^2`` of labels y in {-1, 1}, as in scikit-learn's ``SGDClassifier``."""

    curvature = 2.0
    labels = (-1.0, 1.0)

    def value(self, z, y):
        return max(0.0, 1.0 - y * z) ** 2

    def derivative(self, z, y):
        return -2.0 * y * max(0.0, 1.0 - y * z)

    def second_derivative(self, z, y):
        return 2.0 if y * z < 1.0 else 0.0


class ModifiedHuber(NamedTuple):
    """Squared hinge that goes on as the line ``-4 y z`` below the margin -1 (Zhang 2004)."""

    curvature = 2.0
    labels = (-1.0, 1.0)

    def value(self, z, y):
        margin = y * z
        return max(0.0, 1.0 - margin) ** 2 if margin > -1.0 else -4.0 * margin

    def derivative(self, z, y):
        return -2.0 * y * min(2.0, max(0.0, 1.0 - y * z))

    def second_derivative(self, z, y):
        return 2.0 if -1.0 < y * z < 1.0 else 0.0

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Probability of the label 1 at linear predictions ``z`` (Zhang 2004)."""
        return (np.clip(z, -1.0, 1.0) + 1.0) / 2.0


class SmoothHinge(NamedTuple):
    """Hinge with a parabola for its corner (Shalev-Shwartz, Zhang 2013).

    Parameters
    ----------
    gamma : float, default=1.0
        Width of the parabola in units of the margin.
    """

    gamma: float = 1.0

    labels = (-1.0, 1.0)

    @property
    def curvature(self) -> float:
        return 1.0 / self.gamma if self.gamma > 0 else math.nan

    def value(self, z, y):
        slack = 1.0 - y * z
        if slack > self.gamma:
            return slack - 0.5 * self.gamma
        return 0.5 * max(0.0, slack) ** 2 / self.gamma

    def derivative(self, z, y):
        return -y * min(1.0, max(0.0, 1.0 - y * z) / self.gamma)

    def second_derivative(self, z, y):
        return 1.0 / self.gamma if 0.0 < 1.0 - y * z < self.gamma else 0.0


class MultinomialLogLoss(NamedTuple):
    """Cross entropy ``log(sum_k exp(z_k)) - z_y`` of classes y in {0, ..., n_classes - 1}.

    Curvature: half the identity bounds its Hessian (Böhning 1992).

    Parameters
    ----------
    n_classes : int
    """

    n_classes: int

    curvature = 0.5

    @property
    def outputs(self) -> int:
        return self.n_classes

    @property
    def labels(self) -> tuple:
        return tuple(map(float, range(self.n_classes)))

    def value(self, z, y):
        top, total = z.max(), 0.0
        for k in range(z.size):
            total += math.exp(z[k] - top)
        return math.log(total) + top - z[int(y)]

    def derivative(self, z, y, out):
        top, total = z.max(), 0.0
        for k in range(z.size):
            out[k] = math.exp(z[k] - top)
            total += out[k]
        for k in range(z.size):
            out[k] /= total
        out[int(y)] -= 1.0

    def second_derivatives(self, z, y, out):
        top, total = z.max(), 0.0
        for k in range(z.size):
            out[k] = math.exp(z[k] - top)
            total += out[k]
        for k in range(z.size):
            out[k] = out[k] / total * (1.0 - out[k] / total)

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Probabilities of the classes at linear predictions ``z`` of shape (n, n_classes)."""
        return softmax(z, axis=1)


class SquaredError(NamedTuple):
    """Squared error ``(z - y)^2 / 2``, as in scikit-learn's ``SGDRegressor``."""

    curvature = 1.0
    quadratic = True
    labels = None

    def value(self, z, y):
        return 0.5 * (z - y) * (z - y)

    def derivative(self, z, y):
        return z - y

    def second_derivative(self, z, y):
        return 1.0


class Huber(NamedTuple):
    """Squared error within `epsilon` of the target, and a line beyond (Huber 1964).

    Parameters
    ----------
    epsilon : float, default=1.35
        In units of the target; unlike in ``HuberRegressor`` no scale is estimated.
    """

    epsilon: float = 1.35

    labels = None

    @property
    def curvature(self) -> float:
        return 1.0 if self.epsilon > 0 else math.nan

    def value(self, z, y):
        r = abs(z - y)
        return 0.5 * r * r if r <= self.epsilon else self.epsilon * (r - 0.5 * self.epsilon)

    def derivative(self, z, y):
        return max(-self.epsilon, min(self.epsilon, z - y))

    def second_derivative(self, z, y):
        return 1.0 if abs(z - y) < self.epsilon else 0.0


class PoissonLoss(NamedTuple):
    """Half the Poisson deviance but for a constant, ``exp(z) - y z``, for counts or rates y >= 0 and a log link.

    No number bounds its curvature exp(z): the kernels follow ``curvature_at``, and steps
    take the mean target for it, which is its mean at the optimum.
    """

    curvature = None
    labels = None
    least_target = 0.0

    def value(self, z, y):
        return math.exp(z) - y * z

    def derivative(self, z, y):
        return math.exp(z) - y

    def curvature_at(self, z, y):
        return math.exp(z)

    def mean(self, z: np.ndarray) -> np.ndarray:
        """Expected target at linear predictions ``z``."""
        return np.exp(z)


LOSSES: dict[str, type] = {
    "log_loss": LogLoss,
    "squared_hinge": SquaredHinge,
    "modified_huber": ModifiedHuber,
    "smooth_hinge": SmoothHinge,
    "squared_error": SquaredError,
    "huber": Huber,
    "poisson": PoissonLoss,
}


def resolve_loss(loss: Any) -> Any:
    """The loss object behind a name, or the user's own object itself.

    Parameters
    ----------
    loss : str or object
        A key of ``LOSSES``, or an object as the module describes. Where no number bounds its
        curvature, that is None, and ``curvature_at(z, y)`` is the second derivative; beside a bound
        it spares a second derivative of each row. A regression loss with ``mean(z)`` predicts that.

    Returns
    -------
    NamedTuple
        The loss.

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
    if loss.curvature is None and not hasattr(loss, "curvature_at"):
        raise TypeError(f"loss: {kind}.curvature is None; give its upper bound, or a method curvature_at(z, y)")
    if loss.curvature is not None and not 0 < loss.curvature < math.inf:
        raise ValueError(f"loss={loss} has curvature {loss.curvature}; its parameters must make it positive and finite")
    if hasattr(loss, "outputs"):
        return loss
    for method in (loss.value, loss.derivative):
        for y in getattr(loss, "labels", None) or (0.0,):
            try:
                float(method(0.5, y))
            except Exception as error:
                raise TypeError(f"loss: {kind}.{method.__name__}(0.5, {y}) failed: {error!r}") from error
    return loss
