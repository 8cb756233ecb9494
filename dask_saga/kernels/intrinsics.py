"""Operations that numba does not provide: prefetching, atomic addition, unowned views, alias hints and stack arrays.

The module also has the constants and helpers for arrays that are aligned to cache lines.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable
from numba.np.arrayobj import make_array, populate_array

__all__ = [
    "AHEAD",
    "CACHE_LINE",
    "DOUBLES",
    "GROUP",
    "NEAR_BYTES",
    "add_at_once",
    "array_of",
    "borrowed",
    "empty_on_lines",
    "give_way",
    "load",
    "numbers_of",
    "on_lines",
    "outputs_of",
    "prefetch",
    "scratch_for",
    "store",
    "whole_lines",
]


# Size of a cache line in bytes.
CACHE_LINE = 64

# Number of doubles in a cache line.
DOUBLES = CACHE_LINE // 8

# AHEAD is the number of rows between a prefetch and its use. Arrays of at most NEAR_BYTES bytes stay in the cache, so
# they need no prefetch.
AHEAD, NEAR_BYTES = 8, 2**21

# Number of dense rows in a group, which take their derivatives at the same x.
GROUP = 4

# Largest number of scratch arrays that a kernel uses.
ARRAYS = 9

# Scratch space of one row: a tuple for one output, an array for several.
Scratch: TypeAlias = "tuple[float] | np.ndarray"


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> tuple:
    """Prefetch the cache line of ``array[index]``, where the array has one dimension."""

    def generate(context, builder, signature, arguments):
        address = builder.bitcast(_address(context, builder, signature, arguments), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # The arguments mean: for reading, to the second cache level, data. The first level allows few pending lines.
        builder.call(call, [address, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def add_at_once(typing_context: Any, array: Any, more: Any) -> tuple:
    """Add to the integer ``array[0]`` atomically; return the previous value."""

    def generate(context, builder, signature, arguments):
        address = make_array(array)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", address, arguments[1], "seq_cst")

    return array.dtype(array, array.dtype), generate


@intrinsic
def give_way(typing_context: Any) -> tuple:
    """Yield the core to other threads. Outside POSIX systems this does nothing."""

    def generate(context, builder, signature, arguments):
        if os.name == "posix":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def borrowed(typing_context: Any, array: Any) -> tuple:
    """Return a view of the array without reference counting.

    For a short row, counting the references of its slices would cost more than the arithmetic. The caller must keep the
    array alive as long as the view or a slice of it is used.
    """

    def generate(context, builder, signature, arguments):
        view = make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), generate


# ``load`` and ``store`` declare that their arrays do not overlap. Otherwise LLVM checks for overlap in each row, and
# with more than a few arrays it does not vectorize the loop at all.


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> tuple:
    """Return ``array[index]`` of a one-dimensional array that no ``store`` of the same loop changes."""

    def generate(context, builder, signature, arguments):
        entry = builder.load(_address(context, builder, signature, arguments))
        entry.set_metadata("alias.scope", _apart(builder.module))
        return entry

    return array.dtype(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> tuple:
    """Set ``array[index] = value`` in a one-dimensional array that no ``load`` of the same loop reads."""

    def generate(context, builder, signature, arguments):
        entry = builder.store(arguments[2], _address(context, builder, signature, arguments))
        entry.set_metadata("noalias", _apart(builder.module))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


def _address(context: Any, builder: Any, signature: Any, arguments: list) -> Any:
    return builder.gep(make_array(signature.args[0])(context, builder, arguments[0]).data, [arguments[1]])


def _apart(module: Any) -> Any:
    """Return the single list of alias scopes that ``load`` and ``store`` share."""
    domain = module.add_metadata([ir.MetaDataString(module, "dask_saga")])
    return module.add_metadata([module.add_metadata([ir.MetaDataString(module, "load"), domain])])


# Scratch space of a row: a few arrays with GROUP numbers per output. For one output, the usual case, the size is known
# at compile time. The arrays then are on the stack, and LLVM can keep them in registers.


def scratch_for(outputs: int) -> Scratch:
    """Return the scratch space of one row: a tuple for one output, an array for several."""
    return (0.0,) if outputs == 1 else np.empty((ARRAYS, GROUP * outputs))


def outputs_of(scratch: Scratch) -> int:
    """Return the number of outputs that the scratch space is made for."""
    return 1 if isinstance(scratch, tuple) else scratch.shape[1] // GROUP


@overload(outputs_of)
def _outputs_of(scratch):
    if isinstance(scratch, types.BaseTuple):
        return lambda scratch: 1
    return lambda scratch: scratch.shape[1] // GROUP


def array_of(scratch: Scratch, k: int) -> np.ndarray:
    """Return the k-th scratch array, with GROUP numbers per output."""
    return np.empty(GROUP) if isinstance(scratch, tuple) else scratch[k]


@overload(array_of, inline="always")  # inlined, because a stack array must not outlive its function
def _array_of(scratch, k):
    if isinstance(scratch, types.BaseTuple):
        return lambda scratch, k: _on_the_stack()
    return lambda scratch, k: borrowed(scratch)[k]


def numbers_of(scratch: Scratch) -> tuple:
    """Return the first five scratch arrays, cut to one number per output."""
    return tuple(array_of(scratch, k)[: outputs_of(scratch)] for k in range(5))


@overload(numbers_of, inline="always")
def _numbers_of(scratch):
    def numbers(scratch):
        n = outputs_of(scratch)
        return (
            array_of(scratch, 0)[:n], array_of(scratch, 1)[:n], array_of(scratch, 2)[:n], array_of(scratch, 3)[:n],
            array_of(scratch, 4)[:n],
        )  # fmt: skip

    return numbers


@intrinsic
def _on_the_stack(typing_context: Any) -> tuple:
    kind = types.Array(types.float64, 1, "C")

    def generate(context, builder, signature, arguments):
        data = cgutils.alloca_once(builder, ir.DoubleType(), size=ir.Constant(ir.IntType(64), GROUP))
        array, number = make_array(kind)(context, builder), functools.partial(context.get_constant, types.intp)
        populate_array(array, data, [number(GROUP)], [number(8)], number(8), None)
        return array._getvalue()

    return kind(), generate


@register_jitable
def whole_lines(count):
    """Round a number of doubles up to whole cache lines."""
    return (count + DOUBLES - 1) // DOUBLES * DOUBLES


@register_jitable
def on_lines(array):
    """Return a borrowed view of an array of doubles that starts at a cache line and is DOUBLES shorter."""
    start = (-array.ctypes.data % CACHE_LINE) // 8
    return borrowed(array)[start : start + array.size - DOUBLES]


def empty_on_lines(*shape: int) -> np.ndarray:
    """Return an uninitialized array of doubles that starts at a cache line."""
    size = math.prod(shape)
    padded = np.empty(size + DOUBLES)
    start = (-padded.ctypes.data % CACHE_LINE) // padded.itemsize
    return padded[start : start + size].reshape(shape)
