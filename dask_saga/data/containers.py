"""The containers of X, y and sample_weight: which ones are refused, what is inside of them, and names of columns."""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any

import numpy as np
from dask import is_dask_collection
from dask.delayed import Delayed
from distributed import Future
from sklearn.exceptions import DataConversionWarning

__all__ = [
    "as_array",
    "check_columns",
    "check_containers",
    "column_labels",
    "in_columns",
    "warn_of_column_vector",
    "with_names",
]


# Number of columns that a message names before it counts the others.
MOST_NAMED = 5

DATA_ARRAY = "xarray DataArray"

# What to give instead of a container that is refused, by its package and class.
REMEDIES = {
    "xarray Dataset": "columns of {0}.to_dataframe() or {0}.to_dask_dataframe()",
    "polars LazyFrame": "its value: {0}.collect()",
    "pyarrow Dataset": "its value: {0}.to_table()",
    "pyarrow RecordBatchReader": "its value: {0}.read_all()",
}

# Beginnings of the names of column types that hold no numbers, in numpy, pandas, polars and Arrow, and what they hold.
# Without a check, dates would become the count of their units since 1970.
CONTENTS = {
    "timedelta": "durations",
    "duration": "durations",
    "time": "dates or times",
    "date": "dates or times",
    "period": "dates or times",
    "interval": "intervals",
    "complex": "complex numbers",
    "[(": "records",
}

# What to give instead of a column, by what it holds.
COLUMN_REMEDIES = {
    "durations": "such as seconds",
    "dates or times": "such as the days since a date, or the month and the weekday",
    "intervals": "such as their bounds",
    "complex numbers": "such as their real and imaginary parts, in columns of their own",
    "records": "such as numpy.lib.recfunctions.structured_to_unstructured returns",
}


def check_containers(**arguments: Any) -> None:
    """Refuse Delayed and Future objects, lists of them, and containers that are neither arrays nor frames.

    Every method that takes data calls this first. Otherwise NumPy would wrap such a container in an object array with
    one entry, and a later check would fail with a misleading message.

    Parameters
    ----------
    **arguments : object
        Values to check, each passed under the name of its argument: ``check_containers(X=X, y=y)``.

    Raises
    ------
    TypeError
        If a value is refused. The message names the argument, what it holds, and what to pass instead.
    """
    for name, value in arguments.items():
        listed = isinstance(value, (list, tuple))
        kind = _refused_kind(value)
        if kind is None:
            continue
        found = f"a {type(value).__name__} of {kind}" if listed else f"{'an' if kind[0] == 'x' else 'a'} {kind}"
        wanted = f"a dask array or {'dataframe' if name == 'X' else 'series'}"
        if kind in ("Delayed", "Future") and name in ("X", "y"):
            wanted += f", or {'delayed pairs' if kind == 'Delayed' else 'futures of pairs'} to saga"
        remedy = {
            "Delayed": f"their values: dask.compute(*{name})" if listed else f"its value: {name}.compute()",
            "Future": f"their values: client.gather({name})" if listed else f"its value: {name}.result()",
            "dask Bag": f"columns of {name}.to_dataframe()",
            "dict": f"a frame: pandas.DataFrame({name})",
            "str": "the column of that name, such as frame[name], or what the file of that name holds",
        }.get(kind, REMEDIES.get(kind, "its value: {0}.compute()").format(name))
        raise TypeError(f"{name} is {found}; give {wanted}, or {remedy}")


def _refused_kind(value: Any) -> str | None:
    """Return the name that messages use for a refused value (or list items), or None for an accepted value."""
    listed = isinstance(value, (list, tuple))
    for kind in _item_types(value) if listed else [type(value)]:
        if issubclass(kind, (Delayed, Future)):
            return "Delayed" if issubclass(kind, Delayed) else "Future"
    if type(value) in (dict, str):  # some sparse matrices are of a subclass of dict
        return type(value).__name__
    if listed:  # a list of numbers, rows or Dask arrays is accepted
        return None
    if (known := _known_class(value)) in REMEDIES:
        return known
    if is_dask_collection(value) and not hasattr(value, "ndim"):  # such as a bag, without rows and columns
        return f"dask {type(value).__name__}"
    return None


def _item_types(items: list | tuple) -> set[type]:
    """Return the types of the items of a list and of its nested lists (rows and their entries)."""
    types = set(map(type, items))
    if any(issubclass(kind, (list, tuple)) for kind in types):
        rows = (item for item in items if isinstance(item, (list, tuple)))
        types.update(map(type, itertools.chain.from_iterable(rows)))
    return types


def _known_class(value: Any) -> str | None:
    """Return the package and class of a value that is refused or converted, such as "xarray DataArray".

    Names are compared, as the packages need not be installed. Subclasses count too.
    """
    return _name_of(type(value))  # type: ignore[arg-type]  # mypy doubts that a class has a hash


