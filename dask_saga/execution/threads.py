"""Threads of one process that share a chunk's work; the kernels and BLAS let go of Python's lock."""

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


# Entries of rows for which one more thread pays.
LEAST_ENTRIES = 2**17


class _OneBLASThread:
    """Limits BLAS to one thread as long as anyone is inside.

    Where the limit is the whole process's, threadpoolctl lets only that thread change it which set it. So one thread
    sets it for all: one that leaves must not free it for the others. OpenMP's limit is each thread's own.
    """

    def __init__(self):
        self.lock, self.inside, self.before, self.own = threading.Lock(), 0, None, threading.local()

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
    return ThreadPoolExecutor(1, "saga-blas")  # of this process: threads do not survive a fork


_limited = _OneBLASThread()


@functools.cache
def _blas() -> tuple[ThreadpoolController, ThreadpoolController]:
    """The libraries whose number of threads is the whole process's, and those where it is the calling thread's."""
    found = ThreadpoolController()
    layers = {getattr(library, "threading_layer", None) for library in found.select(user_api="blas").lib_controllers}
    everywhere = found.select(threading_layer=list(layers - {"openmp"}))
    return everywhere, found.select(user_api="openmp", threading_layer="openmp")  # where either holds


def one_blas_thread(work: float = np.inf) -> Any:
    """A context in which BLAS and LAPACK give the same bits wherever they run.

    Products of less `work`, in multiplications, never take several threads.
    """
    return _limited if work > 5000 else contextlib.nullcontext()


@contextlib.contextmanager
def threads(count: int, work: float = np.inf) -> Iterator[Callable]:
    """A ``map`` that `count` threads share, results in order; Python's own for one.

    The caller is one of them: two new threads would often begin on one core, and it sleep on the other. `work` is
    what BLAS is asked for, as ``one_blas_thread`` takes it.
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
                    failed.set()  # the others begin no more
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
    """So many threads that serve nobody else meanwhile: a call that waited for one could be what others wait for.

    They live on for the thread that called, as new ones would take a third of a millisecond; but not after an error: a
    Ctrl-C may have left an executor's locks taken.
    """
    idle = _own.__dict__.setdefault(os.getpid(), [])
    helpers = [idle.pop() if idle else ThreadPoolExecutor(1, "saga-helper") for _ in range(count)]
    yield helpers
    idle.extend(helpers)


_own = threading.local()


def run_together(count: int, run: Callable[[int, np.ndarray, np.ndarray], bool]) -> None:
    """``run(t, arrived, failed)`` in `count` threads at once, for t from 0: kernels that wait for each other.

    These return False where another one failed; the error of that one is raised.
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
            failed[0] = 1  # perhaps not all have begun
            raise


def thread_count(n_threads: int, entries: int) -> int:
    """How many of the threads rows with so many entries are worth."""
    return min(n_threads, max(1, entries // LEAST_ENTRIES))


def even_slices(n: int, count: int) -> list[slice]:
    """`count` consecutive slices of n rows."""
    ends = [n * k // count for k in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
