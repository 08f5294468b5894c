"""Maximum pooling; windows, letters and who owns what: see `pool`. Forward notes where each maximum was."""

from functools import partial
from itertools import product

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import I8, I32, I64, Strip, cases, number_type, strips, times
from ._jit import inlined, kernel
from ._shapes import NOTHING, check_array, check_columns, check_input
from .affine import COEFFICIENTS, TableStrip
from .ahead import DISTANCE, ask
from .arch import V
from .pool import NOWHERE, check_windows, covering
from .store import goes_past


def _walks(builder, window, spelled, choice):
    """A branch for each size of a window (rows, columns) that is `spelled` out, one for the others, by a choice each.

    Yields in each a function that calls look(r, s) for every place of the window, and what the choice is.
    """
    rows, columns = window
    other = ir.Constant(ir.IntType(1), 1)
    for down, across in spelled:
        met = builder.and_(builder.icmp_signed("==", rows, I64(down)), builder.icmp_signed("==", columns, I64(across)))
        other = builder.and_(other, builder.not_(met))
        with builder.if_then(met):
            for (chosen,) in cases(builder, choice):
                yield partial(_spelled_out, range(down), range(across)), chosen
    with builder.if_then(other):
        for (chosen,) in cases(builder, choice):
            yield partial(_loop, builder, rows, columns), chosen


def _spelled_out(rows, columns, look):
    for r, s in product(rows, columns):
        look(I64(r), I64(s))


def _loop(builder, rows, columns, look):
    with cgutils.for_range(builder, rows) as r, cgutils.for_range(builder, columns) as s:
        look(r.index, s.index)


@intrinsic
def _largest(typing, channels, kind, window, first, size, rectified, table, low, y, argmax):
    """y = the maxima over a window of pixels and argmax = where they are, C numbers each; y, argmax: addresses.

    window: address of its first pixel, rows and columns inside the image, bytes from row to row and to the next pixel.
    first: the place of that pixel in a whole window, `size` places a row. table: address and pitch of the one that
    normalizes pixels before they are compared, to `low` at least; address 0: nothing does.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        channels_, _, window_, first_, size_, rectified_, table_, low_, y_, argmax_ = args
        pixels, (table_, pitch) = cgutils.unpack_tuple(builder, window_), cgutils.unpack_tuple(builder, table_)
        rectifies = builder.icmp_signed("!=", rectified_, I64(0))
        given = builder.zext(builder.icmp_signed("!=", table_, I64(0)), I64)
        for walk, normalizes in _walks(builder, pixels[1:3], [(3, 3)], (given, 2)):
            for width, index in strips(builder, channels_, 2 * V, V):
                strip = TableStrip(builder, width, index, table_, pitch)
                low = low_ if normalizes else None
                value, found = _maximum(strip, walk, pixels, number, low, first_, size_)
                positive = builder.fcmp_ordered(">", value, strip.lanes.constant(0))
                passed = builder.select(positive, found, ir.Constant(found.type, [NOWHERE] * width))
                narrow = builder.trunc(builder.select(rectifies, passed, found), ir.VectorType(I8, width))
                strip.store(value, y_, number)
                there = builder.inttoptr(builder.add(argmax_, index), narrow.type.as_pointer())
                builder.store(narrow, there, align=1)
        return context.get_dummy_value()

    pair = types.UniTuple(types.int64, 2)
    others = types.int64, types.int64, types.int64, pair, types.float32, types.int64, types.int64
    return types.void(types.int64, kind, types.UniTuple(types.int64, 5), *others), codegen


def _maximum(strip, walk, pixels, number, low, first, size):
    """The largest of a window's pixels, normalized to `low` at least if that is given, and the first one's place."""
    builder, (x, _, _, row_pitch, pitch) = strip.builder, pixels
    wide = ir.VectorType(I32, strip.width)
    best = strip.lanes.variable(strip.lanes.constant(-np.inf))
    places = cgutils.alloca_once_value(builder, ir.Constant(wide, [0] * strip.width))

    def look(r, s):
        here = builder.add(builder.mul(r, row_pitch), builder.mul(s, pitch))
        place = builder.add(first, builder.add(builder.mul(r, size), s))
        value, old = strip.load(builder.add(x, here), number), builder.load(best)
        value = strip.at_least(low, strip.normalized(value)) if low is not None else value
        is_nan = builder.fcmp_unordered("uno", value, value)  # it wins, and stays
        take = builder.or_(builder.fcmp_ordered(">", value, old), is_nan)
        place = strip.lanes.splat(builder.trunc(place, I32))
        builder.store(builder.select(take, value, old), best)
        builder.store(builder.select(take, place, builder.load(places)), places)

    walk(look)
    return builder.load(best), builder.load(places)


@inlined
def _maxpool_row(p, x, window, rectified, table, low, y, argmax):
    # x (H,W,C) one image; y, argmax (Q,C) its row p
    size, stride, pad = window
    h, channels, by = p * stride - pad, x.shape[2], (table.ctypes.data if table.size else 0, table.strides[0])
    top, bottom = max(h, 0), min(h + size, x.shape[0])
    for q in range(y.shape[0]):
        w = q * stride - pad
        left, right = max(w, 0), min(w + size, x.shape[1])
        here = x.ctypes.data + top * x.strides[0] + left * x.strides[1]
        pixels = here, bottom - top, right - left, x.strides[0], x.strides[1]
        first = (top - h) * size + left - w
        to, places = y.ctypes.data + q * y.strides[0], argmax.ctypes.data + q * argmax.strides[0]
        for r in range(bottom - top):
            ask(here + r * x.strides[0] + DISTANCE, stride * x.strides[1])
        _largest(channels, x.dtype, pixels, first, size, rectified, by, low, to, places)


@kernel(parallel=True)
def _maxpool_forward(x, window, rectified, table, low, y, argmax):
    for i in numba.prange(y.shape[0] * y.shape[1]):
        n, p = divmod(np.int64(i), y.shape[1])
        _maxpool_row(p, x[n], window, rectified, table, low, y[n, p], argmax[n, p])


def maxpool_forward(x, size, stride, pad, y, argmax, rectified=False, table=None, relu=False):
    """y[n,p,q,c] = max over (r, s) of x[n,h,w,c]; argmax = r*size + s of the first maximum. Padding never wins.

    rectified: x is the output of a ReLU, whose gradient backward shall give: argmax is NOWHERE where y is not positive.
    table: by `batchnorm_statistics`, of the batch norm, with a ReLU if `relu`, whose output is pooled: it is worked out
    from x where it is read, in float32, and not stored.

    x : (N,H,W,C) and y : (N,P,Q,C) of one Number, argmax : (N,P,Q,C) uint8, both overwritten
    Cost: size**2 comparisons an element of y, each with 4 flops more if there is a table; reads x, writes y, argmax.
    Raises: TypeError, ValueError. Twin: reference.maxpool_forward.
    """
    check_input("maxpool: x", x, 4)
    check_windows("maxpool: y", x.shape, y, size, stride, pad, x)
    check_array("maxpool: argmax", argmax, y.shape, np.uint8)
    if table is not None:
        check_columns("maxpool: table", table, (COEFFICIENTS,), x.shape[3])
    table, low = NOTHING.reshape(0, 1) if table is None else table, np.float32(0 if relu else -np.inf)
    _maxpool_forward(x, (size, stride, pad), int(rectified), table, low, y, argmax)


@intrinsic
def _gathered(typing, channels, kind, windows, first, row_step, step, dx, past):
    """dx = the sum of dy over the windows around a pixel whose maximum was there, C numbers; dx: an address.

    windows: addresses of dy and argmax of the first one, rows and columns of windows, numbers from row to row and to
    the next window. first: the place of the pixel in the first window; row_step, step: how much less it is in the next.
    Up to 2 x 2 windows, as there are where the stride is half a window or more, are spelled out.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        channels_, _, windows_, first_, row_step_, step_, dx_, past_ = args
        dy_, argmax_, rows, columns, row_pitch, pitch = cgutils.unpack_tuple(builder, windows_)
        for walk, beyond in _walks(builder, (rows, columns), product((1, 2), (1, 2)), (past_, 2)):
            for width, index in strips(builder, channels_, 2 * V, V):
                strip = Strip(builder, width, index)
                zero = strip.lanes.constant(0)
                total = strip.lanes.variable(zero)

                def look(p, q, strip=strip, zero=zero, total=total):
                    window = builder.add(builder.mul(p, row_pitch), builder.mul(q, pitch))
                    gradient = strip.load(builder.add(dy_, times(builder, window, number.bytes)), number)
                    places = ir.VectorType(I8, strip.width).as_pointer()
                    there = builder.inttoptr(builder.add(argmax_, builder.add(window, strip.index)), places)
                    less = builder.add(builder.mul(p, row_step_), builder.mul(q, step_))
                    place = strip.lanes.splat(builder.trunc(builder.sub(first_, less), I8))
                    met = builder.icmp_unsigned("==", builder.load(there, align=1), place)
                    builder.store(builder.fadd(builder.load(total), builder.select(met, gradient, zero)), total)

                walk(look)
                strip.store(builder.load(total), dx_, number, past=beyond)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.UniTuple(types.int64, 6), *[types.int64] * 5), codegen


