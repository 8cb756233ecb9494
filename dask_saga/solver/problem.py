"""What is minimised, and how: the parameters that every visit needs."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ..losses import LOSSES, LogLoss, MultinomialLogLoss
from .identity import _hash, _parts

__all__ = ["CONSTRAINTS", "Problem", "problem_for", "to_float"]


# What scikit-learn's validation accepts, for the estimators as for ``saga``.
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
    """What is minimised, and how: F = (1/W) sum_i w_i f(a_i'x + c, b_i) + penalty(x).

    Parameters
    ----------
    loss, penalty : object
        From ``losses`` and ``penalties``, or the user's own.
    fit_intercept : bool, default=False
        Whether c, which is never penalised, is fitted or stays zero.
    step_size : "auto" or float, default="auto"
        "auto" is ``step_size_scale / L``, L the mean over the rows, with rows of larger L_i visited
        more often, implicit derivatives and control of the step. A float is the step of plain SAGA.
    step_size_scale : float, default=0.3
        Multiplies "auto" only. 0.3 is the post's, about the 1/(3L) of the SAGA paper.
    average : bool, default=True
        Whether chunk-end iterates are averaged where x circles, and "auto" steps cut where
        visits settle. False is the plain algorithm.
    precondition : bool, default=True
        Whether the solver centres and scales the columns inside its steps.
    memory_dtype : str, default="float32"
        Type of the memory gradients.
    outputs : int, default=1
        Linear predictions of a row.
    n_threads : int, default=1
        Threads that share a visit, at most.
    """

    loss: Any
    penalty: Any
    fit_intercept: bool = False
    step_size: Any = "auto"
    step_size_scale: float = 0.3
    average: bool = True
    precondition: bool = True
    memory_dtype: str = "float32"
    outputs: int = 1
    n_threads: int = 1

    @property
    def automatic(self) -> bool:
        """Whether steps are found and controlled, not given."""
        return self.step_size == "auto"

    def step(self, metric: Any, step_multiplier: float = 1.0) -> float:
        """Step size in units of x per unit of mean gradient."""
        if not self.automatic:
            return float(self.step_size)
        return min(self.step_size_scale * step_multiplier * metric.step_factor, metric.max_step or 1.0) / metric.L

    @property
    def preconditioner_key(self) -> str:
        """Hash of what the solver's coordinates for given rows depend on."""
        return _hash(*_parts(self.loss, self.penalty), self.fit_intercept, self.precondition)

    def token(self) -> str:
        """Hash equal for equal problems only; of a user's own loss or penalty it knows the code as well."""
        return _hash(*_parts(self.loss, self.penalty), *self[2:])


def problem_for(problem: Problem, classes: np.ndarray | None) -> Problem:
    """The problem of several classes: multinomial for "log_loss", one output against the rest for other losses."""
    count = 0 if classes is None else len(classes)
    if type(problem.loss) is LogLoss and count > 2:
        problem = problem._replace(loss=MultinomialLogLoss(count))
    outputs = getattr(problem.loss, "outputs", count if count > 2 else 1)
    if hasattr(problem.loss, "outputs") and outputs != count:
        raise ValueError(f"loss={problem.loss} is for {outputs} classes, but y has {count}")
    return problem._replace(outputs=outputs)


def to_float(name: str, value: Any) -> float:
    """A parameter as float; Python's integers may be larger than any."""
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an integer too large for a float") from None
