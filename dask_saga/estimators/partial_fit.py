"""Training chunk by chunk: `partial_fit`, `forget` and `without_memory` of the classifier and the regressor."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Hashable
from numbers import Integral
from typing import TYPE_CHECKING, Any

from dask import is_dask_collection
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from ..data.containers import check_containers, warn_of_column_vector
from ..data.validation import read_chunk
from ..solver.averaging import reported_x
from ..solver.identity import draw_seed
from ..solver.incremental import forget, is_other, last_of, learn
from ..solver.optimality import count_outputs
from ..solver.problem import problem_for
from ..solver.state import new_state
from .base import SAGABase
from .messages import ONLY_PREDICTS, diverged_advice

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..solver.problem import Problem
    from ..solver.state import SAGAState

__all__ = ["LearnsByChunk"]


# Message of the error if `partial_fit` or `forget` needs the missing gradient memory.
NO_MEMORY = (
    f"This estimator has no gradient memory. {ONLY_PREDICTS}: use the estimator that without_memory copied, or call fit"
)


class LearnsByChunk(SAGABase):
    """Estimator that also trains on one chunk in memory at a time and keeps the state between calls."""

    def _partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any,
        sample_weight: Any,
        chunk_id: Hashable,
        replace: bool,
        check_content: bool,
        offset: Any = None,
    ) -> Any:
        _check_in_memory(X=X, y=y, sample_weight=sample_weight, offset=offset)
        chunk_id = _checked_id(chunk_id)
        _check_options(chunk_id, replace, check_content)
        if self._labelled:
            warn_of_column_vector(y)
        with self._all_or_nothing():
            problem = problem_for(self._problem(), classes)
            before = getattr(self, "state_", None)
            if before is None and hasattr(self, "coef_"):
                raise ValueError(NO_MEMORY)
            chunk = read_chunk(
                X, y, sample_weight, offset, classes=classes, class_weights=self._class_weights(classes),
                loss=problem.loss, name=_name_of(chunk_id), estimator=type(self).__name__, hashed=check_content,
            )  # fmt: skip
            is_empty = len(chunk.targets) == 0
            if not (is_empty and before is None):
                self._check_columns(X, reset=before is None)
            if is_empty:
                return self
            state = self._state_for(chunk, problem, before)
            state, key = learn(state, chunk, problem, chunk_id=chunk_id, replace=replace)
            self._commit(state, reported_x(state, problem), problem, classes)
            self.n_iter_ = state.chunks[key].visits
            if self.diverged_ and not (before is not None and before.head.diverged):
                warnings.warn(diverged_advice(self), ConvergenceWarning, stacklevel=3)
        return self

    def _state_for(self, chunk: Chunk, problem: Problem, before: SAGAState | None) -> SAGAState:
        """Return the state before the visit of a chunk: that of earlier calls, or a new one in the first call.

        Raises
        ------
        ValueError
            If the chunk has no weight, or another number of outputs than earlier chunks.
        """
        if chunk.weights.size and not chunk.weights.any():
            raise ValueError("sample_weight is zero for every row of the chunk; leave the chunk out")
        outputs = count_outputs(chunk, problem)
        if before is None:
            return new_state(self.n_features_in_, outputs, draw_seed(self.random_state))
        if outputs != len(before.head.x):
            raise ValueError(
                f"y has {outputs} columns, but earlier chunks had {len(before.head.x)}; give as many, or call fit to "
                "start again"
            )
        return before

    def forget(self, chunk_id: Hashable = None, X: Any = None, y: Any = None, offset: Any = None) -> Any:
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
        offset : array-like of shape (n,), default=None
            Offset of the chunk, if it had one; required with X.

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
        check_containers(X=X, y=y, offset=offset)
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
                chunk = read_chunk(
                    X, y, None, offset, classes=classes, loss=problem.loss, name=_name_of(chunk_id),
                    estimator=type(self).__name__,
                )  # fmt: skip
                self._check_columns(X, reset=False)
                chunk_id = _find_chunk(self.state_, chunk, chunk_id)
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


def _check_in_memory(**arguments: Any) -> None:
    """Refuse Dask collections, and what ``check_containers`` refuses; the message names the argument and a remedy."""
    check_containers(**arguments)
    for name, argument in arguments.items():
        if is_dask_collection(argument):
            remedy = "fit" if name == "sample_weight" else "fit, or dask_ml.wrappers.Incremental"
            raise TypeError(f"{name} is a Dask collection; partial_fit takes one chunk in memory: use {remedy}")


def _check_options(chunk_id: Hashable, replace: bool, check_content: bool) -> None:
    """Refuse combinations of the options of `partial_fit` that contradict each other."""
    if chunk_id is None and (replace or not check_content):
        option = "replace=True" if replace else "check_content=False"
        raise ValueError(f"{option} needs a chunk_id; without one a chunk is identified by its content")
    if replace and not check_content:
        raise ValueError("replace=True needs check_content=True, which detects changed content")


def _find_chunk(state: SAGAState, chunk: Chunk, chunk_id: Hashable) -> Hashable:
    """Return the key of a known chunk: the given one, after a check of its content, or that of its content.

    Raises
    ------
    ValueError
        If no chunk of this content is known, or if the chunk of this id has other content.
    """
    if chunk_id is None and (chunk_id := last_of(state, chunk.content)) is None:
        raise ValueError(
            "X and y are not the content of a known chunk; give them as in partial_fit, and the chunk_id if it had one"
        )
    known = state.chunks.get(chunk_id)
    if known is not None and is_other(chunk, known):
        raise ValueError(
            f"X and y are not the content of chunk_id={chunk_id!r}; give them as in partial_fit, or the chunk_id alone"
        )
    return chunk_id


def _name_of(chunk_id: Hashable) -> str | None:
    """Return the name of a chunk in error messages."""
    return None if chunk_id is None else repr(chunk_id)


def _checked_id(chunk_id: Any) -> Any:
    """Return a valid `chunk_id`, with integers as ``int``: otherwise messages would show numpy's type."""
    if chunk_id is None:
        return None
    if isinstance(chunk_id, bool) or not isinstance(chunk_id, (str, Integral)):
        raise TypeError(f"chunk_id={chunk_id!r} must be a str or an int")
    return int(chunk_id) if isinstance(chunk_id, Integral) else chunk_id
