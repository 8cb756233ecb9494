"""Threads of one process that share a chunk's work; the kernels and BLAS let go of Python's lock."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

__all__ = ["even_slices", "one_blas_thread", "sharers", "threads"]

# Entries of rows for which one more thread pays.
LEAST_ENTRIES = 2**17


class _OneBLASThread:
    """Limits BLAS to one thread. The limit is the whole process's, and only some threads may change it, so each
    that leaves restores what was there before the first came."""

    def __init__(self):
        self.lock, self.inside, self.before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            limiter = _blas().limit(limits=1)
            if not self.inside:
                self.before = limiter
            self.inside += 1

    def __exit__(self, *error: Any) -> None:
        with self.lock:
            self.inside -= 1
            self.before.restore_original_limits()


_limited = _OneBLASThread()


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_thread(work: float = np.inf) -> Any:
    """A context in which BLAS and LAPACK give the same bits wherever they run.

    Products of less `work`, in multiplications, never take several threads.
    """
    return _limited if work > 5000 else contextlib.nullcontext()


@contextlib.contextmanager
def threads(count: int) -> Iterator[Callable]:
    """A ``map`` that `count` threads share, results in order; Python's own for one."""
    if count == 1:
        yield map
        return
    with one_blas_thread(), ThreadPoolExecutor(count) as pool:
        yield pool.map


def sharers(n_threads: int, entries: int) -> int:
    """How many of the threads rows with so many entries are worth."""
    return min(n_threads, max(1, entries // LEAST_ENTRIES))


def even_slices(n: int, count: int) -> list[slice]:
    """`count` consecutive slices of n rows."""
    ends = [n * k // count for k in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
