"""Where tasks run: in this process, or on a client's cluster.

An executor hands out references, to chunks and to results: values here, futures there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import dask
from dask import delayed, is_dask_collection
from dask.base import get_scheduler
from distributed import rejoin, secede

__all__ = ["ClientExecutor", "LocalExecutor", "find_executor"]


class LocalExecutor:
    """Runs every task at once in this process; references are values."""

    def submit(self, function: Callable, *args: Any, name: str) -> Any:
        return function(*args)

    def gather(self, references: list) -> list:
        return references

    def load(self, blocks: list) -> list:
        # One graph, as each of its own would take Dask a millisecond.
        return dask.compute(blocks)[0] if any(map(_is_lazy, blocks)) else blocks


class ClientExecutor:
    """Runs tasks on a cluster; references are futures."""

    def __init__(self, client: Any):
        self.client = client

    def submit(self, function: Callable, *args: Any, name: str) -> Any:
        # The name is what the dashboard groups tasks by; futures of an earlier fit may still be alive.
        return self.client.submit(function, *args, key=f"{name}-{uuid.uuid4().hex}", pure=False)

    def gather(self, references: list) -> list:
        try:
            secede()  # a driver inside a task must not hold the thread that its own tasks need
        except (ValueError, KeyError, AttributeError):
            return self.client.gather(references)
        try:
            return self.client.gather(references)
        finally:
            rejoin()

    def load(self, blocks: list) -> list:
        return self.client.compute([b if is_dask_collection(b) else delayed(b) for b in blocks])


def _is_lazy(block: Any) -> bool:
    return any(map(is_dask_collection, block)) if isinstance(block, tuple) else is_dask_collection(block)


def find_executor() -> LocalExecutor | ClientExecutor:
    """The executor of the scheduler that Dask would use now: a client's cluster, or this process."""
    client = getattr(get_scheduler(), "__self__", None)
    return ClientExecutor(client) if hasattr(client, "gather") else LocalExecutor()
