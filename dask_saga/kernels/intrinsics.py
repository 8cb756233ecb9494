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
    "borrowed",
    "empty_on_lines",
    "give_way",
    "load",
    "numbers_of",
    "on_lines",
    "outputs_of",
    "prefetch",
    "room_for",
    "scratch",
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

# Largest number of ``scratch`` arrays that a kernel uses.
ARRAYS = 9

# Argument of ``scratch``: a tuple for one output, an array for several.
Room: TypeAlias = "tuple[float] | np.ndarray"


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


def room_for(outputs: int) -> Room:
    """Return the argument for ``scratch``: a tuple for one output, an array for several."""
    return (0.0,) if outputs == 1 else np.empty((ARRAYS, GROUP * outputs))


def outputs_of(room: Room) -> int:
    """Return the number of outputs that the scratch space is made for."""
    return 1 if isinstance(room, tuple) else room.shape[1] // GROUP


@overload(outputs_of)
def _outputs_of(room):
    if isinstance(room, types.BaseTuple):
        return lambda room: 1
    return lambda room: room.shape[1] // GROUP


def scratch(room: Room, k: int) -> np.ndarray:
    """Return the k-th scratch array, with GROUP numbers per output."""
    return np.empty(GROUP) if isinstance(room, tuple) else room[k]


@overload(scratch, inline="always")  # inlined, because a stack array must not outlive its function
def _scratch(room, k):
    if isinstance(room, types.BaseTuple):
        return lambda room, k: _on_the_stack()
    return lambda room, k: borrowed(room)[k]


def numbers_of(room: Room) -> tuple:
    """Return the first five scratch arrays, cut to one number per output."""
    return tuple(scratch(room, k)[: outputs_of(room)] for k in range(5))


@overload(numbers_of, inline="always")
def _numbers_of(room):
    def numbers(room):
        n = outputs_of(room)
        return (
            scratch(room, 0)[:n], scratch(room, 1)[:n], scratch(room, 2)[:n], scratch(room, 3)[:n], scratch(room, 4)[:n]
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
def on_lines(room):
    """Return a borrowed view of an array of doubles that starts at a cache line and is DOUBLES shorter."""
    start = (-room.ctypes.data % CACHE_LINE) // 8
    return borrowed(room)[start : start + room.size - DOUBLES]


def empty_on_lines(*shape: int) -> np.ndarray:
    """Return an uninitialized array of doubles that starts at a cache line."""
    size = math.prod(shape)
    room = np.empty(size + DOUBLES)
    start = (-room.ctypes.data % CACHE_LINE) // room.itemsize
    return room[start : start + size].reshape(shape)
