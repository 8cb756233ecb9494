"""Pictures of a fit, after scikit-learn's Display convention."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints

from .fitting.loop import join_x
from .solver.optimality import chunk_gradient, penalty_value

__all__ = ["ConvergenceDisplay"]


AGAINST = {"passes": ("epoch", "passes over the rows"), "seconds": ("seconds", "seconds")}

QUANTITIES = {
    "gradient_norm": "norm of the proximal gradient, relative to zero",
    "suboptimality": r"$(F - F^*) \,/\, (F(0) - F^*)$",
}

_CONSTRAINTS = {"against": [StrOptions(set(AGAINST))], "quantity": [StrOptions(set(QUANTITIES))]}

# What rounding leaves of a difference of two objectives.
LEAST = 1e-16

# How far the fit goes that finds the optimum, where none is given.
OPTIMUM_TOL, OPTIMUM_PASSES = 1e-7, 1000


class ConvergenceDisplay:
    """How far from the optimum, pass by pass.

    Made by ``from_estimator`` or ``from_histories``, as all displays of scikit-learn are.

    Parameters
    ----------
    histories : dict of str to list of dict
        For each curve's name one row a pass: "epoch" or "seconds", whichever is drawn against, and the
        quantity drawn. ``history_`` of an estimator and ``history`` of ``saga`` are such lists.
    against : {"passes", "seconds"}, default="passes"
        What is on the x axis.
    quantity : {"gradient_norm", "suboptimality"}, default="gradient_norm"
        What is on the y axis.

    Attributes
    ----------
    histories : dict of str to list of dict
        As given; those of ``from_estimator`` may be drawn again, or together with others.
    lines_ : list of matplotlib Line2D
        One a curve.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    SAGAClassifier : Its ``history_`` is what is drawn.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_breast_cancer
    >>> from dask_saga import SAGAClassifier
    >>> from dask_saga.inspection import ConvergenceDisplay
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = SAGAClassifier(random_state=0).fit(X, y)
    >>> display = ConvergenceDisplay.from_estimator(model)
    >>> plt.show()
    """

    def __init__(
        self, histories: Mapping[str, Sequence[dict]], *, against: str = "passes", quantity: str = "gradient_norm"
    ):
        self.histories = histories
        self.against = against
        self.quantity = quantity

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        optimum: float | None = None,
        against: str = "passes",
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ConvergenceDisplay:
        """Draw the convergence of one estimator.

        Without data the gradient norms in ``history_`` are drawn, at no cost. With `X` and `y` a clone is
        fitted to them and the suboptimality drawn, relative to that at zero: one more pass over the data,
        after the fit, evaluates the objective at the coefficients of all passes.

        Parameters
        ----------
        estimator : SAGAClassifier or SAGARegressor
            A fitted one where `X` and `y` are not given. It is not changed.
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p), default=None
        y : array-like or Dask collection of shape (n,), default=None
        sample_weight : array-like or Dask collection of shape (n,), default=None
        optimum : float, default=None
            The least objective F*, where it is known. None fits another clone, to ``tol=1e-7`` and in at most
            1000 passes, and takes the least value met.
        against : {"passes", "seconds"}, default="passes"
        name : str, default=None
            Of the curve in the legend; None takes the estimator's class.
        ax : matplotlib Axes, default=None
            None makes a new figure.
        **kwargs : dict
            To matplotlib's ``plot``.

        Returns
        -------
        ConvergenceDisplay

        Raises
        ------
        ValueError, TypeError
            If only one of `X` and `y` is given, or the estimator keeps no history.
        """
        if (X is None) != (y is None):
            raise ValueError("X and y must both be given, or neither")
        if X is None and not (sample_weight is None and optimum is None):
            raise ValueError("sample_weight and optimum need X and y")
        name = type(estimator).__name__ if name is None else name
        if X is None:
            if getattr(estimator, "history_", None) is None:
                raise ValueError(f"{name} has no history_; call fit first, or give X and y")
            rows, quantity = estimator.history_, "gradient_norm"
        else:
            rows, quantity = _suboptimality(estimator, X, y, sample_weight, optimum), "suboptimality"
        return cls({name: rows}, against=against, quantity=quantity).plot(ax, **kwargs)

    @classmethod
    def from_histories(
        cls,
        histories: Any,
        *,
        against: str = "passes",
        quantity: str = "gradient_norm",
        ax: Any = None,
        curve_kwargs: Any = None,
    ) -> ConvergenceDisplay:
        """Draw histories together: of several fits, or of other solvers.

        Parameters
        ----------
        histories : dict of str to list of dict or DataFrame
            For each curve's name one row a point, as in the class's own parameter. "gradient_norm" is in
            every ``history_``; "suboptimality" is there where you, or ``from_estimator``, measured it.
        against : {"passes", "seconds"}, default="passes"
        quantity : {"gradient_norm", "suboptimality"}, default="gradient_norm"
        ax : matplotlib Axes, default=None
            None makes a new figure.
        curve_kwargs : dict or list of dict, default=None
            To matplotlib's ``plot``: for all curves, or for each.

        Returns
        -------
        ConvergenceDisplay

        Raises
        ------
        ValueError
            If a row lacks what is to be drawn, naming the curve.
        """
        return cls(histories, against=against, quantity=quantity).plot(ax, curve_kwargs=curve_kwargs)

    def plot(self, ax: Any = None, *, curve_kwargs: Any = None, **kwargs: Any) -> ConvergenceDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        curve_kwargs : dict or list of dict, default=None
            To matplotlib's ``plot``: for all curves, or for each.
        **kwargs : dict
            To matplotlib's ``plot``, for all curves.

        Returns
        -------
        ConvergenceDisplay
            The object itself, with `ax_`, `figure_` and `lines_`.
        """
        validate_parameter_constraints(
            _CONSTRAINTS, {"against": self.against, "quantity": self.quantity}, caller_name=type(self).__name__
        )
        curves = {name: self._curve(name) for name in self.histories}
        styles = curve_kwargs if isinstance(curve_kwargs, (list, tuple)) else [curve_kwargs or {}] * len(curves)
        if len(styles) != len(curves):
            raise ValueError(f"curve_kwargs has {len(styles)} dicts for {len(curves)} curves")
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("ConvergenceDisplay.plot needs matplotlib: pip install matplotlib") from error
        if ax is None:
            _, ax = plt.subplots()
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        for (name, (x, y)), style in zip(curves.items(), styles, strict=True):
            self.lines_ += ax.plot(x, y, **{"label": name, **kwargs, **style})
        ax.set(xlabel=AGAINST[self.against][1], ylabel=QUANTITIES[self.quantity], yscale="log")
        ax.grid(alpha=0.3)
        ax.legend()
        return self

    def _curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = self.histories[name]
        rows = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
        wanted = AGAINST[self.against][0], self.quantity
        for row in rows:
            for key in wanted:
                if key not in row:
                    raise ValueError(f"histories[{name!r}]: a row has {sorted(row)}, but no {key!r}")
        x, y = (np.array([row[key] for row in rows], dtype=float) for key in wanted)
        return x, np.maximum(y, LEAST) if self.quantity == "suboptimality" else y


