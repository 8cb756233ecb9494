"""Look at fits: ``ConvergenceDisplay`` plots a history, ``PathDisplay`` a path, ``duality_gap`` bounds the distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted

from .estimators.base import SAGABase
from .estimators.cv import SAGAPath
from .fitting.loop import join_x
from .penalties import ElasticNet
from .solver.optimality import chunk_gradient

if TYPE_CHECKING:
    from .data.chunk import Chunk
    from .solver.problem import Problem

__all__ = ["ConvergenceDisplay", "PathDisplay", "duality_gap"]


# For each quantity on the x axis: its key in a row of the history, and the axis label.
AGAINST = {"passes": ("epoch", "passes over the rows"), "seconds": ("seconds", "seconds")}

# Axis label for each quantity on the y axis.
QUANTITIES = {
    "gradient_norm": "norm of the proximal gradient, relative to zero",
    "suboptimality": r"$(F - F^*) \,/\, (F(0) - F^*)$",
}

_CONSTRAINTS = {"against": [StrOptions(set(AGAINST))], "quantity": [StrOptions(set(QUANTITIES))]}

# What a PathDisplay draws.
KINDS = ("coefficients", "scores")

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


class PathDisplay:
    """Plot of a path: coefficients against alpha, or scores against alpha with standard errors.

    Like all displays of scikit-learn, it is created by class methods: ``from_estimator`` and ``from_path``. It only
    draws, and never fits a model.

    Parameters
    ----------
    alphas : ndarray of shape (n_alphas,)
        Alphas of the path.
    coef : ndarray of shape (n_alphas, n_features)
        Coefficients of one output.
    scores : ndarray of shape (n_alphas, n_folds), default=None
        Mean held-out loss, or score, of each fold.
    alpha : float, default=None
        The chosen alpha, which a vertical line marks.
    names : sequence of str, default=None
        Names of the columns, for the legend.
    score_name : str, default="mean held-out loss"
        Label of the scores.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        Coefficients of each column, or the mean score.
    bars_ : matplotlib ErrorbarContainer or None
        Standard errors of the mean score.
    chosen_ : matplotlib Line2D or None
        Line at the chosen alpha.

    See Also
    --------
    SAGAClassifierCV : Chooses alpha by cross-validation.
    saga_path : The path of all rows.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_diabetes
    >>> from dask_saga import SAGARegressorCV
    >>> from dask_saga.inspection import PathDisplay
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> model = SAGARegressorCV(penalty="l1", random_state=0).fit(X, y)
    >>> display = PathDisplay.from_estimator(model, kind="scores")
    >>> plt.show()
    """

    def __init__(
        self,
        alphas: np.ndarray,
        coef: np.ndarray,
        *,
        scores: np.ndarray | None = None,
        alpha: float | None = None,
        names: Sequence[str] | None = None,
        score_name: str = "mean held-out loss",
    ):
        self.alphas = alphas
        self.coef = coef
        self.scores = scores
        self.alpha = alpha
        self.names = names
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, kind: str = "scores", output: int = 0, ax: Any = None, **kwargs: Any
    ) -> PathDisplay:
        """Draw the path of a fitted estimator, for the chosen `l1_ratio_`.

        Parameters
        ----------
        estimator : SAGAClassifierCV or SAGARegressorCV
            A fitted estimator.
        kind : {"scores", "coefficients"}, default="scores"
            What to draw.
        output : int, default=0
            Class or target whose coefficients are drawn.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a new figure.
        **kwargs : dict
            Keyword arguments for matplotlib's ``plot`` or ``errorbar``.

        Returns
        -------
        PathDisplay
            The display, already drawn.

        Raises
        ------
        ValueError
            If `kind` or `output` is invalid.
        """
        check_is_fitted(estimator, "coef_path_")
        ratio = 0
        if len(estimator.coef_path_) > 1:
            ratio = int(np.flatnonzero(np.ravel(estimator.l1_ratio) == estimator.l1_ratio_)[0])
        alphas = estimator.alphas_ if estimator.alphas_.ndim == 1 else estimator.alphas_[ratio]
        display = cls(
            alphas,
            _of_output(estimator.coef_path_[ratio], output),
            scores=estimator.scores_[ratio],
            alpha=estimator.alpha_,
            names=getattr(estimator, "feature_names_in_", None),
            score_name=estimator.scoring or "mean held-out loss",
        )
        return display.plot(ax, kind=kind, **kwargs)

    @classmethod
    def from_path(
        cls, path: SAGAPath, *, output: int = 0, names: Any = None, ax: Any = None, **kwargs: Any
    ) -> PathDisplay:
        """Draw the coefficients of a path without folds.

        Parameters
        ----------
        path : SAGAPath
            Result of ``saga_path``.
        output : int, default=0
            Class or target whose coefficients are drawn.
        names : sequence of str, default=None
            Names of the columns, for the legend.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a new figure.
        **kwargs : dict
            Keyword arguments for matplotlib's ``plot``.

        Returns
        -------
        PathDisplay
            The display, already drawn.
        """
        return cls(path.alphas, _of_output(path.coef, output), names=names).plot(ax, kind="coefficients", **kwargs)

    def plot(self, ax: Any = None, *, kind: str = "scores", **kwargs: Any) -> PathDisplay:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a new figure.
        kind : {"scores", "coefficients"}, default="scores"
            What to draw.
        **kwargs : dict
            Keyword arguments for matplotlib's ``plot`` or ``errorbar``.

        Returns
        -------
        PathDisplay
            The object itself, with the attributes `ax_`, `figure_`, `lines_`, `bars_` and `chosen_`.
        """
        if kind not in KINDS or (kind == "scores" and self.scores is None):
            raise ValueError(f"kind={kind!r} must be one of {KINDS}; a path without folds has no scores")
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("PathDisplay.plot needs matplotlib: pip install matplotlib") from error
        if ax is None:
            _, ax = plt.subplots()
        self.ax_, self.figure_, self.bars_, self.chosen_ = ax, ax.figure, None, None
        if kind == "scores" and self.scores is not None:
            errors = self.scores.std(axis=1, ddof=1) / np.sqrt(self.scores.shape[1])
            self.bars_ = ax.errorbar(self.alphas, self.scores.mean(axis=1), errors, **{"capsize": 2, **kwargs})
            self.lines_ = [self.bars_[0]]
        else:
            self.lines_ = ax.plot(self.alphas, self.coef, **kwargs)
            if self.names is not None:
                ax.legend(self.lines_, self.names)
        if self.alpha is not None:
            self.chosen_ = ax.axvline(self.alpha, linestyle="--", color="grey")
        ax.set(xlabel="alpha", ylabel=self.score_name if kind == "scores" else "coefficient", xscale="log")
        ax.grid(alpha=0.3)
        return self


def _of_output(coef: np.ndarray, output: int) -> np.ndarray:
    """Return coefficients of shape (n_alphas, n_features) of one output."""
    if coef.ndim == 2:
        return coef
    if not 0 <= output < coef.shape[1]:
        raise ValueError(f"output={output} must be from 0 to {coef.shape[1] - 1}")
    return coef[:, output]


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
