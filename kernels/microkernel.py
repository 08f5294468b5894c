"""The one building block: a register tile of C += A * B, emitted as LLVM vector IR.

Everything heavy (convolution in three directions, fully connected layers) is a loop nest around two forms of it,

    tile_rows :  C[i, j] (+)= sum_t sum_k A[t][i][k] * B[t][k][j]     A rows lie anywhere: one address per (t, i)
    tile_outer:  C[i, j] (+)= sum_t       A[t][i]    * B[t][j]        A columns are neighbours in memory

with MR rows and NV vectors of V floats of C held in registers, A broadcast one scalar at a time and B loaded as
vectors (the batch-reduce GEMM of Georganas et al. 2020, with the row pointers of Dukhan 2019, "The Indirect
Convolution Algorithm"). The IR names no instruction set: the same text becomes AVX-512, AVX2 or NEON code.

MR, NV and V come as literal integers, so that Numba's on-disk cache can find the compiled function again. Every
element of C is one chain of fused multiply-adds over (t, k) in ascending order, whatever the tile: results do not
depend on MR, NV or V.

All pointers are passed as integer addresses; strides are in bytes. Nothing is checked here.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .ahead import prefetch_line

_I64 = ir.IntType(64)
_F32 = ir.FloatType()
UNROLL = 16  # steps of k between two updates of the row addresses, which do not all fit into registers


class _Tile:
    """MR x NV accumulators: LLVM promotes the stack slots to registers."""

    def __init__(self, builder, rows, vectors, width):
        self.builder, self.rows, self.vectors, self.width = builder, rows, vectors, width
        self.vector = ir.VectorType(_F32, width)
        self.slots = [[cgutils.alloca_once(builder, self.vector) for _ in range(vectors)] for _ in range(rows)]
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{width}f32"
        self.fma_function = cgutils.get_or_insert_function(builder.module, signature, name)

    def pointer(self, address, offset_bytes=0):
        if offset_bytes:
            address = self.builder.add(address, ir.Constant(_I64, offset_bytes))
        return self.builder.inttoptr(address, self.vector.as_pointer())

    def load_b(self, address, offset_bytes=0):
        places = [self.pointer(address, offset_bytes + 4 * self.width * j) for j in range(self.vectors)]
        return [self.builder.load(place, align=4) for place in places]

    def broadcast(self, address, offset_bytes=0):
        builder = self.builder
        if offset_bytes:
            address = builder.add(address, ir.Constant(_I64, offset_bytes))
        scalar = builder.load(builder.inttoptr(address, _F32.as_pointer()), align=4)
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return builder.shuffle_vector(one, undefined, mask)

    def fma(self, row, a, b):
        for j, slot in enumerate(self.slots[row]):
            self.builder.store(self.builder.call(self.fma_function, [a, b[j], self.builder.load(slot)]), slot)

    def fill(self, addresses):
        for row, address in enumerate(addresses):
            for j, slot in enumerate(self.slots[row]):
                self.builder.store(self.builder.load(self.pointer(address, 4 * self.width * j), align=4), slot)

    def clear(self):
        zero = ir.Constant(self.vector, [0.0] * self.width)
        for row in self.slots:
            for slot in row:
                self.builder.store(zero, slot)

    def add(self, addresses):
        for row, address in enumerate(addresses):
            for j, slot in enumerate(self.slots[row]):
                there = self.builder.load(self.pointer(address, 4 * self.width * j), align=4)
                self.builder.store(self.builder.fadd(there, self.builder.load(slot)), slot)

    def flush(self, addresses):
        for row, address in enumerate(addresses):
            for j, slot in enumerate(self.slots[row]):
                self.builder.store(self.builder.load(slot), self.pointer(address, 4 * self.width * j), align=4)


def _literals(*values):
    return all(isinstance(value, types.IntegerLiteral) for value in values)


@intrinsic
def tile_rows(
    typing, mr, nv, width, rows, row_pitch, taps, depth, a_offset, b, b_pitch, out, out_offset, start, ahead, stride
):  # fmt: skip
    """C[i, :] = start (or C[i, :]) + sum over taps t and k < depth of A[t][i][k] * B[t][k][:].

    rows: address of int64[taps][row_pitch / 8], the addresses of the A rows; a_offset is added to each.
    b: address of B, taps b_pitch apart, [depth][NV * V] each. out: address of int64[MR], the addresses of the C
    rows; out_offset is added to each. start: address of NV * V floats to begin from, or 0 to accumulate onto C.
    ahead: each step of each tap asks for the next cache line from there on; stride: 64, or 0 to stay in place.
    """
    if not _literals(mr, nv, width):
        return None
    m, n, v = mr.literal_value, nv.literal_value, width.literal_value
    signature = types.void(mr, nv, width, *([types.int64] * 12))

    def codegen(context, builder, sig, args):
        rows_, pitch, taps_, depth_, a_off, b_, b_pitch_, out_, out_off, start_, ahead_, stride_ = args[3:]
        tile = _Tile(builder, m, n, v)

        def table(address, i):
            slot = builder.add(address, ir.Constant(_I64, 8 * i))
            return builder.load(builder.inttoptr(slot, _I64.as_pointer()))

        out_rows = [builder.add(table(out_, i), out_off) for i in range(m)]
        fresh = builder.icmp_signed("!=", start_, ir.Constant(_I64, 0))
        fetching = builder.icmp_signed("!=", stride_, ir.Constant(_I64, 0))
        tile.fill([builder.select(fresh, start_, address) for address in out_rows])
        with cgutils.for_range(builder, taps_) as tap:
            here = builder.add(rows_, builder.mul(tap.index, pitch))
            a_rows = [builder.add(table(here, i), a_off) for i in range(m)]
            b_tap = builder.add(b_, builder.mul(tap.index, b_pitch_))
            ahead_tap = builder.add(ahead_, builder.mul(builder.mul(tap.index, depth_), ir.Constant(_I64, 64)))

            def steps(first, count):
                """`count` steps of k from `first` on: the addresses are worked out once for all of them."""
                shift = builder.mul(first, ir.Constant(_I64, 4))
                rows_now = [builder.add(row, shift) for row in a_rows]
                b_first = builder.add(b_tap, builder.mul(first, ir.Constant(_I64, 4 * n * v)))
                with builder.if_then(fetching):  # a block of its own: between the sums it would cost registers
                    line = builder.add(ahead_tap, builder.mul(first, ir.Constant(_I64, 64)))
                    for u in range(count):
                        prefetch_line(builder, builder.add(line, ir.Constant(_I64, 64 * u)))
                for u in range(count):
                    b_now = tile.load_b(b_first, 4 * n * v * u)
                    for i in range(m):
                        tile.fma(i, tile.broadcast(rows_now[i], 4 * u), b_now)

            whole = builder.udiv(depth_, ir.Constant(_I64, UNROLL))
            with cgutils.for_range(builder, whole) as group:
                steps(builder.mul(group.index, ir.Constant(_I64, UNROLL)), UNROLL)
            with cgutils.for_range(builder, depth_, start=builder.mul(whole, ir.Constant(_I64, UNROLL))) as k:
                steps(k.index, 1)
        tile.flush(out_rows)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_outer(typing, mr, nv, width, rows, count, a_offset, b, out, out_pitch, skip, nowhere, fresh, ahead, stride):
    """C[i, :] = (0 if fresh else C[i, :]) + (sum over t < count of A[t][i] * B[t][:]).

    rows: address of int64[count], the addresses of the A columns; a_offset is added to each. b: address of B,
    [count][NV * V]. out: address of C, rows out_pitch apart; the first `skip` of them are left as they are (nowhere:
    address of NV * V floats that nobody reads), so that a last tile may reach back over its neighbour. C is asked for
    at the start and added at the end: it often comes from far away, and the sum need not wait for it. ahead, stride:
    as in tile_rows.
    """
    if not _literals(mr, nv, width):
        return None
    m, n, v = mr.literal_value, nv.literal_value, width.literal_value
    signature = types.void(mr, nv, width, *([types.int64] * 11))

    def codegen(context, builder, sig, args):
        rows_, count_, a_off, b_, out_, pitch, skip_, nowhere_, fresh_, ahead_, stride_ = args[3:]
        tile = _Tile(builder, m, n, v)
        out_rows = [builder.add(out_, builder.mul(pitch, ir.Constant(_I64, i))) for i in range(m)]
        left_out = [builder.icmp_signed("<", ir.Constant(_I64, i), skip_) for i in range(m)]
        out_rows = [builder.select(no, nowhere_, row) for no, row in zip(left_out, out_rows, strict=True)]
        tile.clear()
        for row in out_rows:
            for line in range(0, 4 * n * v, 64):
                prefetch_line(builder, builder.add(row, ir.Constant(_I64, line)), near=True)
        with cgutils.for_range(builder, count_) as t:
            slot = builder.add(rows_, builder.mul(t.index, ir.Constant(_I64, 8)))
            a_row = builder.add(builder.load(builder.inttoptr(slot, _I64.as_pointer())), a_off)
            b_now = tile.load_b(builder.add(b_, builder.mul(t.index, ir.Constant(_I64, 4 * n * v))))
            prefetch_line(builder, builder.add(ahead_, builder.mul(t.index, stride_)))
            for i in range(m):
                tile.fma(i, tile.broadcast(a_row, 4 * i), b_now)
        with builder.if_then(builder.icmp_signed("==", fresh_, ir.Constant(_I64, 0))):
            tile.add(out_rows)
        tile.flush(out_rows)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_block(typing, nv, width, source, target):
    """Copy NV * V floats from one address to another."""
    if not _literals(nv, width):
        return None
    vector = ir.VectorType(_F32, width.literal_value)

    def codegen(context, builder, sig, args):
        for j in range(nv.literal_value):
            shift = ir.Constant(_I64, 4 * j * width.literal_value)
            here, there = (builder.inttoptr(builder.add(a, shift), vector.as_pointer()) for a in args[2:])
            builder.store(builder.load(here, align=4), there, align=4)
        return context.get_dummy_value()

    return types.void(nv, width, types.int64, types.int64), codegen


@intrinsic
def transpose_square(typing, width, source, pitch, target, target_pitch):
    """target[i, j] = source[j, i], V x V floats: log2 V times, pairs of rows exchange the halves of their blocks."""
    if not _literals(width):
        return None
    v = width.literal_value
    vector = ir.VectorType(_F32, v)

    def codegen(context, builder, sig, args):
        def row(address, pitch, i):
            place = builder.add(address, builder.mul(pitch, ir.Constant(_I64, i)))
            return builder.inttoptr(place, vector.as_pointer())

        def mixed(a, b, lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), v), lanes))

        rows = [builder.load(row(args[1], args[2], i), align=4) for i in range(v)]
        step = 1
        while step < v:
            upper = [lane if lane & step == 0 else v + lane - step for lane in range(v)]
            lower = [lane + step if lane & step == 0 else v + lane for lane in range(v)]
            for i in (i for i in range(v) if i & step == 0):
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = mixed(a, b, upper), mixed(a, b, lower)
            step *= 2
        for i, value in enumerate(rows):
            builder.store(value, row(args[3], args[4], i), align=4)
        return context.get_dummy_value()

    return types.void(width, *([types.int64] * 4)), codegen


@intrinsic
def peek(typing, address):
    """The float32 at an address."""

    def codegen(context, builder, sig, args):
        return builder.load(builder.inttoptr(args[0], _F32.as_pointer()), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def poke(typing, address, value):
    """Store a float32 at an address."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], builder.inttoptr(args[0], _F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen
