"""Decorators that compile functions with numba: common options, inlining, the on-disk cache, read-only inputs."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import NumbaWarning, njit
from numba.extending import overload

__all__ = ["FASTMATH", "compiled", "frozen", "inlined", "overloaded", "strict_sum_order"]


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


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only view of the array."""
    view = array.view()
    view.setflags(write=False)  # takes half as long as view.flags.writeable = False
    return view


def compiled(*, writes: str = "", cache: bool = True) -> Callable[[Callable], Callable]:
    """Compile a kernel, that is a function that only Python calls. Compiled code calls ``inlined`` functions.

    numba compiles a function anew if an array is read-only in one call and writable in another. A call therefore makes
    all arrays read-only that the kernel does not write, so that the caller need not care.

    Parameters
    ----------
    writes : str
        Names of the arguments that the kernel writes, separated by spaces. A kernel that writes another array does
        not compile.
    cache : bool, default=True
        Whether to cache the kernel on disk, if numba finds a writable directory.
    """

    def decorate(function: Callable) -> Callable:
        names, written = list(inspect.signature(function).parameters), writes.split()
        if unknown := set(written).difference(names):
            raise TypeError(f"{function.__name__} has no arguments {sorted(unknown)}; give its own in writes=")
        kernel = _dispatcher(function, cache)
        inputs = [place for place, name in enumerate(names) if name not in written]

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            views = list(arguments)
            for place in inputs:
                argument = arguments[place]
                if isinstance(argument, np.ndarray) and argument.flags.writeable:
                    views[place] = frozen(argument)
            return kernel(*views)

        call.dispatcher = kernel  # type: ignore[attr-defined]
        return call

    return decorate


def _dispatcher(function: Callable, cache: bool) -> Any:
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
