"""Where tasks run: in this process, or on a client's cluster.

An executor hands out references, to chunks and to results: values here, futures and recipes there.
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
    """Runs every task at once in this process; references are values."""

    goes_ahead = False  # whether `submit` returns before the task has run

    def threads(self) -> int:
        """How many tasks can run at a time."""
        return CPU_COUNT

    def divide(self, lanes: int) -> None:
        """There is one place only."""

    def submit(self, function: Callable, *args: Any, name: str, lane: int | None = None) -> Any:
        return function(*args)

    def map(self, function: Callable, calls: list[tuple], *, name: str, lanes: list[int] | None = None) -> list:
        """References to the function's result for each tuple of arguments."""
        return [function(*args) for args in calls]

    def at_once(self, function: Callable, calls: list[tuple], *, name: str) -> list:
        """As ``map``, in threads where there are several."""
        if len(calls) == 1:
            return [function(*calls[0])]
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(lambda args: function(*args), calls))

    def in_turn(
        self, function: Callable, calls: list[tuple], *, name: str, lane: int | None = None, size: float = 0.0
    ) -> list:
        """As ``map``, in one task; recipes make `size` bytes a call."""
        return self.map(function, calls, name=name)

    def gather(self, references: list) -> list:
        return references

    def put(self, values: list) -> list:
        return values

    def forget_lineage(self, size: int) -> bool:
        """There is none."""
        return False

    def recipes(self, blocks: list) -> list:
        """Lazy blocks in the form that costs least if they are loaded again and again."""
        return blocks

    def load(self, blocks: list, lane: int | None = None) -> list:
        # One graph, as each of its own would take Dask a millisecond.
        return dask.compute(blocks)[0] if any(map(_is_lazy, blocks)) else blocks

    def ahead(self, load: Callable[[int], Any], order: list[int]) -> Iterator[Any]:
        """``load(k)`` of each k, the next one in a thread meanwhile."""
        with ThreadPoolExecutor(1, "saga-ahead") as pool:
            coming = deque(pool.submit(load, k) for k in order[:1])
            for k in [*order[1:], None]:
                if k is not None and coming[0].exception() is None:  # an error's traceback is to keep no block
                    coming.append(pool.submit(load, k))
                yield coming.popleft().result()

    def throttle(self, task: Any, most: int = 0) -> None:
        """Nothing to wait for."""

    def let_go(self) -> None:
        """Nothing is kept."""

    def release(self, interrupted: bool = False) -> None:
        """Nothing runs."""

    def has_room(self, size: float) -> bool:
        """They are here."""
        return True

    def memory(self) -> float:
        return MEMORY_LIMIT


def _is_lazy(block: Any) -> bool:
    return any(map(is_dask_collection, block)) if isinstance(block, tuple) else is_dask_collection(block)


def find_executor() -> LocalExecutor | ClientExecutor:
    """The executor of the scheduler that Dask would use now: a client's cluster, or this process."""
    client = getattr(get_scheduler(), "__self__", None)
    return ClientExecutor(client) if hasattr(client, "gather") else LocalExecutor()
