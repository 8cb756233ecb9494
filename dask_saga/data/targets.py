"""Read targets and labels of any supported type and encode them as the losses expect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np
from dask import is_dask_collection
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ..execution.executor import compute
from ..losses import Loss, target_interval
from .bad_values import check_finite, explain_columns
from .containers import as_array, check_columns

__all__ = [
    "LARGEST",
    "NO_TARGET",
    "add_offset",
    "check_classes",
    "checked",
    "count_labels",
    "encode_labels",
    "read_labels",
    "read_numbers",
    "read_offset",
    "read_targets",
]


# Largest accepted magnitude of a value in X or y, in the units of the data.
# Squares of larger values and their sums could overflow float64, and no real data have such scales.
LARGEST = 1e50

# Message of the error for a missing y.
NO_TARGET = "This estimator requires y to be passed, but the target y is None; give one target per row of X"


# Lock around scikit-learn's validators, as they temporarily modify the global warning filters.
_alone = threading.RLock()


def checked(check: Callable, values: Any, **how: Any) -> Any:
    """Run a scikit-learn validator under a lock: it modifies global warning filters."""
    # Compute Dask values before taking the lock: their tasks may call this function too and would wait forever.
    if is_dask_collection(values) or (isinstance(values, (list, tuple)) and any(map(is_dask_collection, values))):
        [values] = compute(values)
    with _alone, np.errstate(all="ignore"):
        return check(values, **how)


def read_labels(y: Any, argument: str = "y") -> np.ndarray:
    """Convert labels of any type to a one-dimensional numpy array.

    Object arrays of strings keep their dtype. Nullable and categorical pandas types become the type of their values.

    Raises
    ------
    ValueError
        If a label is missing.
    """
    if y is None:
        raise ValueError(NO_TARGET)
    labels = np.asarray(as_array(y))
    if labels.ndim != 1:
        labels = checked(column_or_1d, labels)
    if labels.dtype == object and len(labels):
        import pandas as pd

        if missing := np.count_nonzero(pd.isna(labels)):
            raise ValueError(f"{argument} contains missing labels ({missing} of NaN, None or NA); drop these rows")
        kind = pd.api.types.infer_dtype(labels, skipna=False)
        if kind in ("integer", "boolean", "floating"):
            labels = labels.astype({"integer": np.int64, "boolean": bool, "floating": np.float64}[kind])
    elif labels.dtype.kind == "f":
        check_finite(labels, argument)
    return labels


def count_labels(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct labels of one block, and the total row weight of each label."""
    distinct, codes = _sorted_codes(labels)
    # Integers and booleans are valid labels, but scikit-learn's check warns of too many distinct integers.
    if len(labels) and (labels.dtype.kind not in "iub" or len(distinct) > len(labels) / 2):
        checked(check_classification_targets, labels)
    if weights.size and len(weights) != len(labels):
        raise ValueError(f"y has {len(labels)} rows, but sample_weight has {len(weights)}; give one weight per row")
    return distinct, np.bincount(codes, weights if weights.size else None, minlength=len(distinct)).astype(float)


def _sorted_codes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct labels, and the position of each label among them."""
    if labels.dtype.kind in "iu" and len(labels) and int(labels.max()) - int(labels.min()) < len(labels):
        least = labels.min()  # for a small range, counting in a table is faster than sorting
        wide = np.int64 if labels.dtype.kind == "i" else np.uint64
        offsets = np.subtract(labels, least, dtype=wide).astype(np.intp)
        there = np.bincount(offsets) > 0
        return np.flatnonzero(there).astype(labels.dtype) + least, (np.cumsum(there) - 1)[offsets]
    distinct = sorted_labels(labels)
    return distinct, np.searchsorted(distinct, labels)


def sorted_labels(labels: np.ndarray, argument: str = "y") -> np.ndarray:
    """Return the distinct labels in sorted order.

    Raises
    ------
    TypeError
        If they cannot be compared.
    """
    try:
        return np.unique(labels)
    except TypeError as error:
        raise TypeError(
            f"{argument} mixes labels that cannot be sorted, such as strings and numbers; convert all to one type"
        ) from error


def check_classes(labels: np.ndarray, argument: str) -> np.ndarray:
    """Return the sorted distinct labels as classes.

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    classes = sorted_labels(labels, argument)
    if len(classes) < 2:
        raise ValueError(
            f"{argument} holds {len(classes)} class(es), {classes.tolist()}; a classifier needs at least two classes, "
            "so include another one"
        )
    return classes


