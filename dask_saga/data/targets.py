"""Targets and labels of any kind, as the losses take them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from dask import compute, is_dask_collection
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

__all__ = [
    "LARGEST",
    "NO_TARGET",
    "check_classes",
    "checked",
    "count_labels",
    "encode_labels",
    "read_labels",
    "read_targets",
]


# Beyond it, squares and their sums would leave the range of float64; no data are measured on such scales.
LARGEST = 1e50

NO_TARGET = "This estimator requires y to be passed, but the target y is None"


# scikit-learn's checks change the process's warning filters for a while.
_alone = threading.RLock()


def checked(check: Callable, values: Any, **how: Any) -> Any:
    """What a check of scikit-learn's returns: one thread at a time, as several would leave warning filters changed."""
    # Tasks that check as well must not wait for this one.
    if is_dask_collection(values) or (isinstance(values, (list, tuple)) and any(map(is_dask_collection, values))):
        [values] = compute(values)
    with _alone, np.errstate(all="ignore"):
        return check(values, **how)


def read_labels(y: Any, argument: str = "y", warn: bool = False) -> np.ndarray:
    """Labels of any kind as a one-dimensional numpy array.

    Strings stay objects; nullable and categorical pandas types become what they hold.

    Raises
    ------
    ValueError
        If a label is missing.
    """
    if y is None:
        raise ValueError(NO_TARGET)
    labels = np.asarray(y)
    if labels.ndim != 1:
        labels = checked(column_or_1d, labels, warn=warn)
    if labels.dtype == object and len(labels):
        import pandas as pd

        if pd.isna(labels).any():
            raise ValueError(f"{argument} contains missing labels (NaN, None or NA)")
        kind = pd.api.types.infer_dtype(labels, skipna=False)
        if kind in ("integer", "boolean", "floating"):
            labels = labels.astype({"integer": np.int64, "boolean": bool, "floating": np.float64}[kind])
    elif labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"{argument} contains NaN or infinity")
    return labels


def count_labels(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct labels of one block, and the sums of their rows' weights."""
    distinct, codes = _sorted_codes(labels)
    if len(labels) and (labels.dtype.kind not in "iub" or len(distinct) > len(labels) / 2):  # integers may be too many
        checked(check_classification_targets, labels)
    if weights.size and len(weights) != len(labels):
        raise ValueError(f"y has {len(labels)} rows, but sample_weight has {len(weights)}")
    return distinct, np.bincount(codes, weights if weights.size else None, minlength=len(distinct)).astype(float)


def _sorted_codes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct labels, and of each label the position among them."""
    if labels.dtype.kind in "iu" and len(labels) and int(labels.max()) - int(labels.min()) < len(labels):
        least = labels.min()  # of a small range: a table tells sooner than sorting
        wide = np.int64 if labels.dtype.kind == "i" else np.uint64
        offsets = np.subtract(labels, least, dtype=wide).astype(np.intp)
        there = np.bincount(offsets) > 0
        return np.flatnonzero(there).astype(labels.dtype) + least, (np.cumsum(there) - 1)[offsets]
    distinct = sorted_labels(labels)
    return distinct, np.searchsorted(distinct, labels)


def sorted_labels(labels: np.ndarray, argument: str = "y") -> np.ndarray:
    """Distinct labels in order.

    Raises
    ------
    TypeError
        If they cannot be compared.
    """
    try:
        return np.unique(labels)
    except TypeError as error:
        raise TypeError(f"{argument} mixes labels that cannot be sorted, such as strings and numbers") from error


def check_classes(labels: np.ndarray, argument: str) -> np.ndarray:
    """The classes among some labels.

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    classes = sorted_labels(labels, argument)
    if len(classes) < 2:
        raise ValueError(
            f"{argument} holds {len(classes)} class(es); a classifier needs at least two classes: {classes.tolist()}"
        )
    return classes


def _comparable(*arrays: np.ndarray) -> list[np.ndarray]:
    """Numbers of different kinds as numbers of one that holds them all; other arrays as they are."""
    kinds = {array.dtype.kind for array in arrays}
    if len(kinds) == 1 or not kinds <= set("biuf"):
        return list(arrays)
    if "f" in kinds:
        return [array.astype(float) for array in arrays]
    small = all(int(array.max(initial=0)) < 2**63 for array in arrays)
    return [array.astype(np.int64 if small else object) for array in arrays]


def encode_labels(y: Any, classes: np.ndarray) -> np.ndarray:
    """Positions of the labels of `y` in `classes`.

    Raises
    ------
    ValueError
        If a label of `y` is not in `classes`.
    """
    labels, classes = _comparable(read_labels(y, warn=True), classes)
    if classes.dtype.kind in "biuf" and labels.dtype.kind == classes.dtype.kind:
        if len(classes) == 2:
            codes = (labels == classes[1]).astype(np.intp)
            codes[(labels != classes[0]) & (codes == 0)] = -1
        else:
            codes = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
            codes[classes[codes] != labels] = -1
    else:
        import pandas as pd

        codes = pd.Index(classes).get_indexer(labels)
    if (codes < 0).any():
        unknown = list(dict.fromkeys(labels[codes < 0].tolist()))[:5]
        raise ValueError(f"y has labels {unknown} that are not among the classes {classes.tolist()}")
    return codes


def read_targets(y: Any, classes: np.ndarray | None = None, loss: Any = None) -> np.ndarray:
    """Targets of shape (n, 1) or (n, k) as the loss wants them: numbers, its two labels, or the class's number."""
    labels = getattr(loss, "labels", None)
    if classes is not None:
        codes = encode_labels(y, classes)
        named = np.asarray(labels if len(classes) == 2 else range(len(classes)), dtype=np.float64)
        return named[codes][:, None]
    if y is None:
        raise ValueError(NO_TARGET)
    y = checked(check_array, y, ensure_2d=False, dtype=np.float64, ensure_min_samples=0, input_name="y")
    if labels is not None or y.ndim != 2 or y.shape[1] == 0 or hasattr(loss, "outputs"):
        y = checked(column_or_1d, y, warn=True)[:, None]
    if labels is not None and not np.isin(y, labels).all():
        raise ValueError(f"y (b) must hold only {_some(labels)} for this loss")
    if y.size and y.min() < getattr(loss, "least_target", -np.inf):
        raise ValueError(f"y must be at least {loss.least_target} for this loss, but has {y.min()}")
    if y.size and max(y.max(), -y.min()) > LARGEST:
        raise ValueError(f"y has values beyond {LARGEST:.0e}; give it in larger units")
    return np.ascontiguousarray(y)


def _some(labels: tuple) -> str:
    return str(labels) if len(labels) < 5 else f"{labels[0]} to {labels[-1]}"
