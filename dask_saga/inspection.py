"""How far a fit is from the optimum: ``ConvergenceDisplay`` plots its history, ``duality_gap`` gives an upper bound."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted

from .estimators.base import SAGABase
from .fitting.loop import join_x
from .penalties import ElasticNet
from .solver.optimality import chunk_gradient, penalty_value

if TYPE_CHECKING:
    from .data.chunk import Chunk
    from .solver.problem import Problem

__all__ = ["ConvergenceDisplay", "duality_gap"]


# For each quantity on the x axis: its key in a row of the history, and the axis label.
AGAINST = {"passes": ("epoch", "passes over the rows"), "seconds": ("seconds", "seconds")}

# Axis label for each quantity on the y axis.
QUANTITIES = {
    "gradient_norm": "norm of the proximal gradient, relative to zero",
    "suboptimality": r"$(F - F^*) \,/\, (F(0) - F^*)$",
}

_CONSTRAINTS = {"against": [StrOptions(set(AGAINST))], "quantity": [StrOptions(set(QUANTITIES))]}

# Smallest relative suboptimality that is drawn; smaller differences of two objectives are rounding error.
LEAST = 1e-16

# `tol` and `max_iter` of the fit that estimates the optimum if none is given.
OPTIMUM_TOL, OPTIMUM_PASSES = 1e-7, 1000


class ConvergenceDisplay:
    """Plot of the distance from the optimum after each pass.

    Like all displays of scikit-learn, it is created by a class method: ``from_estimator`` or ``from_histories``.

    Parameters
    ----------
    histories : dict of str to list of dict
        For each curve's name, a list with one row per pass. A row has the key "epoch" or "seconds" (see `against`) and
        the key named by `quantity`. ``history_`` of an estimator and ``history`` of ``saga`` have this form.
    against : {"passes", "seconds"}, default="passes"
        Quantity on the x axis. Use "seconds" to compare solvers whose passes differ in cost.
    quantity : {"gradient_norm", "suboptimality"}, default="gradient_norm"
        Quantity on the y axis. "gradient_norm" is relative to its value at zero, and "suboptimality" is
        ``(F - F*) / (F(0) - F*)``. Use "suboptimality" to compare solvers with each other.

    Attributes
    ----------
    histories : dict of str to list of dict
        The given histories. Those of ``from_estimator`` can be drawn again, or together with others.
    lines_ : list of matplotlib Line2D
        One line per curve.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    SAGAClassifier : Its ``history_`` is what this class plots.
    duality_gap : An upper bound of the distance from the optimum, in units of the mean loss.

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

        Without data, the plot shows the gradient norms in ``history_``, at no cost. With `X` and `y`, a clone is fitted
        to them, and the plot shows its suboptimality relative to that at zero. After the fit, one more pass over the
        data evaluates the objective at the coefficients of every pass.

        Parameters
        ----------
        estimator : SAGAClassifier or SAGARegressor
            The estimator, which is not modified. It must be fitted if `X` and `y` are not given.
        X : array-like, sparse, DataFrame or Dask collection of shape (n, p), default=None
            Rows to fit a clone to. Give them to plot the suboptimality.
        y : array-like or Dask collection of shape (n,), default=None
            Targets; required with `X`.
        sample_weight : array-like or Dask collection of shape (n,), default=None
            Row weights of that fit.
        optimum : float, default=None
            Minimum F* of the objective, in units of the mean loss. Give it if it is known, as None costs another fit: a
            clone with ``tol=1e-7`` and at most 1000 passes. F* is then the smallest objective found.
        against : {"passes", "seconds"}, default="passes"
            Quantity on the x axis.
        name : str, default=None
            Name of the curve in the legend. None uses the name of the estimator's class.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a new figure.
        **kwargs : dict
            Keyword arguments for matplotlib's ``plot``.

        Returns
        -------
        ConvergenceDisplay
            The display, already drawn.

        Raises
        ------
        ValueError, TypeError
            If only one of `X` and `y` is given, if `sample_weight` or `optimum` is given without them, or if the
            estimator has no history.
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
        """Draw several histories in one plot, such as those of several fits or of other solvers.

        Parameters
        ----------
        histories : dict of str to list of dict or DataFrame
            For each curve's name, one row per point, as for the class. Every ``history_`` contains "gradient_norm". It
            contains "suboptimality" only if you or ``from_estimator`` computed it.
        against : {"passes", "seconds"}, default="passes"
            Quantity on the x axis.
        quantity : {"gradient_norm", "suboptimality"}, default="gradient_norm"
            Quantity on the y axis.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a new figure.
        curve_kwargs : dict or list of dict, default=None
            Keyword arguments for matplotlib's ``plot``: one dict for all curves, or one per curve.

        Returns
        -------
        ConvergenceDisplay
            The display, already drawn.

        Raises
        ------
        ValueError
            If a row lacks a quantity to be drawn. The message names the curve.
        """
        return cls(histories, against=against, quantity=quantity).plot(ax, curve_kwargs=curve_kwargs)

    def plot(self, ax: Any = None, *, curve_kwargs: Any = None, **kwargs: Any) -> ConvergenceDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a new figure.
        curve_kwargs : dict or list of dict, default=None
            Keyword arguments for matplotlib's ``plot``: one dict for all curves, or one per curve.
        **kwargs : dict
            Keyword arguments for matplotlib's ``plot``, for all curves. Those in `curve_kwargs` override them.

        Returns
        -------
        ConvergenceDisplay
            The object itself, with the attributes `ax_`, `figure_` and `lines_`.
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
    """Fit a clone, and return its history with the relative suboptimality after each pass."""
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
    """Evaluate the objective F at each of `xs` in one pass over the data."""
    source, problem, _ = model._read(X, y, sample_weight, model._problem(), "auto")
    with source:
        told = source.map(_values_and_weight, xs, problem, name="saga-objective", nbytes=8.0 * len(xs))
        sums = sum(source.executor.gather(told))
    return sums[:-1] / sums[-1] + np.array([penalty_value(x, problem) for x in xs])


