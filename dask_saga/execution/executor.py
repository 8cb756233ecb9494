"""The executor of this process, and the choice between it and the executor of a cluster.

An executor returns references to chunks and results. They are values in this process. On a cluster they are futures,
parts of futures, or deferred calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
from dask import is_dask_collection
from dask.base import get_scheduler
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from .cluster import ClientExecutor

__all__ = ["LocalExecutor", "find_executor"]


class LocalExecutor:
    """Run each task immediately in this process; references are values."""

    goes_ahead = False  # True if `submit` returns before the task has run

    def threads(self) -> int:
        """Return the number of tasks that can run at a time."""
        return CPU_COUNT

    def divide(self, lanes: int) -> None:
        """Do nothing: all lanes share this process."""

    def submit(self, function: Callable, *args: Any, name: str, lane: int | None = None) -> Any:
        """Call the function; return its result."""
        return function(*args)

    def map(self, function: Callable, calls: list[tuple], *, name: str, lanes: list[int] | None = None) -> list:
        """Call the function with each tuple of arguments; return references to the results."""
        return [function(*args) for args in calls]

    def at_once(self, function: Callable, calls: list[tuple], *, name: str) -> list:
        """Do the same as ``map``, with one thread per call if there are several."""
        if len(calls) == 1:
            return [function(*calls[0])]
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(lambda args: function(*args), calls))

    def in_turn(
        self, function: Callable, calls: list[tuple], *, name: str, lane: int | None = None, size: float = 0.0
    ) -> list:
        """Do the same as ``map``, in one task. The deferred calls among the arguments of a call make `size` bytes."""
        return self.map(function, calls, name=name)

    def gather(self, references: list) -> list:
        """Return the references, which are the values."""
        return references

    def put(self, values: list) -> list:
        """Return the values, which are their own references."""
        return values

    def forget_lineage(self, size: int) -> bool:
        """Return False: values have no lineage."""
        return False

    def recipes(self, blocks: list) -> list:
        """Convert lazy blocks to the form that is cheapest to load repeatedly."""
        return blocks

    def load(self, blocks: list, lane: int | None = None) -> list:
        """Compute lazy blocks; return all blocks as values."""
        # Compute all blocks in one graph, because each separate graph costs Dask about a millisecond.
        return dask.compute(blocks)[0] if any(map(_is_lazy, blocks)) else blocks

    def ahead(self, load: Callable[[int], Any], order: list[int]) -> Iterator[Any]:
        """Yield ``load(k)`` for each k in `order`, while a thread loads the next one."""
        with ThreadPoolExecutor(1, "saga-ahead") as pool:
            coming = deque(pool.submit(load, k) for k in order[:1])
            for k in [*order[1:], None]:
                if k is not None and coming[0].exception() is None:  # the traceback of an error must keep no block
                    coming.append(pool.submit(load, k))
                yield coming.popleft().result()

    def throttle(self, task: Any, most: int = 0) -> None:
        """Do nothing: no task is outstanding."""

    def let_go(self) -> None:
        """Do nothing: no reference is kept."""

    def release(self, interrupted: bool = False) -> None:
        """Do nothing: no task is running."""

    def has_room(self, size: float) -> bool:
        """Return True: the results are in this process already."""
        return True

    def memory(self) -> float:
        """Return the memory limit of this process in bytes."""
        return MEMORY_LIMIT


def _is_lazy(block: Any) -> bool:
    return any(map(is_dask_collection, block)) if isinstance(block, tuple) else is_dask_collection(block)


def find_executor() -> LocalExecutor | ClientExecutor:
    """Return the executor for Dask's current scheduler: that of a client's cluster, or that of this process."""
    client = getattr(get_scheduler(), "__self__", None)
    return ClientExecutor(client) if hasattr(client, "gather") else LocalExecutor()