@inlined
def _maxpool_backward_row(h, dy, argmax, size, stride, pad, dx, past):
    # dy, argmax (P,Q,C) one image; dx (W,C) its row h
    p0, p1 = covering(h, size, stride, pad, dy.shape[0])
    channels, row = dx.shape[1], dy.shape[1] * dx.shape[1]
    for w in range(dx.shape[0]):
        q0, q1 = covering(w, size, stride, pad, dy.shape[1])
        number = p0 * row + q0 * channels
        here, places = dy.ctypes.data + number * dy.itemsize, argmax.ctypes.data + number
        windows = np.int64(here), np.int64(places), p1 - p0, q1 - q0, np.int64(row), np.int64(channels)
        first = (h + pad - p0 * stride) * size + w + pad - q0 * stride
        _gathered(
            channels, dx.dtype, windows, first, stride * size, stride, dx.ctypes.data + w * dx.strides[0],
            np.int64(past),
        )  # fmt: skip


@kernel(parallel=True)
def _maxpool_backward(dy, argmax, size, stride, pad, dx, past):
    for i in numba.prange(dx.shape[0] * dx.shape[1]):
        n, h = divmod(np.int64(i), dx.shape[1])
        _maxpool_backward_row(h, dy[n], argmax[n], size, stride, pad, dx[n, h], past)


def maxpool_backward(dy, argmax, size, stride, pad, dx):
    """dx[n,h,w,c] = sum of dy over the windows whose maximum was there; dx (N,H,W,C) overwritten.

    Cost: (size/stride)**2 flops an element of dx; reads dy, argmax, writes dx.
    Raises: TypeError, ValueError. Twin: reference.maxpool_backward.
    """
    check_input("maxpool: dx", dx, 4)
    check_windows("maxpool: dy", dx.shape, dy, size, stride, pad, dx)
    check_array("maxpool: argmax", argmax, dy.shape, np.uint8)
    _maxpool_backward(dy, argmax, size, stride, pad, dx, goes_past(dx, dx.shape[3]))
