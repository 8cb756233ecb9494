"""Find values that a fit cannot use, such as NaN, infinity and text, and say where they are and what to do."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .containers import column_labels, in_columns

__all__ = ["check_finite", "explain_columns"]


# What to do about missing values in X.
FILL_IN = (
    "drop these rows (dropna of a frame), or fill them in: sklearn.impute.SimpleImputer, which can also add indicator "
    "columns, or dask_ml.impute.SimpleImputer"
)


def check_finite(values: Any, argument: str = "X", labels: Sequence | None = None) -> None:
    """Raise an error if rows, targets or weights contain NaN or infinity.

    A fit calls this only if a sum over the rows is not finite, which saves one pass over the values.

    Parameters
    ----------
    values : ndarray or scipy.sparse CSR of shape (n,) or (n, p)
    argument : {"X", "y", "sample_weight"}, default="X"
        Name of the argument for the message.
    labels : sequence of length p, default=None
        Names of the columns for the message. None stands for their numbers.

    Raises
    ------
    ValueError
        If values are not finite. The message says how many and in which columns, and a remedy.
    """
    stored = values.data if sp.issparse(values) else values
    with np.errstate(all="ignore"):
        if np.isfinite(stored.sum()):  # much faster than a test of each value
            return
    for kind, wrong in (("NaN", np.isnan(stored)), ("infinity", np.isinf(stored))):
        if wrong.any():
            numbers = np.arange(0)
            if values.ndim == 2 and (argument == "X" or values.shape[1] > 1):
                numbers = np.unique(values.indices[wrong]) if sp.issparse(values) else np.flatnonzero(wrong.any(axis=0))
            columns = [k if labels is None else labels[k] for k in numbers.tolist()]
            raise _error(argument, kind, int(np.count_nonzero(wrong)), columns)


def _error(argument: str, kind: str, count: int, columns: list) -> ValueError:
    noun = ("missing " if kind == "NaN" else "") + ("value" if count == 1 else "values")
    return ValueError(f"{argument} contains {kind}: {count} {noun}{_where(columns)}; {_remedy(argument, kind)}")


def _where(columns: list) -> str:
    return f" {in_columns(columns)}" if columns and columns != [None] else ""


def _remedy(argument: str, kind: str) -> str:
    if argument == "sample_weight":
        return "give a weight to each row, and 0 to leave a row out"
    if kind == "NaN":
        return FILL_IN if argument == "X" else "drop or correct them"
    return "correct these values, or drop their rows"


def explain_columns(X: Any, error: Exception, argument: str = "X") -> None:
    """Raise an error that names the columns and a remedy, if entries are no numbers or missing.

    Parameters
    ----------
    X : object
        Rows, targets or weights that could not be converted to numbers.
    error : Exception
        The error of the conversion. The new one is of the same type and begins with the same text.
    argument : {"X", "y", "sample_weight"}, default="X"
        Name of the argument.
    """
    import pandas as pd

    wrong: dict = {}
    missing: dict = {}
    for label, column in _columns(X):
        values = np.asarray(column, dtype=object)
        is_missing = np.asarray(pd.isna(values))
        missing[label] = int(np.count_nonzero(is_missing))
        found = next((value for value in values[~is_missing] if not _is_number(value)), None)
        if found is not None:
            wrong[label] = found
    if wrong:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        advice = _advice(next(iter(wrong.values()))) if argument == "X" else "give numbers"
        if argument == "y":
            advice += ", or use SAGAClassifier, whose labels may be text"
        raise kind(f"{error}{_where(list(wrong))}; {advice}") from error
    if count := sum(missing.values()):
        raise _error(argument, "NaN", count, [label for label in missing if missing[label]]) from error


def _advice(value: Any) -> str:
    if isinstance(value, (str, bytes)):
        return (
            "encode text as numbers, by pandas.get_dummies, sklearn.preprocessing.OneHotEncoder, or "
            "dask_ml.preprocessing.DummyEncoder on Dask, or leave such columns out"
        )
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return "give numbers, such as the days since a date, or leave such columns out"
    return "give numbers, or leave such columns out"


def _columns(X: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the label and the values of each column of a frame, or of an array of objects or strings.

    The label of a series or a one-dimensional array is None.
    """
    labels = column_labels(X)
    if labels is not None:
        yield from ((label, X.iloc[:, k] if hasattr(X, "iloc") else X[label]) for k, label in enumerate(labels))
        return
    values = np.asarray(X) if hasattr(X, "dtype") or hasattr(X, "type") else np.empty(0)
    if values.dtype.kind in "OUST" and values.ndim == 2:
        yield from enumerate(values.T)
    elif values.dtype.kind in "OUST" and values.ndim == 1:
        yield None, values


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
