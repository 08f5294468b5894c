"""The one building block: a register tile of C += A * B, emitted as LLVM vector IR.

Everything heavy (convolution in three directions, fully connected layers) is a loop nest around two forms of it,

    tile_rows :  C[i, j] (+)= sum_t sum_k A[t][i][k] * B[t][k][j]     A rows lie anywhere: one address per (t, i)
    tile_outer:  C[i, j] (+)= sum_t       A[t][i]    * B[t][j]        A columns are neighbours in memory

with MR rows and NV vectors of V floats of C held in registers, A broadcast one unit at a time and B loaded as vectors
of units; a unit is a float32 or, where `kind` is the dtype of BF16, a pair of bf16 (see `dot`) (the batch-reduce GEMM
of Georganas et al. 2020, with the row pointers of Dukhan 2019, "The Indirect Convolution Algorithm"). The IR names no
instruction set: the same text becomes AVX-512, AVX2 or NEON code.

MR, NV and V come as literal integers, so that Numba's on-disk cache can find the compiled function again. Every
element of C is one chain of fused multiply-adds over (t, k) in ascending order, whatever the tile: results do not
depend on MR, NV or V.

All pointers are passed as integer addresses; strides are in bytes. Nothing is checked here.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import (
    I32,
    I64,
    Lanes,
    constant_like,
    literals,
    load_address,
    number_type,
    opaque,
    plus,
    prefetch_line,
    rounded_bits,
    times,
)  # fmt: skip
from .arch import LINE
from .dot import dot_of
from .number import BF16

UNROLL = 16  # steps of k between two updates of the row addresses, which do not all fit into registers


class _Tile:
    """MR x NV accumulators: LLVM promotes the stack slots to registers."""

    def __init__(self, builder, rows, vectors, width, number):
        self.builder, self.vectors, self.lanes = builder, vectors, dot_of(builder, width, number)
        self.bytes = vectors * self.lanes.bytes  # of a row of B or C
        self.slots = [[self.lanes.variable() for _ in range(vectors)] for _ in range(rows)]

    def load(self, address, offset=0):
        """A row of B."""
        return [self.lanes.load_units(address, offset + j * self.lanes.bytes) for j in range(self.vectors)]

    def dot(self, row, address, offset, b):
        """A row of C += the unit at an address times a row of B."""
        a = self.lanes.broadcast_unit(address, offset)
        for j, slot in enumerate(self.slots[row]):
            self.builder.store(self.lanes.dot(a, b[j], self.builder.load(slot)), slot)

    def _places(self, addresses):
        """Each accumulator, and where it stands in memory: address and offset."""
        for row, address in enumerate(addresses):
            for j, slot in enumerate(self.slots[row]):
                yield slot, address, j * self.lanes.bytes

    def fill(self, addresses):
        for slot, *place in self._places(addresses):
            self.builder.store(self.lanes.load(*place), slot)

    def clear(self):
        for slot in sum(self.slots, []):
            self.builder.store(self.lanes.constant(0), slot)

    def add(self, addresses):
        for slot, *place in self._places(addresses):
            self.builder.store(self.builder.fadd(self.lanes.load(*place), self.builder.load(slot)), slot)

    def flush(self, addresses):
        for slot, *place in self._places(addresses):
            self.lanes.store(self.builder.load(slot), *place)


@intrinsic
def tile_rows(
    typing, mr, nv, width, kind, rows, row_pitch, taps, depth, a_offset, b, b_pitch, out, out_offset, start, ahead,
    stride
):  # fmt: skip
    """C[i, :] = start (or C[i, :]) + sum over taps t and k < depth of A[t][i][k] * B[t][k][:].

    rows: address of int64[taps][row_pitch / 8], the addresses of the A rows; a_offset is added to each.
    depth: in units. b: address of B, taps b_pitch apart, [depth][NV * V] units each. out: address of int64[MR], the
    addresses of the C rows; out_offset is added to each. start: address of NV * V floats to begin from, or 0 to
    accumulate onto C.
    ahead: each step of each tap asks for the next cache line from there on; stride: 64, or 0 to stay in place.
    """
    constants = literals(mr, nv, width)
    if constants is None:
        return None
    m = constants[0]
    signature = types.void(mr, nv, width, kind, *([types.int64] * 12))

    def codegen(context, builder, sig, args):
        rows_, pitch, taps_, depth_, a_off, b_, b_pitch_, out_, out_off, start_, ahead_, stride_ = args[4:]
        tile = _Tile(builder, *constants, number_type(kind))
        item = tile.lanes.number.bytes
        out_rows = [builder.add(load_address(builder, out_, i), out_off) for i in range(m)]
        fresh = builder.icmp_signed("!=", start_, I64(0))
        fetching = builder.icmp_signed("!=", stride_, I64(0))
        tile.fill([builder.select(fresh, start_, address) for address in out_rows])
        with cgutils.for_range(builder, taps_) as tap:
            here = builder.add(rows_, builder.mul(tap.index, pitch))
            a_rows = [opaque(builder, builder.add(load_address(builder, here, i), a_off)) for i in range(m)]
            b_tap = opaque(builder, builder.add(b_, builder.mul(tap.index, b_pitch_)))
            ahead_tap = opaque(builder, builder.add(ahead_, times(builder, builder.mul(tap.index, depth_), LINE)))

            def steps(first, count):
                """`count` steps of k from `first` on: the addresses are worked out once for all of them."""
                shift = times(builder, first, item)
                rows_now = [builder.add(row, shift) for row in a_rows]
                b_first = builder.add(b_tap, times(builder, first, tile.bytes))
                with builder.if_then(fetching):  # a block of its own: between the sums it would cost registers
                    line = builder.add(ahead_tap, times(builder, first, LINE))
                    for u in range(count):
                        prefetch_line(builder, plus(builder, line, LINE * u))
                for u in range(count):
                    b_now = tile.load(b_first, tile.bytes * u)
                    for i in range(m):
                        tile.dot(i, rows_now[i], item * u, b_now)

            whole = builder.udiv(depth_, I64(UNROLL))
            with cgutils.for_range(builder, whole) as group:
                steps(times(builder, group.index, UNROLL), UNROLL)
            with cgutils.for_range(builder, depth_, start=times(builder, whole, UNROLL)) as k:
                steps(k.index, 1)
        tile.flush(out_rows)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_outer(
    typing, mr, few, nv, width, kind, rows, count, a_offset, b, out, out_pitch, left, nowhere, fresh, ahead, stride
):  # fmt: skip
    """C[i, :] = (0 if fresh else C[i, :]) + (sum over t < count of A[t][i] * B[t][:]).

    rows: address of int64[count], the addresses of the A columns; a_offset is added to each. b: address of B,
    [count][NV * V]. out: address of C, rows out_pitch apart. C is asked for at the start and added at the end: it often
    comes from far away, and the sum need not wait for it. ahead, stride: as in tile_rows.

    left: columns from here on; where they are at most `few`, the tile is of so many, and where it is still too large it
    begins before: the first rows of C are then left as they are (nowhere: address of NV * V floats that nobody reads).
    """
    constants = literals(mr, nv, width)
    if constants is None or literals(few) is None:
        return None
    signature = types.void(mr, few, nv, width, kind, *([types.int64] * 11))

    def codegen(context, builder, sig, args):
        number, (whole, nv_, v_), (less,) = number_type(kind), constants, literals(few)
        with builder.if_else(builder.icmp_signed("<=", args[11], I64(less))) as (small, large):
            for branch, m in ((small, less), (large, whole)):
                with branch:
                    _outer(builder, _Tile(builder, m, nv_, v_, number), m, *args[5:])
        return context.get_dummy_value()

    return signature, codegen


def _outer(builder, tile, m, rows, count, a_offset, b, out, pitch, left, nowhere, fresh, ahead, stride):
    item = tile.lanes.number.bytes
    beyond = builder.sub(I64(m), left)
    skip = builder.select(builder.icmp_signed(">", beyond, I64(0)), beyond, I64(0))
    a_offset = builder.sub(a_offset, times(builder, skip, item))
    out = builder.sub(out, builder.mul(skip, pitch))
    out_rows = [builder.add(out, times(builder, pitch, i)) for i in range(m)]
    left_out = [builder.icmp_signed("<", I64(i), skip) for i in range(m)]
    out_rows = [builder.select(no, nowhere, row) for no, row in zip(left_out, out_rows, strict=True)]
    tile.clear()
    for row in out_rows:
        for line in range(0, tile.bytes, LINE):
            prefetch_line(builder, plus(builder, row, line), near=True)
    with cgutils.for_range(builder, count) as t:
        a_row = builder.add(load_address(builder, builder.add(rows, times(builder, t.index, 8)), 0), a_offset)
        b_now = tile.load(builder.add(b, times(builder, t.index, tile.bytes)))
        prefetch_line(builder, builder.add(ahead, builder.mul(t.index, stride)))
        for i in range(m):
            tile.dot(i, a_row, item * i, b_now)
    with builder.if_then(builder.icmp_signed("==", fresh, I64(0))):
        tile.add(out_rows)
    tile.flush(out_rows)


def _units(builder, source, target, first, second):
    """A vector as it is stored in units of `target`: `first`, float32, alone; or pairs (first, second) of bf16.

    Of a pair the first is the lower half of 32 bits. source: the Number that both were loaded as.
    """
    if target is not BF16:
        return first
    exact = source is BF16  # nothing is to be rounded
    lower, upper = (
        builder.bitcast(value, ir.VectorType(I32, value.type.count)) if exact else rounded_bits(builder, value)
        for value in (first, second)
    )
    lower = builder.lshr(lower, constant_like(lower, I32, 16))
    return builder.or_(lower, builder.and_(upper, constant_like(upper, I32, 0xFFFF0000)))


@intrinsic
def pack_block(typing, nv, width, kind, to, first, second, target):
    """NV * V units from numbers of dtype `kind` at `first`; pairs with those at `second`, where `to` is BF16's."""
    constants = literals(nv, width)
    if constants is None:
        return None
    n, v = constants

    def codegen(context, builder, sig, args):
        here, there = Lanes(builder, v, number_type(kind)), Lanes(builder, v)
        for j in range(n):
            values = [here.load(address, j * here.bytes) for address in args[4:6]]
            there.store_bits(_units(builder, number_type(kind), number_type(to), *values), args[6], j * there.bytes)
        return context.get_dummy_value()

    return types.void(nv, width, kind, to, types.int64, types.int64, types.int64), codegen


