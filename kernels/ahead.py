"""Asking memory for what a pass will read soon: two threads that only wait for their next line leave it half idle.

The hardware's own prefetcher stops at the end of a page; asking 4 KiB ahead keeps as many lines on their way as the
second-level cache can wait for.
"""

from numba import types
from numba.extending import intrinsic

from ._ir import prefetch_line
from ._jit import inlined
from .arch import LINE

DISTANCE = 4096  # bytes: 2 to 8 KiB are the same; more is worse where several tensors are read


@intrinsic
def _prefetch(typing, address):
    def codegen(context, builder, sig, args):
        prefetch_line(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@inlined
def ask_ahead(x, row):
    """While row `row` of x (rows, columns) is read, ask for as many bytes DISTANCE behind it."""
    width = x.shape[1] * x.itemsize
    ask(x.ctypes.data + row * width + DISTANCE, width)


@inlined
def ask(address, size):
    """Ask for `size` bytes from an address on."""
    for line in range(0, size, LINE):
        _prefetch(address + line)
