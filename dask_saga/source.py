"""Where chunks come from: held where the tasks run, or loaded again for each visit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dask.sizeof import sizeof

__all__ = ["Source"]

# Share of the executor's memory that held chunks may take.
HELD_SHARE = 0.4


class Source:
    """Blocks of the user's data on an executor, and how one becomes a chunk.

    Parameters
    ----------
    executor : LocalExecutor or ClientExecutor
    blocks : list of tuple
        As ``dask_blocks`` gives them: in memory, or with lazy parts.
    nbytes : float, default=0
        Size of all blocks; NaN where it is not known.
    persist : bool or "auto", default=True
        Whether chunks are held between visits; "auto": where they fit HELD_SHARE of the memory.

    Attributes
    ----------
    read : callable
        ``read(block, name)`` returns a ``Chunk``; to be set before chunks are asked for.
    holds : bool
        Whether chunks are held.
    held : dict of int to reference
    """

    def __init__(self, executor: Any, blocks: list, nbytes: float = 0.0, persist: bool | str = True):
        self.executor, self.blocks = executor, blocks
        self.read: Callable | None = None
        self.held: dict[int, Any] = {}
        self.holds = self._fits(nbytes) if persist == "auto" else bool(persist)
        if self.holds:
            self.blocks = executor.load(blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def _fits(self, nbytes: float) -> bool:
        if math.isnan(nbytes):  # as large as the first block, all of them
            [block] = self.executor.load(self.blocks[:1])
            [first] = self.executor.gather([self.executor.submit(_size, block, name="saga-size")])
            nbytes = first * len(self.blocks)
        return nbytes <= HELD_SHARE * self.executor.memory()

    def name(self, k: int) -> int | None:
        """What error messages call a block."""
        return k if len(self) > 1 else None

    def targets(self, k: int) -> Any:
        """Reference to (None, y, sample_weight) of a block, or to the whole block where that is there."""
        if self.holds:
            return self.blocks[k]
        return self.executor.load([(None, *self.blocks[k][1:])])[0]

    def chunk(self, k: int) -> Any:
        """Reference to a chunk."""
        if k in self.held:
            return self.held[k]
        block = self.blocks[k] if self.holds else self.executor.load([self.blocks[k]])[0]
        chunk = self.executor.submit(self.read, block, self.name(k), name="saga-read")
        if self.holds:
            self.held[k], self.blocks[k] = chunk, None
        return chunk

    def each(self, order: Iterable[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Numbers of chunks and references; what is not held is loaded a little ahead of its turn."""
        order = list(range(len(self)) if order is None else order)
        if self.holds:
            yield from ((k, self.chunk(k)) for k in order)
        else:
            yield from zip(order, self.executor.ahead(self.chunk, order), strict=True)

    def join(self, groups: list[list[int]], join_chunks: Callable) -> None:
        """Make one chunk of each group of held ones."""
        if len(groups) < len(self):
            submit, chunks = self.executor.submit, [self.chunk(k) for k in range(len(self))]
            joined = [submit(join_chunks, *(chunks[k] for k in group), name="saga-join") for group in groups]
            self.held, self.blocks = dict(enumerate(joined)), [None] * len(groups)

    def used(self, task: Any) -> None:
        """Tell which task works on the chunk that came last, so that loads do not run further ahead of it."""
        if not self.holds:
            self.executor.throttle(task)


def _size(block: Any) -> int:
    return sizeof(block)
