"""What the classifier and the regressor share: parameters, fit, partial_fit, commit."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Hashable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from dask import is_dask_collection
from dask.base import normalize_token
from dask.sizeof import sizeof
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from .blocks import dask_blocks, known_length, most_bytes
from .checkpoint import Checkpoint
from .chunk import chunk_gradient, count_outputs, visit
from .driver import Info, run
from .executors import LocalExecutor, find_executor
from .inputs import blame, read_chunk, read_rows
from .losses import LOSSES, LogLoss, MultinomialLogLoss, resolve_loss
from .penalties import PENALTIES, ElasticNet, resolve_penalty
from .place import Result
from .prediction import linear
from .prepare import prepare
from .problem import CONSTRAINTS, Problem, to_float
from .progress import showing_progress
from .source import Source
from .state import SAGAState, anonymous_id, draw_seed, last_of, new_state
from .streams import forget
from .windows import shown_x


def loss_constraint(labelled: bool) -> list:
    """What a classifier, or a regressor, takes as `loss`."""
    names = {name for name, loss in LOSSES.items() if bool(loss.labels) == labelled}
    return [StrOptions(names), *CONSTRAINTS["loss"][1:]]


def problem_for(problem: Problem, classes: np.ndarray | None) -> Problem:
    """The problem of several classes: multinomial for "log_loss", one output against the rest for other losses."""
    count = 0 if classes is None else len(classes)
    if type(problem.loss) is LogLoss and count > 2:
        problem = problem._replace(loss=MultinomialLogLoss(count))
    outputs = getattr(problem.loss, "outputs", count if count > 2 else 1)
    if hasattr(problem.loss, "outputs") and outputs != count:
        raise ValueError(f"loss={problem.loss} is for {outputs} classes, but y has {count}")
    return problem._replace(outputs=outputs)


@functools.lru_cache(maxsize=256, typed=True)
def _problem_of(kind: type, *parameters: Any) -> Problem:
    return kind(**dict(zip(kind._parameter_constraints, parameters, strict=True)))._checked_problem()


class SAGABase(BaseEstimator):
    """What the classifier and the regressor share."""

    _parameter_constraints: dict = {
        **CONSTRAINTS,
        "penalty": [StrOptions({name for name in PENALTIES if name}), None, tuple, HasMethods(["value", "prox"])],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        loss: Any = "log_loss",
        *,
        penalty: Any = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
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
        self.max_iter = max_iter
        self.tol = tol
        self.n_parallel = n_parallel
        self.n_threads = n_threads
        self.memory_dtype = memory_dtype
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __dask_tokenize__(self) -> tuple:
        state = getattr(self, "state_", None)
        parameters = normalize_token(self.get_params(deep=False))
        learnt = None
        if hasattr(self, "coef_"):  # without memory there are only these to tell
            learnt = (state.digest, state.seed) if state else (self.coef_.tolist(), self.intercept_.tolist())
        return type(self).__qualname__, parameters, learnt, np.ravel(getattr(self, "classes_", [])).tolist()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Whatever fails inside leaves the estimator as it was; its values are never written, only replaced."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _problem(self) -> Problem:
        """The problem of the parameters, which are checked; once for equal ones, as that takes a small chunk's time."""
        parameters = tuple(getattr(self, name) for name in self._parameter_constraints)
        try:
            hash(parameters)
        except TypeError:
            return self._checked_problem()
        return _problem_of(type(self), *parameters)

    def _checked_problem(self) -> Problem:
        self._validate_params()
        loss, alpha = resolve_loss(self.loss), to_float("alpha", self.alpha)
        penalty = resolve_penalty(self.penalty, alpha, self.l1_ratio)
        if bool(getattr(loss, "labels", None)) != self._labelled:
            wanted = "labels = (-1.0, 1.0)" if self._labelled else "no labels"
            raise ValueError(f"loss={self.loss!r} is not for {type(self).__name__}, whose losses have {wanted}")
        return Problem(
            loss,
            penalty,
            bool(self.fit_intercept),
            self.step_size if self.step_size == "auto" else to_float("step_size", self.step_size),
            to_float("step_size_scale", self.step_size_scale),
            bool(self.average),
            bool(self.precondition),
            str(self.memory_dtype),
            n_threads=int(self.n_threads),
        )

    def _find_classes(self, source: Source) -> tuple:
        """All classes, and the weights of their rows or None."""
        return None, None

    def _check_columns(self, X: Any, reset: bool) -> None:
        """Names and number of columns, of Dask collections as of arrays."""
        # An empty frame of the collection's type knows its column names.
        _check_feature_names(self, getattr(X, "_meta", X) if is_dask_collection(X) else X, reset=reset)
        if reset and is_dask_collection(X) and np.isnan(X.shape[1]):
            raise ValueError("X has an unknown number of columns; call X.compute_chunk_sizes() first")
        _check_n_features(self, X, reset=reset)

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        persist: bool | str = "auto",
        checkpoint: Any = None,
        callback: Callable[[Info], Any] | None = None,
    ) -> Any:
        """Fit from zero: passes over all chunks until `tol` or `max_iter`.

        Parameters
        ----------
        X : array-like, scipy.sparse, DataFrame, dask array or dask dataframe of shape (n, p)
            In memory it is one chunk. On Dask its blocks are the chunks.
        y : array-like, dask array or series of shape (n,)
            Blocked like X.
        sample_weight : array-like or dask array of shape (n,), default=None
            Weights of the rows, at least zero.
        persist : bool or "auto", default="auto"
            Whether Dask's blocks are held in the memory of the client's cluster, or of this process
            without one, or loaded again for each visit, a few at a time. "auto" holds them where they take
            less than 40 % of that memory.
        checkpoint : str or path, default=None
            Folder, or URL that fsspec knows, to save to every half minute or so and at the end. If it holds a
            checkpoint of a fit of the same data and parameters, whatever became of its process, this one
            goes on from it, with the same bits; `max_iter` and `tol` may differ.
        callback : callable, default=None
            ``callback(info)`` after each pass, where info has epoch, x, intercept, objective (estimated),
            gradient_norm, step_size, seconds, visits and bytes_read; True stops.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            For bad parameters or data, naming the argument and the chunk. The
            estimator is then as it was.

        KeyboardInterrupt
            Ctrl-C: the estimator is then fitted by the passes before, if there was one.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` passes did not reach `tol`, or the steps diverged.
        """
        with self._all_or_nothing():
            problem = self._problem()
            source, problem, classes = self._read(X, y, sample_weight, problem, persist)
            with source, showing_progress(self.verbose, self.max_iter, callback) as noted:
                result = self._run(source, problem, callback=noted, given=X, checkpoint=checkpoint)
            self._commit(result.state, result.x, problem, classes)
            self.n_iter_ = len(result.history)
            self.history_ = result.history
            self.converged_ = result.converged
            if not result.converged:
                self._warn(result)
        if result.interrupted:
            raise KeyboardInterrupt
        return self

    def _run(self, source: Source, problem: Problem, *, checkpoint: Any, **watching: Any) -> Result:
        prepared = prepare(source, problem)
        if not any(fact.rows for fact in prepared.facts):
            raise ValueError("sample_weight is zero for every row" if sum(prepared.lengths) else "X has no rows")
        if len(prepared.stats.mean) != self.n_features_in_:
            raise ValueError(f"X has {len(prepared.stats.mean)} features, not the {self.n_features_in_} announced")
        return run(
            source, prepared, problem,
            seed=None if self.random_state is None else draw_seed(self.random_state),
            max_iter=self.max_iter, tol=self.tol,
            checkpoint=None if checkpoint is None else Checkpoint(checkpoint), **watching,
        )  # fmt: skip

    def _read(
        self, X: Any, y: Any, sample_weight: Any, problem: Problem, persist: bool | str, fits: bool = True
    ) -> tuple:
        """The source of chunks, the problem of their classes, and these: found, or those fitted."""
        lazy = any(map(is_dask_collection, (X, y, sample_weight)))
        if lazy:
            blocks = dask_blocks(X, y, sample_weight)
            self._check_columns(X, reset=fits)
            source = Source(
                find_executor(), blocks,
                nbytes=most_bytes(X), rows=known_length(X, 0), columns=known_length(X, 1), persist=persist,
                n_parallel=self.n_parallel,
            )  # fmt: skip
        else:
            source = Source(LocalExecutor(), [(X, y, sample_weight)])
        classes, class_weights = getattr(self, "classes_", None), None
        if fits:
            classes, class_weights = self._find_classes(source)
        problem = problem_for(problem, classes)
        source.begin(functools.partial(
            _read_block,
            classes=classes, class_weights=class_weights, loss=problem.loss, estimator=type(self).__name__, empty=lazy,
            finite=not fits,
        ))  # fmt: skip
        if not lazy:
            source.chunk(0)  # what is wrong with its values is told before what is with its columns
            self._check_columns(X, reset=fits)
        return source, problem, classes

    def duality_gap(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """A bound of ``F(coef_) - F*`` that needs no knowledge of the optimum, by one pass over the data.

        The derivatives at ``coef_`` are the dual point, so the gap is R(x) + R*(-g) + g'x with g the
        mean gradient and R* the penalty's conjugate. With many columns in large units it is far above
        the true distance.

        Parameters
        ----------
        X, y, sample_weight : as in ``fit``
            The data of the fit; with a `class_weight`, give the product of both weights.

        Returns
        -------
        float
            In units of the mean loss.

        Raises
        ------
        ValueError
            Where there is no bound: with an intercept, as that is not penalised, or without an L2 part
            in a built-in penalty.
        """
        check_is_fitted(self)
        problem = self._problem()
        if problem.fit_intercept or not isinstance(problem.penalty, ElasticNet) or problem.penalty.l2 == 0:
            raise ValueError("duality_gap needs fit_intercept=False and a built-in penalty with an L2 part")
        source, problem, _ = self._read(X, y, sample_weight, problem, False, fits=False)
        x = np.column_stack([np.atleast_2d(self.coef_), self.intercept_])
        with source:
            told = source.map(_gradient_and_weight, x, problem, name="saga-gap", nbytes=x.nbytes)
            sums = source.executor.gather(told)
        gradient, weight = (sum(part) for part in zip(*sums, strict=True))
        x, g = x[:, :-1], gradient[:, :-1] / weight
        return float((problem.penalty.value(x) + problem.penalty.conjugate(-g) + g * x).sum())

    def _warn(self, result: Any) -> None:
        if result.diverged:
            advice = self._diverged_advice()
        elif len(result.history) < self.max_iter:
            return  # a callback stopped it, or Ctrl-C
        else:
            norms = [row["gradient_norm"] for row in result.history]
            advice = (
                f"max_iter={self.max_iter} passes ended at a relative gradient norm of {norms[-1]:.1e}, "
                f"above tol={self.tol}. {self._advice(norms, result.state.head.cut)}"
            )
        warnings.warn(advice, ConvergenceWarning, stacklevel=3)

    def _advice(self, norms: list[float], cut: float) -> str:
        if norms[-1] < 1e-8 and self.memory_dtype == "float32" and self.step_size == "auto":
            return "float32 memory gradients go no further: set memory_dtype='float64', or raise tol."
        half = len(norms) // 2
        fell = norms[-1] / norms[half] if norms[half] > 0 else 1.0
        if 0 < fell < 0.5 and len(norms) > 1 and self.tol > 0:
            more = np.log(self.tol / norms[-1]) / np.log(fell) * (len(norms) - half)
            return f"It is falling: about {int(np.ceil(more))} more passes would do. Raise max_iter."
        if self.step_size != "auto":
            return "It hardly falls: try step_size='auto'."
        if cut >= 1.0:
            return "It falls slowly: raise step_size_scale, alpha, or max_iter."
        return "It falls slowly, as the chunks differ: shuffle the rows among them, raise alpha, or max_iter."

    def _diverged_advice(self) -> str:
        remedy = "step_size_scale" if self.step_size == "auto" else "step_size"
        own = "" if isinstance(self.loss, str) else ", or check the curvature of the loss"
        return f"The steps diverged; coefficients are the last finite ones. Lower {remedy}{own}, and fit again."

    def _class_weights(self, classes: np.ndarray) -> np.ndarray | None:
        return None

    def _partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any,
        sample_weight: Any,
        chunk_id: Hashable,
        replace: bool,
        check_content: bool,
    ) -> Any:
        for name, argument in (("X", X), ("y", y), ("sample_weight", sample_weight)):
            if is_dask_collection(argument):
                raise TypeError(
                    f"{name} is a Dask collection; partial_fit takes one chunk in memory: "
                    "use fit, or dask_ml.wrappers.Incremental"
                )
        chunk_id = _checked_id(chunk_id)
        if chunk_id is None and (replace or not check_content):
            raise ValueError(f"{'replace=True' if replace else 'check_content=False'} needs a chunk_id")
        if replace and not check_content:
            raise ValueError("replace=True needs check_content=True, which tells whether the content changed")
        with self._all_or_nothing():
            problem = self._problem()
            before = getattr(self, "state_", None)
            first = before is None
            if first and hasattr(self, "coef_"):
                raise ValueError(NO_MEMORY)
            problem = problem_for(problem, classes)
            name = None if chunk_id is None else repr(chunk_id)
            chunk = read_chunk(
                X, y, sample_weight, classes=classes, class_weights=self._class_weights(classes), loss=problem.loss,
                name=name, estimator=type(self).__name__, hashed=check_content,
            )  # fmt: skip
            empty = len(chunk.targets) == 0
            if not (first and empty):
                self._check_columns(X, reset=first)
            if empty:
                return self
            if chunk.weights.size and not chunk.weights.any():
                raise ValueError("sample_weight is zero for every row of the chunk")
            outputs = count_outputs(chunk, problem)
            state = new_state(self.n_features_in_, outputs, draw_seed(self.random_state)) if first else before
            if outputs != len(state.head.x):
                raise ValueError(f"y has {outputs} columns, but earlier chunks had {len(state.head.x)}")
            key = anonymous_id(state, chunk.content) if chunk_id is None else chunk_id
            known = state.chunks.get(key)
            if known is not None:
                if _is_other(chunk, known):
                    if not replace:
                        raise ValueError(
                            f"chunk_id={chunk_id!r} is known with other content; give new content a new chunk_id, or "
                            "none, or replace=True"
                        )
                    if known.total is None:
                        raise ValueError(
                            f"chunk_id={chunk_id!r} has so few rows that replace=True needs its old data: first "
                            f"forget({chunk_id!r}, X_old, y_old), then partial_fit with the new"
                        )
                    state = forget(state, key, problem)
                else:
                    chunk = chunk._replace(content=known.content)
            state = visit(state, key, chunk, problem)
            self._commit(state, shown_x(state, problem), problem, classes)
            self.n_iter_ = state.chunks[key].visits
            if self.diverged_ and not (before is not None and before.head.diverged):
                warnings.warn(self._diverged_advice(), ConvergenceWarning, stacklevel=4)
        return self

    def forget(self, chunk_id: Hashable = None, X: Any = None, y: Any = None) -> Any:
        """Take a chunk out again, exactly: the problem is then that of the others.

        Coefficients stay as they are and move on with the next `partial_fit`. Keys of ``state_.chunks``
        are in order of arrival, so ``forget(next(iter(model.state_.chunks)))`` drops the oldest chunk.

        Parameters
        ----------
        chunk_id : str, int or key of ``state_.chunks``, default=None
            Which chunk; None goes by the content of X and y.
        X : array-like, scipy.sparse or DataFrame of shape (n, p), default=None
            The chunk as it was given, needed for one without `chunk_id`, and for one of few rows, which
            does not keep the sum of its gradients. The column statistics are then exact as well.
        y : array-like of shape (n,) or (n, n_targets), default=None

        Returns
        -------
        self : object
            The estimator without the chunk.

        Raises
        ------
        ValueError, TypeError
            If the chunk is not known, or its data are needed, or are others. The estimator is
            then as it was.
        """
        check_is_fitted(self)
        if (X is None) != (y is None) or (X is None and chunk_id is None):
            raise ValueError("forget needs the chunk_id, or X and y of the chunk, or all three")
        if not isinstance(chunk_id, tuple):  # else a key of state_.chunks
            chunk_id = _checked_id(chunk_id)
        with self._all_or_nothing():
            if self.state_ is None:
                raise ValueError(NO_MEMORY)
            classes = getattr(self, "classes_", None)
            problem, chunk = problem_for(self._problem(), classes), None
            if X is not None:
                name = None if chunk_id is None else repr(chunk_id)
                chunk = read_chunk(X, y, classes=classes, loss=problem.loss, name=name, estimator=type(self).__name__)
                self._check_columns(X, reset=False)
                if chunk_id is None and (chunk_id := last_of(self.state_, chunk.content)) is None:
                    raise ValueError("no chunk of the content of X and y is known; one with a chunk_id goes by that")
                known = self.state_.chunks.get(chunk_id)
                if known is not None and _is_other(chunk, known):
                    raise ValueError(f"X and y are not the content of chunk_id={chunk_id!r}")
            state = forget(self.state_, chunk_id, problem, chunk)
            self._commit(state, shown_x(state, problem), problem, classes)
        return self

    def without_memory(self) -> Any:
        """A light copy that predicts as this one does, but cannot go on learning.

        ``wrapped.estimator_ = wrapped.estimator_.without_memory()`` keeps ``Incremental.predict`` from sending the
        memory, 4 bytes a row of the training data and output, to each of its tasks.

        Returns
        -------
        object
            Without ``state_``; `partial_fit` and `forget` raise ValueError, `fit` starts afresh.
        """
        check_is_fitted(self)
        light = copy.copy(self)
        light.state_ = None
        return light

    def _commit(self, state: SAGAState, x: np.ndarray, problem: Problem, classes: np.ndarray | None) -> None:
        self.state_ = state
        self.coef_ = x[:, :-1].copy() if self._labelled or len(x) > 1 else x[0, :-1].copy()
        self.intercept_ = x[:, -1].copy()
        self.step_size_ = problem.step(state.metric, state.head.cut)
        self.diverged_ = state.head.diverged
        if classes is not None:
            self.classes_ = classes

    def _linear(self, X: Any) -> Any:
        """Linear predictions, as ``linear`` gives them: lazy for Dask input."""
        check_is_fitted(self)
        with blame("X"):
            rows = X if is_dask_collection(X) else read_rows(X, estimator=type(self).__name__)
        self._check_columns(X, reset=False)
        return linear(rows, np.atleast_2d(self.coef_), self.intercept_)


