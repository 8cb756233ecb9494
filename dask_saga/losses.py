"""Loss functions: each is a NamedTuple class in plain Python that numba compiles.

A loss sees the linear prediction ``z`` and the target ``y`` of one row. It knows nothing of chunks or sparsity. The
kernels call it through ``kernels.dispatch``, which lets numba compile and inline its methods. A direct call runs the
method as ordinary Python, so the tests can use it as a reference.

To define a new loss, write a NamedTuple class with the members of ``Loss`` and pass an instance wherever a loss name is
accepted; no registration is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba.extending import register_jitable
from scipy.special import expit, ndtr, softmax

__all__ = [
    "LOSSES",
    "AbsoluteError",
    "BinomialLoss",
    "CloglogLoss",
    "EpsilonInsensitive",
    "Expectile",
    "GammaLoss",
    "Hinge",
    "Huber",
    "Interval",
    "LogLoss",
    "Loss",
    "ModifiedHuber",
    "MultinomialLogLoss",
    "NegativeBinomial",
    "PoissonLoss",
    "ProbitLoss",
    "Quantile",
    "SmoothHinge",
    "SquaredError",
    "SquaredHinge",
    "Tweedie",
    "resolve_loss",
    "target_interval",
]


class Interval(NamedTuple):
    """Valid targets of a loss: the numbers from `low` to `high`.

    Parameters
    ----------
    low, high : float, default=-inf and inf
        The bounds. They are valid targets themselves, unless `above` excludes `low`.
    above : bool, default=False
        Whether targets must be above `low`.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def contains(self, y: float) -> bool:
        """Return whether a target is valid."""
        return bool(self.low < y <= self.high or (y == self.low and not self.above))

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"{'above' if self.above else 'at least'} {self.low} and at most {self.high}"
        return f"{'above' if self.above else 'at least'} {self.low}"


class Loss(Protocol):
    """The members of a loss, which may be any NamedTuple class that has them.

    z is the linear prediction of a row and y its target. Three members are required:

    - ``value(z, y)``: the loss.
    - ``derivative(z, y)``: its derivative with respect to z.
    - ``curvature``: an upper bound of its second derivative with respect to z. It is a property if it depends on a
      field, or None if there is no bound.

    Further members are optional:

    - ``labels = (-1.0, 1.0)`` makes it a loss for classifiers; y then takes these two values.
    - ``probability(z)``, the probability of the label 1, gives the classifier ``predict_proba``.
    - ``other_probability(z)``, the probability of the label -1, and ``threshold``, the z of probability 1/2, are needed
      if ``probability(-z)`` and 0 are wrong.
    - ``mean(z)``, the expected target, becomes the prediction of the regressor.
    - ``targets``, an ``Interval``, has the valid targets. ``least_target`` gives only the smallest one.
    - ``link(y)`` is the z at which the derivative is zero for targets y. A loss that is linear in y should have it if
      its ``curvature`` is None. The step size and the stopping test then refer to the model that consists of the best
      intercept only, and not to z = 0.
    - ``smoothed(width)`` is the loss with another ``width``, for a loss with corners. Its other members are then those
      of the Moreau envelope of this width, and its ``curvature`` is 1 / width. A fit tightens the width.
    - ``check()`` raises a ValueError if a parameter is invalid.
    - ``quadratic = True`` states that the second derivative is constant.
    - ``curvature_at(z, y)`` is the second derivative. It is required if ``curvature`` is None. Otherwise it saves
      time if it costs less than a derivative.
    - ``second_derivative(z, y)`` is used by Newton steps and the stopping test. Without it they use ``curvature_at``,
      and without both a difference of derivatives. Define it if the derivative has kinks.

    By default, several outputs are independent problems on the same rows. A loss that couples its outputs has the
    member ``outputs``, their number. Then ``z`` is an array, and ``derivative(z, y, out)`` writes its result into an
    array. The second derivatives are the optional ``second_derivatives(z, y, out)``.
    """

    @property
    def curvature(self) -> float | None:
        """Upper bound of the second derivative with respect to z."""

    @property
    def derivative(self) -> Callable[..., Any]:
        """The function ``derivative(z, y)``, or ``derivative(z, y, out)`` for a loss with ``outputs``."""

    def value(self, z: Any, y: float, /) -> float:
        """Return the loss at z, a number or an array of all ``outputs``."""


