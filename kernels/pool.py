"""Maximum, average and global average pooling of x (N,H,W,C) to y (N,P,Q,C); channels are the vector axis.

Windows are size x size, floor mode: one that sticks out behind the padding is not taken. Forward: a thread owns rows
of y. Backward gathers instead of scattering: a thread owns rows of dx and reads the windows that cover them, so no
two threads write the same place and the order of the sums is fixed.
Innermost loops stand in place and index whole images: a view of each pixel, or a call with one, would count references
atomically, in a cache line that all threads share.
Letters: (r, s) a place in the window at (p, q), h = p*stride - pad + r, w = q*stride - pad + s.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import I8, I32, Strip, cases, number_type, strips, times
from ._jit import inlined, kernel
from ._shapes import check_array, check_input, check_tensor, output_size
from .ahead import DISTANCE, ask
from .arch import V
from .element import widen
from .store import goes_past, store_row

NOWHERE = 255  # in place of where a maximum was: its gradient goes to nobody


def _check(name, x_shape, y, size, stride, pad):
    """Checks y (or dy) against the input shape (N,H,W,C)."""
    n, h, w, c = x_shape
    if pad >= size or size * size > NOWHERE:
        raise ValueError(f"{name}: found size {size}, pad {pad}, expected pad < size <= 15: correct the layer")
    check_tensor(name, y, (n, output_size(h, size, stride, pad), output_size(w, size, stride, pad), c))


@inlined
def _covering(place, size, stride, pad, outputs):
    """First and one past the last window along one axis that covers `place`."""
    first = max(0, (place + pad - size + stride) // stride)
    return first, min(outputs, (place + pad) // stride + 1)


@inlined
def _store(source, y, q, past=False):
    """Row q of y (.., C) = C floats at an address."""
    store_row(source, y.shape[1], y.dtype, y.ctypes.data + q * y.strides[0], False, past)


@inlined
def _scale(factor, sums):
    for c in range(sums.size):
        sums[c] *= factor


# ---- maximum -------------------------------------------------------------------------------------------------


@intrinsic
def _largest(typing, channels, kind, window, first, size, rectified, y, argmax):
    """y = the maxima over a window of pixels and argmax = where they are, C numbers each; y, argmax: addresses.

    window: address of its first pixel, rows and columns inside the image, bytes from row to row and to the next pixel.
    first: the place of that pixel in a whole window, `size` places a row.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        channels_, _, window_, first_, size_, rectified_, y_, argmax_ = args
        x_, rows, columns, row_pitch, pitch = cgutils.unpack_tuple(builder, window_)
        for width, index in strips(builder, channels_, 2 * V, V):
            strip, wide = Strip(builder, width, index), ir.VectorType(I32, width)
            lowest, start = strip.lanes.constant(-np.inf), ir.Constant(wide, [0] * width)
            best, places = strip.lanes.variable(lowest), cgutils.alloca_once_value(builder, start)
            with cgutils.for_range(builder, rows) as r, cgutils.for_range(builder, columns) as s:
                here = builder.add(builder.mul(r.index, row_pitch), builder.mul(s.index, pitch))
                place = builder.add(first_, builder.add(builder.mul(r.index, size_), s.index))
                value, old = strip.load(builder.add(x_, here), number), builder.load(best)
                is_nan = builder.fcmp_unordered("uno", value, value)  # it wins, and stays
                take = builder.or_(builder.fcmp_ordered(">", value, old), is_nan)
                place = strip.lanes.splat(builder.trunc(place, I32))
                builder.store(builder.select(take, value, old), best)
                builder.store(builder.select(take, place, builder.load(places)), places)
            value, found = builder.load(best), builder.load(places)
            positive = builder.fcmp_ordered(">", value, strip.lanes.constant(0))
            passed = builder.select(positive, found, ir.Constant(wide, [NOWHERE] * width))
            found = builder.select(builder.icmp_signed("!=", rectified_, rectified_.type(0)), passed, found)
            strip.store(value, y_, number)
            narrow = builder.trunc(found, ir.VectorType(I8, width))
            there = builder.inttoptr(builder.add(argmax_, index), narrow.type.as_pointer())
            builder.store(narrow, there, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.UniTuple(types.int64, 5), *[types.int64] * 5), codegen


