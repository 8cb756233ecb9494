"""How functions are compiled: options, inlining, and the on-disk cache."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from numba import NumbaWarning, njit
from numba.extending import overload

__all__ = ["FASTMATH", "compiled", "inlined", "overloaded", "strict_sum_order"]


# Not True: that would also set nnan and ninf, which remove the isfinite checks.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

# A division by zero gives infinity, and no loop has to look out for it.
OPTIONS = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}


# Into their callers, so that what several of them compute is computed once. strict=False: methods that serve as
# functions call their first argument self.
inlined = njit(**OPTIONS, forceinline=True)

overloaded = functools.partial(overload, strict=False, jit_options={**OPTIONS, "forceinline": True})

# Sums are taken as they are written: made of vectors, those of numbers that lie apart take longer.
strict_sum_order = njit(**{**OPTIONS, "fastmath": FASTMATH - {"reassoc"}}, forceinline=True)


def compiled(function: Callable, cache: bool = True) -> Callable:
    """The function as a kernel, kept on the disk where numba finds a directory that it may write to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)
        try:
            return _with_readable_cache(njit(**OPTIONS, cache=cache)(function))
        except RuntimeError:
            return njit(**OPTIONS)(function)


def _with_readable_cache(kernel: Any) -> Any:
    """The kernel, to which an index that it cannot read is an empty one.

    An upgrade leaves those of the last version, and numba reads them, with the classes that they name, before it looks
    whether they are of this one.
    """
    file = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    load = getattr(file, "_load_index", None)

    def load_index() -> dict:
        try:
            return load()
        except Exception:
            return {}

    if load is not None:
        file._load_index = load_index
    return kernel