class LogLoss(NamedTuple):
    """Logistic loss ``log(1 + exp(-y z))`` for labels y in {-1, 1}.

    This is the loss of logistic regression (SAGA paper, section 5).
    """

    @property
    def curvature(self) -> float:
        return 0.25

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def value(self, z: float, y: float) -> float:
        margin = y * z
        e = math.exp(-abs(margin))
        return max(-margin, 0.0) + (math.log(1.0 + e) if e > 1e-3 else math.log1p(e))  # log is twice as fast

    def derivative(self, z: float, y: float) -> float:
        margin = y * z
        e = math.exp(-abs(margin))  # at most 1 for any margin, so no branch is needed
        return -y * (e if margin > 0 else 1.0) / (1.0 + e)

    def curvature_at(self, z: float, y: float) -> float:
        e = math.exp(-abs(y * z))
        return e / (1.0 + e) ** 2

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Return the probability of label 1 for linear predictions ``z``."""
        return expit(z)


# The normal distribution's log Phi(m) and phi(m) / Phi(m). Below NORMAL_TAIL the latter is taken from its continued
# fraction, because Phi(m) becomes too small for a float.
NORMAL_TAIL, NORMAL_LEVELS = -10.0, 12


@register_jitable
def _normal_hazard(m: float) -> float:
    """Return phi(m) / Phi(m), which is the derivative of log Phi(m)."""
    if m > NORMAL_TAIL:
        return math.sqrt(2.0 / math.pi) * math.exp(-0.5 * m * m) / math.erfc(-m / math.sqrt(2.0))
    t = -m
    below = t
    for level in range(NORMAL_LEVELS, 0, -1):
        below = t + level / below
    return below


class ProbitLoss(NamedTuple):
    """Probit loss ``-log(Phi(y z))`` for labels y in {-1, 1}, where Phi is the normal distribution function.

    Use it if the labels come from a normal variable that exceeds a threshold.
    """

    @property
    def curvature(self) -> float:
        return 1.0

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def value(self, z: float, y: float) -> float:
        m = y * z
        if m > 0.0:
            return -math.log1p(-0.5 * math.erfc(m / math.sqrt(2.0)))
        if m > NORMAL_TAIL:
            return -math.log(0.5 * math.erfc(-m / math.sqrt(2.0)))
        return 0.5 * m * m + math.log(_normal_hazard(m)) + 0.5 * math.log(2.0 * math.pi)

    def derivative(self, z: float, y: float) -> float:
        return -y * _normal_hazard(y * z)

    def second_derivative(self, z: float, y: float) -> float:
        hazard = _normal_hazard(y * z)
        return hazard * (hazard + y * z)

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Return the probability of label 1 for linear predictions ``z``."""
        return ndtr(z)


class CloglogLoss(NamedTuple):
    """Logistic-like loss with the complementary log-log link: P(y = 1) = 1 - exp(-exp(z)), for labels y in {-1, 1}.

    Use it if the label 1 means that at least one event of a Poisson process occurred; log exposures then add to z. The
    second derivative exp(z) of the label -1 has no upper bound.
    """

    @property
    def curvature(self) -> None:
        return None

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def value(self, z: float, y: float) -> float:
        rate = math.exp(z)
        return rate if y < 0.0 else -math.log(-math.expm1(-rate))

    def derivative(self, z: float, y: float) -> float:
        rate = math.exp(z)
        return rate if y < 0.0 else rate * math.exp(-rate) / math.expm1(-rate)

    def curvature_at(self, z: float, y: float) -> float:
        rate = math.exp(z)
        if y < 0.0:
            return rate
        none = -math.expm1(-rate)  # the probability of the label 1
        beyond = rate / none - 1.0 if rate > 1e-4 else rate * (0.5 + rate / 12.0)  # digits would cancel
        return rate * math.exp(-rate) / none * beyond

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Return the probability of label 1 for linear predictions ``z``."""
        with np.errstate(over="ignore"):
            return -np.expm1(-np.exp(z))

    def other_probability(self, z: np.ndarray) -> np.ndarray:
        """Return the probability of label -1 for linear predictions ``z``."""
        with np.errstate(over="ignore"):
            return np.exp(-np.exp(z))

    @property
    def threshold(self) -> float:
        return math.log(math.log(2.0))


class SquaredHinge(NamedTuple):
    """Squared hinge loss ``max(0, 1 - y z)^2`` for labels y in {-1, 1}, as in scikit-learn's ``SGDClassifier``."""

    @property
    def curvature(self) -> float:
        return 2.0

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def value(self, z: float, y: float) -> float:
        return max(0.0, 1.0 - y * z) ** 2

    def derivative(self, z: float, y: float) -> float:
        return -2.0 * y * max(0.0, 1.0 - y * z)

    def second_derivative(self, z: float, y: float) -> float:
        return 2.0 if y * z < 1.0 else 0.0


