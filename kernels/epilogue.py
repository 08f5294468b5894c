"""What becomes of a tile of sums of a convolution, BLOCK channels of some rows, while it lies in the first-level cache.

Its rows and those of the result have tables: offsets within the tile, and addresses. What is gathered over the rows, or
is one number for each channel, stays in registers. Results in bf16 are rounded by an instruction of the CPUs that have
tiles: denormals become zeros. Nothing is checked here.
"""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import F32, I64, Lanes, cases, load_address, number_type, times
from .affine import MEAN, ONTO, PAST, SCALE, SHIFT
from .arch import NV, V
from .dot import Dot2
from .number import BF16, FP32

_I64 = types.int64
REFERENCE, SUM, SQUARES = range(3)  # rows of what is gathered for moments


class _Rows:
    """A loop over rows, NV vectors of each at once."""

    def __init__(self, builder, tile, number):
        self.builder, self.lanes, self.stored = builder, Lanes(builder, V), Lanes(builder, V, number)
        self.c, self.rows, self.outs, self.count, self.shift = tile

    def row(self, index):
        """The sums of a row, and where its result is."""
        entry = times(self.builder, index, 8)
        c, out = (load_address(self.builder, self.builder.add(table, entry), 0) for table in (self.rows, self.outs))
        return self.vectors(self.builder.add(self.c, c)), self.builder.add(out, self.shift)

    def vectors(self, address, number=FP32):
        lanes = self.lanes if number is FP32 else self.stored
        return [lanes.load(address, j * lanes.bytes) for j in range(NV)]

    def variables(self, address):
        return [self.lanes.variable(value) for value in self.vectors(address)]

    def keep(self, variables, address):
        for j, variable in enumerate(variables):
            self.lanes.store(self.builder.load(variable), address, j * self.lanes.bytes)

    def add(self, variable, value, factor=None):
        """variable += value, or value * factor."""
        old = self.builder.load(variable)
        new = self.builder.fadd(old, value) if factor is None else self.lanes.fma(value, factor, old)
        self.builder.store(new, variable)

    def onto(self, values, out, how):
        """The values, with what is there already added where that is asked for."""
        if how != ONTO:
            return values
        old = self.vectors(out, self.stored.number)
        return [self.builder.fadd(one, value) for one, value in zip(old, values, strict=True)]

    def store(self, values, out, how):
        """A row; of bf16 it is a line, which the processor can store past the caches."""
        if self.stored.number is BF16:
            return self.lanes.store_bits(Dot2(self.builder, V).narrow(*values), out, past=how == PAST)
        for j, value in enumerate(values):
            self.stored.store(value, out, j * self.stored.bytes, past=how == PAST)


@intrinsic
def store_tile(typing, c, rows, outs, count, shift, kind, how, bias, low, moments, pitch, first):
    """Result = max(C + bias, low), for `count` rows; how: FRESH, ONTO what is there, PAST the caches.

    moments: 0, or the address of three rows of a number for each channel, `pitch` bytes apart: the mean of the results
    in the `first` tile of several, and what those of all tiles differ by from it, summed up, and squared. So mean and
    M2 follow from one pass: the mean of a part of some numbers is as near to theirs as they are, so nothing cancels.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        c_, rows_, outs_, count_, shift_, _, how_, bias_, low_, moments_, pitch_, first_ = args
        is_told = builder.icmp_signed("!=", moments_, I64(0))
        told = builder.zext(is_told, I64)
        tile = _Rows(builder, (c_, rows_, outs_, count_, shift_), number)
        floor = tile.lanes.splat(low_)

        def results(index):
            values, out = tile.row(index)
            sums = [builder.fadd(value, more) for value, more in zip(values, tile.vectors(bias_), strict=True)]
            return [builder.select(builder.fcmp_ordered("<", one, floor), floor, one) for one in sums], out

        places = [moments_, builder.add(moments_, pitch_), builder.add(moments_, times(builder, pitch_, 2))]
        with builder.if_then(builder.and_(builder.icmp_signed("!=", first_, I64(0)), is_told)):
            zero = tile.lanes.constant(0)
            means = [tile.lanes.variable(zero) for _ in range(NV)]
            with cgutils.for_range(builder, count_) as loop:
                for mean, value in zip(means, results(loop.index)[0], strict=True):
                    tile.add(mean, value)
            many = tile.lanes.splat(builder.sitofp(count_, F32))
            for mean in means:
                builder.store(builder.fdiv(builder.load(mean), many), mean)
            tile.keep(means, places[0])
            for place in places[1:]:
                tile.keep([tile.lanes.variable(zero)] * NV, place)
        for hows, tells in cases(builder, (how_, 3), (told, 2)):
            if tells:
                reference, sums, squares = (tile.vectors(places[0]), *map(tile.variables, places[1:]))
            with cgutils.for_range(builder, count_) as loop:
                values, out = results(loop.index)
                tile.store(tile.onto(values, out, hows), out, hows)
                for j, value in enumerate(values if tells else ()):
                    apart = builder.fsub(value, reference[j])
                    tile.add(sums[j], apart)
                    tile.add(squares[j], apart, apart)
            if tells:
                tile.keep(sums, places[1])
                tile.keep(squares, places[2])
        return context.get_dummy_value()

    return types.void(*[_I64] * 5, kind, _I64, _I64, types.float32, _I64, _I64, _I64), codegen


@intrinsic
def pass_tile(typing, c, rows, outs, count, shift, kind, how, x, y, table, pitch, sum_g, sum_gx):
    """Result = g = what of C a batch norm with ReLU passes on, for `count` rows; sum_g += g, sum_gx += g * (x - mean).

    x, y: how far from the result the input and the output of that batch norm lie; y: 0 if the mask follows from x.
    table, pitch: as in `affine`; how: as in `store_tile`, what is there is added to C first.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        c_, rows_, outs_, count_, shift_, _, how_, x_, y_, table_, pitch_, sum_g_, sum_gx_ = args
        tile = _Rows(builder, (c_, rows_, outs_, count_, shift_), number)
        lanes, zero = tile.lanes, tile.lanes.constant(0)
        by_y = builder.zext(builder.icmp_signed("!=", y_, I64(0)), I64)
        places = (builder.add(table_, times(builder, pitch_, row)) for row in (MEAN, SCALE, SHIFT))
        mean, scale, above = map(tile.vectors, places)
        for hows, by_ys in cases(builder, (how_, 3), (by_y, 2)):
            sums, products = tile.variables(sum_g_), tile.variables(sum_gx_)
            with cgutils.for_range(builder, count_) as loop:
                values, out = tile.row(loop.index)
                seen = tile.vectors(builder.add(out, x_), number)
                tests = tile.vectors(builder.add(out, y_), number) if by_ys else None
                values = tile.onto(values, out, hows)
                for j, value in enumerate(values):
                    centred = builder.fsub(seen[j], mean[j])
                    test = tests[j] if by_ys else lanes.fma(centred, scale[j], above[j])
                    values[j] = g = builder.select(builder.fcmp_ordered(">", test, zero), value, zero)
                    tile.add(sums[j], g)
                    tile.add(products[j], g, centred)
                tile.store(values, out, hows)
            tile.keep(sums, sum_g_)
            tile.keep(products, sum_gx_)
        return context.get_dummy_value()

    return types.void(*[_I64] * 5, kind, *[_I64] * 7), codegen
