"""The source of chunks of a fit. Chunks are held where the tasks run, or loaded again for each visit."""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..data.chunk import join_chunks
from ..execution.deferred import DeferredCall

if TYPE_CHECKING:
    from ..data.chunk import Chunk
    from ..execution.protocol import Executor, Reference

__all__ = ["Source", "lanes"]


T = TypeVar("T")

logger = logging.getLogger("dask_saga")


# Largest fraction of the executor's memory that held chunks may take.
HELD_SHARE = 0.4

# Least number of rounds in a pass with n_parallel="auto", because a fit with fewer rounds takes more passes.
LEAST_ROUNDS = 5

# Bounds of a task that reads several chunks in turn: number of chunks, their bytes, and the bytes of its results. They
# are bounded because an interrupted task runs to its end, and every consumer receives the whole result.
READ_IN_TURN, TURN_BYTES, RESULT_BYTES = 16, 2**30, 2**25


def lanes(n: int, width: int) -> list[range]:
    """Split the numbers 0 to n - 1 into `width` consecutive lanes. A round takes one chunk of each lane."""
    cuts = [k * n // width for k in range(width + 1)]
    return [range(first, end) for first, end in itertools.pairwise(cuts)]


class Source:
    """Access to the chunks of a fit: turns blocks of the user's data on an executor into chunks.

    Use it as a context manager. It releases the data at the end.

    Parameters
    ----------
    executor : Executor
    blocks : list of tuple
        Blocks from ``dask_blocks``, in memory or with lazy parts.
    nbytes : float, default=0
        Upper bound of the size of all chunks in bytes. NaN if unknown.
    rows : float, default=NaN
        Number of rows of all blocks. NaN if unknown.
    columns : float, default=NaN
        Number of columns. NaN if unknown.
    persist : bool or "auto", default=True
        Whether to hold chunks between visits. "auto" holds them if they fit into the fraction HELD_SHARE of the
        memory.
    n_parallel : int or "auto", default=1
        Number of chunks that are visited at a time.

    Attributes
    ----------
    width : int
        `n_parallel` as a number, which is also the number of lanes.
    holds : bool
        Whether chunks are held.
    held : dict of int to Reference
        References to the held chunks by number.
    expected : list of (str, str)
        Hashes of content and weights that each chunk must have. Empty until they are known.
    sizes : list of int
        Size of each chunk in bytes. Empty until they are known.

    Raises
    ------
    ValueError
        If `persist` is not True, False or "auto".
    """

    def __init__(
        self,
        executor: Executor,
        blocks: list,
        *,
        nbytes: float = 0.0,
        rows: float = math.nan,
        columns: float = math.nan,
        persist: bool | str = True,
        n_parallel: Any = 1,
    ):
        if persist not in (True, False, "auto"):
            raise ValueError(f"persist={persist!r} must be True, False or 'auto'")
        self.executor, self.blocks, self.loads = executor, blocks, blocks
        self.nbytes, self.rows, self.columns = nbytes, rows, columns
        self.read: Callable | None = None
        self.held: dict[int, Reference[Chunk]] = {}
        self.expected: list[tuple[str, str]] = []
        self.sizes: list[int] = []
        self.reads = [0] * len(blocks)
        self.holds = self.decided = self._interrupted = False
        self.running: Any = iter(())
        self.n_parallel, most = n_parallel, len(blocks)
        if n_parallel == "auto":
            n_parallel, most = executor.threads(), len(blocks) // LEAST_ROUNDS
        self.width = max(1, min(n_parallel, most))
        self.executor.assign_lanes(self.width)
        if persist is False:
            self.load_again()
        elif persist is True or nbytes <= HELD_SHARE * executor.memory():
            self.hold()

    def __len__(self) -> int:
        return len(self.blocks)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: Any) -> None:
        """Release all references, so that a stored traceback keeps neither chunks nor the loading thread alive."""
        if hasattr(self.running, "close"):
            self.running.close()
        self.held.clear()
        self.blocks, self.loads = [], []
        self.executor.close(self._interrupted or error[:1] == (KeyboardInterrupt,))

    def interrupt(self) -> None:
        """Note that Ctrl-C ended the fit, so that leaving the context also cancels what still runs."""
        self._interrupted = True

    def hold(self) -> None:
        """Hold chunks from now on."""
        self.holds = self.decided = True
        self.blocks = self.executor.load(self.blocks)

    def load_again(self) -> None:
        """Load chunks again for each visit from now on."""
        self.decided = True
        self.loads = self.executor.defer(self.blocks)

    def begin(self, read: Callable[..., Chunk]) -> None:
        """Set the function that reads a block, and decide whether chunks are held if that is still open.

        They are held if their total size, estimated from the first chunk that has rows, fits into the memory.

        Parameters
        ----------
        read : callable
            Called as ``read(block, name, order=order)`` with the memory order of the rows. It returns a Chunk.
        """
        self.read = read
        if self.decided:
            return
        nbytes, limit = 0.0, HELD_SHARE * self.executor.memory()
        for k in range(len(self)):
            [(size, rows)] = self.executor.gather([self.executor.submit(_size, self.chunk(k), name="saga-size")])
            if rows:
                nbytes = size * (len(self) if math.isnan(self.rows) else self.rows / rows)
                break
        if nbytes <= limit:
            self.hold()
        else:
            self.load_again()
        logger.info("chunks of about %.3g bytes are %s", nbytes, "held" if self.holds else "loaded for each visit")

    def expect(self, sizes: list[int], hashes: list[tuple[str, str]]) -> None:
        """Note what the first read of all chunks has shown. Later reads must give the same data.

        Parameters
        ----------
        sizes : list of int
            Size of each chunk in bytes.
        hashes : list of (str, str)
            Hashes of content and weights of each chunk.
        """
        self.sizes, self.expected = sizes, hashes

    def name(self, k: int) -> int | None:
        """Return the name of a block for error messages: its number, or None if there is only one block."""
        return k if len(self) > 1 else None

    @property
    def bytes_read(self) -> int:
        """Number of bytes read so far. A chunk counts each time that it is read."""
        return sum(size * reads for size, reads in zip(self.sizes, self.reads, strict=True))

    def lane(self, k: int) -> int:
        """Return the number of the lane that contains a block."""
        return bisect.bisect_right([part.stop for part in lanes(len(self), self.width)], k)

    def targets(self) -> list[Reference]:
        """Return references to the blocks, for callers that need only y and sample_weight.

        X is None if the blocks are not held, so that it is not loaded.
        """
        if self.holds:
            return self.blocks
        blocks = self.executor.defer([(None, *block[1:]) for block in self.blocks])
        return [self.executor.load([block])[0] for block in blocks]

    def chunk(self, k: int) -> Reference[Chunk]:
        """Return a reference to a chunk, which is read if it is not held."""
        if k in self.held:
            return self.held[k]
        [chunk] = self._chunks([k])
        return chunk

    def _chunks(self, numbers: list[int], order: str | None = "C") -> list[Reference[Chunk]]:
        """Read chunks that are not held, and return references to them."""
        calls = [self._reading(k, order) for k in numbers]
        chunks = self.executor.map(_read, calls, name="saga-read", lanes=[self.lane(k) for k in numbers])
        if self.holds:
            self.held.update(zip(numbers, chunks, strict=True))
            for k in numbers:
                self.blocks[k] = None
        return chunks

    def _reading(self, k: int, order: str | None) -> tuple:
        """Return the arguments of ``_read`` for a chunk, and count the read."""
        self.reads[k] += 1
        block = self.blocks[k] if self.holds else self.executor.load([self.loads[k]], self.lane(k))[0]
        return self.read, block, self.name(k), self.expected[k] if self.expected else None, order

    def _chunk_for_one_task(self, k: int) -> Reference[Chunk]:
        """Return a reference to a chunk for a single task. If its block is lazy, this task itself reads it."""
        if isinstance(self.loads[k], DeferredCall):
            return cast("Reference[Chunk]", DeferredCall(_read, *self._reading(k, None)))
        [chunk] = self._chunks([k], None)
        return chunk

    def each(
        self, order: list[int], load: Callable[[int], Reference[Chunk]] | None = None
    ) -> Iterator[tuple[int, Reference[Chunk]]]:
        """Iterate over numbers and references of chunks. Chunks that are not held are loaded slightly ahead."""
        self.running = iter(()) if self.holds else self.executor.prefetch(load or self.chunk, order)
        return ((k, self.chunk(k)) for k in order) if self.holds else zip(order, self.running, strict=True)

    def used(self, task: Reference, most: int = 0) -> None:
        """Register the task that works on the last chunk, so that loading does not run too far ahead of it.

        Parameters
        ----------
        task : Reference
            Reference to the result of the task.
        most : int, default=0
            Number of unfinished tasks that are allowed, if it is above the executor's own limit.
        """
        if not self.holds:
            self.executor.throttle(task, most)

    def map(
        self,
        function: Callable[..., T],
        *args: Any,
        name: str,
        named: bool = False,
        nbytes: float = math.nan,
        paired: list | None = None,
    ) -> list[Reference[T]]:
        """Call ``function(chunk, *args)`` for every chunk, and return references to the results.

        Parameters
        ----------
        function : callable
        *args : object
            Further arguments of `function`, which are values or references.
        name : str
            Name of the tasks.
        named : bool, default=False
            Whether to pass the name of the chunk as last argument.
        nbytes : float, default=NaN
            Upper bound of the size of a result in bytes. NaN if unknown.
        paired : list, default=None
            One further value or reference per chunk, which is passed as last argument.

        Returns
        -------
        list of Reference
            In the order of the chunks.
        """

        def call(k: int, chunk: Reference[Chunk]) -> tuple:
            more = () if paired is None else (paired[k],)
            return (chunk, *args, self.name(k), *more) if named else (chunk, *args, *more)

        if self.holds:
            self._chunks([k for k in range(len(self)) if k not in self.held])
            return self.executor.map(function, [call(k, self.held[k]) for k in sorted(self.held)], name=name)
        results: dict[int, Reference[T]] = {}
        threads, size = self.executor.threads(), self._size()
        groups = self._groups(threads, nbytes)
        chunks = self.each(list(itertools.chain(*groups)), self._chunk_for_one_task)
        for group in groups:
            calls = [call(k, chunk) for k, chunk in itertools.islice(chunks, len(group))]
            parts = self.executor.map_sequential(function, calls, name=name, lane=self.lane(group[0]), nbytes=size)
            results.update(zip(group, parts, strict=True))
            self.used(parts[-1], 2 * threads)
        next(chunks, None)  # exhausts the iterator, which ends its thread
        return [results[k] for k in sorted(results)]

    def _size(self) -> float:
        """Size of the largest chunk in bytes. Until sizes are known it is the mean size, or NaN if that is unknown."""
        return max(self.sizes, default=self.nbytes / len(self))

    def _groups(self, threads: int, nbytes: float) -> list[range]:
        """Group the chunks into tasks. A task loads its next chunk while it works on the current one.

        Groups become smaller towards the end, so that all threads finish at about the same time. Groups of different
        lanes alternate, because otherwise one lane would load all of its chunks first.
        """
        most: float = 1
        if self._size() > 0 and nbytes > 0 and all(isinstance(load, DeferredCall) for load in self.loads):
            most = min(READ_IN_TURN, TURN_BYTES / self._size(), RESULT_BYTES / nbytes)
        groups: list[list[range]] = []
        share = 2 * max(1, threads // self.width)
        for part in lanes(len(self), self.width):
            groups.append([])
            while part:
                count = max(1, int(min(most, len(part) / share)))
                groups[-1].append(part[:count])
                part = part[count:]
        return [group for lanes_in_turn in itertools.zip_longest(*groups) for group in lanes_in_turn if group]

    def changed(self, change: Callable[..., Chunk], *args: Any) -> Source:
        """Return a source whose chunks are those of this source, changed by a function.

        Held chunks stay held. Both sources count the same reads. Only this source is to be closed.

        Parameters
        ----------
        change : callable
            Called as ``change(chunk, *args)``. It returns a Chunk.
        *args : object
        """
        other = copy.copy(self)
        other.expected = []
        if self.holds:
            other.held = dict(enumerate(self.map(change, *args, name="saga-change")))
        else:
            other.read = functools.partial(_read_changed, self.read, change, args)
        return other

    def join(self) -> None:
        """Join all chunks into one, and hold it."""
        chunks = [self.chunk(k) for k in range(len(self))]
        self.held = {0: self.executor.submit(join_chunks, *chunks, name="saga-join")}
        self.blocks = [None]


def _read_changed(read: Any, change: Callable[..., Chunk], args: tuple, *block: Any, **how: Any) -> Chunk:
    return change(read(*block, **how), *args)


def _size(chunk: Chunk) -> tuple[int, int]:
    return chunk.nbytes, len(chunk.targets)


def _read(read: Callable, block: Any, name: int | None, expected: tuple[str, str] | None, order: str | None) -> Chunk:
    chunk = read(block, name, order=order)
    if expected is not None and (chunk.content, chunk.weights_content) != expected:
        raise ValueError(
            f"chunk {name or 0}: its values are not those of the first read; "
            "data that change between reads must be persisted first: X, y = dask.persist(X, y) of arrays, and a frame "
            "before its columns are taken: frame = frame.persist()"
        )
    return chunk