class ModifiedHuber(NamedTuple):
    """Squared hinge loss that is linear, ``-4 y z``, for margins ``y z`` below -1 (Zhang 2004)."""

    @property
    def curvature(self) -> float:
        return 2.0

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def value(self, z: float, y: float) -> float:
        margin = y * z
        return max(0.0, 1.0 - margin) ** 2 if margin > -1.0 else -4.0 * margin

    def derivative(self, z: float, y: float) -> float:
        return -2.0 * y * min(2.0, max(0.0, 1.0 - y * z))

    def second_derivative(self, z: float, y: float) -> float:
        return 2.0 if -1.0 < y * z < 1.0 else 0.0

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Return the probability of label 1 for linear predictions ``z`` (Zhang 2004)."""
        return (np.clip(z, -1.0, 1.0) + 1.0) / 2.0


class SmoothHinge(NamedTuple):
    """Hinge loss whose corner is replaced by a parabola (Shalev-Shwartz, Zhang 2013).

    Parameters
    ----------
    gamma : float, default=1.0
        Width of the parabola, positive, in units of the margin ``y z``. A smaller value is closer to the hinge loss but
        converges more slowly, as the curvature is 1 / gamma.
    """

    gamma: float = 1.0

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    @property
    def curvature(self) -> float:
        return 1.0 / self.gamma if self.gamma > 0 else math.nan

    def value(self, z: float, y: float) -> float:
        slack = 1.0 - y * z
        if slack > self.gamma:
            return slack - 0.5 * self.gamma
        return 0.5 * max(0.0, slack) ** 2 / self.gamma

    def derivative(self, z: float, y: float) -> float:
        return -y * min(1.0, max(0.0, 1.0 - y * z) / self.gamma)

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0 / self.gamma if 0.0 < 1.0 - y * z < self.gamma else 0.0


class MultinomialLogLoss(NamedTuple):
    """Cross entropy ``log(sum_k exp(z_k)) - z_y`` for classes y in {0, ..., n_classes - 1}.

    The curvature is 1/2, as half the identity matrix bounds the Hessian (Böhning 1992).

    Parameters
    ----------
    n_classes : int
        Number of classes, which is the number of outputs.
    """

    n_classes: int

    @property
    def curvature(self) -> float:
        return 0.5

    @property
    def outputs(self) -> int:
        return self.n_classes

    @property
    def labels(self) -> tuple[float, ...]:
        return tuple(map(float, range(self.n_classes)))

    def value(self, z: np.ndarray, y: float) -> float:
        top, total = z.max(), 0.0
        for k in range(z.size):
            total += math.exp(z[k] - top)
        return math.log(total) + top - z[int(y)]

    def derivative(self, z: np.ndarray, y: float, out: np.ndarray) -> None:
        top, total = z.max(), 0.0
        for k in range(z.size):
            out[k] = math.exp(z[k] - top)
            total += out[k]
        for k in range(z.size):
            out[k] /= total
        out[int(y)] -= 1.0

    # The softmax is written out here again: a compiled function for both takes 15 % longer for each derivative.
    def second_derivatives(self, z: np.ndarray, y: float, out: np.ndarray) -> None:
        top, total = z.max(), 0.0
        for k in range(z.size):
            out[k] = math.exp(z[k] - top)
            total += out[k]
        for k in range(z.size):
            out[k] = out[k] / total * (1.0 - out[k] / total)

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Return class probabilities for linear predictions ``z`` of shape (n, n_classes)."""
        return softmax(z, axis=1)


