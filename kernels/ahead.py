"""Asking memory for what a pass will read soon: two threads that only wait for their next line leave it half idle.

The hardware's own prefetcher stops at the end of a page; asking 4 KiB ahead keeps as many lines on their way as the
second-level cache can wait for.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import kernel
from .arch import LINE

AHEAD_BYTES = 4096  # 2 to 8 KiB are the same; more is worse where several tensors are read


@intrinsic
def _prefetch(typing, address):
    """Ask for the line at an address, to be held in the second-level cache. It may lie anywhere."""

    def codegen(context, builder, sig, args):
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        read, second_level, data = (ir.Constant(i32, value) for value in (0, 2, 1))
        builder.call(function, [builder.inttoptr(args[0], byte), read, second_level, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@kernel
def ask_ahead(address, floats):
    """While `floats` floats at an address are read, ask for as many AHEAD_BYTES behind them."""
    for line in range(0, 4 * floats, LINE):
        _prefetch(address + AHEAD_BYTES + line)
