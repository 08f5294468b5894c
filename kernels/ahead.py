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

DISTANCE = 4096  # bytes: 2 to 8 KiB are the same; more is worse where several tensors are read


def prefetch_line(builder, address, near=False):
    """Emit: ask for the line at an address, to be held in the second-level cache; `near`: in the first."""
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    signature = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    read, level, data = (ir.Constant(i32, value) for value in (0, 3 if near else 2, 1))
    builder.call(function, [builder.inttoptr(address, byte), read, level, data])


@intrinsic
def _prefetch(typing, address):
    def codegen(context, builder, sig, args):
        prefetch_line(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@kernel
def ask_ahead(address, floats):
    """While `floats` floats at an address are read, ask for as many DISTANCE bytes behind them."""
    for line in range(0, 4 * floats, LINE):
        _prefetch(address + DISTANCE + line)