class SquaredError(NamedTuple):
    """Squared error ``(z - y)^2 / 2``, as in scikit-learn's ``SGDRegressor``."""

    @property
    def curvature(self) -> float:
        return 1.0

    @property
    def quadratic(self) -> bool:
        return True

    def value(self, z: float, y: float) -> float:
        return 0.5 * (z - y) * (z - y)

    def derivative(self, z: float, y: float) -> float:
        return z - y

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0


class Huber(NamedTuple):
    """Huber loss: quadratic for residuals up to `epsilon`, linear beyond (Huber 1964).

    Parameters
    ----------
    epsilon : float, default=1.35
        Residual, in units of the target, at which the loss becomes linear. Lower it for more robustness to outliers.
        Unlike ``HuberRegressor``, no scale is estimated, so set it in proportion to the noise.
    """

    epsilon: float = 1.35

    @property
    def curvature(self) -> float:
        return 1.0 if self.epsilon > 0 else math.nan

    def value(self, z: float, y: float) -> float:
        r = abs(z - y)
        return 0.5 * r * r if r <= self.epsilon else self.epsilon * (r - 0.5 * self.epsilon)

    def derivative(self, z: float, y: float) -> float:
        return max(-self.epsilon, min(self.epsilon, z - y))

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0 if abs(z - y) < self.epsilon else 0.0


class PoissonLoss(NamedTuple):
    """Poisson loss ``exp(z) - y z`` for counts or rates y >= 0, with a log link.

    It equals half the Poisson deviance up to a constant. Its second derivative exp(z) has no upper bound. The kernels
    therefore use ``curvature_at``, and step sizes use the mean target, which equals the mean of exp(z) at the optimum.
    """

    @property
    def curvature(self) -> None:
        return None

    @property
    def least_target(self) -> float:
        return 0.0

    def value(self, z: float, y: float) -> float:
        return math.exp(z) - y * z

    def derivative(self, z: float, y: float) -> float:
        return math.exp(z) - y

    def curvature_at(self, z: float, y: float) -> float:
        return math.exp(z)

    def mean(self, z: np.ndarray) -> np.ndarray:
        """Return the expected target for linear predictions ``z``."""
        return np.exp(z)


class GammaLoss(NamedTuple):
    """Gamma loss ``y exp(-z) + z`` for amounts y > 0, with a log link: half the gamma deviance up to a constant.

    It depends on the ratio of y and its mean only, so it suits amounts whose spread grows with their mean. Its second
    derivative has no upper bound.
    """

    @property
    def curvature(self) -> None:
        return None

    @property
    def targets(self) -> Interval:
        return Interval(0.0, above=True)

    def value(self, z: float, y: float) -> float:
        return y * math.exp(-z) + z

    def derivative(self, z: float, y: float) -> float:
        return 1.0 - y * math.exp(-z)

    def curvature_at(self, z: float, y: float) -> float:
        return y * math.exp(-z)

    def link(self, y: float) -> float:
        return math.log(y)

    def mean(self, z: np.ndarray) -> np.ndarray:
        """Return the expected target for linear predictions ``z``."""
        return np.exp(z)


