"""Streams: chunks that arrive, take the place of others or leave again, and chunks that come back between new ones."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from .chunk import counted_stats, visit
from .columns import without
from .inputs import Chunk, frozen
from .metric import staleness
from .problem import Problem, digest
from .state import ChunkMemory, SAGAState, anonymous_id
from .steps import weighted_sum
from .windows import end_pass

__all__ = ["forget", "is_other", "learn", "replay"]


def learn(
    state: SAGAState, chunk: Chunk, problem: Problem, *, chunk_id: Hashable = None, replace: bool = False
) -> tuple[SAGAState, Hashable]:
    """The state after one pass over a chunk, new, known or in place of the one that has its id, and the id.

    Raises
    ------
    ValueError
        If the id is known with other content that is not to be replaced, or cannot be without its data.
    """
    key = anonymous_id(state, chunk.content) if chunk_id is None else chunk_id
    known = state.chunks.get(key)
    if known is not None and not is_other(chunk, known):
        chunk = chunk._replace(content=known.content)
    elif known is not None:
        if not replace:
            raise ValueError(
                f"chunk_id={chunk_id!r} is known with other content; give new content a new chunk_id, or "
                "none, or replace=True"
            )
        if known.total is None:
            raise ValueError(
                f"chunk_id={chunk_id!r} has so few rows that replace=True needs its old data: first "
                f"forget({chunk_id!r}, X_old, y_old), then partial_fit with the new"
            )
        state = forget(state, key, problem)
    return visit(state, key, chunk, problem), key


def is_other(chunk: Chunk, known: ChunkMemory) -> bool:
    """Whether a chunk is not the one known, as far as is known of both: content that was not hashed is "" """
    if chunk.content and known.content:
        return chunk.content != known.content
    return len(chunk.targets) != len(known.gradients)


def forget(state: SAGAState, chunk_id: Hashable, problem: Problem, chunk: Chunk | None = None) -> SAGAState:
    """The state without one chunk: as if its rows had no memory, and no part in the sums.

    x stays where it is, and moves on at the next visit of another chunk.

    Parameters
    ----------
    state : SAGAState
    chunk_id : str, int or tuple
        A key of ``state.chunks``.
    problem : Problem
    chunk : Chunk, default=None
        The data of the chunk, needed where its memory has no ``total``. With it column statistics are
        those of the rest; without, and where its memory has none either, the chunk is taken to be like the rest.

    Raises
    ------
    ValueError
        If the chunk is unknown, or its data are needed.
    """
    memory = state.chunks.get(chunk_id)
    if memory is None:
        raise ValueError(f"chunk_id={chunk_id!r} is not known; known are the keys of state_.chunks")
    total = memory.total
    if total is None:
        if chunk is None:
            raise ValueError(
                f"chunk_id={chunk_id!r} has so few rows that their sum of gradients was not kept; "
                "give its data as well: forget(chunk_id, X, y)"
            )
        total = weighted_sum(chunk.rows, memory.gradients.astype(float), problem)
    stats, head = without(state.stats, counted_stats(memory, chunk, state.stats, problem)), state.head
    rows, weight, left = head.rows - memory.rows, head.weight - memory.weight, head.gradient_sum - total
    if not rows:  # nothing, not what rounding left
        weight, left = 0.0, np.zeros_like(left)
    geometry, stale = state.metric_for
    return state._replace(
        head=end_pass(head)._replace(gradient_sum=frozen(left), weight=weight, rows=rows, diverged=False),
        stats=stats,
        metric_for=(geometry, stale + staleness(state.stats, stats, problem)),
        chunks=state.chunks.lacking(chunk_id),
        window_ids=state.window_ids.lacking(chunk_id),
        digest=digest(state.digest, "forget", chunk_id),
    )


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
