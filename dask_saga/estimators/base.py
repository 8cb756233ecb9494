"""Base class of the classifier and the regressor: parameters, their validation, `fit` and the fitted attributes."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from numbers import Real
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from dask import is_dask_collection
from dask.base import normalize_token
from dask.sizeof import sizeof
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from ..data.containers import as_array, check_columns, check_containers, warn_of_column_vector, with_names
from ..data.dask_blocks import column_names, dask_blocks, known_length, most_bytes
from ..data.validation import blame, read_chunk, read_rows, with_folds
from ..execution.executor import LocalExecutor, find_executor
from ..fitting.checkpoint import Checkpoint
from ..fitting.chunk_source import Source
from ..fitting.loop import join_x, run
from ..fitting.path_passes import checked_folds
from ..fitting.preparation import prepare
from ..fitting.smoothing import run_smoothed
from ..losses import LOSSES, resolve_loss
from ..penalties import PENALTIES, resolve_penalty
from ..solver.identity import draw_seed
from ..solver.preconditioned_problem import PreconditionedProblem
from ..solver.preconditioner import Preconditioner
from ..solver.problem import CONSTRAINTS, Problem, problem_for, to_float
from ..solver.state import SAGAState
from .export import sklearn_model, sql_expressions
from .messages import ONLY_PREDICTS, ZERO_WEIGHTS, Ending, diverged_advice, showing_progress, unconverged_advice
from .prediction import add_offset, linear

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..data.folds import Folds
    from ..fitting.fit_state import Result
    from ..fitting.loop import Info
    from ..fitting.preparation import Prepared

__all__ = ["SAGABase", "loss_constraint"]


def loss_constraint(labelled: bool) -> list:
    """Return the validation constraint of `loss` for a classifier (`labelled`) or a regressor."""
    names = {name for name, loss in LOSSES.items() if hasattr(loss, "labels") == labelled}
    return [StrOptions(names), *CONSTRAINTS["loss"][1:]]


@functools.lru_cache(maxsize=256, typed=True)
def _known_problem(kind: type[SAGABase], *parameters: Any) -> Problem:
    return _checked_problem(kind, dict(zip(kind._parameter_constraints, parameters, strict=True)))


def _checked_problem(kind: type[SAGABase], parameters: dict[str, Any]) -> Problem:
    """Validate the parameters of an estimator of a class and return their problem.

    It constructs no estimator, because the constructor of a subclass may have other parameters.
    """
    validate_parameter_constraints(kind._parameter_constraints, parameters, caller_name=kind.__name__)
    given = SimpleNamespace(**parameters)
    loss, alpha = resolve_loss(given.loss), to_float("alpha", given.alpha)
    penalty = resolve_penalty(given.penalty, alpha, given.l1_ratio)
    if bool(getattr(loss, "labels", None)) != kind._labelled:
        wanted = "labels = (-1.0, 1.0)" if kind._labelled else "no labels"
        other = "SAGARegressor" if kind._labelled else "SAGAClassifier"
        raise ValueError(
            f"loss={given.loss!r} is not for {kind.__name__}, whose losses have {wanted}; use {other}, or correct the "
            "labels of the loss"
        )
    return Problem(
        loss,
        penalty,
        bool(given.fit_intercept),
        given.step_size if given.step_size == "auto" else to_float("step_size", given.step_size),
        to_float("step_size_scale", given.step_size_scale),
        bool(given.average),
        bool(given.precondition),
        str(given.memory_dtype),
        n_threads=int(given.n_threads),
        curvature=given.curvature if isinstance(given.curvature, str) else bool(given.curvature),
    )


@functools.cache
def _defaults(kind: type[SAGABase]) -> dict[str, Any]:
    """Return the defaults of the parameters of this package, as a subclass may lack them in its constructor."""
    constructors = [signature(base.__init__) for base in reversed(kind.__mro__) if issubclass(base, SAGABase)]
    parameters = {name: one for constructor in constructors for name, one in constructor.parameters.items()}
    known = [one for name, one in parameters.items() if name in kind._parameter_constraints]
    return {one.name: one.default for one in known if one.default is not one.empty}


class SAGABase(BaseEstimator):
    """Base class of ``SAGAClassifier`` and ``SAGARegressor``: parameters, `fit` and predictions."""

    _labelled: bool  # whether it is a classifier

    coef_: np.ndarray
    intercept_: np.ndarray
    classes_: np.ndarray
    state_: SAGAState | None
    step_size_: float
    n_iter_: int
    history_: list
    converged_: bool
    diverged_: bool

    _parameter_constraints: dict = {
        **CONSTRAINTS,
        "penalty": [StrOptions({name for name in PENALTIES if name}), None, tuple, HasMethods(["value", "prox"])],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "curvature": [StrOptions({"auto"}), "boolean"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        loss: Any = "squared_error",
        *,
        penalty: Any = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        step_size: str | float = "auto",
        step_size_scale: float = 0.3,
        precondition: bool = True,
        average: bool = True,
        curvature: str | bool = "auto",
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
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.step_size = step_size
        self.step_size_scale = step_size_scale
        self.precondition = precondition
        self.average = average
        self.curvature = curvature
        self.max_iter = max_iter
        self.tol = tol
        self.n_parallel = n_parallel
        self.n_threads = n_threads
        self.memory_dtype = memory_dtype
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def __setstate__(self, state: dict) -> None:
        """Restore a pickle; parameters missing from a pickle of an earlier version get their defaults."""
        super().__setstate__({**_defaults(type(self)), **state})  # type: ignore[arg-type]  # as in `_problem`

    def set_params(self, **params: Any) -> Any:
        """Set parameters of this estimator.

        If a subclass has its own constructor, this calls the constructor again with all parameters. So the parameters
        that it derives from its own follow these, as a search needs it.

        Parameters
        ----------
        **params : dict
            Parameters by name.

        Returns
        -------
        self : object
            The estimator.
        """
        super().set_params(**params)
        if params and not type(self).__init__.__module__.startswith(__package__):
            self.__init__(**self.get_params(deep=False))  # type: ignore[misc]
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __dask_tokenize__(self) -> tuple:
        state = getattr(self, "state_", None)
        parameters = normalize_token({name: value for name, value in vars(self).items() if not name.endswith("_")})
        learnt = None
        if hasattr(self, "coef_"):  # without gradient memory, only the coefficients identify the fit
            learnt = (state.digest, state.seed) if state else (self.coef_.tolist(), self.intercept_.tolist())
        return type(self).__qualname__, parameters, learnt, np.ravel(getattr(self, "classes_", [])).tolist()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Restore the estimator's attributes if an error occurs inside the context.

        A shallow copy suffices, as attribute values are replaced and never modified in place.
        """
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _problem(self) -> Problem:
        """Validate the parameters and return their problem.

        The result is cached for equal parameters, as validation takes as long as visiting a small chunk.
        """
        parameters = {name: getattr(self, name) for name in self._parameter_constraints}
        values = tuple(parameters.values())
        try:
            hash(values)
        except TypeError:
            return _checked_problem(type(self), parameters)
        return _known_problem(type(self), *values)  # type: ignore[arg-type]  # mypy doubts that a class has a hash

    def _find_classes(self, source: Source) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return all classes, and the factor of the row weights of each class or None; (None, None) without classes."""
        return None, None

    def _check_columns(self, X: Any, reset: bool) -> None:
        """Check, or set if `reset`, the names and the number of columns of an array or a Dask collection."""
        named = with_names(X)
        _check_feature_names(self, named, reset=reset)
        if reset and is_dask_collection(X) and np.isnan(X.shape[1]):
            raise ValueError("X has an unknown number of columns; call X.compute_chunk_sizes() first")
        _check_n_features(self, named, reset=reset)

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        offset: Any = None,
        *,
        persist: bool | str = "auto",
        checkpoint: Any = None,
        callback: Callable[[Info], Any] | None = None,
    ) -> Any:
        """Fit the model with passes over all chunks until it reaches `tol` or `max_iter`.

        A fit starts from scratch, unless `warm_start` is True and there are coefficients to start from.

        Parameters
        ----------
        X : array-like, scipy.sparse, DataFrame, DataArray, dask array or dask dataframe of shape (n, p)
            Rows. In-memory data are one chunk. For a Dask collection, each block is a chunk.
        y : array-like, dask array or series of shape (n,), or (n, n_targets) for a regressor
            Targets or labels. A Dask collection needs the same blocks as X.
        sample_weight : array-like or dask array of shape (n,), default=None
            Row weights, at least zero. None gives every row weight 1. Set it if rows differ in importance or stand for
            several observations; only the proportions of the weights count.
        offset : array-like or dask array of shape (n,), or (n, n_targets) for a regressor, default=None
            Numbers that are added to the linear predictions, with coefficient 1. None adds nothing. Set it to
            ``log(exposure)`` for "poisson" if rows were observed for different times, or to the predictions of another
            model. Give it again when you predict. More than two classes accept none.
        persist : bool or "auto", default="auto"
            Whether Dask blocks are held in the memory of the client's cluster (or of this process without a client).
            False loads a few blocks at a time, again for each visit; set it if the data do not fit. "auto" holds the
            blocks if they take less than 40 % of that memory.
        checkpoint : str or path, default=None
            Folder, or URL supported by fsspec, in which the fit is saved about every half minute and at the end. If it
            contains a checkpoint of a fit with the same data and parameters, the fit resumes from it, also after a
            crash. The result is bitwise the same; `max_iter` and `tol` may differ. Set it for long fits. Losses with
            corners, such as "quantile", have no checkpoints.
        callback : callable, default=None
            Function called as ``callback(info)`` after each pass, where info has epoch, x, intercept, objective
            (estimated), gradient_norm, step_size, seconds, visits, bytes_read and chunks. The fit stops if it returns
            True. Set it to watch a fit, or to stop it by a rule of your own.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            For invalid parameters or data. The message names the argument and the chunk, and the estimator stays
            unchanged.

        KeyboardInterrupt
            After Ctrl-C. If at least one pass was completed, the estimator has the result of the completed passes.

        Warns
        -----
        UserWarning
            If the gradient memory is on a cluster and exceeds half of the memory that this process may use. It is then
            not gathered, and `state_` is None.

        ConvergenceWarning
            If `tol` was not reached within `max_iter` passes, or if the steps diverged.
        """
        with self._all_or_nothing():
            problem = self._problem()
            goes_on = bool(self.warm_start) and hasattr(self, "coef_")
            start = join_x(self.coef_, self.intercept_) if goes_on else None
            source, problem, classes = self._read(X, y, sample_weight, problem, persist, goes_on=goes_on, offset=offset)
            with source, showing_progress(self.verbose, self.max_iter, callback) as noted:
                result = self._run(source, problem, callback=noted, given=X, checkpoint=checkpoint, start=start)
            self._commit(result.state, result.x, problem, classes)
            if not result.has_memory:
                self.state_ = None
                rows = result.state.head.rows
                warnings.warn(
                    f"The gradient memory of {rows:,} rows is too large for this process, so the estimator has none. "
                    f"{ONLY_PREDICTS}",
                    stacklevel=2,
                )
            self.n_iter_ = len(result.history)
            self.history_ = result.history
            self.converged_ = result.converged
            if not result.converged:
                self._warn(result)
        if result.interrupted:
            raise KeyboardInterrupt
        return self

    def _run(
        self, source: Source, problem: Problem, *, checkpoint: Any, start: np.ndarray | None, **watching: Any
    ) -> Result:
        prepared = prepare(source, problem, labels=getattr(self, "feature_names_in_", None))
        self._check_prepared(prepared)
        if start is not None and len(start) != len(prepared.zero):
            raise ValueError(
                f"y has {len(prepared.zero)} columns, but coef_, from which warm_start=True starts, has {len(start)}; "
                "fit with warm_start=False"
            )
        solve: Callable[..., Result] = run_smoothed if hasattr(problem.loss, "smoothed") else run
        return solve(
            source, prepared, problem,
            seed=None if self.random_state is None else draw_seed(self.random_state),
            max_iter=self.max_iter, tol=self.tol, start=start,
            checkpoint=None if checkpoint is None else Checkpoint(checkpoint), **watching,
        )  # fmt: skip

    def _check_prepared(self, prepared: Prepared) -> None:
        """Raise a ValueError if there are no rows, or if blocks have other columns than X says."""
        if not any(fact.rows for fact in prepared.facts):
            raise ValueError(ZERO_WEIGHTS if sum(prepared.lengths) else "X has no rows")
        if len(prepared.stats.mean) != self.n_features_in_:
            raise ValueError(
                f"X has blocks of {len(prepared.stats.mean)} columns, but its shape or meta says "
                f"{self.n_features_in_}; correct the shape or meta"
            )

    def _read(
        self, X: Any, y: Any, sample_weight: Any, problem: Problem, persist: bool | str, *, fits: bool = True,
        goes_on: bool = False, offset: Any = None, folds: Folds | None = None,
    ) -> tuple[Source, Problem, np.ndarray | None]:  # fmt: skip
        """Return the source of chunks, the problem for their classes, and the classes.

        Parameters
        ----------
        X, y, sample_weight, persist, offset : as in ``fit``
        problem : Problem
        fits : bool, default=True
            Whether classes and columns are set by the data. Otherwise the data are checked against the fitted ones.
        goes_on : bool, default=False
            Whether the fit starts from the current coefficients, so that classes and columns must be the fitted ones.
        folds : Folds, default=None
            Folds of cross-validation, which chunks then have.
        """
        check_containers(X=X, y=y, sample_weight=sample_weight, offset=offset)
        if self._labelled:
            warn_of_column_vector(y)
        lazy = any(map(is_dask_collection, (X, y, sample_weight, offset)))
        more = offset if folds is None else folds.given  # the fourth part of a block
        if lazy:
            given, X, y, sample_weight, more = X, *map(as_array, (X, y, sample_weight, more))
            blocks = dask_blocks(X, y, sample_weight, **{"offset" if folds is None else "cv": more})
            check_columns(X._meta)
            self._check_columns(given, reset=fits and not goes_on)
            source = Source(
                find_executor(), blocks,
                nbytes=most_bytes(X), rows=known_length(X, 0), columns=known_length(X, 1), persist=persist,
                n_parallel=self.n_parallel,
            )  # fmt: skip
        else:
            source = Source(LocalExecutor(), [(X, y, sample_weight, more)], persist=persist or True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(source)  # closes the source if an error occurs below
            classes, class_weights = self._classes_for(source, fits, goes_on)
            # A classifier without classes has an empty y: a later check raises, whether X has rows or not.
            if classes is not None or not self._labelled:
                problem = problem_for(problem, classes)
            if folds is not None:
                folds = checked_folds(folds, source, classes)
            source.begin(functools.partial(
                _read_block, columns=column_names(X),
                classes=classes, class_weights=class_weights, loss=problem.loss,
                estimator=type(self).__name__, finite=not fits, folds=folds,
            ))  # fmt: skip
            if not lazy:
                source.chunk(0)  # errors in the values take precedence over errors in the columns
                self._check_columns(X, reset=fits and not goes_on)
            stack.pop_all()
        return source, problem, classes

    def _classes_for(self, source: Source, fits: bool, goes_on: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the classes, and the factor of the row weights of each class or None, for ``_read``."""
        if not fits:
            return getattr(self, "classes_", None), None
        classes, class_weights = self._find_classes(source)
        if goes_on and classes is not None and not np.array_equal(self.classes_, classes):
            raise ValueError(
                f"y has the classes {classes.tolist()}, but coef_, from which warm_start=True starts, has "
                f"{self.classes_.tolist()}; fit with warm_start=False"
            )
        return classes, class_weights

    def _warn(self, result: Result) -> None:
        if result.diverged:
            advice = diverged_advice(self)
        elif len(result.history) < self.max_iter:
            return  # a callback or Ctrl-C stopped the fit
        else:
            norms = [row["gradient_norm"] for row in result.history]
            head, stats, names = result.state.head, result.state.stats, getattr(self, "feature_names_in_", None)
            ending = Ending(norms, result.n_chunks, head.step_multiplier, stats, names, result.needs_float64)
            advice = unconverged_advice(self, ending)
        warnings.warn(advice, ConvergenceWarning, stacklevel=3)

    def _class_weights(self, classes: np.ndarray) -> np.ndarray | None:
        return None

    def _commit(self, state: SAGAState, x: np.ndarray, problem: Problem, classes: np.ndarray | None) -> None:
        self.state_ = state
        self.coef_ = x[:, :-1].copy() if self._labelled or len(x) > 1 else x[0, :-1].copy()
        self.intercept_ = x[:, -1].copy()
        axes = cast(Preconditioner, state.metric)  # None only before the first chunk
        self.step_size_ = PreconditionedProblem(problem, axes).step_size(state.head.step_multiplier)
        self.diverged_ = state.head.diverged
        if classes is not None:
            self.classes_ = classes

    def _linear(self, X: Any, offset: Any = None) -> Any:
        """Return linear predictions as ``linear`` does, plus the offset: lazy for Dask input."""
        check_is_fitted(self)
        check_containers(X=X, offset=offset)
        with blame("X"):
            rows = as_array(X) if is_dask_collection(X) else read_rows(X, estimator=type(self).__name__)
        if is_dask_collection(rows):
            check_columns(rows._meta)
        self._check_columns(X, reset=False)
        z = linear(rows, np.atleast_2d(self.coef_), self.intercept_)
        if offset is None:
            return z
        if self._labelled and z.ndim > 1:
            raise ValueError("an offset is not supported for more than two classes")
        return add_offset(z, offset)

    def to_sklearn(self) -> Any:
        """Return a fitted estimator of scikit-learn with the same predictions.

        Use it where a tool knows the estimators of scikit-learn only, such as ONNX converters, skops or SHAP. It has
        its own copies of the coefficients and no gradient memory. Its penalty has the default, so it is not meant to
        be fitted again.

        Returns
        -------
        LogisticRegression, SGDClassifier, LinearSVC, LinearRegression, PoissonRegressor or MultiOutputRegressor
            LogisticRegression for log loss, SGDClassifier for "modified_huber", LinearSVC for all losses without
            probabilities, PoissonRegressor for "poisson" (in a MultiOutputRegressor for several targets), and
            LinearRegression for other losses.

        Raises
        ------
        ValueError
            If your own loss defines `probability` or `mean`, which scikit-learn does not know.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from dask_saga import SAGAClassifier
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> SAGAClassifier(random_state=0).fit(X, y).to_sklearn()
        LogisticRegression()
        """
        return sklearn_model(self)

    def to_sql(self, columns: Sequence[str] | None = None, *, method: str = "predict") -> str | list[str]:
        """Return the prediction as an expression of standard SQL, so that a database predicts without Python.

        The expression uses arithmetic, CASE and EXP only. Numbers have an exponent, so that databases compute in double
        precision. The result is NULL if a column with a nonzero coefficient is NULL.

        Parameters
        ----------
        columns : list of str, default=None
            Names of the table's columns, in the order of the columns of X. They are quoted. None uses
            `feature_names_in_`.
        method : {"predict", "predict_proba", "decision_function"}, default="predict"
            Method of which the expression is the result. A regressor has "predict" only.

        Returns
        -------
        str or list of str
            One expression, or a list for several results per row: one expression per target or per class, in the order
            of `classes_`. "predict_proba" always gives a list.

        Raises
        ------
        ValueError
            If there are no names, or if your own loss defines the `probability` or `mean` to be written.

        Examples
        --------
        >>> from dask_saga import SAGARegressor
        >>> model = SAGARegressor(fit_intercept=False).fit([[1.0], [2.0], [3.0]], [0.0, 0.0, 0.0])
        >>> model.coef_[:] = 0.5
        >>> model.to_sql(["rooms per floor"])
        '(0.5e0 * "rooms per floor")'
        """
        return sql_expressions(self, columns, method)


def _read_block(block: tuple, name: Any, folds: Folds | None, **how: Any) -> Chunk:
    if folds is None:
        return read_chunk(*block, name=name, **how)
    chunk, given = read_chunk(*block[:3], name=name, **how), block[3] if len(block) > 3 else None
    return with_folds(chunk, folds.of_block(given, name or 0, len(chunk.targets)))


# dask-ml registers a tokenizer for all scikit-learn estimators. It would read the whole gradient memory, so this one
# takes precedence.
@normalize_token.register(SAGABase)
def _normalize_estimator(estimator: SAGABase) -> tuple:
    return estimator.__dask_tokenize__()


@sizeof.register(SAGABase)
def _sizeof_estimator(estimator: SAGABase) -> int:
    return 1000 + sum(sizeof(v) for v in vars(estimator).values() if isinstance(v, (SAGAState, np.ndarray)))