class Tweedie(NamedTuple):
    """Half the Tweedie deviance with a log link, up to a constant: for amounts of which many are zero.

    For a power p between 1 and 2 the loss is ``y exp((1 - p) z) / (p - 1) + exp((2 - p) z) / (2 - p)``, whose second
    derivative has no upper bound. The variance of a target with the mean m is proportional to m^p.

    Parameters
    ----------
    power : float, default=1.5
        From 1 (Poisson) to 2 (gamma). Between them, targets are sums of a random number of gamma amounts, such as the
        claims of an insurance policy in a year. Outside of this range, the loss is not convex with a log link.
    """

    power: float = 1.5

    def check(self) -> None:
        if not 1.0 <= self.power <= 2.0:
            raise ValueError(
                f"loss={self}: power must be from 1 to 2, because outside of this range the loss with a log link is "
                "not convex"
            )

    @property
    def curvature(self) -> None:
        return None

    @property
    def targets(self) -> Interval:
        return Interval(0.0, above=self.power == 2.0)

    def value(self, z: float, y: float) -> float:
        # The constants make it y at z = 0 for the gamma loss and 1 for Poisson, and keep it finite near both.
        over, under = self.power - 1.0, 2.0 - self.power
        amount = -math.expm1(-over * z) / over if over > 0.0 else z
        total = math.expm1(under * z) / under if under > 0.0 else z
        return total - y * amount + y * over + under

    def derivative(self, z: float, y: float) -> float:
        return math.exp((2.0 - self.power) * z) - y * math.exp((1.0 - self.power) * z)

    def curvature_at(self, z: float, y: float) -> float:
        over, under = self.power - 1.0, 2.0 - self.power
        return under * math.exp(under * z) + y * over * math.exp(-over * z)

    def link(self, y: float) -> float:
        return math.log(y)

    def mean(self, z: np.ndarray) -> np.ndarray:
        """Return the expected target for linear predictions ``z``."""
        return np.exp(z)


@register_jitable
def _expit(z: float) -> float:
    """Return 1 / (1 + exp(-z)) without overflow."""
    e = math.exp(-abs(z))
    return (1.0 if z > 0.0 else e) / (1.0 + e)


class NegativeBinomial(NamedTuple):
    """Negative binomial loss ``(y + theta) log(theta + exp(z)) - y z`` for counts y >= 0, with a log link.

    The variance of a count with the mean m is m + m^2 / theta, more than the Poisson loss assumes.

    Parameters
    ----------
    theta : float, default=1.0
        Positive. A smaller value allows for more variance; for a large one the optimum is that of the Poisson loss.
        statsmodels calls 1 / theta alpha.
    """

    theta: float = 1.0

    def check(self) -> None:
        if not 0.0 < self.theta < math.inf:
            raise ValueError(f"loss={self}: theta must be positive and finite; use the Poisson loss for a large one")

    @property
    def curvature(self) -> None:
        return None  # the bound (y + theta) / 4 depends on the target

    @property
    def targets(self) -> Interval:
        return Interval(0.0)

    def value(self, z: float, y: float) -> float:
        # log(theta + exp(z)) = a + log(1 + exp(-|z - log(theta)|)), where a is the larger of log(theta) and z.
        base = math.log(self.theta)
        return (y + self.theta) * (max(z - base, 0.0) + math.log1p(math.exp(-abs(z - base))) + base) - y * z

    def derivative(self, z: float, y: float) -> float:
        share = _expit(z - math.log(self.theta))
        return self.theta * share - y * (1.0 - share)

    def curvature_at(self, z: float, y: float) -> float:
        share = _expit(z - math.log(self.theta))
        return (y + self.theta) * share * (1.0 - share)

    def link(self, y: float) -> float:
        return math.log(y)

    def mean(self, z: np.ndarray) -> np.ndarray:
        """Return the expected count for linear predictions ``z``."""
        return np.exp(z)


class BinomialLoss(NamedTuple):
    """Logistic loss ``log(1 + exp(z)) - y z`` for proportions y from 0 to 1, such as successes out of trials.

    Give the numbers of trials as `sample_weight`. The optimum is that of the logistic loss with one row per trial.
    """

    @property
    def curvature(self) -> float:
        return 0.25

    @property
    def targets(self) -> Interval:
        return Interval(0.0, 1.0)

    def value(self, z: float, y: float) -> float:
        return max(z, 0.0) - y * z + math.log1p(math.exp(-abs(z)))

    def derivative(self, z: float, y: float) -> float:
        return _expit(z) - y

    def curvature_at(self, z: float, y: float) -> float:
        e = math.exp(-abs(z))
        return e / (1.0 + e) ** 2

    def mean(self, z: np.ndarray) -> np.ndarray:
        """Return the expected proportion for linear predictions ``z``."""
        return expit(z)


