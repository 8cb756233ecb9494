"""The optimisation problem: loss, penalty and the solver parameters that every visit needs."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ..losses import LOSSES, LogLoss, Loss, MultinomialLogLoss, target_interval
from ..penalties import Penalty
from .identity import _hash, _parts
from .step_rule import STEP_RULE

__all__ = ["CONSTRAINTS", "NullModel", "Problem", "null_model", "problem_for", "to_float"]


# Parameter constraints for scikit-learn's validation, shared by the estimators and ``saga``.
CONSTRAINTS: dict[str, list] = {
    "loss": [StrOptions(set(LOSSES)), tuple, type, HasMethods(["value", "derivative"])],
    "fit_intercept": ["boolean"],
    "step_size": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
    "step_size_scale": [Interval(Real, 0, None, closed="neither")],
    "precondition": ["boolean"],
    "average": ["boolean"],
    "n_parallel": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "n_threads": [Interval(Integral, 1, None, closed="left")],
    "memory_dtype": [StrOptions({"float32", "float64"})],
    "random_state": ["random_state"],
}


class Problem(NamedTuple):
    """Minimise F(x, c) = (1/W) sum_i w_i f(a_i'x + c, b_i) + penalty(x), where W is the sum of the weights.

    Parameters
    ----------
    loss : object
        The loss f, from ``losses`` or the user's own.
    penalty : object
        The penalty, from ``penalties`` or the user's own.
    fit_intercept : bool, default=False
        Whether to fit the intercept c. It is never penalised. If False, c stays zero.
    step_size : "auto" or float, default="auto"
        "auto" starts from ``step_size_scale / L`` with the mean Lipschitz constant L of the rows. It visits
        rows with a larger constant more often, uses implicit derivatives and controls the step. A float is the
        constant step of plain SAGA.
    step_size_scale : float, default=0.3
        Factor of the "auto" step. 0.3 is the value of the 2018 Dask blog post, about the 1/(3L) of the SAGA
        paper.
    average : bool, default=True
        Whether to average the iterates at the ends of visits when x circles, and to reduce the "auto" step
        when single visits settle. False is the plain algorithm.
    precondition : bool, default=True
        Whether the solver centres and scales the columns inside its steps, and rotates them where that saves
        time.
    memory_dtype : str, default="float32"
        dtype of the memory gradients.
    outputs : int, default=1
        Number of linear predictions per row.
    n_threads : int, default=1
        Maximum number of threads that share a visit.
    curvature : "auto" or bool, default="auto"
        Whether visits of ``partial_fit`` use curvature instead of SAGA steps. "auto" does where it saves time.
    """

    loss: Loss
    penalty: Penalty
    fit_intercept: bool = False
    step_size: str | float = "auto"
    step_size_scale: float = STEP_RULE.default_scale
    average: bool = True
    precondition: bool = True
    memory_dtype: str = "float32"
    outputs: int = 1
    n_threads: int = 1
    curvature: bool | str = "auto"

    @property
    def automatic(self) -> bool:
        """Whether the step size is computed and controlled (``step_size="auto"``) rather than given."""
        return self.step_size == "auto"

    @property
    def takes_default_steps(self) -> bool:
        """Whether all parameters of the steps have their defaults, so that the user has not chosen a step."""
        default = self.step_size_scale == Problem._field_defaults["step_size_scale"]
        return self.automatic and default and self.average and self.precondition

    @property
    def preconditioner_key(self) -> str:
        """Hash of the parameters that determine the preconditioner of given rows."""
        return _hash(*_parts(self.loss, self.penalty), self.fit_intercept, self.precondition)

    @property
    def loss_key(self) -> str:
        """Hash of the parameters that determine the loss of given rows as a function of x."""
        return _hash(*_parts(self.loss), self.fit_intercept)

    def token(self) -> str:
        """Hash of the whole problem. For a user's own loss or penalty it includes the code."""
        return _hash(*_parts(self.loss, self.penalty), *self[2:])


class NullModel(NamedTuple):
    """Loss of the model that consists of an intercept only, for a loss with ``link``.

    The loss is linear in y. So the mean over all targets is the loss of their mean.

    Parameters
    ----------
    value : float
        Mean loss at the best intercept z.
    curvature : float
        Mean second derivative at z.
    slope_ratio : float
        Gradient of the coefficients at z, relative to that at zero, if the columns are centred.
    """

    value: float
    curvature: float
    slope_ratio: float


def null_model(problem: Problem, target: float) -> NullModel | None:
    """Return the null model for the mean of the targets. None without an intercept, or without ``link``.

    If the unit of y changes, the optimum of a log-link model only gets another intercept. Measures that refer to x = 0
    would change with the unit; those that refer to the null model do not.
    """
    loss: Any = problem.loss
    if not (problem.fit_intercept and hasattr(loss, "link")):
        return None
    valid = target_interval(loss)
    if not valid.low < target < valid.high:
        return None  # all targets are equal and at the bound, where the best intercept is infinite
    z = loss.link(target)
    at_null, at_zero = (loss.derivative(u, 2.0 * target) - loss.derivative(u, target) for u in (z, 0.0))
    return NullModel(loss.value(z, target), loss.curvature_at(z, target), at_null / at_zero)


def problem_for(problem: Problem, classes: np.ndarray | None) -> Problem:
    """Adapt a problem to the classes of y: multinomial for "log_loss", one-vs-rest for other losses."""
    count = 0 if classes is None else len(classes)
    if type(problem.loss) is LogLoss and count > 2:
        problem = problem._replace(loss=MultinomialLogLoss(count))
    outputs = getattr(problem.loss, "outputs", count if count > 2 else 1)
    if hasattr(problem.loss, "outputs") and outputs != count:
        raise ValueError(
            f"loss={problem.loss} is for {outputs} classes, but y has {count}; create the loss for the classes of y"
        )
    return problem._replace(outputs=outputs)


def to_float(name: str, value: Any) -> float:
    """Convert a parameter to float, with a clear error for Python integers that are too large."""
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an integer too large for a float; give a smaller number") from None
