"""Rows of results to memory, past the caches where they would not stay in them anyway.

An ordinary store reads its cache line from memory first. For a tensor larger than the caches that is half of what it
costs; a store past the caches writes whole lines without it. Who reads the tensor next finds it in memory.
"""

import numpy as np
from numba import types
from numba.extending import intrinsic

from ._ir import Strip, cases, number_type, strips
from .arch import LINE, LINE_FLOATS, V

PAST_BYTES = 8 << 20  # from this size on a tensor is stored past the caches


def aligned_zeros(count: int) -> np.ndarray:
    """`count` float32 zeros beginning at a cache line, the whole array owned by the result's base."""
    raw = np.zeros(count + LINE_FLOATS, np.float32)
    start = -raw.ctypes.data % LINE // raw.itemsize
    return raw[start : start + count]


def goes_past(out, row: int, *sources, least: int | None = None) -> bool:
    """Whether rows of `row` elements of the array `out` are to be stored past the caches.

    Not where it has fewer bytes than `least` (default: PAST_BYTES), nor where it is also one of the sources: then its
    lines were just read.
    """
    large = out.nbytes >= (PAST_BYTES if least is None else least)
    whole_lines = out.ctypes.data % LINE == 0 and out.itemsize * row % LINE == 0
    return large and whole_lines and all(out.ctypes.data != source.ctypes.data for source in sources)


@intrinsic
def store_row(typing, source, count, kind, target, accumulate, past):
    """target[i] = source[i], or with `accumulate` +=: `count` float32 at one address to numbers of dtype `kind`.

    `past` the caches: of aligned lines. Two vectors at once, of 16-bit numbers a line: LLVM lets less not go past them.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        source_, count_, _, target_, adds, goes_past = args
        adds, goes_past = (context.cast(builder, value, types.boolean, types.int64) for value in (adds, goes_past))
        for add, beyond in cases(builder, (adds, 2), (goes_past, 2)):
            for width, index in strips(builder, count_, 2 * V, V):
                strip = Strip(builder, width, index)
                value = strip.load(source_)
                if add:
                    value = builder.fadd(strip.load(target_, number), value)
                strip.store(value, target_, number, past=beyond and not add)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, kind, types.int64, types.boolean, types.boolean), codegen
