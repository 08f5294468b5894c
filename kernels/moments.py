"""Mean and sum of squared deviations (M2) of the columns of some rows, and how those of all rows follow from them.

Two passes over the rows in float32 (mean, then M2); parts are merged in float64, in fixed order, with the formula of
Chan, Golub, LeVeque 1979. So the result depends neither on the thread count nor on a large mean: there is no
E[x^2] - E[x]^2.
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import F32, Lanes, number_type, strips, times
from ._jit import inlined, kernel
from .arch import V
from .number import FP32

AT_ONCE = 8  # vectors of columns


@inlined
def part_moments(x, first, pitch, rows, mean, m2):
    """mean[c], m2[c] of x[first + r * pitch + c] over r < rows; x is flat, of any Number."""
    item = x.itemsize
    column_moments(
        mean.size, x.ctypes.data + first * item, x.dtype, pitch * item, rows, mean.ctypes.data, m2.ctypes.data
    )


@intrinsic
def column_moments(typing, columns, x, kind, pitch, rows, mean, m2):
    """The same for rows from address x on, `pitch` bytes apart: some columns at a time.

    Their sums stay in registers, and their rows in the first-level cache for the second pass.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        columns_, x_, _, pitch_, rows_, mean_, m2_ = args
        for width, index in strips(builder, columns_, AT_ONCE * V, 4 * V, V):
            parts = max(1, width // V)
            lanes, stored = Lanes(builder, width // parts), Lanes(builder, width // parts, number)
            here, to = builder.add(x_, times(builder, index, number.bytes)), times(builder, index, FP32.bytes)
            count = lanes.splat(builder.sitofp(rows_, F32))
            rows = here, pitch_, rows_
            means = [builder.fdiv(total, count) for total in _sums(builder, stored, rows, [None] * parts)]
            squares = _sums(builder, stored, rows, means)
            for target, values in ((mean_, means), (m2_, squares)):
                for j, value in enumerate(values):
                    lanes.store(value, builder.add(target, to), j * lanes.bytes)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 2, kind, *[types.int64] * 4), codegen


def _sums(builder, stored, rows, means):
    """Of neighbouring vectors, one for each of `means`, over all rows: of the squares of what they differ by, or of
    the vectors themselves where a mean is None."""
    (here, pitch, many), sums = rows, [stored.variable(stored.constant(0)) for _ in means]
    with cgutils.for_range(builder, many) as loop:
        row = builder.add(here, builder.mul(loop.index, pitch))
        for j, (total, mean) in enumerate(zip(sums, means, strict=True)):
            value = stored.load(row, j * stored.bytes)
            if mean is not None:
                value = builder.fsub(value, mean)
                value = builder.fmul(value, value)
            builder.store(builder.fadd(builder.load(total), value), total)
    return [builder.load(total) for total in sums]


@kernel
def merge_moments(counts, partial, mean, var):
    """Mean and variance (C) from partial (parts, 2, n C), n pixels of C channels side by side, counts[i] rows of them.

    delta = mean_b - mean_a; mean += delta * n_b / n;
    M2 += M2_b + delta^2 * n_a * n_b / n; n = n_a + n_b.
    """
    channels, parts = mean.size, partial.shape[0]
    mean64, m64 = np.zeros(channels), np.zeros(channels)
    seen = 0
    for i in range(parts):
        for j in range(0, partial.shape[2], channels):
            share = counts[i] / (seen + counts[i])
            weight = seen * share
            for c in range(channels):
                delta = np.float64(partial[i, 0, j + c]) - mean64[c]
                mean64[c] += delta * share
                m64[c] += partial[i, 1, j + c] + delta * delta * weight
            seen += counts[i]
    for c in range(channels):
        mean[c] = mean64[c]
        var[c] = m64[c] / seen
