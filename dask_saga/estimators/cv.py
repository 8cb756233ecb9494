"""Estimators that choose `alpha` by cross-validation, and the path of one data set without folds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if

from ..data.folds import find_folds
from ..fitting.checkpoint import Checkpoint
from ..fitting.path_passes import PathModels, held_out_rows, prepare_path, run_path
from ..losses import resolve_loss
from ..penalties import resolve_penalty
from ..solver.identity import draw_seed
from ..solver.path_grid import alpha_grid
from ..solver.problem import to_float
from .base import SAGABase
from .classifier import SAGAClassifier
from .messages import showing_models
from .prediction import probabilities, to_labels
from .regressor import SAGARegressor

if TYPE_CHECKING:
    from ..data.folds import Folds
    from ..fitting.path_passes import PathInfo, PathResult
    from ..fitting.preparation import Prepared
    from ..solver.problem import Problem

__all__ = ["SAGAClassifierCV", "SAGAPath", "SAGARegressorCV", "saga_path"]


# Parameters of the plain estimators that those with cross-validation do not have: `alphas` replaces `alpha`, and only
# `partial_fit` depends on `curvature`.
NOT_SHARED = ("alpha", "curvature")


class _NotAvailable:
    """Attribute of a base class that a class does not have."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} has no {self.name}; fit the plain estimator with the chosen alpha_")


