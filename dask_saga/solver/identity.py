"""Digests that identify problems, chunks and visits, and the seeds derived from them.

They are the same in every process and on every scheduler.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterable
from numbers import Integral, Number
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["digest", "draw_seed", "number_occurrences", "visit_seed"]


def draw_seed(random_state: Any) -> int:
    """Return the seed of all row and chunk orders: `random_state` itself if it is an int, else one draw from it."""
    if isinstance(random_state, Integral):
        return int(random_state)
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    return int(check_random_state(random_state).randint(2**31))


def visit_seed(seed: int, chunk_id: Hashable, visits: int) -> int:
    """Return the seed of the row order of one visit.

    It differs between visits, because SAGA converges badly if every pass repeats the same order.
    """
    return int(digest(seed, chunk_id, visits), 16)


def number_occurrences(contents: Iterable[str]) -> list[tuple[str, int]]:
    """Return ids (content, occurrence) of chunks that have none. Repeated content gets occurrences 0, 1, ..."""
    seen: dict[str, int] = {}
    ids = []
    for content in contents:
        ids.append((content, seen.get(content, 0)))
        seen[content] = seen.get(content, 0) + 1
    return ids


def digest(*parts: Any) -> str:
    """Hash a few short values by their ``repr``."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _parts(*objects: Any) -> list:
    # Include the types, because all instances without fields compare equal.
    return [part for item in objects for part in (type(item), _plain(tuple(item)))]


@functools.lru_cache(maxsize=1024)
def _hash(*parts: Any) -> str:
    return digest(*(_identity(part) if isinstance(part, type) else part for part in parts))


def _identity(kind: type) -> tuple:
    """Identify a class by its name, and a user's own class also by its attributes and the code of its methods."""
    if kind.__module__.startswith("dask_saga."):
        return kind.__module__, kind.__qualname__  # the bytecode depends on the Python version
    members = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
    fields = getattr(kind, "_fields", ())
    public = [(name, _plain(value)) for name, value in members.items() if name[0] != "_" and name not in fields]
    return kind.__module__, kind.__qualname__, sorted(public, key=lambda pair: pair[0])


def _plain(value: Any, within: tuple = ()) -> Any:
    """Convert a value to one whose ``repr`` is the same in every process.

    Functions become their code and the values of the globals and closure cells that the code uses.
    """
    for name in ("py_func", "fget", "__func__"):  # unwrap compiled functions, properties, static methods
        value = getattr(value, name, value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return tuple(_plain(part, within) for part in value)
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, tuple(_plain(part, within) for part in value.co_consts)
    if isinstance(value, FunctionType) and value.__code__ not in within:
        within = (*within, value.__code__)
        known = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
        inner = [*sorted(known.items()), *((0, cell.cell_contents) for cell in value.__closure__ or ())]
        return _plain(value.__code__, within), tuple((name, _plain(part, within)) for name, part in inner)
    if value is None or isinstance(value, (Number, str, bytes)):
        return value
    if isinstance(value, frozenset):
        return tuple(sorted(map(repr, value)))
    text = repr(value)  # not used if it contains a file path or a memory address
    return getattr(value, "__name__", type(value).__qualname__) if " at 0x" in text or "<module" in text else text


def _names(code: CodeType) -> set:
    """Return the global and attribute names that code uses, including those of its inner functions."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)
