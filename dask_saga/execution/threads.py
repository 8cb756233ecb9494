"""Threads of one process that share the work on a chunk, and the control of BLAS threads.

The kernels and BLAS release the GIL, so these threads run in parallel.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

__all__ = ["even_slices", "one_blas_thread", "run_together", "thread_count", "threads"]


# Number of matrix entries from which one more thread pays off.
LEAST_ENTRIES = 2**17


class _OneBLASThread:
    """Limit BLAS to one thread while any thread is inside this context.

    OpenMP's limit belongs to the calling thread, so each thread sets its own. For other threading layers the limit
    belongs to the process. It is set when the first thread enters and restored when the last one leaves. A dedicated
    thread does both, because threadpoolctl permits a change only from the thread that set the limit.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.own = threading.Lock(), 0, threading.local()
        self.before: Any = None

    def __enter__(self) -> None:
        everywhere, here = _blas()
        with self.lock:
            if not self.inside:
                self.before = _setter(os.getpid()).submit(everywhere.limit, limits=1).result()
            self.inside += 1
        self.own.__dict__.setdefault("before", []).append(here.limit(limits=1))

    def __exit__(self, *error: Any) -> None:
        self.own.before.pop().restore_original_limits()
        with self.lock:
            self.inside -= 1
            if not self.inside:
                _setter(os.getpid()).submit(self.before.restore_original_limits).result()


@functools.cache
def _setter(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "saga-blas")  # cached for each process, since threads do not survive a fork


_limited = _OneBLASThread()


@functools.cache
def _blas() -> tuple[ThreadpoolController, ThreadpoolController]:
    """Return the BLAS libraries with a thread limit per process, and those with a limit per calling thread (OpenMP)."""
    found = ThreadpoolController()
    layers = {getattr(library, "threading_layer", None) for library in found.select(user_api="blas").lib_controllers}
    everywhere = found.select(threading_layer=list(layers - {"openmp"}))
    return everywhere, found.select(user_api="openmp", threading_layer="openmp")  # select() combines with or


def one_blas_thread(work: float = np.inf) -> Any:
    """Return a context in which BLAS and LAPACK results do not depend on the number of threads, to the last bit.

    Parameters
    ----------
    work : float
        Number of multiplications of the largest product in the context. If it is at most 5000, BLAS uses a single
        thread anyway, and the limit is not set.
    """
    return _limited if work > 5000 else contextlib.nullcontext()


@contextlib.contextmanager
def threads(count: int, work: float = np.inf) -> Iterator[Callable]:
    """Yield a ``map`` whose calls are shared by `count` threads and whose results are in order.

    The calling thread is one of them. Otherwise two new threads would often start on one core while the caller sleeps
    on the other.

    Parameters
    ----------
    count : int
        Number of threads. For 1, the built-in ``map`` is used.
    work : float
        Largest BLAS product of the calls, as in ``one_blas_thread``.
    """
    if count == 1:
        yield map
        return
    begun: list[Future] = []
    with one_blas_thread(work), _helpers(count - 1) as helpers:

        def each(function: Callable, *columns: Iterable) -> list:
            calls, numbers = list(zip(*columns, strict=True)), itertools.count()
            results, failed = [None] * len(calls), threading.Event()

            def take_some() -> None:
                try:
                    while (k := next(numbers)) < len(calls) and not failed.is_set():
                        results[k] = function(*calls[k])
                except BaseException:
                    failed.set()  # the other threads start no further call
                    raise

            others = [helper.submit(take_some) for helper in helpers]
            begun.extend(others)
            take_some()
            for other in others:
                other.result()
            return results

        try:
            yield each
        finally:
            wait(begun)


@contextlib.contextmanager
def _helpers(count: int) -> Iterator[list[ThreadPoolExecutor]]:
    """Yield `count` threads that nobody else uses in the meantime.

    With shared threads, a call could wait for a thread that itself waits for this call. The calling thread keeps its
    helpers for later use, because starting one takes a third of a millisecond. After an error they are dropped, because
    a Ctrl-C may have left an executor's locks taken.
    """
    own: dict[Any, list[ThreadPoolExecutor]] = _own.__dict__
    idle = own.setdefault(os.getpid(), [])
    helpers = [idle.pop() if idle else ThreadPoolExecutor(1, "saga-helper") for _ in range(count)]
    yield helpers
    idle.extend(helpers)


# Idle helpers of each thread, by process id: threads do not survive a fork.
_own = threading.local()


def run_together(count: int, run: Callable[[int, np.ndarray, np.ndarray], bool]) -> None:
    """Run ``run(t, arrived, failed)`` for t = 0, ..., count - 1, each in its own thread, all at the same time.

    This is for kernels that wait for each other. `arrived` and `failed` are shared counters of one entry. If one call
    raises, `failed` is set, the other kernels return False, and the error is raised.
    """
    arrived, failed = np.zeros(1, np.int64), np.zeros(1, np.int64)

    def guarded(t: int) -> bool:
        try:
            return run(t, arrived, failed)
        except BaseException:
            failed[0] = 1
            raise

    with threads(count, work=0) as each:
        try:
            list(each(guarded, range(count)))
        except BaseException:
            failed[0] = 1  # also if not all threads have started
            raise


def thread_count(n_threads: int, entries: int) -> int:
    """Return the number of threads, at most `n_threads`, that pay off for rows with `entries` matrix entries."""
    return min(n_threads, max(1, entries // LEAST_ENTRIES))


def even_slices(n: int, count: int) -> list[slice]:
    """Split n rows into `count` consecutive slices of nearly equal length."""
    ends = [n * k // count for k in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
