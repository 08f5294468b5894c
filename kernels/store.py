"""Rows of results to memory, past the caches where they would not stay in them anyway.

An ordinary store reads its cache line from memory first. For a tensor larger than the caches that is half of what it
costs; a store past the caches writes whole lines without it. Who reads the tensor next finds it in memory.
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import Lanes, literals, number_type, times
from ._jit import inlined
from .arch import LINE, LINE_FLOATS, V
from .element import peek, poke

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


@inlined
def store_row(source, count, kind, target, accumulate, past):
    """target[i] = source[i], or with `accumulate` +=: `count` float32 at one address to numbers of dtype `kind`."""
    vectors = count // V
    if accumulate:
        _store_vectors(V, 1, 0, vectors, source, kind, target)
    elif past:
        _store_vectors(V, 0, 1, vectors, source, kind, target)
    else:
        _store_vectors(V, 0, 0, vectors, source, kind, target)
    for i in range(vectors * V, count):
        value = peek(np.float32, source, i)
        poke(kind, target, i, value + peek(kind, target, i) if accumulate else value)


@intrinsic
def _store_vectors(typing, width, add, past, count, source, kind, target):
    """As `store_row`, for `count` vectors of V; add, past: literal 0 or 1. `past` needs aligned lines."""
    constants = literals(width, add, past)
    if constants is None:
        return None
    v, adds, goes_past = constants

    def codegen(context, builder, sig, args):
        sums, stored = Lanes(builder, v), Lanes(builder, v, number_type(kind))
        with cgutils.for_range(builder, args[3]) as loop:
            here = builder.add(args[4], times(builder, loop.index, sums.bytes))
            there = builder.add(args[6], times(builder, loop.index, stored.bytes))
            value = sums.load(here)
            if adds:
                value = builder.fadd(stored.load(there), value)
            stored.store(value, there, past=goes_past)
        return context.get_dummy_value()

    return types.void(width, add, past, types.int64, types.int64, kind, types.int64), codegen