NO_MEMORY = "this is a copy without_memory, which only predicts; go on with the estimator that it was made of"


def _checked_id(chunk_id: Any) -> Any:
    if chunk_id is None:
        return None
    if isinstance(chunk_id, bool) or not isinstance(chunk_id, (str, Integral)):
        raise TypeError(f"chunk_id={chunk_id!r} must be a str or an int")
    return int(chunk_id) if isinstance(chunk_id, Integral) else chunk_id  # numpy's 2 equals 2, but prints otherwise


def _is_other(chunk: Any, known: Any) -> bool:
    """Whether a chunk is not the one known, as far as is known of both: content that was not hashed is "" """
    if chunk.content and known.content:
        return chunk.content != known.content
    return len(chunk.targets) != len(known.gradients)


def _read_block(block, name, **how):
    return read_chunk(*block, name=name, **how)


def _gradient_and_weight(chunk, x, problem):
    return chunk_gradient(chunk, x, problem)[1], chunk.weight


# dask-ml registers a way for all of scikit-learn's estimators, which would read the whole memory.
@normalize_token.register(SAGABase)
def _normalize_estimator(estimator: SAGABase) -> tuple:
    return estimator.__dask_tokenize__()


@sizeof.register(SAGABase)
def _sizeof_estimator(estimator: SAGABase) -> int:
    return 1000 + sum(sizeof(v) for v in vars(estimator).values() if isinstance(v, (SAGAState, np.ndarray)))
