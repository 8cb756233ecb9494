"""A class decorator that makes the arrays of a NamedTuple read-only."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from ..kernels.jit import frozen

__all__ = ["immutable"]

Class = TypeVar("Class", bound=type)


def immutable(cls: Class) -> Class:
    """Make every instance of a NamedTuple hold read-only views of its arrays.

    States share arrays with each other and with the user, so that a copy costs nothing. Therefore no array of a state
    may be written to. The decorator covers all ways to an instance: the class itself, which unpickling calls too,
    ``_make`` and ``_replace``. The arrays inside a sparse matrix keep their flags.

    Parameters
    ----------
    cls : type
        A NamedTuple.

    Returns
    -------
    type
        `cls` itself.
    """
    named: Any = cls
    create, names = named.__new__, named._fields

    @functools.wraps(create)
    def new(kind: type, *values: Any, **fields: Any) -> Any:
        return tuple.__new__(kind, _with_views([*create(kind, *values, **fields)], range(len(names))))

    @functools.wraps(named._make)
    def make(kind: type, values: Iterable) -> Any:
        return kind(*values)

    @functools.wraps(named._replace)
    def replace(self: Any, /, **changes: Any) -> Any:
        # NamedTuple's method would look at all fields again. A visit replaces fields several times.
        result = tuple.__new__(type(self), map(_with_views(changes, changes).pop, names, self))
        if changes:
            raise ValueError(f"Got unexpected field names: {list(changes)!r}")
        return result

    named.__new__, named._make, named._replace = new, classmethod(make), replace
    return cls


def _with_views(fields: Any, keys: Iterable) -> Any:
    """Replace writable arrays of a list or dict by read-only views, in place.

    An array that two fields share remains one array, so that a pickle has it once.
    """
    views: dict[int, np.ndarray] = {}
    for key in keys:
        value = fields[key]
        if isinstance(value, np.ndarray) and value.flags.writeable:
            if id(value) not in views:
                views[id(value)] = frozen(value)
            fields[key] = views[id(value)]
    return fields
