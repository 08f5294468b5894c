"""A row of pixels through batch norm, vector by vector: normalized, summed up for its gradient, or that gradient.

`table` and `factors` are addresses of rows of float32 coefficients, one of each number of the row of pixels and `pitch`
bytes apart, `sums` that of rows of sums. x, dy, y and the results are addresses of the row; what is absent is never
read. A result may lie where x, dy or y does. Nothing is checked here.
"""

from numba import types
from numba.extending import intrinsic

from ._ir import Strip, cases, number_type, strips, times
from .arch import V

AT_ONCE = 2 * V  # numbers
COEFFICIENTS = 3  # rows of a table, and of factors
MEAN, SCALE, SHIFT = range(COEFFICIENTS)  # of a table: normalized is (x - MEAN) * SCALE + SHIFT
OF_G, OF_X, REST = range(COEFFICIENTS)  # of factors: dx is g * OF_G + (x - MEAN) * OF_X + REST
ALL, WHERE_Y, WHERE_X = range(3)  # of dy is passed on: all; where y > 0; where the normalized x is
FRESH, ONTO, PAST = range(3)  # how a result is stored
_I64 = types.int64


class TableStrip(Strip):
    """With a table."""

    def __init__(self, builder, width, index, table, pitch):
        super().__init__(builder, width, index)
        self.table, self.pitch = table, pitch

    def row(self, number, table=None):
        """Of the table, or of another one."""
        return self.load(self.builder.add(table or self.table, times(self.builder, self.pitch, number)))

    def scaled(self, centred, table=None):
        """What is normalized, from x less its mean."""
        return self.lanes.fma(centred, self.row(SCALE, table), self.row(SHIFT, table))

    def normalized(self, x, table=None):
        """The same from x."""
        return self.scaled(self.builder.fsub(x, self.row(MEAN, table)), table)

    def at_least(self, low, value):
        """max(value, low); a NaN stays."""
        floor = self.lanes.splat(low)
        return self.builder.select(self.builder.fcmp_ordered("<", value, floor), floor, value)

    def add(self, value, address):
        self.store(self.builder.fadd(self.load(address), value), address)

    def sum(self, g, centred, sum_g, sum_gx):
        """sum_g += g, sum_gx += g * (x - mean)."""
        self.add(g, sum_g)
        self.store(self.lanes.fma(g, centred, self.load(sum_gx)), sum_gx)

    def passed(self, mask, x, y, dy):
        """What of dy is passed on; x: less its mean."""
        if mask == ALL:
            return dy
        test = y if mask == WHERE_Y else self.scaled(x)
        zero = self.lanes.constant(0)
        return self.builder.select(self.builder.fcmp_ordered(">", test, zero), dy, zero)

    def gradient(self, mask, x, y, dy):
        """x less its mean, and what of dy is passed on; (address, Number) each."""
        centred = self.builder.fsub(self.load(*x), self.row(MEAN))
        return centred, self.passed(mask, centred, self.load(*y) if mask == WHERE_Y else None, self.load(*dy))


@intrinsic
def normalize_row(typing, count, x, kind, added, residual, table, beside, pitch, low, y, y_kind, past):
    """y = max(normalized x + residual, low).

    added: 0, there is no residual; 1, it is added as it is; 2, normalized, by the table `beside`.
    """
    read, written = number_type(kind), number_type(y_kind)

    def codegen(context, builder, sig, args):
        n, x_, _, added_, residual_, table_, beside_, pitch_, low_, y_, _, past_ = args
        for adds, goes_past in cases(builder, (added_, 3), (past_, 2)):
            for width, index in strips(builder, n, AT_ONCE):
                strip = TableStrip(builder, width, index, table_, pitch_)
                value = strip.normalized(strip.load(x_, read))
                if adds:
                    more = strip.load(residual_, read)
                    if adds == 2:
                        more = strip.normalized(more, beside_)
                    value = builder.fadd(value, more)
                strip.store(strip.at_least(low_, value), y_, written, past=goes_past)
        return context.get_dummy_value()

    signature = types.void(_I64, _I64, kind, *[_I64] * 5, types.float32, _I64, y_kind, _I64)
    return signature, codegen


