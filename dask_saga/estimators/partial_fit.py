"""Training chunk by chunk: `partial_fit`, `forget` and `without_memory` of the classifier and the regressor."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Hashable
from numbers import Integral
from typing import Any

from dask import is_dask_collection
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from ..data.validation import check_containers, read_chunk
from ..solver.averaging import reported_x
from ..solver.identity import draw_seed
from ..solver.incremental import forget, is_other, last_of, learn
from ..solver.optimality import count_outputs
from ..solver.problem import problem_for
from ..solver.state import new_state
from .messages import diverged_advice

__all__ = ["ONLY_PREDICTS", "LearnsByChunk"]


# Part of messages: what an estimator without gradient memory can and cannot do.
ONLY_PREDICTS = (
    "An estimator without it (a copy without_memory, too) predicts, and begins a fit with warm_start=True; "
    "partial_fit and forget need the one that it was made of"
)

# Message of the error if `partial_fit` or `forget` needs the missing gradient memory.
NO_MEMORY = f"This estimator is without its gradient memory. {ONLY_PREDICTS}"


class LearnsByChunk:
    """Mixin of ``SAGABase`` that trains on one chunk in memory at a time and keeps the state between calls."""

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
        check_containers(X=X, y=y, sample_weight=sample_weight)
        for name, argument in (("X", X), ("y", y), ("sample_weight", sample_weight)):
            if is_dask_collection(argument):
                remedy = "fit" if name == "sample_weight" else "fit, or dask_ml.wrappers.Incremental"
                raise TypeError(f"{name} is a Dask collection; partial_fit takes one chunk in memory: use {remedy}")
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
            state, key = learn(state, chunk, problem, chunk_id=chunk_id, replace=replace)
            self._commit(state, reported_x(state, problem), problem, classes)
            self.n_iter_ = state.chunks[key].visits
            if self.diverged_ and not (before is not None and before.head.diverged):
                warnings.warn(diverged_advice(self), ConvergenceWarning, stacklevel=4)
        return self

    def forget(self, chunk_id: Hashable = None, X: Any = None, y: Any = None) -> Any:
        """Remove a chunk exactly: the problem then consists of the other chunks.

        The coefficients do not change until the next `partial_fit`. The keys of ``state_.chunks`` are in order of
        arrival, so ``forget(next(iter(model.state_.chunks)))`` removes the oldest chunk.

        Parameters
        ----------
        chunk_id : str, int or key of ``state_.chunks``, default=None
            The chunk to remove. None identifies it by the content of X and y.
        X : array-like, scipy.sparse or DataFrame of shape (n, p), default=None
            Rows of the chunk as they were given. They are needed if the chunk has no `chunk_id`, or so few rows that
            the sum of its gradients is not stored. With X, the column statistics of the other chunks are exact too.
        y : array-like of shape (n,) or (n, n_targets), default=None
            Targets or labels of the chunk; required with X.

        Returns
        -------
        self : object
            The estimator without the chunk.

        Raises
        ------
        ValueError, TypeError
            If the chunk is not known, if its data are needed, or if they differ from its content. The estimator then
            stays unchanged.
        """
        check_is_fitted(self)
        check_containers(X=X, y=y)
        if (X is None) != (y is None) or (X is None and chunk_id is None):
            raise ValueError("forget needs the chunk_id, or X and y of the chunk, or all three")
        if not isinstance(chunk_id, tuple):  # a tuple is a key of state_.chunks
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
                if known is not None and is_other(chunk, known):
                    raise ValueError(f"X and y are not the content of chunk_id={chunk_id!r}")
            state = forget(self.state_, chunk_id, problem, chunk)
            self._commit(state, reported_x(state, problem), problem, classes)
        return self

    def without_memory(self) -> Any:
        """Return a small copy without gradient memory, which predicts the same but cannot continue training.

        Use it before sending an estimator to workers. For example, ``Incremental.predict`` sends the estimator to each
        of its tasks, with 4 bytes per training row and output. Avoid this by
        ``wrapped.estimator_ = wrapped.estimator_.without_memory()``.

        Returns
        -------
        object
            The copy, whose ``state_`` is None. Its `partial_fit` and `forget` raise ValueError. Its `fit` works as
            usual.
        """
        check_is_fitted(self)
        light = copy.copy(self)
        light.state_ = None
        return light


def _checked_id(chunk_id: Any) -> Any:
    if chunk_id is None:
        return None
    if isinstance(chunk_id, bool) or not isinstance(chunk_id, (str, Integral)):
        raise TypeError(f"chunk_id={chunk_id!r} must be a str or an int")
    return int(chunk_id) if isinstance(chunk_id, Integral) else chunk_id  # numpy's repr differs
