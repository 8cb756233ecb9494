"""How far a fit is from the optimum: ``ConvergenceDisplay`` plots its history, ``duality_gap`` gives an upper bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted

from .estimators.base import SAGABase
from .fitting.loop import join_x
from .penalties import ElasticNet
from .solver.optimality import chunk_gradient

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
LEAST_SUBOPTIMALITY = 1e-16


class ConvergenceDisplay:
    """Plot of the distance from the optimum after each pass.

    Like all displays of scikit-learn, it is created by a class method: ``from_histories``. It only draws, and never
    fits or evaluates a model.

    Parameters
    ----------
    histories : dict of str to list of dict
        For each curve's name, a list with one row per pass. A row has the key "epoch" or "seconds" (see `against`) and
        the key named by `quantity`. ``history_`` of an estimator and ``history`` of the result of ``saga`` have this
        form.
    against : {"passes", "seconds"}, default="passes"
        Quantity on the x axis. Use "seconds" to compare solvers whose passes differ in cost.
    quantity : {"gradient_norm", "suboptimality"}, default="gradient_norm"
        Quantity on the y axis. "gradient_norm" is relative to its value at zero, and "suboptimality" is
        ``(F - F*) / (F(0) - F*)``. Use "suboptimality" to compare solvers with each other.

    Attributes
    ----------
    histories : dict of str to list of dict
        The given histories.
    lines_ : list of matplotlib Line2D
        One line per curve.
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure with the axes.

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
    >>> display = ConvergenceDisplay.from_histories({"SAGAClassifier": model.history_})
    >>> plt.show()
    """

    def __init__(
        self, histories: Mapping[str, Sequence[dict]], *, against: str = "passes", quantity: str = "gradient_norm"
    ):
        self.histories = histories
        self.against = against
        self.quantity = quantity

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
        """Draw the histories of one or several fits in one plot, also those of other solvers.

        Parameters
        ----------
        histories : dict of str to list of dict or DataFrame
            For each curve's name, one row per point, as for the class. Every ``history_`` contains "gradient_norm", but
            not "suboptimality", as a fit does not know the optimum: evaluate F in a `callback` of ``fit``, and add
            ``(F - F*) / (F(0) - F*)`` to the rows.
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
            raise ValueError(
                f"curve_kwargs has {len(styles)} dicts for {len(curves)} curves; give one per curve, or one for all"
            )
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
                    raise ValueError(
                        f"histories[{name!r}] has a row with {sorted(row)}, but without {key!r}; add it to every row, "
                        "or choose another `quantity` or `against`"
                    )
        x, y = (np.array([row[key] for row in rows], dtype=float) for key in wanted)
        return x, np.maximum(y, LEAST_SUBOPTIMALITY) if self.quantity == "suboptimality" else y


def duality_gap(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Return an upper bound of ``F(coef_) - F*`` without knowing the optimum, in one pass over the data.

    The gap is R(x) + R*(-g) + g'x, where x is ``coef_``, g the mean gradient of the loss, R the penalty including
    `alpha`, and R* its conjugate. The derivatives of the loss at x are the dual point. With many columns in large
    units, the bound is far above the true difference.

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
        L2 part. Also if the loss has corners. The message says what to change.
    TypeError
        If `estimator` is not one of this package.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from dask_saga import SAGAClassifier
    >>> from dask_saga.inspection import duality_gap
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = X / X.max(axis=0)
    >>> model = SAGAClassifier(alpha=0.1, fit_intercept=False, tol=1e-6, random_state=0)
    >>> duality_gap(model.fit(X, y), X, y) < 1e-4
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
    penalty = problem.penalty
    if not isinstance(penalty, ElasticNet) or penalty.l2 == 0:
        raise ValueError(
            f"duality_gap needs a built-in penalty with an L2 part, but the estimator has penalty={estimator.penalty!r}"
            f" and alpha={estimator.alpha!r}. Fit again with penalty='l2' or 'elasticnet' and a positive alpha"
        )
    if hasattr(problem.loss, "smoothed"):
        raise ValueError(
            f"duality_gap is for smooth losses, but the estimator has loss={estimator.loss!r}. Its `fit` measures the "
            "duality gap itself: if `converged_` is True, the gap is within `tol`"
        )
    source, problem, _ = estimator._read(X, y, sample_weight, problem, False, fits=False)
    x = join_x(estimator.coef_, estimator.intercept_)
    with source:
        parts = source.map(_gradient_and_weight, x, problem, name="saga-gap", nbytes=x.nbytes)
        sums = source.executor.gather(parts)
    gradient, weight = sum((part for part, _ in sums), np.zeros_like(x)), sum(part for _, part in sums)
    if not weight > 0:
        raise ValueError("X has no rows of positive weight")
    x, g = x[:, :-1], gradient[:, :-1] / weight
    return float((penalty.value(x) + penalty.conjugate(-g) + g * x).sum())


def _gradient_and_weight(chunk: Chunk, x: np.ndarray, problem: Problem) -> tuple[np.ndarray, float]:
    return chunk_gradient(chunk, x, problem)[1], chunk.weight