class Expectile(NamedTuple):
    """Squared error that weighs residuals by their sign: ``|level - (y < z)| (z - y)^2`` (Newey, Powell 1987).

    Parameters
    ----------
    level : float, default=0.5
        Between 0 and 1. Targets above the prediction have this weight, those below it 1 - level. 0.5 is the squared
        error; 0.9 predicts a high expectile, which unlike a quantile depends on the size of extreme targets.
    """

    level: float = 0.5

    def check(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"loss={self}: level must be between 0 and 1")

    @property
    def curvature(self) -> float:
        return 2.0 * max(self.level, 1.0 - self.level)

    def value(self, z: float, y: float) -> float:
        return (self.level if z < y else 1.0 - self.level) * (z - y) * (z - y)

    def derivative(self, z: float, y: float) -> float:
        return 2.0 * (self.level if z < y else 1.0 - self.level) * (z - y)

    def second_derivative(self, z: float, y: float) -> float:
        return 2.0 * (self.level if z < y else 1.0 - self.level)


@register_jitable
def _slope(excess: float, width: float, low: float, high: float) -> float:
    """Return excess / width, but at least `low` and at most `high`."""
    return max(low, min(high, excess / width))


class AbsoluteError(NamedTuple):
    """Absolute error ``|z - y|``, for the median: one outlier weighs no more than another.

    Parameters
    ----------
    width : float, default=0.01
        Positive. Residuals up to this one, in units of y, count as squares in `partial_fit`. `fit` chooses widths of
        its own (``Quantile``).
    """

    width: float = 0.01

    def check(self) -> None:
        _check_width(self)

    def smoothed(self, width: float) -> AbsoluteError:
        """Return the loss with another width."""
        return self._replace(width=width)

    @property
    def curvature(self) -> float:
        return 1.0 / self.width

    def value(self, z: float, y: float) -> float:
        slope = _slope(z - y, self.width, -1.0, 1.0)
        return slope * (z - y) - 0.5 * self.width * slope * slope

    def derivative(self, z: float, y: float) -> float:
        return _slope(z - y, self.width, -1.0, 1.0)

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0 / self.width if abs(z - y) < self.width else 0.0


class Quantile(NamedTuple):
    """Quantile loss ``level (y - z)`` for y > z, else ``(1 - level) (z - y)`` (Koenker, Bassett 1978).

    Its corner is rounded over a width h: value, derivative and curvature are those of the Moreau envelope. `fit` makes
    h smaller until the optimum of the loss itself is reached within `tol`.

    Parameters
    ----------
    level : float, default=0.5
        Between 0 and 1: the share of targets below the prediction. 0.5 predicts the median, 0.9 a high quantile.
    width : float, default=0.01
        Positive. The width h for `partial_fit`, in units of y. A smaller one is closer to the quantile but converges
        more slowly.
    """

    level: float = 0.5
    width: float = 0.01

    def check(self) -> None:
        _check_width(self)
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"loss={self}: level must be between 0 and 1")

    def smoothed(self, width: float) -> Quantile:
        """Return the loss with another width."""
        return self._replace(width=width)

    @property
    def curvature(self) -> float:
        return 1.0 / self.width

    def value(self, z: float, y: float) -> float:
        slope = _slope(z - y, self.width, -self.level, 1.0 - self.level)
        return slope * (z - y) - 0.5 * self.width * slope * slope

    def derivative(self, z: float, y: float) -> float:
        return _slope(z - y, self.width, -self.level, 1.0 - self.level)

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0 / self.width if -self.level < (z - y) / self.width < 1.0 - self.level else 0.0


class EpsilonInsensitive(NamedTuple):
    """Absolute error beyond a distance, ``max(0, |z - y| - epsilon)``: that of support vector regression.

    Parameters
    ----------
    epsilon : float, default=0.1
        At least 0. Residuals up to this one, in units of y, cost nothing.
    width : float, default=0.01
        Positive. Width of the rounded corners in `partial_fit`, in units of y. `fit` chooses widths of its own
        (``Quantile``).
    """

    epsilon: float = 0.1
    width: float = 0.01

    def check(self) -> None:
        _check_width(self)
        if not 0.0 <= self.epsilon < math.inf:
            raise ValueError(f"loss={self}: epsilon must be at least 0 and finite")

    def smoothed(self, width: float) -> EpsilonInsensitive:
        """Return the loss with another width."""
        return self._replace(width=width)

    @property
    def curvature(self) -> float:
        return 1.0 / self.width

    def value(self, z: float, y: float) -> float:
        excess = max(abs(z - y) - self.epsilon, 0.0)
        slope = _slope(excess, self.width, 0.0, 1.0)
        return slope * excess - 0.5 * self.width * slope * slope

    def derivative(self, z: float, y: float) -> float:
        return math.copysign(_slope(abs(z - y) - self.epsilon, self.width, 0.0, 1.0), z - y)

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0 / self.width if 0.0 < abs(z - y) - self.epsilon < self.width else 0.0