def _comparable(*arrays: np.ndarray) -> list[np.ndarray]:
    """Convert numeric arrays of different kinds to a common dtype; return other arrays unchanged."""
    kinds = {array.dtype.kind for array in arrays}
    if len(kinds) == 1 or not kinds <= set("biuf"):
        return list(arrays)
    if "f" in kinds:
        return [array.astype(float) for array in arrays]
    small = all(int(array.max(initial=0)) < 2**63 for array in arrays)
    return [array.astype(np.int64 if small else object) for array in arrays]


def encode_labels(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the position in `classes` of each label of `y`.

    Raises
    ------
    ValueError
        If a label of `y` is not in `classes`.
    """
    labels, classes = _comparable(read_labels(y), classes)
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
        raise ValueError(
            f"y has labels {unknown} that are not among the classes {classes.tolist()}; correct them, or start again "
            "with all labels as classes"
        )
    return codes


def read_targets(y: Any, classes: np.ndarray | None = None, loss: Loss | None = None) -> np.ndarray:
    """Return targets of shape (n, 1) or (n, k) as the loss expects them.

    These are numbers for regression, the two labels of the loss for two classes, and class indices for more classes.
    """
    labels = getattr(loss, "labels", None)
    if classes is not None:
        codes = encode_labels(y, classes)
        named = np.asarray(labels if len(classes) == 2 else range(len(classes)), dtype=np.float64)
        return named[codes][:, None]
    if y is None:
        raise ValueError(NO_TARGET)
    y = read_numbers(y, "y")
    if labels is not None or y.ndim != 2 or y.shape[1] == 0 or hasattr(loss, "outputs"):
        y = checked(column_or_1d, y)[:, None]
    if labels is not None and not np.isin(y, labels).all():
        found = y[~np.isin(y, labels)][0]
        raise ValueError(f"y (b) must hold only {_some(labels)} for this loss, but has {found}; encode its labels so")
    valid = target_interval(loss)
    for at in (y.argmin(), y.argmax()) if y.size else ():
        if not valid.contains(y.flat[at]):
            row = int(at) // y.shape[1]
            raise ValueError(
                f"y must be {valid} for this loss, but has {y.flat[at]} in row {row}; correct such rows, or choose "
                "another loss"
            )
    if y.size and max(y.max(), -y.min()) > LARGEST:
        row = int(np.abs(y).max(axis=1).argmax())
        raise ValueError(f"y has values beyond {LARGEST:.0e}, as in row {row}; give it in larger units")
    return np.ascontiguousarray(y)


def read_numbers(values: Any, argument: str) -> np.ndarray:
    """Return targets or weights as finite float64 numbers in C order."""
    values = as_array(values)
    check_columns(values, argument)
    how = {"ensure_2d": False, "dtype": np.float64, "order": "C", "ensure_min_samples": 0}
    try:
        numbers = checked(check_array, values, **how, ensure_all_finite=False, input_name=argument)
    except (TypeError, ValueError) as error:
        explain_columns(values, error, argument)
        raise
    check_finite(numbers, argument)
    return numbers


def add_offset(targets: np.ndarray, offset: Any, classes: np.ndarray | None, loss: Loss | None = None) -> np.ndarray:
    """Return complex targets ``target + i offset``, whose offset the kernels add to the linear prediction.

    Raises
    ------
    ValueError
        If there are more than two classes, or if the offset is not finite or has another shape than the targets.
    """
    if (classes is not None and len(classes) > 2) or hasattr(loss, "outputs"):
        raise ValueError("an offset is not supported for more than two classes; fit without it")
    return targets + 1j * read_offset(offset, targets.shape)


def read_offset(offset: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the offset as float64 of the shape of the linear predictions, (n, k)."""
    offset = np.full(shape[0], offset) if isinstance(offset, Number) else read_numbers(offset, "offset")
    if offset.ndim == 1:
        offset = offset[:, None]
    if offset.ndim != 2 or len(offset) != shape[0] or offset.shape[1] not in (1, shape[1]):
        raise ValueError(
            f"X has {shape[0]} rows, but offset has shape {offset.shape}; give one number per row, or one per target"
        )
    return np.broadcast_to(offset, shape)


def _some(labels: tuple) -> str:
    return str(labels) if len(labels) < 5 else f"{labels[0]} to {labels[-1]}"
