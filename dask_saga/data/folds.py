"""Folds of cross-validation: one number for each row, given by a splitter or an array, or drawn block by block."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

import dask
import numpy as np
from dask import is_dask_collection
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _num_samples

from .dask_blocks import known_length, partitions
from .targets import NO_TARGET, encode_labels, read_labels
from .validation import blame, read_weights

__all__ = ["Folds", "block_counts", "check_counts", "find_folds"]


# Seed of drawn folds, so that every fit of the same blocks has the same folds.
SEED = 0

# Largest number of folds, so that a fold fits into int16.
MOST_FOLDS = 2**15 - 1


class Folds(NamedTuple):
    """Rule that gives each row its fold.

    Parameters
    ----------
    given : array, dask array or series of shape (n,), or None
        Label of the fold of each row. None if folds are drawn.
    labels : tuple
        Sorted labels of the folds.
    """

    given: Any
    labels: tuple

    @property
    def number(self) -> int:
        """Number of folds."""
        return len(self.labels)

    def with_labels(self, labels: list) -> Folds:
        """Return these folds with their labels, of which there must be at least two."""
        if not 2 <= len(labels) <= MOST_FOLDS:
            raise ValueError(f"cv has {len(labels)} fold(s), {labels[:5]}; give at least two, and at most {MOST_FOLDS}")
        if not isinstance(labels[0], str) and labels[0] < 0:
            raise ValueError(f"cv has the fold {labels[0]}; folds must cover all rows, with numbers from 0")
        return self._replace(labels=tuple(labels))

    def of_block(self, given: Any, number: int, n: int) -> np.ndarray:
        """Return the fold of each row of a block, as its position among `labels`.

        Drawn folds have the same number of rows, or one more. They depend on the number of the block only, so that
        they do not change between reads, and that no values are needed.

        Parameters
        ----------
        given : array-like of shape (n,) or None
            Labels of the block.
        number : int
            Number of the block.
        n : int
            Number of its rows.
        """
        if given is None:
            rng, folds = np.random.default_rng((SEED, number)), np.empty(n, np.int16)
            folds[rng.permutation(n)] = (np.arange(n) + rng.integers(self.number)) % self.number
            return folds
        with blame("cv", number):
            labels = read_labels(given, "cv")
            if len(labels) != n:
                raise ValueError(f"X has {n} rows, but cv has {len(labels)}; give the fold of each row")
            return encode_labels(labels, np.array(self.labels)).astype(np.int16)


def find_folds(cv: Any, X: Any, y: Any, is_classifier: bool) -> Folds:
    """Return the folds that the parameter `cv` of an estimator asks for.

    Parameters
    ----------
    cv : int, splitter, iterable of (train, test), array or Dask collection of shape (n,), or None
        None is 5. An int gives the folds of scikit-learn for data in memory, and drawn folds for Dask collections.
    X, y : as in ``fit``
    is_classifier : bool

    Raises
    ------
    ValueError, TypeError
        If folds are invalid, overlap, do not cover the rows, or need values of a Dask collection.
    """
    if is_dask_collection(cv):
        parts = cv.to_delayed().ravel() if hasattr(cv, "numblocks") else partitions(cv)
        found = dask.compute(*(dask.delayed(_distinct)(part) for part in parts))
        return Folds(cv, ()).with_labels(sorted(set(itertools.chain(*found))))
    cv = 5 if cv is None else cv
    if isinstance(cv, Integral):
        if not 2 <= int(cv) <= MOST_FOLDS:
            raise ValueError(f"cv={cv} must be at least 2 folds, and at most {MOST_FOLDS}")
        if is_dask_collection(X):
            return Folds(None, tuple(range(int(cv))))
        if is_classifier and y is not None and not is_dask_collection(y):
            y = read_labels(y)
        cv = check_cv(int(cv), None if is_dask_collection(y) else y, classifier=is_classifier)
    if hasattr(cv, "split") and not isinstance(cv, str):
        return _of_splits(_splits(cv, X, y), _length(X))
    if isinstance(cv, str) or not isinstance(cv, Iterable):
        raise TypeError(f"cv={cv!r} must be a number of folds, a splitter, pairs of indices, or the fold of each row")
    cv = cv if hasattr(cv, "ndim") else list(cv)
    is_array = cv.ndim == 1 if hasattr(cv, "ndim") else all(map(np.isscalar, cv))
    return _of_labels(cv) if is_array else _of_splits(cv, _length(X))


def _distinct(given: Any) -> list:
    return np.unique(read_labels(given, "cv")).tolist()


def _length(X: Any) -> int:
    n = known_length(X, 0) if is_dask_collection(X) else float(_num_samples(X))
    if np.isnan(n):
        raise ValueError(
            "cv splits rows by their numbers, but the number of rows of X is not known; give a number of folds, a "
            "column of the same frame with the fold of each row, or call X.compute_chunk_sizes() first"
        )
    return int(n)


def _splits(splitter: Any, X: Any, y: Any) -> list:
    """Return the splits of a splitter, which sees y only if it is in memory."""
    n, needs = _length(X), is_dask_collection(y)
    try:
        return [*splitter.split(np.zeros((n, 1)), None if needs else y)]
    except (TypeError, ValueError) as error:
        if not needs:
            raise
        raise ValueError(
            f"cv={splitter} needs the values of y, which is a Dask collection ({error}); give a number of folds, a "
            "splitter such as KFold, or a dask array with the fold of each row"
        ) from error


def _of_labels(given: Any) -> Folds:
    labels = read_labels(given, "cv")
    return Folds(labels, ()).with_labels(np.unique(labels).tolist())


def _of_splits(splits: list, n: int) -> Folds:
    """Return folds of (train, test) pairs. Each row must be in one test set, and in all other training sets."""
    folds = np.full(n, -1, np.int16)
    for number, pair in enumerate(splits):
        try:
            train, test = (_numbers(part, n) for part in pair)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"cv: fold {number} is no pair of row numbers for training and testing: {error}"
            ) from error
        if not len(test):
            raise ValueError(f"cv: fold {number} has no rows")
        if (folds[test] >= 0).any():
            row = int(test[folds[test] >= 0][0])
            raise ValueError(f"cv: row {row} is in folds {folds[row]} and {number}; each row must be in one fold only")
        folds[test] = number
        is_train = np.zeros(n, bool)
        is_train[train] = True
        if is_train[test].any() or is_train.sum() + len(test) != n:
            raise ValueError(
                f"cv: fold {number} does not train on all rows that it does not hold out; use folds such as KFold, "
                "whose training rows are the rows of all other folds"
            )
    if (folds < 0).any():
        raise ValueError(
            f"cv: the folds do not cover row {int(np.flatnonzero(folds < 0)[0])}; each row must be held out once, as "
            "by KFold"
        )
    return Folds(folds, ()).with_labels([*range(len(splits))])


def _numbers(part: Any, n: int) -> np.ndarray:
    numbers = np.asarray(part) if len(part) else np.empty(0, np.intp)
    numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers.astype(np.intp, casting="same_kind")
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < n):
        raise ValueError(f"row numbers must be between 0 and {n - 1}")
    return np.unique(numbers)


def block_counts(block: tuple, number: int | None, folds: Folds, classes: np.ndarray | None) -> np.ndarray:
    """Count the rows of positive weight of each fold and class in a block ``(X, y, sample_weight, given)``.

    Returns
    -------
    ndarray of shape (folds, classes), or (folds, 1) without classes
    """
    _, y, sample_weight, *more = block
    given = more[0] if more else None
    with blame("y", number):
        if y is None:
            raise ValueError(NO_TARGET)
        codes = np.zeros(_num_samples(y), np.intp) if classes is None else encode_labels(y, classes)
    with blame("sample_weight", number):
        weights = read_weights(sample_weight, len(codes))
    width = 1 if classes is None else len(classes)
    cells = folds.of_block(given, number or 0, len(codes)).astype(np.intp) * width + codes
    counts = np.bincount(cells, weights > 0 if weights.size else None, minlength=folds.number * width)
    return counts.reshape(-1, width)


def check_counts(counts: np.ndarray, folds: Folds, classes: np.ndarray | None) -> None:
    """Raise a ValueError if a fold has no rows, or has or leaves a single class. The message names the fold.

    Parameters
    ----------
    counts : ndarray of shape (folds, classes)
        Sum of ``block_counts`` over all blocks.
    folds : Folds
    classes : ndarray or None
    """
    if not counts.any():
        return  # without any row, a later check raises
    for label, own in zip(folds.labels, counts, strict=True):
        if not own.any():
            raise ValueError(f"cv: fold {label} has no rows of positive weight; choose fewer folds, or other ones")
        if classes is not None and np.count_nonzero(own) < 2:
            raise ValueError(
                f"cv: fold {label} has a single class, {classes.tolist()[np.argmax(own > 0)]!r}; choose fewer or "
                "stratified folds, so that each has several classes"
            )
    for label, own in zip(folds.labels, counts, strict=True):
        if classes is not None and (missing := counts.sum(axis=0) == own).any():
            raise ValueError(
                f"cv: without fold {label} there are no rows of class {classes.tolist()[np.argmax(missing)]!r}; choose "
                "fewer or stratified folds"
            )
