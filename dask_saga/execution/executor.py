"""The executor of this process, and the choice between it and the executor of a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

import dask
from dask import is_dask_collection
from dask.base import get_scheduler
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from .cluster import ClientExecutor

if TYPE_CHECKING:
    from .protocol import Executor, Reference

__all__ = ["LocalExecutor", "compute", "find_executor", "merged"]


T = TypeVar("T")


class LocalExecutor:
    """Run each task immediately in this process; references are values."""

    is_asynchronous: bool = False

    def threads(self) -> int:
        """Return the number of cores."""
        return CPU_COUNT

    def memory(self) -> float:
        """Return the memory limit of this process in bytes."""
        return MEMORY_LIMIT

    def assign_lanes(self, count: int) -> None:
        """Do nothing: all lanes share this process."""

    def submit(self, function: Callable[..., T], *args: Any, name: str, lane: int | None = None) -> Reference[T]:
        """Call the function; return its result."""
        return cast("Reference[T]", function(*args))

    def map(
        self, function: Callable[..., T], calls: list[tuple], *, name: str, lanes: list[int] | None = None
    ) -> list[Reference[T]]:
        """Call the function with each tuple of arguments; return the results."""
        return cast("list[Reference[T]]", [function(*args) for args in calls])

    def map_parallel(self, function: Callable[..., T], calls: list[tuple], *, name: str) -> list[Reference[T]]:
        """Do the same as ``map``, with one thread per call if there are several."""
        if len(calls) == 1:
            return self.map(function, calls, name=name)
        with ThreadPoolExecutor(len(calls)) as pool:
            return cast("list[Reference[T]]", list(pool.map(lambda args: function(*args), calls)))

    def map_sequential(
        self,
        function: Callable[..., T],
        calls: list[tuple],
        *,
        name: str,
        lane: int | None = None,
        nbytes: float = 0.0,
    ) -> list[Reference[T]]:
        """Do the same as ``map``."""
        return self.map(function, calls, name=name)

    def gather(self, references: list[Reference[T]]) -> list[T]:
        """Return the references, which are the values."""
        return cast("list[T]", references)

    def put(self, values: list[T]) -> list[Reference[T]]:
        """Return the values, which are their own references."""
        return cast("list[Reference[T]]", values)

    def load(self, blocks: list, lane: int | None = None) -> list[Reference]:
        """Compute lazy blocks; return all blocks as values."""
        # Compute all blocks in one graph, because each separate graph costs Dask about a millisecond.
        return dask.compute(blocks)[0] if any(map(_is_lazy, blocks)) else blocks

    def defer(self, blocks: list) -> list:
        """Return the blocks: ``load`` computes lazy ones each time."""
        return blocks

    def prefetch(self, load: Callable[[int], Reference[T]], order: list[int]) -> Iterator[Reference[T]]:
        """Yield ``load(k)`` for each k in `order`, while a thread loads the next one."""
        with ThreadPoolExecutor(1, "saga-ahead") as pool:
            loading = deque(pool.submit(load, k) for k in order[:1])
            for k in [*order[1:], None]:
                if k is not None and loading[0].exception() is None:  # the traceback of an error must keep no block
                    loading.append(pool.submit(load, k))
                yield loading.popleft().result()

    def throttle(self, task: Reference, most: int = 0) -> None:
        """Do nothing: no task is outstanding."""

    def can_gather(self, nbytes: float) -> bool:
        """Return True: the results are in this process already."""
        return True

    def cuts_lineage(self, nbytes: int) -> bool:
        """Return False: values have no lineage."""
        return False

    def release_references(self) -> None:
        """Do nothing: no reference is kept."""

    def close(self, interrupted: bool = False) -> None:
        """Do nothing: no task is running."""


def _is_lazy(block: Any) -> bool:
    return any(map(is_dask_collection, block)) if isinstance(block, tuple) else is_dask_collection(block)


def merged(
    executor: Executor, function: Callable[..., T], references: list[Reference[T]], size: int, most: int = 1
) -> list[Reference[T]]:
    """Merge results near the data, in a tree of tasks with at most `size` arguments each, until `most` are left.

    Parameters
    ----------
    executor : Executor
    function : callable
        Called as ``function(*results)``. It returns a result.
    references : list of Reference
    size : int
    most : int, default=1

    Returns
    -------
    list of Reference
    """
    while len(references) > most:
        groups = [references[k : k + size] for k in range(0, len(references), size)]
        references = [executor.submit(function, *group, name="saga-merge") for group in groups]
    return references


def compute(*values: Any) -> tuple:
    """Compute Dask values like ``dask.compute``. With an asynchronous client, the error names a remedy."""
    _current_client()
    return dask.compute(*values)


def find_executor() -> Executor:
    """Return the executor for Dask's current scheduler: that of a client's cluster, or that of this process.

    Raises
    ------
    RuntimeError
        If the client is asynchronous, as this call could not wait for its results.
    """
    client = _current_client()
    return LocalExecutor() if client is None else ClientExecutor(client)


def _current_client() -> Any:
    """Return the client whose cluster Dask uses, or None."""
    try:
        client = getattr(get_scheduler(), "__self__", None)
        is_asynchronous = getattr(client, "asynchronous", False)
    except RuntimeError as error:  # newer versions of Dask refuse such a client
        if "asynchronous" not in str(error):
            raise
        is_asynchronous = True
    if is_asynchronous:
        raise RuntimeError(
            "The Dask client is asynchronous, but this call waits for results of its cluster. Make the call in a "
            "thread, such as `await asyncio.to_thread(model.fit, X, y)`, or use a Client without asynchronous=True"
        )
    return client if hasattr(client, "gather") else None