@functools.lru_cache(maxsize=256)
def _name_of(kind: type) -> str | None:
    names = (f"{base.__module__.partition('.')[0]} {base.__name__}" for base in kind.__mro__)
    return next((name for name in names if name in REMEDIES or name == DATA_ARRAY), None)


def as_array(value: Any) -> Any:
    """Return the array inside an xarray DataArray, with or without Dask; return any other value as it is.

    Masked entries of a masked array become missing values, because NumPy would read what is under the mask.
    """
    if _known_class(value) == DATA_ARRAY:
        value = value.data
    if isinstance(value, np.ma.MaskedArray):
        return _unmasked(value)
    return value


def _unmasked(value: Any) -> Any:
    if not np.ma.is_masked(value):
        return value.data
    return value.astype(float).filled(np.nan) if value.dtype.kind in "biuf" else value.astype(object).filled(None)


def column_labels(X: Any) -> list | None:
    """Return the column names of a frame of pandas, polars, Arrow or Dask, or of a DataArray; None if X has none.

    A DataArray has names if the coordinate of its second dimension holds strings.
    """
    if _known_class(X) == DATA_ARRAY:
        coordinate = X.coords.get(X.dims[1]) if X.ndim == 2 else None
        labels = [] if coordinate is None else coordinate.values.tolist()
        return labels if labels and all(isinstance(label, str) for label in labels) else None
    names = getattr(getattr(X, "schema", None), "names", None)
    if isinstance(names, list):  # Arrow, whose `columns` are arrays
        return names
    return list(X.columns) if hasattr(X, "columns") else None


def with_names(X: Any) -> Any:
    """Return X, or an empty frame with its column names where some version of scikit-learn would not find them."""
    if isinstance(X, np.ndarray) or hasattr(X, "iloc"):  # a frame of pandas or Dask
        return getattr(X, "_meta", X)
    labels = column_labels(X)
    if labels is None:
        return X
    import pandas as pd

    return pd.DataFrame(columns=labels)


def check_columns(X: Any, argument: str = "X") -> None:
    """Refuse columns of the same name, and columns of dates, times, intervals or complex numbers.

    Parameters
    ----------
    X : array, series, DataFrame or ``_meta`` of a Dask collection
    argument : str, default="X"
        Name of the argument for error messages.

    Raises
    ------
    ValueError, TypeError
        If a column is refused. The message names the columns, their type and a remedy.
    """
    if not isinstance(X, np.ndarray):
        _check_unique(X)
    types = _types(X)
    for kind in dict.fromkeys(types):
        content = _content(kind)
        if content is not None:
            columns = [label for label, other in zip(column_labels(X) or (), types, strict=False) if other == kind]
            where = f" {in_columns(columns)}" if columns else ""
            text = f"{argument} has {content}{where} ({kind}); give numbers, {COLUMN_REMEDIES[content]}"
            if content == "complex numbers":  # with the words of scikit-learn
                raise ValueError(f"Complex data not supported: {text}")
            raise TypeError(text)


def _types(X: Any) -> list:
    """Return the type of each column of a frame, or the one type of an array or a series, if it has any."""
    for name in ("dtype", "type"):
        if hasattr(type(X), name):
            return [getattr(X, name)]
    if hasattr(type(X), "dtypes"):
        return list(X.dtypes)
    return list(X.schema.types) if hasattr(type(X), "schema") else []


@functools.lru_cache(maxsize=256)
def _content(kind: Any) -> str | None:
    """Return what a column of a type holds if a fit cannot use it."""
    return next((CONTENTS[name] for name in CONTENTS if str(kind).lower().startswith(name)), None)


def _check_unique(X: Any) -> None:
    if getattr(getattr(X, "columns", None), "is_unique", False):  # pandas knows it
        return
    labels = column_labels(X) or []
    if len(set(labels)) < len(labels):
        several = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
        raise ValueError(f"X has several columns named {_some(several)}; rename them, or keep one of each")


def in_columns(columns: list) -> str:
    """Return "in column a" or "in the columns a, b and 3 more"."""
    return f"in column {_some(columns)}" if len(columns) == 1 else f"in the columns {_some(columns)}"


def _some(labels: list) -> str:
    named = ", ".join(repr(label) for label in labels[:MOST_NAMED])
    return named if len(labels) <= MOST_NAMED else f"{named} and {len(labels) - MOST_NAMED} more"


def warn_of_column_vector(y: Any) -> None:
    """Warn if labels have the shape (n, 1), as scikit-learn does.

    Callers do so once for all chunks. The chunks themselves are then read without a warning.
    """
    shape: tuple = np.shape(y[:1]) if isinstance(y, (list, tuple)) else getattr(y, "shape", ())
    if len(shape) == 2 and shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples, ), "
            "for example using ravel(), or give the column of a frame as a series.",
            DataConversionWarning,
            stacklevel=4,
        )
