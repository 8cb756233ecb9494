"""What numba has no word for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["prefetch"]

CACHE_LINE = 64


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> tuple:
    """Ask for the cache line of ``array[index]``, of one dimension, ahead of its use."""

    def generate(context, builder, signature, arguments):
        items = make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(items, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        call = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # For reading, to be kept in every level of the cache, of data.
        builder.call(call, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