@intrinsic
def transpose_square(typing, width, kind, to, source, pitch, target, target_pitch):
    """target[i, j] = source[j, i], V x V of dtype `kind` to float32: log2 V times, pairs of rows exchange halves.

    As pairs, where `to` is BF16's dtype: target[i // 2, j] = (source[j, i], source[j, i + 1]).
    """
    constants = literals(width)
    if constants is None:
        return None
    (v,) = constants

    def codegen(context, builder, sig, args):
        here, pitch_, there, target_pitch_ = args[3:]
        lanes, stored = Lanes(builder, v), Lanes(builder, v, number_type(kind))
        rows = [stored.load(builder.add(here, times(builder, pitch_, i))) for i in range(v)]
        step = 1
        while step < v:
            upper = [lane if lane & step == 0 else v + lane - step for lane in range(v)]
            lower = [lane + step if lane & step == 0 else v + lane for lane in range(v)]
            for i in (i for i in range(v) if i & step == 0):
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = lanes.shuffle(a, b, upper), lanes.shuffle(a, b, lower)
            step *= 2
        per_unit = 2 if number_type(to) is BF16 else 1
        for i in range(0, v, per_unit):
            value = _units(builder, number_type(kind), number_type(to), rows[i], rows[i + per_unit - 1])
            lanes.store_bits(value, builder.add(there, times(builder, target_pitch_, i // per_unit)))
        return context.get_dummy_value()

    return types.void(width, kind, to, *([types.int64] * 4)), codegen