def _suboptimality(estimator: Any, X: Any, y: Any, sample_weight: Any, optimum: float | None) -> list[dict]:
    """The history of a clone's fit, with the relative suboptimality after each pass."""
    model, seen = clone(estimator), []
    model.fit(X, y, sample_weight, callback=lambda info: seen.append(join_x(info.x, info.intercept)))
    seen.insert(0, np.zeros_like(join_x(model.coef_, model.intercept_)))
    if optimum is None:
        finest = clone(estimator).set_params(tol=OPTIMUM_TOL, max_iter=OPTIMUM_PASSES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            finest.fit(X, y, sample_weight)
        if not finest.converged_:
            norm = finest.history_[-1]["gradient_norm"]
            warnings.warn(
                f"The optimum is known to a relative gradient norm of {norm:.1e} only; give `optimum`.",
                ConvergenceWarning,
                stacklevel=3,
            )
        seen.append(join_x(finest.coef_, finest.intercept_))
    values = _objectives(model, X, y, sample_weight, seen)
    best = min(values) if optimum is None else optimum
    gaps = (values[1 : len(model.history_) + 1] - best) / ((values[0] - best) or 1.0)
    return [{**row, "suboptimality": float(gap)} for row, gap in zip(model.history_, gaps, strict=True)]


def _objectives(model: Any, X: Any, y: Any, sample_weight: Any, xs: list[np.ndarray]) -> np.ndarray:
    """F at each of `xs`, by one pass over the data."""
    source, problem, _ = model._read(X, y, sample_weight, model._problem(), "auto")
    with source:
        told = source.map(_values_and_weight, xs, problem, name="saga-objective", nbytes=8.0 * len(xs))
        sums = sum(source.executor.gather(told))
    return sums[:-1] / sums[-1] + np.array([penalty_value(x, problem) for x in xs])


def _values_and_weight(chunk: Any, xs: list[np.ndarray], problem: Any) -> np.ndarray:
    return np.array([*(chunk_gradient(chunk, x, problem)[0] for x in xs), chunk.weight])
