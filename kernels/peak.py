"""What this machine can do at best, as kernels: a loop of multiply-adds in registers, and streams over memory.

Nothing trains with these. The benchmarks divide by them, in the same minute and on the same threads.
"""

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import Lanes, literals, number_type, times
from ._jit import inlined, kernel
from ._shapes import check_array
from .arch import LINE, LINE_FLOATS, MR, NV, V
from .dot import dot_of
from .number import BF16, FP32
from .store import aligned_zeros
from .tile_amx import SIDE, STEP, configure_tiles, release_tiles, tile_rounds

CHAINS = 24 if MR * NV > 24 else 12  # independent sums: enough to hide the latency, few enough to fit
TILE_FLOATS = 4 * SIDE * SIDE  # sums in tile registers
UNROLL = 8  # vectors per turn of a stream
TURN = STREAM_UNIT = UNROLL * V  # floats
READ, COPY, COPY_PAST, FILL, FILL_PAST = range(5)  # PAST: with stores that go past the caches


@intrinsic
def dot_loop(typing, width, chains, kind, rounds, out):
    """`rounds` times s = s + a * b on `chains` vectors s in registers; a and b are the first two vectors at `out`.

    kind: of the units of a and b, float32 or BF16's for pairs.
    """
    constants = literals(width, chains)
    if constants is None:
        return None
    v, n = constants

    def codegen(context, builder, sig, args):
        lanes = dot_of(builder, v, number_type(kind))
        a, b = (lanes.load_units(args[4], j * lanes.bytes) for j in range(2))
        slots = [lanes.variable(lanes.constant(1)) for _ in range(n)]
        with cgutils.for_range(builder, args[3]):
            for slot in slots:
                builder.store(lanes.dot(a, b, builder.load(slot)), slot)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.fadd(total, builder.load(slot))
        lanes.store(total, args[4], 2 * lanes.bytes)
        return context.get_dummy_value()

    return types.void(width, chains, kind, types.int64, types.int64), codegen


@intrinsic
def stream_part(typing, width, kind, source, target, turns):
    """One thread's part of a stream: `turns` times UNROLL vectors read, copied or filled, by `kind`."""
    constants = literals(width, kind)
    if constants is None:
        return None
    v, what = constants

    def codegen(context, builder, sig, args):
        lanes = Lanes(builder, v)
        zero, steps = lanes.constant(0), [j * lanes.bytes for j in range(UNROLL)]
        sums = [lanes.variable(zero) for _ in steps]
        with cgutils.for_range(builder, args[4]) as turn:
            offset = times(builder, turn.index, UNROLL * lanes.bytes)
            here, there = (builder.add(address, offset) for address in args[2:4])
            for total, step in zip(sums, steps, strict=True):
                value = zero if what in (FILL, FILL_PAST) else lanes.load(here, step, aligned=True)
                if what == READ:
                    builder.store(builder.fadd(builder.load(total), value), total)
                else:
                    lanes.store(value, there, step, aligned=True, past=what in (COPY_PAST, FILL_PAST))
        if what == READ:
            for total, step in zip(sums, steps, strict=True):
                lanes.store(builder.load(total), args[3], step, aligned=True)
        return context.get_dummy_value()

    return types.void(width, kind, types.int64, types.int64, types.int64), codegen


@inlined
def _dot_rounds(rounds, row):
    dot_loop(V, CHAINS, row.dtype, rounds, row.ctypes.data)


@kernel(parallel=True)
def _dots_on_all(rounds, rows):
    for i in numba.prange(rows.shape[0]):
        _dot_rounds(rounds, rows[i])


@inlined
def _tile_rounds(rounds, row):
    configure_tiles()
    tile_rounds(V, rounds, row.ctypes.data)
    release_tiles()


@kernel(parallel=True)
def _tiles_on_all(rounds, rows):
    for i in numba.prange(rows.shape[0]):
        _tile_rounds(rounds, rows[i])


def fma_peak(rounds: int, multiplied: str = "fp32") -> int:
    """Run `rounds` rounds of independent multiply-adds on every thread; returns the flops that were done.

    multiplied: as convolutions do it, by the name that `product` gives: "fp32", or pairs of bf16, "dot2" or "amx".
    """
    if multiplied == "amx":
        rows = aligned_zeros(numba.get_num_threads() * TILE_FLOATS).reshape(-1, TILE_FLOATS)
        _tiles_on_all(rounds, rows)
        return 2 * rows.shape[0] * rounds * TILE_FLOATS * STEP
    number = FP32 if multiplied == "fp32" else BF16
    in_unit = FP32.bytes // number.bytes
    # a, b, and where the sum goes, in lines of their own
    rows = np.zeros((numba.get_num_threads(), in_unit * (3 * V + 4 * LINE_FLOATS)), number.dtype)
    rows[:, : in_unit * 2 * V] = number.narrow(np.float32(2.0**-10))  # neither zeros nor denormals, and sums stay small
    _dots_on_all(rounds, rows)
    return 2 * in_unit * rows.shape[0] * rounds * CHAINS * V


@inlined
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
        there = sums[part].ctypes.data if kind == READ else target.ctypes.data + first * TURN * source.itemsize
        _walk(kind, source.ctypes.data + first * TURN * source.itemsize, there, last - first)


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
        if array.ctypes.data % LINE:
            raise ValueError(f"stream: {what} begins within a cache line; expected {LINE}-byte lines: align it")
    kind, passes = STREAMS[name]
    sums = aligned_zeros(numba.get_num_threads() * TURN).reshape(-1, TURN)
    _stream(kind, source, target, sums)
    return passes * source.nbytes
