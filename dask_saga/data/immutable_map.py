"""A mapping that is a value: a change makes a new one, which shares all but the last changes with the old."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

__all__ = ["ImmutableMap"]


_ABSENT, _GONE = object(), object()

# Changes that are copied with each one more, at least.
LEAST_RECENT = 64


class ImmutableMap(Mapping):
    """An immutable mapping in order of arrival.

    A few recent changes lie over a large base that is never written, so one change of n items costs
    about sqrt(n), where copying a dict would cost n: a stream of 100,000 chunks makes so many states.

    Parameters
    ----------
    items : mapping or iterable of pairs, default=()
    """

    __slots__ = ("_base", "_count", "_recent")

    def __init__(self, items: Any = ()):
        self._base, self._recent = dict(items), {}
        self._count = len(self._base)

    def __getitem__(self, key: Hashable) -> Any:
        value = self._recent.get(key, _ABSENT)
        if value is _ABSENT:
            return self._base[key]
        if value is _GONE:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator:
        recent = self._recent
        for key in self._base:
            if recent.get(key) is not _GONE:
                yield key
        for key, value in recent.items():
            if value is not _GONE and key not in self._base:
                yield key

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"

    def __reduce__(self) -> tuple:
        return ImmutableMap, (self._merged(),)

    def set(self, key: Hashable, value: Any) -> ImmutableMap:
        """The same with one value set; a key that was taken out comes last."""
        if self._recent.get(key) is _GONE:
            return ImmutableMap(self._merged()).set(key, value)
        return self._changed(key, value, self._count + (key not in self))

    def without(self, key: Hashable) -> ImmutableMap:
        """The same without one key."""
        return self._changed(key, _GONE, self._count - 1) if key in self else self

    def _changed(self, key: Hashable, value: Any, count: int) -> ImmutableMap:
        evaluate = ImmutableMap.__new__(ImmutableMap)
        evaluate._base, evaluate._recent, evaluate._count = self._base, {**self._recent, key: value}, count
        return (
            evaluate
            if len(evaluate._recent) ** 2 <= max(len(evaluate._base), LEAST_RECENT**2)
            else ImmutableMap(evaluate._merged())
        )

    def _merged(self) -> dict:
        merged = {**self._base, **self._recent}
        for key, value in self._recent.items():
            if value is _GONE:
                del merged[key]
        return merged
