"""What is minimised, and how: the parameters that every visit needs."""

from __future__ import annotations

import functools
import hashlib
from numbers import Integral, Number, Real
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from .losses import LOSSES, LogLoss, MultinomialLogLoss

__all__ = ["CONSTRAINTS", "Problem", "digest", "problem_for", "to_float"]

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

    def step(self, metric: Any, cut: float = 1.0) -> float:
        """Step size in units of x per unit of mean gradient."""
        if not self.automatic:
            return float(self.step_size)
        return min(self.step_size_scale * cut * metric.pace, metric.longest or 1.0) / metric.L

    @property
    def geometry(self) -> str:
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


def digest(*parts: Any) -> str:
    """Hash of a few short values."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _parts(*objects: Any) -> list:
    # With their types, as instances without fields are equal to each other.
    return [part for item in objects for part in (type(item), _plain(tuple(item)))]


@functools.lru_cache(maxsize=1024)
def _hash(*parts: Any) -> str:
    return digest(*(_identity(part) if isinstance(part, type) else part for part in parts))


def _identity(kind: type) -> tuple:
    """What tells a class from others; of the user's own its attributes, and the code of its methods."""
    if kind.__module__.startswith("dask_saga."):
        return kind.__module__, kind.__qualname__  # its code differs from one Python to the next
    members = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
    fields = getattr(kind, "_fields", ())
    told = [(name, _plain(value)) for name, value in members.items() if name[0] != "_" and name not in fields]
    return kind.__module__, kind.__qualname__, sorted(told, key=lambda pair: pair[0])


def _plain(value: Any, within: tuple = ()) -> Any:
    """A value as what has the same text in every process: functions by their code and the globals that it names."""
    for name in ("py_func", "fget", "__func__"):  # of compiled functions, properties, static methods
        value = getattr(value, name, value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return tuple(_plain(part, within) for part in value)
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, tuple(_plain(part, within) for part in value.co_consts)
    if isinstance(value, FunctionType) and value.__code__ not in within:
        within = (*within, value.__code__)
        known = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
        inner = [*sorted(known.items()), *((0, cell.cell_contents) for cell in value.__closure__ or ())]
        return _plain(value.__code__, within), tuple((name, _plain(part, within)) for name, part in inner)
    if value is None or isinstance(value, (Number, str, bytes)):
        return value
    if isinstance(value, frozenset):
        return tuple(sorted(map(repr, value)))
    text = repr(value)  # but paths and addresses
    return getattr(value, "__name__", type(value).__qualname__) if " at 0x" in text or "<module" in text else text


def _names(code: CodeType) -> set:
    """Names that code looks up, and functions within it."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)