class _ChoosesAlpha(SAGABase):
    """Mixin in front of a plain estimator: `fit` on all folds and alphas, and the choice among them."""

    _plain_class: type[SAGABase]

    alphas: Any
    cv: Any
    scoring: str | None
    select: str
    refit: bool

    partial_fit = forget = _NotAvailable()

    _choice_constraints: dict = {
        "penalty": [StrOptions({"l2", "l1", "elasticnet"})],
        "alphas": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "l1_ratio": [Interval(Real, 0, 1, closed="both"), "array-like"],
        "cv": [object],
        "scoring": [StrOptions(set(get_scorer_names())), None],
        "select": [StrOptions({"min", "1se"})],
        "refit": ["boolean"],
    }

    def _plain(self, alpha: float = 1e-4, l1_ratio: float = 0.15) -> SAGABase:
        """Return the plain estimator with the same parameters, and a given penalty."""
        names = self._plain_class._get_param_names()
        shared = {name: getattr(self, name) for name in names if name not in NOT_SHARED}
        return self._plain_class(**{**shared, "alpha": alpha, "l1_ratio": l1_ratio, "warm_start": False})

    def _problem(self) -> Problem:
        return self._plain(getattr(self, "alpha_", 1e-4), getattr(self, "l1_ratio_", 0.15))._problem()

    def fit(  # type: ignore[override]  # without an offset
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        persist: bool | str = "auto",
        checkpoint: Any = None,
        callback: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Fit the models of all folds and alphas, and choose among them.

        All models share the passes over the rows.

        Parameters
        ----------
        X : array-like, scipy.sparse, DataFrame, dask array or dask dataframe of shape (n, p)
            Rows. In-memory data are one chunk. For a Dask collection, each block is a chunk.
        y : array-like, dask array or series of shape (n,), or (n, n_targets) for a regressor
            Targets or labels. A Dask collection needs the same blocks as X.
        sample_weight : array-like or dask array of shape (n,), default=None
            Row weights, at least zero, for both fitting and scoring. None gives every row weight 1.
        persist : bool or "auto", default="auto"
            Whether Dask blocks are held in the memory of the client's cluster (or of this process without a client).
            False loads a few blocks at a time, again for each pass; set it if the data do not fit. "auto" holds the
            blocks if they take less than 40 % of that memory.
        checkpoint : str or path, default=None
            Folder, or URL supported by fsspec, in which the fit is saved about every half minute and at the end. If it
            contains a checkpoint of a fit with the same data and parameters, the fit resumes from it.
        callback : callable, default=None
            Function called as ``callback(info)`` after each pass, where info has epoch, models, converged,
            gradient_norm, seconds and bytes_read. The fit stops if it returns True.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            For invalid parameters, data or folds. The message names the argument, the chunk or the fold, and the
            estimator stays unchanged.

        KeyboardInterrupt
            After Ctrl-C. If at least one pass was completed, the estimator has the result of the completed passes.

        Warns
        -----
        ConvergenceWarning
            If a model has not reached `tol`.
        """
        with self._all_or_nothing():
            self._validate_params()
            plain = self._plain()
            ratios, alphas = _checked_ratios(self.penalty, self.l1_ratio), _checked_alphas(self.alphas)
            folds = find_folds(self.cv, X, y, self._labelled)
            x = _stacked(self) if self.warm_start and hasattr(self, "coef_path_") else None
            with showing_models(self.verbose, callback) as noted:
                solved = _solve(
                    plain, X, y, sample_weight, alphas, ratios, folds, scoring=self.scoring, fits_all=bool(self.refit),
                    persist=persist, checkpoint=checkpoint, start=x, callback=noted,
                )  # fmt: skip
            self._commit_path(plain, solved, ratios)
            self._warn_of_path(solved.result)
        if solved.result.interrupted:
            raise KeyboardInterrupt
        return self

    def _commit_path(self, plain: SAGABase, solved: _Solved, ratios: list[float]) -> None:
        """Set the fitted attributes: all models, their scores and the chosen one."""
        result = solved.result
        x = result.x[:, :, -1] if self.refit else result.x.mean(axis=2)
        drops = not self._labelled and x.shape[2] == 1
        self.coef_path_ = x[:, :, 0, :-1] if drops else x[..., :-1]
        self.intercept_path_ = x[..., -1]
        self.scores_ = solved.scores
        ratio, alpha = chosen(solved.merits, self.select)
        self.alpha_, self.l1_ratio_ = float(solved.alphas[ratio, alpha]), float(ratios[ratio])
        shares_grid = len(ratios) == 1 or not isinstance(self.alphas, Integral)
        self.alphas_ = solved.alphas[0] if shares_grid else solved.alphas
        self.coef_, self.intercept_ = self.coef_path_[ratio, alpha].copy(), self.intercept_path_[ratio, alpha].copy()
        if solved.classes is not None:
            self.classes_ = solved.classes
        self.n_features_in_ = plain.n_features_in_
        self.__dict__.pop("feature_names_in_", None)
        if hasattr(plain, "feature_names_in_"):
            self.feature_names_in_ = plain.feature_names_in_
        self.history_, self.n_iter_ = result.history, len(result.history)
        self.converged_, self.state_ = bool(result.converged.all()), None

    def _warn_of_path(self, result: PathResult) -> None:
        left = int((~result.converged).sum())
        if left and not (result.interrupted or result.stopped):
            advice = f"{left} of {result.converged.size} models have not reached tol={self.tol}; raise max_iter or tol."
            warnings.warn(advice, ConvergenceWarning, stacklevel=3)


class _Solved(NamedTuple):
    """Fitted models of a path.

    Parameters
    ----------
    result : PathResult
    alphas : ndarray of shape (l1_ratios, alphas)
    scores, merits : ndarray of shape (l1_ratios, alphas, folds)
        Losses or scores, and what to choose by: the scores, or the losses with the opposite sign.
    classes : ndarray or None
    """

    result: PathResult
    alphas: np.ndarray
    scores: np.ndarray
    merits: np.ndarray
    classes: np.ndarray | None


def _solve(
    plain: SAGABase,
    X: Any,
    y: Any,
    sample_weight: Any,
    alphas: int | np.ndarray,
    ratios: list[float],
    folds: Folds | None,
    *,
    scoring: str | None = None,
    fits_all: bool = True,
    persist: bool | str = "auto",
    checkpoint: Any = None,
    start: np.ndarray | None = None,
    callback: Callable[[PathInfo], Any] | None = None,
) -> _Solved:
    """Read the data, fit the models of all alphas, ratios and folds, and score them."""
    if hasattr(plain._problem().loss, "smoothed"):
        raise ValueError(
            f"loss={plain.loss!r}: paths do not support losses with corners, which fit smooths step by step; use "
            f"GridSearchCV over {type(plain).__name__}"
        )
    source, problem, classes = plain._read(X, y, sample_weight, plain._problem(), persist, folds=folds)
    with source:
        prepared = prepare_path(source, problem, getattr(plain, "feature_names_in_", None))
        plain._check_prepared(prepared)
        grid = [_alphas_of(alphas, plain.penalty, ratio, prepared, problem) for ratio in ratios]
        penalties = [
            tuple(resolve_penalty(plain.penalty, float(alpha), ratio) for alpha in own)
            for own, ratio in zip(grid, ratios, strict=True)
        ]
        models = PathModels(penalties, folds.number if folds else 0, fits_all)
        shape = (*models.shape[:2], *prepared.zero.shape)
        nbytes = 8.0 * sum(prepared.lengths) * np.prod(shape[:3])
        if scoring and not source.executor.can_gather(nbytes):
            raise ValueError(
                f"scoring={scoring!r} needs the predictions of all held-out rows, {nbytes / 1e9:.1f} GB, which do not "
                "fit into this process; use scoring=None"
            )
        result = run_path(
            source, prepared, problem, models, seed=draw_seed(plain.random_state), max_iter=plain.max_iter,
            tol=plain.tol, start=start if start is not None and start.shape == shape else None, callback=callback,
            checkpoint=None if checkpoint is None else Checkpoint(checkpoint),
        )  # fmt: skip
        scores, merits = result.losses, -result.losses
        if scoring and folds and not result.interrupted:
            x = result.x[:, :, : folds.number].reshape(-1, folds.number, *shape[2:])
            rows = held_out_rows(source, x, folds.number)
            is_weighted = sample_weight is not None or getattr(plain, "class_weight", None) is not None
            scores = merits = _scores(rows, scoring, problem, classes, is_weighted).reshape(*shape[:2], -1)
    return _Solved(result, np.array(grid), scores, merits, classes)


def _alphas_of(
    alphas: int | np.ndarray, penalty: str, ratio: float, prepared: Prepared, problem: Problem
) -> np.ndarray:
    """Return the given alphas, or the grid of an l1_ratio."""
    if isinstance(alphas, np.ndarray):
        return alphas
    share = {"l2": 0.0, "l1": 1.0}.get(penalty, ratio)
    return alpha_grid(alphas, share, prepared.zero, prepared.stats, problem)


def _checked_alphas(alphas: Any) -> int | np.ndarray:
    """Return the size of the grid, or the given alphas from the largest to the smallest."""
    if isinstance(alphas, Integral):
        return int(alphas)
    values = np.array([to_float("alphas", alpha) for alpha in np.ravel(np.asarray(alphas))])
    if not len(values):
        raise ValueError("alphas is empty; give at least one alpha, or an int for a grid")
    if not (np.isfinite(values) & (values >= 0)).all():
        bad = values[~(np.isfinite(values) & (values >= 0))][0]
        raise ValueError(f"alphas has {bad}; alphas must be finite and not negative")
    return np.sort(values)[::-1]


def _checked_ratios(penalty: str, l1_ratio: Any) -> list[float]:
    """Return the values of `l1_ratio` to choose among. It is used for "elasticnet" only."""
    values = [to_float("l1_ratio", one) for one in np.ravel(np.asarray(l1_ratio))]
    if not values or not all(0.0 <= one <= 1.0 for one in values):
        raise ValueError(f"l1_ratio={l1_ratio!r} must be one or several numbers from 0 to 1")
    return values if penalty == "elasticnet" else values[:1]


def _stacked(estimator: Any) -> np.ndarray:
    """Return the coefficients of a fitted path as solver coordinates, of shape (l1_ratios, alphas, k, p + 1)."""
    intercepts = estimator.intercept_path_
    coef = estimator.coef_path_.reshape(*intercepts.shape, -1)
    return np.concatenate([coef, intercepts[..., None]], axis=-1)


def chosen(scores: np.ndarray, select: str) -> tuple[int, int]:
    """Return the number of the chosen l1_ratio and alpha.

    Parameters
    ----------
    scores : ndarray of shape (l1_ratios, alphas, folds)
        Greater is better. Alphas fall.
    select : {"min", "1se"}

    Returns
    -------
    ratio, alpha : int
    """
    means = scores.mean(axis=2)
    means = np.where(np.isnan(means), -np.inf, means)  # models that an interrupted fit has not reached
    ratio, alpha = map(int, np.unravel_index(np.argmax(means), means.shape))
    if select == "1se":
        error = scores[ratio, alpha].std(ddof=1) / np.sqrt(scores.shape[2])
        alpha = int(np.flatnonzero(means[ratio] >= means[ratio, alpha] - error)[0])
    return ratio, alpha


def _scores(
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    scoring: str,
    problem: Problem,
    classes: np.ndarray | None,
    is_weighted: bool,
) -> np.ndarray:
    """Return scores of shape (models, folds) from the predictions of the held-out rows of each fold."""
    scorer, columns = get_scorer(scoring), []
    for z, targets, weights in rows:
        if classes is None:
            estimator: Any = _GivenRegressor(problem.loss).fit()
            truth = targets if targets.shape[1] > 1 else targets[:, 0]
        else:
            estimator = _GivenClassifier(problem.loss, classes).fit()
            codes = targets[:, 0] > 0 if len(classes) == 2 else targets[:, 0]
            truth = classes[codes.astype(np.intp)]
        how = {"sample_weight": weights} if is_weighted else {}
        columns.append([scorer(estimator, z[:, m], truth, **how) for m in range(z.shape[1])])
    return np.array(columns).T


class _GivenRegressor(RegressorMixin, BaseEstimator):
    """Regressor whose X are linear predictions of shape (n, k), for scorers."""

    def __init__(self, loss: Any):
        self.loss = loss

    def fit(self, X: Any = None, y: Any = None) -> Any:
        self.is_fitted_ = True
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        z = X[:, 0] if X.shape[1] == 1 else X
        return self.loss.mean(z) if hasattr(self.loss, "mean") else z


class _GivenClassifier(ClassifierMixin, BaseEstimator):
    """Classifier whose X are linear predictions of shape (n, k), for scorers."""

    def __init__(self, loss: Any, classes: np.ndarray):
        self.loss, self.classes = loss, classes

    def fit(self, X: Any = None, y: Any = None) -> Any:
        self.classes_ = self.classes
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X[:, 0] if X.shape[1] == 1 else X

    def predict(self, X: np.ndarray) -> np.ndarray:
        return to_labels(self.decision_function(X), self.classes_, self.loss)

    @available_if(lambda self: hasattr(self.loss, "probability"))
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return probabilities(self.decision_function(X), self.loss)


class SAGAClassifierCV(_ChoosesAlpha, SAGAClassifier):
    """Linear classifier that chooses `alpha` by cross-validation, on data of any size.

    The models of all folds and alphas share their passes over the rows: a visit of a chunk evaluates all of them. A
    path of 20 alphas and 5 folds takes about as many reads of the data as one fit. Each model reaches the optimum of
    ``SAGAClassifier``.

    Parameters
    ----------
    loss : {"log_loss", "squared_hinge", "modified_huber", "smooth_hinge"} or object, default="log_loss"
        Name of the loss, or your own loss with ``labels = (-1.0, 1.0)`` (see ``dask_saga.losses``). Use "log_loss" or
        "modified_huber" if you need probabilities.
    penalty : {"l2", "l1", "elasticnet"}, default="l2"
        The penalty R. "l1" gives sparse coefficients.
    alphas : int or array-like of shape (n_alphas,), default=20
        Weights of the penalty relative to the mean loss, in any order. An int is the size of a geometric grid for each
        `l1_ratio`. With an L1 part, it begins at the smallest alpha at which all coefficients are zero, and ends at
        1e-3 times this alpha. For "l2" it begins at the median curvature of the columns (the bound of the loss times
        the variance), and ends at 1e-6 times this.
    l1_ratio : float or list of float, default=0.15
        Share of the L1 part in "elasticnet", from 0 to 1. Give a list to choose among several.
    cv : int, splitter, iterable or array, default=5
        The folds. Each row is held out once. An int is the number of folds. They are those of scikit-learn for data in
        memory: stratified. For a Dask collection they are drawn within each block, by a seed that never
        changes, so that the values of y are not needed. A splitter such as ``KFold`` and an iterable of pairs of
        indices (train, test) need a known number of rows. An array, dask array or series of shape (n,) has the fold of
        each row.
    scoring : str, default=None
        Name of a scikit-learn scorer, such as "roc_auc". None is the mean loss itself, which needs no further pass
        over the rows. A scorer gets the predictions of all held-out rows, so they must fit into the memory.
    select : {"min", "1se"}, default="min"
        Which alpha to choose. "min" is the one with the best mean score over the folds. "1se" is the largest alpha with
        the same `l1_ratio` whose mean score is within one standard error of the best one.
    refit : bool, default=True
        Whether models of all rows are fitted too. They take part in the same passes. If False, coefficients are the
        mean over the folds.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is never penalised. Set False if the data are centred.
    step_size : "auto" or float, default="auto"
        Step size. "auto" starts at ``step_size_scale / L``, where L is the mean Lipschitz constant of the rows; the
        solver lowers or raises it during the fit. A float is a fixed step, without step control, subsample steps and
        Newton steps. Together with ``average=False`` and ``precondition=False`` it gives the plain SAGA of the paper.
    step_size_scale : float, default=0.3
        Factor of the "auto" step. The default is about the 1/(3L) of the paper. Lower it if a fit diverges. A search
        pays only if the model sees its data once or twice.
    precondition : bool, default=True
        Whether the solver centres and scales the columns inside its steps, and rotates dense columns to their principal
        axes where that pays, so that raw columns converge. The optimum is that of the raw columns. In sparse rows, only
        columns that every row stores are centred. Set False to see the steps in the coordinates of the data, as in
        plain SAGA; fits are then slow unless the columns have similar scales.
    average : bool, default=True
        Whether to average the iterates at the ends of chunk visits over a pass if they circle the optimum. It also
        lowers an "auto" step if differences between chunks keep them circling. Set False to see the iterates
        themselves, as in plain SAGA; it also switches off step control and Newton steps.
    max_iter : int, default=100
        Maximum number of passes that all models share, and of the passes of a model that is fitted separately.
    tol : float, default=1e-4
        Relative tolerance of each model, as in ``SAGAClassifier``. Lower it for more accurate scores.
    class_weight : dict, "balanced" or None, default=None
        Factor of the row weights for each class. Set it if classes differ in frequency or importance. "balanced" gives
        all classes the same total weight among all rows. Held-out losses are weighted too.
    n_parallel : int or "auto", default=1
        Number of chunks that `fit` visits concurrently from the same coefficients. The results are averaged. Raise it
        if a cluster has idle threads. Each value is reproducible on any scheduler, but values differ from each other.
        "auto" uses one chunk per thread of the cluster (or of this process without one), but at most a fifth of the
        chunks.
    n_threads : int, default=1
        Maximum number of threads that share a chunk, or models that are fitted separately. Raise it if cores are idle.
    memory_dtype : {"float32", "float64"}, default="float32"
        dtype of the gradient memory (one number per row and output). float32 is enough unless targets times weights are
        outside of 1e-30 to 1e30, or `tol` is very small.
    warm_start : bool, default=False
        If True, the passes of the next `fit` begin at the coefficients of this one, if it has as many models.
    random_state : int, RandomState or None, default=None
        Seed of the random orders of models that are fitted separately. Set an int for reproducible results.
    verbose : int, default=0
        If positive, `fit` shows a progress bar that counts the models that have converged.

    Attributes
    ----------
    alpha_ : float
        The chosen alpha.
    l1_ratio_ : float
        The chosen `l1_ratio`.
    alphas_ : ndarray of shape (n_alphas,), or (n_l1_ratios, n_alphas) if `alphas` is an int and there are several
        All alphas, from the largest to the smallest.
    scores_ : ndarray of shape (n_l1_ratios, n_alphas, n_folds)
        Mean loss of the held-out rows, or their score by `scoring`.
    coef_path_ : ndarray of shape (n_l1_ratios, n_alphas, ...)
        Coefficients of all models, each of the shape of `coef_`.
    intercept_path_ : ndarray of shape (n_l1_ratios, n_alphas, ...)
        Intercepts of all models, each of the shape of `intercept_`.
    coef_ : ndarray of shape (1, n_features), or (n_classes, n_features) for more than two classes
        Coefficients of the chosen model.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts of the chosen model; zero if not fitted.
    classes_ : ndarray of shape (n_classes,)
        Class labels in sorted order.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of X, defined only if all are strings.
    n_iter_ : int
        Number of rows of `history_`.
    history_ : list of dict
        One row for each pass that models shared, and for each model that was fitted separately. The keys are epoch,
        models (their number), converged (how many have converged), gradient_norm (the largest one of the others),
        seconds and bytes_read.
    converged_ : bool
        Whether all models reached `tol`.

    See Also
    --------
    SAGAClassifier : The plain estimator.
    saga_path : The path of all rows, without folds.
    dask_saga.inspection.PathDisplay : Plot of the path and of the scores.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from dask_saga import SAGAClassifierCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = SAGAClassifierCV(alphas=[1e-1, 1e-2, 1e-3], random_state=0).fit(X / X.max(axis=0), y)
    >>> model.alpha_, model.scores_.shape
    (0.001, (1, 3, 5))
    """

    _plain_class = SAGAClassifier
    _parameter_constraints: dict = {
        **{name: rule for name, rule in SAGAClassifier._parameter_constraints.items() if name not in NOT_SHARED},
        **_ChoosesAlpha._choice_constraints,
    }

    def __init__(
        self,
        loss: Any = "log_loss",
        *,
        penalty: Any = "l2",
        alphas: Any = 20,
        l1_ratio: Any = 0.15,
        cv: Any = 5,
        scoring: str | None = None,
        select: str = "min",
        refit: bool = True,
        fit_intercept: bool = True,
        step_size: str | float = "auto",
        step_size_scale: float = 0.3,
        precondition: bool = True,
        average: bool = True,
        max_iter: int = 100,
        tol: float = 1e-4,
        class_weight: Any = None,
        n_parallel: int | str = 1,
        n_threads: int = 1,
        memory_dtype: str = "float32",
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.loss = loss
        self.penalty = penalty
        self.alphas = alphas
        self.l1_ratio = l1_ratio
        self.cv = cv
        self.scoring = scoring
        self.select = select
        self.refit = refit
        self.fit_intercept = fit_intercept
        self.step_size = step_size
        self.step_size_scale = step_size_scale
        self.precondition = precondition
        self.average = average
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.n_parallel = n_parallel
        self.n_threads = n_threads
        self.memory_dtype = memory_dtype
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose


class SAGARegressorCV(_ChoosesAlpha, SAGARegressor):
    """Linear regression that chooses `alpha` by cross-validation, on data of any size.

    The models of all folds and alphas share their passes over the rows: a visit of a chunk evaluates all of them. A
    path of 20 alphas and 5 folds takes about as many reads of the data as one fit. Each model reaches the optimum of
    ``SAGARegressor``.

    Parameters
    ----------
    loss : {"squared_error", "huber", "poisson"} or object, default="squared_error"
        "squared_error" is ``(z - y)^2 / 2``. "huber" is ``Huber(epsilon=1.35)``, with epsilon in units of y; use it for
        data with outliers. "poisson" is half the Poisson deviance with a log link; its predictions are expected counts.
        You can also define your own loss (see ``dask_saga.losses``).
    penalty : {"l2", "l1", "elasticnet"}, default="l2"
        The penalty R. "l1" gives sparse coefficients.
    alphas : int or array-like of shape (n_alphas,), default=20
        Weights of the penalty relative to the mean loss, in any order. An int is the size of a geometric grid for each
        `l1_ratio`. With an L1 part, it begins at the smallest alpha at which all coefficients are zero, and ends at
        1e-3 times this alpha. For "l2" it begins at the median curvature of the columns (the bound of the loss times
        the variance), and ends at 1e-6 times this.
    l1_ratio : float or list of float, default=0.15
        Share of the L1 part in "elasticnet", from 0 to 1. Give a list to choose among several.
    cv : int, splitter, iterable or array, default=5
        The folds. Each row is held out once. An int is the number of folds. They are those of scikit-learn for data in
        memory: consecutive rows. For a Dask collection they are drawn within each block, by a seed that never
        changes, so that the values of y are not needed. A splitter such as ``KFold`` and an iterable of pairs of
        indices (train, test) need a known number of rows. An array, dask array or series of shape (n,) has the fold of
        each row.
    scoring : str, default=None
        Name of a scikit-learn scorer, such as "r2". None is the mean loss itself, which needs no further pass
        over the rows. A scorer gets the predictions of all held-out rows, so they must fit into the memory.
    select : {"min", "1se"}, default="min"
        Which alpha to choose. "min" is the one with the best mean score over the folds. "1se" is the largest alpha with
        the same `l1_ratio` whose mean score is within one standard error of the best one.
    refit : bool, default=True
        Whether models of all rows are fitted too. They take part in the same passes. If False, coefficients are the
        mean over the folds.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is never penalised. Set False if the data are centred.
    step_size : "auto" or float, default="auto"
        Step size. "auto" starts at ``step_size_scale / L``, where L is the mean Lipschitz constant of the rows; the
        solver lowers or raises it during the fit. A float is a fixed step, without step control, subsample steps and
        Newton steps. Together with ``average=False`` and ``precondition=False`` it gives the plain SAGA of the paper.
    step_size_scale : float, default=0.3
        Factor of the "auto" step. The default is about the 1/(3L) of the paper. Lower it if a fit diverges. A search
        pays only if the model sees its data once or twice.
    precondition : bool, default=True
        Whether the solver centres and scales the columns inside its steps, and rotates dense columns to their principal
        axes where that pays, so that raw columns converge. The optimum is that of the raw columns. In sparse rows, only
        columns that every row stores are centred. Set False to see the steps in the coordinates of the data, as in
        plain SAGA; fits are then slow unless the columns have similar scales.
    average : bool, default=True
        Whether to average the iterates at the ends of chunk visits over a pass if they circle the optimum. It also
        lowers an "auto" step if differences between chunks keep them circling. Set False to see the iterates
        themselves, as in plain SAGA; it also switches off step control and Newton steps.
    max_iter : int, default=100
        Maximum number of passes that all models share, and of the passes of a model that is fitted separately.
    tol : float, default=1e-4
        Relative tolerance of each model, as in ``SAGARegressor``. Lower it for more accurate scores.
    n_parallel : int or "auto", default=1
        Number of chunks that `fit` visits concurrently from the same coefficients. The results are averaged. Raise it
        if a cluster has idle threads. Each value is reproducible on any scheduler, but values differ from each other.
        "auto" uses one chunk per thread of the cluster (or of this process without one), but at most a fifth of the
        chunks.
    n_threads : int, default=1
        Maximum number of threads that share a chunk, or models that are fitted separately. Raise it if cores are idle.
    memory_dtype : {"float32", "float64"}, default="float32"
        dtype of the gradient memory (one number per row and output). float32 is enough unless targets times weights are
        outside of 1e-30 to 1e30, or `tol` is very small.
    warm_start : bool, default=False
        If True, the passes of the next `fit` begin at the coefficients of this one, if it has as many models.
    random_state : int, RandomState or None, default=None
        Seed of the random orders of models that are fitted separately. Set an int for reproducible results.
    verbose : int, default=0
        If positive, `fit` shows a progress bar that counts the models that have converged.

    Attributes
    ----------
    alpha_ : float
        The chosen alpha.
    l1_ratio_ : float
        The chosen `l1_ratio`.
    alphas_ : ndarray of shape (n_alphas,), or (n_l1_ratios, n_alphas) if `alphas` is an int and there are several
        All alphas, from the largest to the smallest.
    scores_ : ndarray of shape (n_l1_ratios, n_alphas, n_folds)
        Mean loss of the held-out rows, or their score by `scoring`.
    coef_path_ : ndarray of shape (n_l1_ratios, n_alphas, ...)
        Coefficients of all models, each of the shape of `coef_`.
    intercept_path_ : ndarray of shape (n_l1_ratios, n_alphas, ...)
        Intercepts of all models, each of the shape of `intercept_`.
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) for several columns of y
        Coefficients of the chosen model.
    intercept_ : ndarray of shape (1,) or (n_targets,)
        Intercepts of the chosen model; zero if not fitted.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of X, defined only if all are strings.
    n_iter_ : int
        Number of rows of `history_`.
    history_ : list of dict
        One row for each pass that models shared, and for each model that was fitted separately. The keys are epoch,
        models (their number), converged (how many have converged), gradient_norm (the largest one of the others),
        seconds and bytes_read.
    converged_ : bool
        Whether all models reached `tol`.

    See Also
    --------
    SAGARegressor : The plain estimator.
    saga_path : The path of all rows, without folds.
    dask_saga.inspection.PathDisplay : Plot of the path and of the scores.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from dask_saga import SAGARegressorCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = SAGARegressorCV(penalty="l1", select="1se", random_state=0).fit(X, y)
    >>> model.coef_path_.shape, int((model.coef_ != 0).sum())
    ((1, 20, 10), 6)
    """

    _plain_class = SAGARegressor
    _parameter_constraints: dict = {
        **{name: rule for name, rule in SAGARegressor._parameter_constraints.items() if name not in NOT_SHARED},
        **_ChoosesAlpha._choice_constraints,
    }

    def __init__(
        self,
        loss: Any = "squared_error",
        *,
        penalty: Any = "l2",
        alphas: Any = 20,
        l1_ratio: Any = 0.15,
        cv: Any = 5,
        scoring: str | None = None,
        select: str = "min",
        refit: bool = True,
        fit_intercept: bool = True,
        step_size: str | float = "auto",
        step_size_scale: float = 0.3,
        precondition: bool = True,
        average: bool = True,
        max_iter: int = 100,
        tol: float = 1e-4,
        n_parallel: int | str = 1,
        n_threads: int = 1,
        memory_dtype: str = "float32",
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.loss = loss
        self.penalty = penalty
        self.alphas = alphas
        self.l1_ratio = l1_ratio
        self.cv = cv
        self.scoring = scoring
        self.select = select
        self.refit = refit
        self.fit_intercept = fit_intercept
        self.step_size = step_size
        self.step_size_scale = step_size_scale
        self.precondition = precondition
        self.average = average
        self.max_iter = max_iter
        self.tol = tol
        self.n_parallel = n_parallel
        self.n_threads = n_threads
        self.memory_dtype = memory_dtype
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose


class SAGAPath(NamedTuple):
    """Result of ``saga_path``.

    Parameters
    ----------
    alphas : ndarray of shape (n_alphas,)
        From the largest to the smallest.
    coef : ndarray of shape (n_alphas, ...)
        Coefficients of each model, of the shape of ``coef_`` of the estimators.
    intercept : ndarray of shape (n_alphas, ...)
        Intercepts of each model, of the shape of ``intercept_``.
    converged : ndarray of bool of shape (n_alphas,)
    history : list of dict
        As ``history_`` of ``SAGARegressorCV``.
    """

    alphas: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    converged: np.ndarray
    history: list[dict]


def saga_path(
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    alphas: Any = 20,
    loss: Any = "squared_error",
    penalty: str = "l1",
    l1_ratio: float = 0.15,
    persist: bool | str = "auto",
    callback: Callable[[PathInfo], Any] | None = None,
    **parameters: Any,
) -> SAGAPath:
    """Fit the models of all alphas to all rows, in passes that they share.

    Parameters
    ----------
    X : array-like, scipy.sparse, DataFrame, dask array or dask dataframe of shape (n, p)
        Rows.
    y : array-like, dask array or series of shape (n,), or (n, n_targets) for regression
        Targets, or labels if the loss is one of classification.
    sample_weight : array-like or dask array of shape (n,), default=None
        Row weights, at least zero. None gives every row weight 1.
    alphas : int or array-like of shape (n_alphas,), default=20
        Weights of the penalty, or the size of a grid, as in ``SAGARegressorCV``.
    loss : str or object, default="squared_error"
        Loss of ``SAGARegressor`` or ``SAGAClassifier``.
    penalty : {"l1", "l2", "elasticnet"}, default="l1"
        The penalty.
    l1_ratio : float, default=0.15
        Share of the L1 part in "elasticnet".
    persist : bool or "auto", default="auto"
        Whether Dask blocks are held in memory, as in ``SAGARegressor.fit``.
    callback : callable, default=None
        Function called as ``callback(info)`` after each pass, as in ``SAGARegressorCV.fit``.
    **parameters : dict
        Further parameters of ``SAGARegressor`` or ``SAGAClassifier``.

    Returns
    -------
    SAGAPath

    Raises
    ------
    ValueError, TypeError
        For invalid parameters or data.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from dask_saga import saga_path
    >>> X, y = load_diabetes(return_X_y=True)
    >>> path = saga_path(X, y, alphas=5, random_state=0)
    >>> (path.coef != 0).sum(axis=1).tolist()
    [0, 4, 7, 9, 10]
    """
    kind = SAGAClassifier if getattr(resolve_loss(loss), "labels", None) else SAGARegressor
    plain = kind(loss, penalty=penalty, l1_ratio=l1_ratio, **parameters)
    plain._validate_params()
    if penalty not in ("l1", "l2", "elasticnet"):
        raise ValueError(f"penalty={penalty!r} has no alpha; choose 'l1', 'l2' or 'elasticnet'")
    with showing_models(plain.verbose, callback) as noted:
        solved = _solve(
            plain, X, y, sample_weight, _checked_alphas(alphas), _checked_ratios(penalty, l1_ratio)[:1], None,
            persist=persist, callback=noted,
        )  # fmt: skip
    x = solved.result.x[0, :, 0]
    coef = x[:, 0, :-1] if kind is SAGARegressor and x.shape[1] == 1 else x[..., :-1]
    return SAGAPath(solved.alphas[0], coef, x[..., -1], solved.result.converged[0, :, 0], solved.result.history)