@inlined
def _maxpool_row(p, x, size, stride, pad, rectified, y, argmax):
    # x (H,W,C) one image; y, argmax (Q,C) its row p
    h, channels = p * stride - pad, x.shape[2]
    top, bottom = max(h, 0), min(h + size, x.shape[0])
    for q in range(y.shape[0]):
        w = q * stride - pad
        left, right = max(w, 0), min(w + size, x.shape[1])
        here = x.ctypes.data + top * x.strides[0] + left * x.strides[1]
        window = here, bottom - top, right - left, x.strides[0], x.strides[1]
        first = (top - h) * size + left - w
        to, places = y.ctypes.data + q * y.strides[0], argmax.ctypes.data + q * argmax.strides[0]
        for r in range(bottom - top):
            ask(here + r * x.strides[0] + DISTANCE, stride * x.strides[1])
        _largest(channels, x.dtype, window, first, size, rectified, to, places)


@kernel(parallel=True)
def _maxpool_forward(x, size, stride, pad, rectified, y, argmax):
    for i in numba.prange(y.shape[0] * y.shape[1]):
        n, p = divmod(np.int64(i), y.shape[1])
        _maxpool_row(p, x[n], size, stride, pad, rectified, y[n, p], argmax[n, p])


def maxpool_forward(x, size, stride, pad, y, argmax, rectified=False):
    """y[n,p,q,c] = max over (r, s) of x[n,h,w,c]; argmax = r*size + s of the first maximum. Padding never wins.

    rectified: x is the output of a ReLU, whose gradient backward shall give: argmax is NOWHERE where y is not positive.

    x : (N,H,W,C) and y : (N,P,Q,C) of a Number, argmax : (N,P,Q,C) uint8, both overwritten
    Cost: size**2 comparisons an element of y; reads x, writes y, argmax.
    Raises: TypeError, ValueError. Twin: reference.maxpool_forward.
    """
    check_input("maxpool: x", x, 4)
    _check("maxpool: y", x.shape, y, size, stride, pad)
    check_array("maxpool: argmax", argmax, y.shape, np.uint8)
    _maxpool_forward(x, size, stride, pad, int(rectified), y, argmax)


@intrinsic
def _gathered(typing, channels, kind, windows, first, row_step, step, dx, past):
    """dx = the sum of dy over the windows around a pixel whose maximum was there, C numbers; dx: an address.

    windows: addresses of dy and argmax of the first one, rows and columns of windows, numbers from row to row and to
    the next window. first: the place of the pixel in the first window; row_step, step: how much less it is in the next.
    """
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        channels_, _, windows_, first_, row_step_, step_, dx_, past_ = args
        dy_, argmax_, rows, columns, row_pitch, pitch = cgutils.unpack_tuple(builder, windows_)
        for (beyond,) in cases(builder, (past_, 2)):
            for width, index in strips(builder, channels_, 2 * V, V):
                strip = Strip(builder, width, index)
                zero = strip.lanes.constant(0)
                total = strip.lanes.variable(zero)
                with cgutils.for_range(builder, rows) as p, cgutils.for_range(builder, columns) as q:
                    window = builder.add(builder.mul(p.index, row_pitch), builder.mul(q.index, pitch))
                    gradient = strip.load(builder.add(dy_, times(builder, window, number.bytes)), number)
                    places = ir.VectorType(I8, width).as_pointer()
                    there = builder.inttoptr(builder.add(argmax_, builder.add(window, index)), places)
                    less = builder.add(builder.mul(p.index, row_step_), builder.mul(q.index, step_))
                    place = strip.lanes.splat(builder.trunc(builder.sub(first_, less), I8))
                    met = builder.icmp_unsigned("==", builder.load(there, align=1), place)
                    builder.store(builder.fadd(builder.load(total), builder.select(met, gradient, zero)), total)
                strip.store(builder.load(total), dx_, number, past=beyond)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.UniTuple(types.int64, 6), *[types.int64] * 5), codegen


@inlined
def _maxpool_backward_row(h, dy, argmax, size, stride, pad, dx, past):
    # dy, argmax (P,Q,C) one image; dx (W,C) its row h
    p0, p1 = _covering(h, size, stride, pad, dy.shape[0])
    channels, row = dx.shape[1], dy.shape[1] * dx.shape[1]
    for w in range(dx.shape[0]):
        q0, q1 = _covering(w, size, stride, pad, dy.shape[1])
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
    _check("maxpool: dy", dx.shape, dy, size, stride, pad)
    check_array("maxpool: argmax", argmax, dy.shape, np.uint8)
    _maxpool_backward(dy, argmax, size, stride, pad, dx, goes_past(dx, dx.shape[3]))


# ---- average -------------------------------------------------------------------------------------------------


@inlined
def _avgpool_row(p, x, size, stride, pad, y):
    # x (H,W,C) one image; y (Q,C) its row p
    h0, w0, sums = p * stride - pad, -pad, np.empty(y.shape[1], np.float32)
    for q in range(y.shape[0]):
        sums[:] = 0
        for h in range(max(h0, 0), min(h0 + size, x.shape[0])):
            for w in range(max(w0, 0), min(w0 + size, x.shape[1])):
                for c in range(sums.size):
                    sums[c] += widen(x[h, w, c])
        _scale(np.float32(1 / (size * size)), sums)
        _store(sums.ctypes.data, y, q)
        w0 += stride


