"""Helpers to train on streams of chunks: ``replay`` revisits old chunks between new ones."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["replay"]


def replay(
    stream: Iterable,
    budget: float = 1.0,
    *,
    window: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> Iterator[Any]:
    """Yield each chunk of a stream, followed by old chunks that are drawn at random.

    SAGA reduces the variance of its steps from the second visit of a chunk on: the gradient memory then comes from
    earlier steps. Old chunks should therefore be revisited while new ones arrive (dynaSAGA: Daneshmand, Lucchi,
    Hofmann 2016, section 3.1; STRSAGA: Jothimurugesan, Tahmasbi, Gibbons, Tirthapura 2018, section 4).

    Parameters
    ----------
    stream : iterable
        Chunks, or references to them such as file names. Prefer references, as old items are kept in memory.
    budget : float, default=1.0
        Number of old chunks per new chunk; it may be a fraction. Raise it for higher accuracy, lower it if chunks
        arrive faster than they can be processed.
    window : int, default=None
        Number of latest chunks, including the newest, among which old chunks are drawn. None draws from all chunks. Set
        it if old chunks become outdated, or must not fill the memory.
    random_state : int, RandomState or None, default=None
        Seed of the random draws. Set an int for reproducible results.

    Returns
    -------
    iterator
        Iterator over new and old items of the stream.

    Raises
    ------
    ValueError
        If `budget` is negative or `window` below one.

    Examples
    --------
    >>> from dask_saga.streams import replay
    >>> list(replay("abcd", random_state=0))
    ['a', 'b', 'a', 'c', 'a', 'd', 'b']
    """
    if not 0 <= budget < np.inf:
        raise ValueError(f"budget={budget!r} must be a number of visits, at least 0")
    if window is not None and window < 1:
        raise ValueError(f"window={window!r} must be at least 1, or None")
    return _replayed(stream, budget, window, check_random_state(random_state))


def _replayed(stream: Iterable, budget: float, window: int | None, rng: np.random.RandomState) -> Iterator[Any]:
    known: collections.deque[Any] = collections.deque(maxlen=None if window is None else window - 1)
    owed = 0.0
    for item in stream:
        yield item
        owed += budget if known else 0.0
        while owed >= 1.0 and known:
            owed -= 1.0
            yield known[rng.randint(len(known))]
        known.append(item)
