"""Decorators that compile functions with numba: common options, inlining, and the on-disk cache."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from numba import NumbaWarning, njit
from numba.extending import overload

__all__ = ["FASTMATH", "compiled", "inlined", "overloaded", "strict_sum_order"]


# LLVM fast-math flags. fastmath=True would also set nnan and ninf, which remove the isfinite checks.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

# Options of all kernels. With the numpy error model a division by zero gives infinity, so loops need no check for it.
OPTIONS = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}


# Inlined functions let LLVM compute an expression once that several of them share.
inlined = njit(**OPTIONS, forceinline=True)

# The same for overloads. strict=False permits methods as implementations, whose first argument is named self.
overloaded = functools.partial(overload, strict=False, jit_options={**OPTIONS, "forceinline": True})

# Inlined functions whose sums keep their written order. Vectorized sums of scattered entries take longer.
strict_sum_order = njit(**{**OPTIONS, "fastmath": FASTMATH - {"reassoc"}}, forceinline=True)


def compiled(function: Callable, cache: bool = True) -> Callable:
    """Compile the function. It is cached on disk if numba finds a writable directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)
        try:
            return _with_readable_cache(njit(**OPTIONS, cache=cache)(function))
        except RuntimeError:
            return njit(**OPTIONS)(function)


def _with_readable_cache(kernel: Any) -> Any:
    """Make the kernel treat an unreadable cache index as empty.

    An upgrade leaves the index files of the previous version. numba unpickles such a file, with the classes that it
    names, before it checks whether it is outdated.
    """
    file: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    load = getattr(file, "_load_index", None)
    if load is None:
        return kernel

    def load_index() -> dict:
        try:
            return load()
        except Exception:
            return {}

    file._load_index = load_index
    return kernel
