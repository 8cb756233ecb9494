"""An immutable mapping: each change returns a new mapping that shares most of its storage with the old one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

__all__ = ["ImmutableMap"]


# Markers among the recent changes: the key has no recent change, or it was removed.
_ABSENT, _GONE = object(), object()

# Minimum number of recent changes before they are merged into a new base.
LEAST_RECENT = 64


class ImmutableMap(Mapping):
    """Immutable mapping that keeps insertion order.

    A small dict of recent changes overlays a large base dict that is never modified. One change of a mapping with n
    items costs about sqrt(n) operations instead of the n of a copy. This matters because every chunk of a stream
    creates a new solver state, and a stream may have 100,000 chunks.

    Parameters
    ----------
    items : mapping or iterable of pairs, default=()
        Initial items, copied into the base.
    """

    __slots__ = ("_base", "_count", "_recent")

    def __init__(self, items: Any = ()):
        self._base: dict[Hashable, Any] = dict(items)
        self._recent: dict[Hashable, Any] = {}
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
        """Return a copy with one value set. A removed key that is set again moves to the end."""
        if self._recent.get(key) is _GONE:
            return ImmutableMap(self._merged()).set(key, value)
        return self._changed(key, value, self._count + (key not in self))

    def without(self, key: Hashable) -> ImmutableMap:
        """Return a copy without one key, or the mapping itself if the key is absent."""
        return self._changed(key, _GONE, self._count - 1) if key in self else self

    def _changed(self, key: Hashable, value: Any, count: int) -> ImmutableMap:
        changed = ImmutableMap.__new__(ImmutableMap)
        changed._base, changed._recent, changed._count = self._base, {**self._recent, key: value}, count
        few = len(changed._recent) ** 2 <= max(len(changed._base), LEAST_RECENT**2)
        return changed if few else ImmutableMap(changed._merged())

    def _merged(self) -> dict:
        merged = {**self._base, **self._recent}
        for key, value in self._recent.items():
            if value is _GONE:
                del merged[key]
        return merged
