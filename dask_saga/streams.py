"""Streams: chunks that arrive, take the place of others or leave again, and chunks that come back between new ones."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["replay"]


def replay(
    stream: Iterable, budget: float = 1.0, *, window: int | None = None, random_state: Any = None
) -> Iterator[Any]:
    """Chunks of a stream as they come, and after each some old ones, drawn at random.

    SAGA pays from a chunk's second visit on, when its memory is that of steps. With new data a growing share of
    the visits goes to data that were seen before (dynaSAGA: Daneshmand, Lucchi, Hofmann 2016, section 3.1;
    STRSAGA: Jothimurugesan, Tahmasbi, Gibbons, Tirthapura 2018, section 4).

    Parameters
    ----------
    stream : iterable
        Chunks, or what stands for them: they are kept, so rather names of files than their content.
    budget : float, default=1.0
        Visits of old chunks for each new one.
    window : int, default=None
        Chunks, the newest included, that may come again; None for all.
    random_state : int, RandomState or None, default=None

    Returns
    -------
    iterator
        Over what the stream gave, now or before.

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
    known, owed = collections.deque(maxlen=None if window is None else window - 1), 0.0
    for item in stream:
        yield item
        owed += budget if known else 0.0
        while owed >= 1.0 and known:
            owed -= 1.0
            yield known[rng.randint(len(known))]
        known.append(item)
