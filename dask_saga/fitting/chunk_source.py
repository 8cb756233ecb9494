"""Where chunks come from: held where the tasks run, or loaded again for each visit."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..data.chunk import join_chunks
from ..execution.deferred import DeferredCall

if TYPE_CHECKING:
    from ..data.chunk import Chunk

__all__ = ["Source", "lanes"]


logger = logging.getLogger("dask_saga")


# Share of the executor's memory that held chunks may take.
HELD_SHARE = 0.4

# n_parallel="auto" makes no less rounds of a pass: the fewer they are, the more passes it takes.
LEAST_ROUNDS = 5

# Chunks that one task reads at most, their bytes, and those of its results: what is running when a fit is interrupted
# goes on to its end, and what wants one result gets all.
READ_IN_TURN, TURN_BYTES, RESULT_BYTES = 16, 2**30, 2**25


def lanes(n: int, width: int) -> list[range]:
    """Numbers 0 to n - 1 in `width` consecutive parts, of which a round has one number each."""
    cuts = [k * n // width for k in range(width + 1)]
    return [range(first, end) for first, end in itertools.pairwise(cuts)]


class Source:
    """Blocks of the user's data on an executor, and how one becomes a chunk; to be closed after use.

    Parameters
    ----------
    executor : LocalExecutor or ClientExecutor
    blocks : list of tuple
        As ``dask_blocks`` gives them: in memory, or with lazy parts.
    nbytes : float, default=0
        What the chunks may take at most; NaN where it is not known.
    rows, columns : float, default=NaN
        Of all blocks, where they are known.
    persist : bool or "auto", default=True
        Whether chunks are held between visits; "auto": where they fit HELD_SHARE of the memory.
    n_parallel : int or "auto", default=1
        How many are visited at a time.

    Attributes
    ----------
    width : int
        The same as a number.
    holds : bool
        Whether chunks are held.
    held : dict of int to reference
    expected : list of (str, str)
        Hashes of content and weights that chunks must have, once they are known.
    sizes : list of int
        Bytes of the chunks, once they are known.
    interrupted : bool
        Whether Ctrl-C ended what it was for.

    Raises
    ------
    ValueError
        If `persist` is none of the three.
    """

    def __init__(
        self,
        executor: Any,
        blocks: list,
        *,
        nbytes: float = 0.0,
        rows: float = math.nan,
        columns: float = math.nan,
        persist: Any = True,
        n_parallel: Any = 1,
    ):
        if persist not in (True, False, "auto"):
            raise ValueError(f"persist={persist!r} must be True, False or 'auto'")
        self.executor, self.blocks, self.loads = executor, blocks, blocks
        self.nbytes, self.rows, self.columns = nbytes, rows, columns
        self.read: Callable | None = None
        self.held: dict[int, Any] = {}
        self.expected: list[tuple[str, str]] = []
        self.sizes: list[int] = []
        self.reads = [0] * len(blocks)
        self.holds = self.decided = self.interrupted = False
        self.running: Any = iter(())
        self.n_parallel, most = n_parallel, len(blocks)
        if n_parallel == "auto":
            n_parallel, most = executor.threads(), len(blocks) // LEAST_ROUNDS
        self.width = max(1, min(n_parallel, most))
        self.executor.divide(self.width)
        if persist is False:
            self.load_again()
        elif persist is True or nbytes <= HELD_SHARE * executor.memory():
            self.hold()

    def __len__(self) -> int:
        return len(self.blocks)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: Any) -> None:
        """Let go of everything: a kept traceback must not hold chunks, or a thread that loads."""
        if hasattr(self.running, "close"):
            self.running.close()
        self.held.clear()
        self.blocks, self.loads = [], []
        self.executor.release(self.interrupted or error[:1] == (KeyboardInterrupt,))

    def hold(self) -> None:
        """Hold chunks from now on."""
        self.holds = self.decided = True
        self.blocks = self.executor.load(self.blocks)

    def load_again(self) -> None:
        """Load chunks for each visit."""
        self.decided = True
        self.loads = self.executor.recipes(self.blocks)

    def begin(self, read: Callable[..., Chunk]) -> None:
        """Set how a block is read, given its name and the order of its rows.

        Chunks are held from now on if that was left open and a first one tells that they fit.
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

    def name(self, k: int) -> int | None:
        """What error messages call a block."""
        return k if len(self) > 1 else None

    @property
    def bytes_read(self) -> int:
        """Bytes of chunks read so far, as often as they were."""
        return sum(size * reads for size, reads in zip(self.sizes, self.reads, strict=True))

    def lane(self, k: int) -> int:
        """Which of the lanes a block is in."""
        return bisect.bisect_right([part.stop for part in lanes(len(self), self.width)], k)

    def targets(self) -> list:
        """References to blocks of which only y and sample_weight are asked; X is None where it is not there."""
        if self.holds:
            return self.blocks
        blocks = self.executor.recipes([(None, *block[1:]) for block in self.blocks])
        return [self.executor.load([block])[0] for block in blocks]

    def chunk(self, k: int) -> Any:
        """Reference to a chunk."""
        if k in self.held:
            return self.held[k]
        [chunk] = self._chunks([k])
        return chunk

    def _chunks(self, numbers: list[int], order: str | None = "C") -> list:
        """References to chunks that are not there."""
        calls = [self._reading(k, order) for k in numbers]
        chunks = self.executor.map(_read, calls, name="saga-read", lanes=[self.lane(k) for k in numbers])
        if self.holds:
            self.held.update(zip(numbers, chunks, strict=True))
            for k in numbers:
                self.blocks[k] = None
        return chunks

    def _reading(self, k: int, order: str | None) -> tuple:
        """What ``_read`` takes for a chunk."""
        self.reads[k] += 1
        block = self.blocks[k] if self.holds else self.executor.load([self.loads[k]], self.lane(k))[0]
        return self.read, block, self.name(k), self.expected[k] if self.expected else None, order

    def _chunk_within(self, k: int) -> Any:
        """A chunk that is for one task, which reads it once: there if its block can be made there, too."""
        if isinstance(self.loads[k], DeferredCall):
            return DeferredCall(_read, *self._reading(k, None))
        [chunk] = self._chunks([k], None)
        return chunk

    def each(self, order: list[int], load: Callable[[int], Any] | None = None) -> Iterator[tuple[int, Any]]:
        """Numbers of chunks and references; what is not held is loaded a little ahead of its turn."""
        self.running = iter(()) if self.holds else self.executor.ahead(load or self.chunk, order)
        return ((k, self.chunk(k)) for k in order) if self.holds else zip(order, self.running, strict=True)

    def used(self, task: Any, most: int = 0) -> None:
        """Tell which task works on the chunk that came last, so that loads do not run further ahead of it.

        `most` tasks may, if that is more than the executor wants of visits.
        """
        if not self.holds:
            self.executor.throttle(task, most)

    def map(self, function: Callable, *args: Any, name: str, named: bool = False, nbytes: float = math.nan) -> list:
        """References to ``function(chunk, *args)`` of every chunk, a result of at most `nbytes`, if that is known.

        If `named`, it gets the chunk's name as well.
        """

        def call(k: int, chunk: Any) -> tuple:
            return (chunk, *args, self.name(k)) if named else (chunk, *args)

        if self.holds:
            there = [k for k in range(len(self)) if k not in self.held]
            self._chunks(there)
            return self.executor.map(function, [call(k, self.held[k]) for k in sorted(self.held)], name=name)
        threads, size, tasks = self.executor.threads(), self._size(), {}
        groups = self._groups(threads, nbytes)
        coming = self.each(list(itertools.chain(*groups)), self._chunk_within)
        for group in groups:
            calls = [call(k, chunk) for k, chunk in itertools.islice(coming, len(group))]
            parts = self.executor.in_turn(function, calls, name=name, lane=self.lane(group[0]), size=size)
            tasks.update(zip(group, parts, strict=True))
            self.used(parts[-1], 2 * threads)
        next(coming, None)  # which ends its thread
        return [tasks[k] for k in sorted(tasks)]

    def _size(self) -> float:
        """Bytes of the largest chunk, once they are known, or of one in the mean; NaN where neither is."""
        return max(self.sizes, default=self.nbytes / len(self))

    def _groups(self, threads: int, nbytes: float) -> list[range]:
        """Chunks that one task reads, the next one while it works on this; ever fewer, so that all threads end at once.

        Lanes come in turn: else all would be loaded in one first.
        """
        most = 1
        if self._size() > 0 and nbytes > 0 and all(isinstance(load, DeferredCall) for load in self.loads):
            most = min(READ_IN_TURN, TURN_BYTES / self._size(), RESULT_BYTES / nbytes)
        groups, share = [], 2 * max(1, threads // self.width)
        for part in lanes(len(self), self.width):
            groups.append([])
            while part:
                count = max(1, int(min(most, len(part) / share)))
                groups[-1].append(part[:count])
                part = part[count:]
        return [group for turn in itertools.zip_longest(*groups) for group in turn if group]

    def join(self) -> None:
        """Hold all chunks as one."""
        chunks = [self.chunk(k) for k in range(len(self))]
        self.held = {0: self.executor.submit(join_chunks, *chunks, name="saga-join")}
        self.blocks = [None]


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