@kernel(parallel=True)
def _avgpool_forward(x, size, stride, pad, y):
    for i in numba.prange(y.shape[0] * y.shape[1]):
        n, p = divmod(np.int64(i), y.shape[1])
        _avgpool_row(p, x[n], size, stride, pad, y[n, p])


def avgpool_forward(x, size, stride, pad, y):
    """y[n,p,q,c] = sum over (r, s) of x[n,h,w,c] / size**2, padding counted as zeros; y (N,P,Q,C) overwritten.

    Cost: size**2 + 1 flops an element of y; reads x, writes y.
    Raises: TypeError, ValueError. Twin: reference.avgpool_forward.
    """
    check_input("avgpool: x", x, 4)
    _check("avgpool: y", x.shape, y, size, stride, pad)
    _avgpool_forward(x, size, stride, pad, y)


@inlined
def _avgpool_backward_row(h, dy, size, stride, pad, dx):
    # dy (P,Q,C) one image; dx (W,C) its row h
    p0, p1 = _covering(h, size, stride, pad, dy.shape[0])
    sums = np.empty(dx.shape[1], np.float32)
    for w in range(dx.shape[0]):
        sums[:] = 0
        q0, q1 = _covering(w, size, stride, pad, dy.shape[1])
        for p in range(p0, p1):
            for q in range(q0, q1):
                for c in range(sums.size):
                    sums[c] += widen(dy[p, q, c])
        _scale(np.float32(1 / (size * size)), sums)
        _store(sums.ctypes.data, dx, w)


@kernel(parallel=True)
def _avgpool_backward(dy, size, stride, pad, dx):
    for i in numba.prange(dx.shape[0] * dx.shape[1]):
        n, h = divmod(np.int64(i), dx.shape[1])
        _avgpool_backward_row(h, dy[n], size, stride, pad, dx[n, h])


def avgpool_backward(dy, size, stride, pad, dx):
    """dx[n,h,w,c] = sum of dy over the windows that cover it / size**2; dx (N,H,W,C) overwritten.

    Cost: (size/stride)**2 + 1 flops an element of dx; reads dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.avgpool_backward.
    """
    check_input("avgpool: dx", dx, 4)
    _check("avgpool: dy", dx.shape, dy, size, stride, pad)
    _avgpool_backward(dy, size, stride, pad, dx)


# ---- global average: x read as (N, H*W, C), a thread owns an image ----------------------------------------------


@inlined
def _mean_of_rows(x, y):
    sums = np.zeros(x.shape[1], np.float32)
    for i in range(x.shape[0]):
        for c in range(sums.size):
            sums[c] += widen(x[i, c])
    _scale(np.float32(1 / x.shape[0]), sums)
    store_row(sums.ctypes.data, sums.size, y.dtype, y.ctypes.data, False, False)


@kernel(parallel=True)
def _global_avgpool_forward(x, y):
    for n in numba.prange(x.shape[0]):
        _mean_of_rows(x[n], y[n])


def global_avgpool_forward(x, y):
    """y[n,c] = mean over h,w of x[n,h,w,c]; y (N,C) overwritten.

    Cost: 1 flop an element of x; reads x, writes y.
    Raises: TypeError, ValueError. Twin: reference.global_avgpool_forward.
    """
    check_input("global_avgpool: x", x, 4)
    n, _, _, c = x.shape
    check_tensor("global_avgpool: y", y, (n, c))
    _global_avgpool_forward(x.reshape(n, -1, c), y)


@inlined
def _spread_row(dy, dx):
    factor, row = np.float32(1 / dx.shape[0]), np.empty(dy.size, np.float32)
    for c in range(dy.size):
        row[c] = widen(dy[c]) * factor
    for i in range(dx.shape[0]):
        _store(row.ctypes.data, dx, i)


@kernel(parallel=True)
def _global_avgpool_backward(dy, dx):
    for n in numba.prange(dx.shape[0]):
        _spread_row(dy[n], dx[n])


def global_avgpool_backward(dy, dx):
    """dx[n,h,w,c] = dy[n,c] / (H*W); dx (N,H,W,C) overwritten.

    Cost: 1 flop an element of dy; reads dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.global_avgpool_backward.
    """
    check_input("global_avgpool: dx", dx, 4)
    n, _, _, c = dx.shape
    check_tensor("global_avgpool: dy", dy, (n, c))
    _global_avgpool_backward(dy, dx.reshape(n, -1, c))
