"""What numba has no word for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["borrowed", "prefetch"]

CACHE_LINE = 64


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> tuple:
    """Ask for the cache line of ``array[index]``, of one dimension, ahead of its use."""

    def generate(context, builder, signature, arguments):
        items = make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(items, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # For reading, to be kept in every level of the cache, of data.
        builder.call(call, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


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
