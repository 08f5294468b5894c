"""What this machine can do at best, as kernels: a loop of fused multiply-adds in registers, and streams over memory.

Nothing trains with these. The benchmarks divide by them, in the same minute and on the same threads.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import kernel
from ._shapes import check_array
from .arch import ARCH

V = ARCH.width
CHAINS = 24 if ARCH.rows * ARCH.vectors > 24 else 12  # independent sums: enough to hide the latency, few enough to fit
UNROLL = 8  # vectors per turn of a stream
TURN = STREAM_UNIT = UNROLL * V  # floats
READ, COPY, COPY_PAST, FILL, FILL_PAST = range(5)  # PAST: with stores that go past the caches

_I64 = ir.IntType(64)


def _vectors(builder, address, count, width):
    vector = ir.VectorType(ir.FloatType(), width)
    steps = [builder.add(address, ir.Constant(_I64, 4 * width * j)) for j in range(count)]
    return [builder.inttoptr(step, vector.as_pointer()) for step in steps]


@intrinsic
def fma_loop(typing, width, chains, rounds, out):
    """`rounds` times s = s * a + b on `chains` vectors s in registers; a and b are the first two vectors at `out`."""
    if not isinstance(width, types.IntegerLiteral) or not isinstance(chains, types.IntegerLiteral):
        return None
    v, n = width.literal_value, chains.literal_value
    vector = ir.VectorType(ir.FloatType(), v)

    def codegen(context, builder, sig, args):
        signature = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{v}f32")
        a, b = (builder.load(pointer, align=4) for pointer in _vectors(builder, args[3], 2, v))
        slots = [cgutils.alloca_once(builder, vector) for _ in range(n)]
        for slot in slots:
            builder.store(a, slot)
        with cgutils.for_range(builder, args[2]):
            for slot in slots:
                builder.store(builder.call(fma, [builder.load(slot), a, b]), slot)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.fadd(total, builder.load(slot))
        builder.store(total, _vectors(builder, args[3], 3, v)[2], align=4)
        return context.get_dummy_value()

    return types.void(width, chains, types.int64, types.int64), codegen


@intrinsic
def stream_part(typing, width, kind, source, target, turns):
    """One thread's part of a stream: `turns` times UNROLL vectors read, copied or filled, by `kind`."""
    if not isinstance(width, types.IntegerLiteral) or not isinstance(kind, types.IntegerLiteral):
        return None
    v, what = width.literal_value, kind.literal_value
    vector = ir.VectorType(ir.FloatType(), v)

    def codegen(context, builder, sig, args):
        zero = ir.Constant(vector, [0.0] * v)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(UNROLL)]
        past = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, args[4]) as turn:
            offset = builder.mul(turn.index, ir.Constant(_I64, 4 * v * UNROLL))
            here, there = (_vectors(builder, builder.add(address, offset), UNROLL, v) for address in args[2:4])
            for total, load, store in zip(sums, here, there, strict=True):
                value = zero if what in (FILL, FILL_PAST) else builder.load(load, align=4 * v)
                if what == READ:
                    builder.store(builder.fadd(builder.load(total), value), total)
                else:
                    stored = builder.store(value, store, align=4 * v)
                    if what in (COPY_PAST, FILL_PAST):
                        stored.set_metadata("nontemporal", past)
        if what == READ:
            for total, pointer in zip(sums, _vectors(builder, args[3], UNROLL, v), strict=True):
                builder.store(builder.load(total), pointer, align=4 * v)
        return context.get_dummy_value()

    return types.void(width, kind, types.int64, types.int64, types.int64), codegen


@kernel
def _fma_rounds(rounds, row):
    fma_loop(V, CHAINS, rounds, row.ctypes.data)


@kernel(parallel=True)
def _fma_on_all(rounds, rows):
    for i in numba.prange(rows.shape[0]):
        _fma_rounds(rounds, rows[i])


def fma_peak(rounds: int) -> int:
    """Run `rounds` rounds of independent fused multiply-adds on every thread; returns the flops that were done."""
    rows = np.zeros((numba.get_num_threads(), 3 * V + 64), np.float32)  # a and b, and rows in lines of their own
    rows[:, :V], rows[:, V : 2 * V] = 0.999, 0.001  # the sums tend to 1: neither zeros nor denormals
    _fma_on_all(rounds, rows)
    return 2 * rows.shape[0] * rounds * CHAINS * V


@kernel
def _walk(kind, source, target, turns):
    if kind == READ:
        stream_part(V, READ, source, target, turns)
    elif kind == COPY:
        stream_part(V, COPY, source, target, turns)
    elif kind == COPY_PAST:
        stream_part(V, COPY_PAST, source, target, turns)
    elif kind == FILL:
        stream_part(V, FILL, source, target, turns)
    else:
        stream_part(V, FILL_PAST, source, target, turns)


@kernel(parallel=True)
def _stream(kind, source, target, sums):
    turns, parts = source.size // TURN, sums.shape[0]
    for part in numba.prange(parts):  # each thread walks one part from its beginning to its end
        first, last = turns * part // parts, turns * (part + 1) // parts
        there = sums[part].ctypes.data if kind == READ else target.ctypes.data + first * TURN * 4
        _walk(kind, source.ctypes.data + first * TURN * 4, there, last - first)


STREAMS = {
    "read": (READ, 1), "copy": (COPY, 2), "copy past the caches": (COPY_PAST, 2), "fill": (FILL, 1),
    "fill past the caches": (FILL_PAST, 1),
}  # fmt: skip


def stream(name: str, source: np.ndarray, target: np.ndarray) -> int:
    """Read `source`, copy it to `target`, or fill `target` with zeros, by a name of STREAMS; returns the bytes moved.

    source, target : float32 vectors of one size, a multiple of STREAM_UNIT, beginning at a cache line; may be one array
    A read counts once, a store once: a store that first reads its line into the cache moves more than is counted.
    """
    units = (max(1, source.size // TURN) * TURN,)
    for what, array in (("source", source), ("target", target)):
        check_array(f"stream: {what}", array, units)
        if array.ctypes.data % 64:
            raise ValueError(f"stream: {what} begins within a cache line; expected a multiple of 64 bytes: align it")
    kind, passes = STREAMS[name]
    raw = np.empty(numba.get_num_threads() * TURN + 16, np.float32)
    sums = raw[-raw.ctypes.data % 64 // 4 :][: raw.size - 16].reshape(-1, TURN)
    _stream(kind, source, target, sums)
    return passes * source.nbytes
