"""What numba has no word for."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

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


CACHE_LINE = 64

DOUBLES = CACHE_LINE // 8  # that fill a line of the cache

# Rows between a prefetch and its use. What takes no more than NEAR_BYTES is in the cache anyway.
AHEAD, NEAR_BYTES = 8, 2**21

# Rows that may share the x at which their derivatives are taken.
GROUP = 4

# Arrays of ``scratch`` that a loop over rows needs at most.
ARRAYS = 9


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> tuple:
    """Ask for the cache line of ``array[index]``, of one dimension, ahead of its use."""

    def generate(context, builder, signature, arguments):
        address = builder.bitcast(_address(context, builder, signature, arguments), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # For reading, of data, to the second level of the cache: to the first few lines may be under way at once.
        builder.call(call, [address, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def add_at_once(typing_context: Any, array: Any, more: Any) -> tuple:
    """Add to ``array[0]``, an integer, as one operation that other threads see; return what it was."""

    def generate(context, builder, signature, arguments):
        address = make_array(array)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", address, arguments[1], "seq_cst")

    return array.dtype(array, array.dtype), generate


@intrinsic
def give_way(typing_context: Any) -> tuple:
    """Let other threads have the core, where there is a call for it."""

    def generate(context, builder, signature, arguments):
        if os.name == "posix":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def borrowed(typing_context: Any, array: Any) -> tuple:
    """The array without its owner, so that no slice of it counts references, which would cost more than a short row.

    Whoever calls it keeps the array alive for as long as it, or a slice, is used.
    """

    def generate(context, builder, signature, arguments):
        view = make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), generate


# Of several arrays a compiler must else suppose that they overlap, and looks at each row anew whether they do; of more
# than a few it gives up.


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> tuple:
    """``array[index]``, of one dimension, which no ``store`` of the same loop changes."""

    def generate(context, builder, signature, arguments):
        entry = builder.load(_address(context, builder, signature, arguments))
        entry.set_metadata("alias.scope", _apart(builder.module))
        return entry

    return array.dtype(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> tuple:
    """``array[index] = value``, which changes nothing that a ``load`` of the same loop reads."""

    def generate(context, builder, signature, arguments):
        entry = builder.store(arguments[2], _address(context, builder, signature, arguments))
        entry.set_metadata("noalias", _apart(builder.module))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


def _address(context: Any, builder: Any, signature: Any, arguments: list) -> Any:
    return builder.gep(make_array(signature.args[0])(context, builder, arguments[0]).data, [arguments[1]])


def _apart(module: Any) -> Any:
    """The list of alias scopes that is the only one here."""
    domain = module.add_metadata([ir.MetaDataString(module, "dask_saga")])
    return module.add_metadata([module.add_metadata([ir.MetaDataString(module, "load"), domain])])


# Numbers of a row, a few for each output. Of one output, as most problems have, their count is known when a kernel is
# compiled, and they stay in registers.


def room_for(outputs: int) -> Any:
    """What ``scratch`` makes arrays of."""
    return (0.0,) if outputs == 1 else np.empty((ARRAYS, GROUP * outputs))


def outputs_of(room: Any) -> int:
    """For how many outputs there is room."""
    return 1 if isinstance(room, tuple) else room.shape[1] // GROUP


@overload(outputs_of)
def _outputs_of(room):
    if isinstance(room, types.BaseTuple):
        return lambda room: 1
    return lambda room: room.shape[1] // GROUP


def scratch(room: Any, k: int) -> np.ndarray:
    """The k-th array, of GROUP numbers for each output."""
    return np.empty(GROUP) if isinstance(room, tuple) else room[k]


@overload(scratch, inline="always")  # what is on the stack of a function goes with it
def _scratch(room, k):
    if isinstance(room, types.BaseTuple):
        return lambda room, k: _on_the_stack()
    return lambda room, k: borrowed(room)[k]


def numbers_of(room: Any) -> tuple:
    """The first five of them, as long as there are outputs."""
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
    """How many doubles fill the lines of the cache that so many begin."""
    return (count + DOUBLES - 1) // DOUBLES * DOUBLES


@register_jitable
def on_lines(room):
    """What of an array of doubles, which it borrows, begins with a line of the cache; the last DOUBLES may be lost."""
    start = (-room.ctypes.data % CACHE_LINE) // 8
    return borrowed(room)[start : start + room.size - DOUBLES]


def empty_on_lines(*shape: int) -> np.ndarray:
    """An empty array of doubles that begins with a line of the cache."""
    size = math.prod(shape)
    room = np.empty(size + DOUBLES)
    start = (-room.ctypes.data % CACHE_LINE) // room.itemsize
    return room[start : start + size].reshape(shape)
