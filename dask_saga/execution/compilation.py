"""Say when numba compiles kernels, which takes most of the time of the first fit on a machine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from numba.core import event

__all__ = ["calling_on_compilation"]


logger = logging.getLogger("dask_saga")


class _Reporter(event.Listener):
    """Logs the first compilation in this process, and calls functions at each one.

    numba sends no event for kernels that it loads from disk.
    """

    def __init__(self) -> None:
        self.is_reported = False
        self.calls: list[Callable[[], Any]] = []

    def on_start(self, event: Any) -> None:
        if not event.data["dispatcher"].py_func.__module__.startswith("dask_saga."):
            return
        if not self.is_reported:
            self.is_reported = True
            logger.info("compiling kernels, which may take a minute; later processes load them from disk")
        for call in list(self.calls):
            call()

    def on_end(self, event: Any) -> None:
        pass


_reporter = _Reporter()
event.register("numba:compile", _reporter)


@contextlib.contextmanager
def calling_on_compilation(call: Callable[[], Any]) -> Iterator[None]:
    """Call a function whenever this process starts to compile a kernel inside the context."""
    _reporter.calls.append(call)
    try:
        yield
    finally:
        _reporter.calls.remove(call)