@intrinsic
def sum_row(typing, count, x, kind, y, dy, dy_kind, mask, table, pitch, sum_g, sum_gx, kept, result):
    """sum_g += g, sum_gx += g * (x - mean), g = what of dy is passed on; kept: whether g is also stored at `result`."""
    of_x, of_dy = number_type(kind), number_type(dy_kind)

    def codegen(context, builder, sig, args):
        n, x_, _, y_, dy_, _, mask_, table_, pitch_, sum_g_, sum_gx_, kept_, result_ = args
        for masks, keeps in cases(builder, (mask_, 3), (kept_, 2)):
            for width, index in strips(builder, n, AT_ONCE):
                strip = TableStrip(builder, width, index, table_, pitch_)
                centred, g = strip.gradient(masks, (x_, of_x), (y_, of_x), (dy_, of_dy))
                if keeps:
                    strip.store(g, result_, of_dy)  # exact: what dy has, or zero
                strip.sum(g, centred, sum_g_, sum_gx_)
        return context.get_dummy_value()

    return types.void(_I64, _I64, kind, _I64, _I64, dy_kind, *[_I64] * 7), codegen


@intrinsic
def pass_row(typing, count, dy, x, y, kind, by_x, table, pitch, sum_g, sum_gx, result, how):
    """result = g = what of dy, float32, is passed on, WHERE_Y or, with by_x, WHERE_X; sums as in `sum_row`.

    how: FRESH; ONTO: what stands at `result` is added to dy first; or PAST the caches.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        n, dy_, x_, y_, _, by_x_, table_, pitch_, sum_g_, sum_gx_, result_, how_ = args
        for by_xs, hows in cases(builder, (by_x_, 2), (how_, 3)):
            for width, index in strips(builder, n, AT_ONCE, V):
                strip = TableStrip(builder, width, index, table_, pitch_)
                given = strip.load(dy_)
                if hows == ONTO:
                    given = builder.fadd(strip.load(result_, number), given)
                centred = builder.fsub(strip.load(x_, number), strip.row(MEAN))
                mask, above = (WHERE_X, None) if by_xs else (WHERE_Y, strip.load(y_, number))
                g = strip.passed(mask, centred, above, given)
                strip.store(g, result_, number, past=hows == PAST)
                strip.sum(g, centred, sum_g_, sum_gx_)
        return context.get_dummy_value()

    return types.void(*[_I64] * 4, kind, *[_I64] * 7), codegen


@intrinsic
def gradient_row(typing, count, x, kind, dy, dy_kind, by_x, table, factors, pitch, dx, dx_kind, past):
    """dx = g * OF_G + (x - mean) * OF_X + REST, g = dy or, with by_x, what of it is passed on WHERE_X."""
    of_x, of_dy, written = number_type(kind), number_type(dy_kind), number_type(dx_kind)

    def codegen(context, builder, sig, args):
        n, x_, _, dy_, _, by_x_, table_, factors_, pitch_, dx_, _, past_ = args
        for by_xs, goes_past in cases(builder, (by_x_, 2), (past_, 2)):
            for width, index in strips(builder, n, AT_ONCE):
                strip = TableStrip(builder, width, index, table_, pitch_)
                centred, g = strip.gradient(WHERE_X if by_xs else ALL, (x_, of_x), None, (dy_, of_dy))
                rest = strip.lanes.fma(centred, strip.row(OF_X, factors_), strip.row(REST, factors_))
                strip.store(strip.lanes.fma(g, strip.row(OF_G, factors_), rest), dx_, written, past=goes_past)
        return context.get_dummy_value()

    return types.void(_I64, _I64, kind, _I64, dy_kind, *[_I64] * 5, dx_kind, _I64), codegen