class Hinge(NamedTuple):
    """Hinge loss ``max(0, 1 - y z)`` for labels y in {-1, 1}: that of support vector machines.

    Parameters
    ----------
    width : float, default=0.01
        Positive. Width of the rounded corner in `partial_fit`, in units of the margin ``y z``. `fit` chooses widths of
        its own (``Quantile``).
    """

    width: float = 0.01

    def check(self) -> None:
        _check_width(self)

    def smoothed(self, width: float) -> Hinge:
        """Return the loss with another width."""
        return self._replace(width=width)

    @property
    def labels(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    @property
    def curvature(self) -> float:
        return 1.0 / self.width

    def value(self, z: float, y: float) -> float:
        slope = _slope(1.0 - y * z, self.width, 0.0, 1.0)
        return slope * (1.0 - y * z) - 0.5 * self.width * slope * slope

    def derivative(self, z: float, y: float) -> float:
        return -y * _slope(1.0 - y * z, self.width, 0.0, 1.0)

    def second_derivative(self, z: float, y: float) -> float:
        return 1.0 / self.width if 0.0 < 1.0 - y * z < self.width else 0.0


def _check_width(loss: Any) -> None:
    if not 0.0 < loss.width < math.inf:
        raise ValueError(f"loss={loss}: width must be positive and finite")


# Loss class for each name that the estimators and ``saga`` accept.
LOSSES: dict[str, type[Loss]] = {
    "log_loss": LogLoss,
    "hinge": Hinge,
    "squared_hinge": SquaredHinge,
    "modified_huber": ModifiedHuber,
    "smooth_hinge": SmoothHinge,
    "probit": ProbitLoss,
    "cloglog": CloglogLoss,
    "squared_error": SquaredError,
    "huber": Huber,
    "absolute_error": AbsoluteError,
    "quantile": Quantile,
    "epsilon_insensitive": EpsilonInsensitive,
    "expectile": Expectile,
    "poisson": PoissonLoss,
    "gamma": GammaLoss,
    "tweedie": Tweedie,
    "negative_binomial": NegativeBinomial,
    "binomial": BinomialLoss,
}


def target_interval(loss: Any) -> Interval:
    """Return the valid targets of a loss: its ``targets``, or all numbers from its ``least_target``.

    Parameters
    ----------
    loss : Loss

    Returns
    -------
    Interval
    """
    return getattr(loss, "targets", None) or Interval(getattr(loss, "least_target", -math.inf))


def resolve_loss(loss: Any) -> Loss:
    """Return the loss object for a name, or check and return the user's own loss.

    Parameters
    ----------
    loss : str or object
        A key of ``LOSSES``, or an instance of a loss class as described in ``Loss``. If the second derivative
        has no upper bound, its ``curvature`` is None and it must define ``curvature_at(z, y)``.

    Returns
    -------
    NamedTuple
        The loss object.

    Raises
    ------
    ValueError
        If the name is unknown, a parameter is invalid, or the curvature is not positive and finite.
    TypeError
        If the object lacks ``value``, ``derivative`` or ``curvature``, is not a NamedTuple, or fails when called.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; choose one of {sorted(LOSSES)}")
        return LOSSES[loss]()
    kind = type(loss).__name__
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}; give an instance: {loss.__name__}()")
    if hasattr(loss, "check"):
        loss.check()
    missing = [name for name in ("value", "derivative", "curvature") if not hasattr(loss, name)]
    if missing:
        raise TypeError(f"loss is a {kind} without {', '.join(missing)}; give a name from {sorted(LOSSES)} or a loss")
    if not issubclass(type(loss), tuple):
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