def _values_and_weight(chunk: Any, xs: list[np.ndarray], problem: Any) -> np.ndarray:
    return np.array([*(chunk_gradient(chunk, x, problem)[0] for x in xs), chunk.weight])


def duality_gap(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Return an upper bound of ``F(coef_) - F*`` without knowing the optimum, in one pass over the data.

    The gap is R(x) + R*(-g) + g'x, where g is the mean gradient of the loss, R is the penalty including `alpha`, and R*
    is its conjugate. It uses the derivatives of the loss at ``coef_`` as dual point. With many columns in large units,
    the bound is far above the true difference.

    Parameters
    ----------
    estimator : SAGAClassifier or SAGARegressor
        A fitted estimator, which is not modified. It needs ``fit_intercept=False`` and a built-in penalty with an L2
        part: only then the bound is finite.
    X : array-like, scipy.sparse, DataFrame or Dask collection of shape (n, p)
        Rows of the fit.
    y : array-like or Dask collection of shape (n,), or (n, n_targets)
        Targets or labels of the fit.
    sample_weight : array-like or Dask collection of shape (n,), default=None
        Row weights of the fit. If `class_weight` was used, give the products of both weights. None gives every row
        weight 1.

    Returns
    -------
    float
        The bound, in units of the mean loss.

    Raises
    ------
    ValueError
        If no finite bound exists: with an intercept, as it is not penalised, or without a built-in penalty that has an
        L2 part. The message says what to change.
    TypeError
        If `estimator` is not one of this package.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from dask_saga import SAGAClassifier
    >>> from dask_saga.inspection import duality_gap
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = SAGAClassifier(alpha=0.1, fit_intercept=False, tol=1e-6, random_state=0).fit(X / X.max(axis=0), y)
    >>> duality_gap(model, X / X.max(axis=0), y) < 1e-4
    True
    """
    if not isinstance(estimator, SAGABase):
        raise TypeError(
            f"estimator is a {type(estimator).__name__}, but duality_gap needs a fitted SAGAClassifier or SAGARegressor"
        )
    check_is_fitted(estimator)
    problem = estimator._problem()
    if problem.fit_intercept:
        raise ValueError(
            "duality_gap needs fit_intercept=False: an intercept is not penalised, and then no finite bound exists. "
            "Fit again without it, or with a column of ones in X, whose coefficient is penalised, in its place"
        )
    if not isinstance(problem.penalty, ElasticNet) or problem.penalty.l2 == 0:
        raise ValueError(
            f"duality_gap needs a built-in penalty with an L2 part, but the estimator has penalty={estimator.penalty!r}"
            f" and alpha={estimator.alpha!r}. Fit again with penalty='l2' or 'elasticnet' and a positive alpha"
        )
    source, problem, _ = estimator._read(X, y, sample_weight, problem, False, fits=False)
    x = join_x(estimator.coef_, estimator.intercept_)
    with source:
        parts = source.map(_gradient_and_weight, x, problem, name="saga-gap", nbytes=x.nbytes)
        sums = source.executor.gather(parts)
    gradient, weight = (sum(part) for part in zip(*sums, strict=True))
    if not weight > 0:
        raise ValueError("X has no rows of positive weight")
    x, g = x[:, :-1], gradient[:, :-1] / weight
    return float((problem.penalty.value(x) + problem.penalty.conjugate(-g) + g * x).sum())


def _gradient_and_weight(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, float]:
    return chunk_gradient(chunk, x, problem)[1], chunk.weight
