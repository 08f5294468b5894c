"""Tiles of pairs of bf16: C (32, BLOCK) += A (32, depth) B (depth, BLOCK), as Intel's AMX multiplies them.

A tile register holds 16 rows of 64 bytes. Four hold C, two rows of A, two B; a step is 32 numbers of the depth:

    C[m, n] += sum over k of A[m, 2k] B[2k, n]  +  sum over k of A[m, 2k + 1] B[2k + 1, n]

Both sums begin at zero in each step, grow by one product at a time, each rounded to nearest even, and are added before
C is; denormals count as zeros everywhere (TDPBF16PS in Intel's manual). Without the instruction the same is spelled
out, for every CPU: slow, and equal to the bit.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import I8, I64, cases, literals, load_address, plus, times
from ._jit import inlined
from .arch import HAS_TILES
from .dot import Dot2

SIDE, STEP = 16, 32  # rows of a tile, and 4-byte columns; numbers of the depth in a step
TILE_BYTES = 64  # of a row of a tile
B_PITCH = 2 * TILE_BYTES  # of a row of B: BLOCK pairs
C_TILES, A_TILES, B_TILES = range(4), (4, 5), (6, 7)
# palette 1; bytes a row of each tile from 16 on, rows of each from 48 on
CONFIG = np.zeros(64, np.uint8)
CONFIG[0], CONFIG[16:32:2], CONFIG[48:56] = 1, TILE_BYTES, SIDE


def _call(builder, name, *arguments):
    """Call an intrinsic of LLVM that returns nothing."""
    kinds = [argument.type for argument in arguments]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), kinds), f"llvm.x86.{name}"
    )
    builder.call(function, arguments)


def _pointer(builder, address):
    return builder.inttoptr(address, I8.as_pointer())


class Tiles:
    """The instructions, on tile registers by number."""

    def __init__(self, builder, width):
        self.builder = builder

    def clear(self, tile):
        _call(self.builder, "tilezero", I8(tile))

    def load(self, tile, address, pitch):
        _call(self.builder, "tileloadd64", I8(tile), _pointer(self.builder, address), pitch)

    def store(self, tile, address, pitch):
        _call(self.builder, "tilestored64", I8(tile), _pointer(self.builder, address), pitch)

    def dot(self, c, a, b):
        _call(self.builder, "tdpbf16ps", I8(c), I8(a), I8(b))


class SoftTiles:
    """The same spelled out: a tile register is 1 KiB of the stack."""

    def __init__(self, builder, width):
        self.builder, self.lanes = builder, Dot2(builder, width)
        kilobyte = ir.ArrayType(I8, SIDE * TILE_BYTES)
        self.places = [builder.ptrtoint(cgutils.alloca_once(builder, kilobyte), I64) for _ in range(8)]

    def _copy(self, source, source_pitch, target, target_pitch):
        with cgutils.for_range(self.builder, I64(SIDE)) as row:
            here, there = (
                self.builder.add(address, self.builder.mul(row.index, pitch))
                for address, pitch in ((source, source_pitch), (target, target_pitch))
            )
            for offset in range(0, TILE_BYTES, self.lanes.bytes):
                self.lanes.store_bits(self.lanes.load_units(here, offset), there, offset)

    def clear(self, tile):
        for offset in range(0, SIDE * TILE_BYTES, self.lanes.bytes):
            self.lanes.store(self.lanes.constant(0), self.places[tile], offset)

    def load(self, tile, address, pitch):
        self._copy(address, pitch, self.places[tile], I64(TILE_BYTES))

    def store(self, tile, address, pitch):
        self._copy(self.places[tile], I64(TILE_BYTES), address, pitch)

    def dot(self, c, a, b):
        builder, lanes = self.builder, self.lanes
        c, a, b = (self.places[tile] for tile in (c, a, b))
        offsets = range(0, TILE_BYTES, lanes.bytes)
        with cgutils.for_range(builder, I64(SIDE)) as m:
            row = times(builder, m.index, TILE_BYTES)
            sums = [[lanes.variable(lanes.constant(0)) for _ in offsets] for _ in range(2)]
            for k in range(SIDE):
                unit = lanes.broadcast_unit(builder.add(a, row), 4 * k)
                for j, offset in enumerate(offsets):
                    pairs = lanes.load_units(b, TILE_BYTES * k + offset)
                    for place, slots in zip((lanes.lower, lanes.upper), sums, strict=True):
                        one, other = lanes.flush(place(unit)), lanes.flush(place(pairs))
                        builder.store(lanes.flush(lanes.fma(one, other, builder.load(slots[j]))), slots[j])
            for j, offset in enumerate(offsets):
                both = lanes.flush(builder.fadd(*(builder.load(slots[j]) for slots in sums)))
                there = builder.add(c, row)
                old = lanes.flush(lanes.load(there, offset))
                lanes.store(lanes.flush(builder.fadd(old, both)), there, offset)


KIND = Tiles if HAS_TILES else SoftTiles


@intrinsic
def tile_block(typing, width, fresh, a, a_pitch, b, walks, count, c, c_pitch):
    """C (32 rows c_pitch apart, BLOCK floats each) = or, unless `fresh`, += A B over `count` walks.

    a: address of 32 rows of pairs, a_pitch apart. b: of rows of BLOCK pairs, one behind the other. walks: address of
    int64 (count, 3): how far from a and from b each begins, in bytes, and how many steps it has.
    """
    constants = literals(width)
    if constants is None:
        return None

    def codegen(context, builder, sig, args):
        fresh_, a_, a_pitch_, b_, walks_, count_, c_, c_pitch_ = args[1:]
        tiles = KIND(builder, constants[0])
        quarters = [(number, *divmod(number, 2)) for number in C_TILES]

        def place(i, j):
            return plus(builder, builder.add(c_, times(builder, c_pitch_, SIDE * i)), TILE_BYTES * j)

        for (begins_at_zero,) in cases(builder, (fresh_, 2)):
            for number, i, j in quarters:
                if begins_at_zero:
                    tiles.clear(number)
                else:
                    tiles.load(number, place(i, j), c_pitch_)
        with cgutils.for_range(builder, count_) as walk:
            entry = builder.add(walks_, times(builder, walk.index, 24))
            a_shift, b_shift, steps = (load_address(builder, entry, n) for n in range(3))
            a_first, b_first = builder.add(a_, a_shift), builder.add(b_, b_shift)
            with cgutils.for_range(builder, steps) as step:
                a_now = builder.add(a_first, times(builder, step.index, TILE_BYTES))
                b_now = builder.add(b_first, times(builder, step.index, SIDE * B_PITCH))
                for i in range(2):
                    tiles.load(A_TILES[i], builder.add(a_now, times(builder, a_pitch_, SIDE * i)), a_pitch_)
                    tiles.load(B_TILES[i], plus(builder, b_now, TILE_BYTES * i), I64(B_PITCH))
                for number, i, j in quarters:
                    tiles.dot(number, A_TILES[i], B_TILES[j])
        for number, i, j in quarters:
            tiles.store(number, place(i, j), c_pitch_)
        return context.get_dummy_value()

    return types.void(width, *([types.int64] * 8)), codegen


@intrinsic
def tile_rounds(typing, width, rounds, c):
    """`rounds` times the four dot products of a step, of tiles of zeros that are in registers; C, 32 x BLOCK, = 0."""
    constants = literals(width)
    if constants is None:
        return None

    def codegen(context, builder, sig, args):
        tiles = KIND(builder, constants[0])
        for tile in range(8):
            tiles.clear(tile)
        with cgutils.for_range(builder, args[1]):
            for number in C_TILES:
                tiles.dot(number, A_TILES[number // 2], B_TILES[number % 2])
        for number in C_TILES:
            tiles.store(number, plus(builder, args[2], number * SIDE * TILE_BYTES), I64(TILE_BYTES))
        return context.get_dummy_value()

    return types.void(width, types.int64, types.int64), codegen


@intrinsic
def _configure(typing, config):
    def codegen(context, builder, sig, args):
        if HAS_TILES:
            _call(builder, "ldtilecfg", _pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def release_tiles(typing):
    """Give the tile registers back, so that a switch of threads need not save them."""

    def codegen(context, builder, sig, args):
        if HAS_TILES:
            _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@inlined
def configure_tiles():
    """Say what shape tile registers have; each thread does before `tile_block`."""
    _configure(CONFIG.ctypes.data)
