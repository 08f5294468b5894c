"""Rows of results to memory, past the caches where they would not stay in them anyway.

An ordinary store reads its cache line from memory first. For a tensor larger than the caches that is half of what it
costs; a store past the caches writes whole lines without it. Who reads the tensor next finds it in memory.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import kernel
from .arch import ARCH, LINE
from .microkernel import peek, poke

V = ARCH.width
PAST_BYTES = 8 << 20  # from this size on a tensor is stored past the caches


def aligned_zeros(count: int) -> np.ndarray:
    """`count` float32 zeros beginning at a cache line, the whole array owned by the result's base."""
    raw = np.zeros(count + LINE // 4, np.float32)
    start = -raw.ctypes.data % LINE // 4
    return raw[start : start + count]


def goes_past(out, row_floats: int, *sources, least: int | None = None) -> bool:
    """Whether rows of `row_floats` floats of the array `out` are to be stored past the caches.

    Not where it has fewer bytes than `least` (default: PAST_BYTES), nor where it is also one of the sources: then its
    lines were just read.
    """
    large = out.nbytes >= (PAST_BYTES if least is None else least)
    whole_lines = out.ctypes.data % LINE == 0 and 4 * row_floats % LINE == 0
    return large and whole_lines and all(out.ctypes.data != source.ctypes.data for source in sources)


@kernel
def store_row(source, target, floats, accumulate, past):
    """target[i] = source[i], or with `accumulate` +=, for `floats` floats at two addresses."""
    vectors = floats // V
    if accumulate:
        _store_vectors(V, 1, 0, vectors, source, target)
    elif past:
        _store_vectors(V, 0, 1, vectors, source, target)
    else:
        _store_vectors(V, 0, 0, vectors, source, target)
    for at in range(4 * vectors * V, 4 * floats, 4):
        value = peek(source + at)
        poke(target + at, value + peek(target + at) if accumulate else value)


@intrinsic
def _store_vectors(typing, width, add, past, count, source, target):
    """target[i] = source[i], or with `add` +=, for `count` vectors of V floats; `past` the caches if aligned.

    add, past: literal 0 or 1.
    """
    if not all(isinstance(value, types.IntegerLiteral) for value in (width, add, past)):
        return None
    v, adds, goes_past = width.literal_value, add.literal_value, past.literal_value
    vector = ir.VectorType(ir.FloatType(), v)

    def codegen(context, builder, sig, args):
        with cgutils.for_range(builder, args[3]) as loop:
            shift = builder.mul(loop.index, ir.Constant(ir.IntType(64), 4 * v))
            here, there = (builder.inttoptr(builder.add(a, shift), vector.as_pointer()) for a in args[4:])
            value = builder.load(here, align=4)
            if adds:
                value = builder.fadd(builder.load(there, align=4), value)
            stored = builder.store(value, there, align=4 * v if goes_past else 4)
            if goes_past:
                stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(width, add, past, types.int64, types.int64, types.int64), codegen
