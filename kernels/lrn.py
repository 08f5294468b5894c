"""Local response normalization across channels, as Caffe computes it; x is read as (pixels, C), vector by vector.

A task owns a chunk of pixels. The sum over a window of channels is one of `size` vectors, each a channel behind the
last, of a row with zeros at both ends. Backward works out everything again from x: that is quicker than to write it in
forward and to read it.
Source: Krizhevsky et al. 2012, section 3.3; Caffe's lrn_layer (alpha is divided by the window size).
"""

from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import Strip, cases, number_type, strips, times
from ._jit import inlined, kernel
from ._shapes import CHUNK, check_input, check_tensor
from .arch import V
from .number import FP32
from .store import goes_past

_I64 = types.int64


class Window(NamedTuple):
    """scale = k + share * sum of x**2 over `size` channels."""

    size: int
    share: float
    beta: float
    k: float


_WINDOW = types.NamedTuple((_I64, types.float32, types.float32, types.float32), Window)


# ---- a row, by the addresses of its numbers; those of squares and ratios begin before size // 2 zeros ----------------


class _Strip(Strip):
    """Of a row whose channels have windows."""

    def window_sum(self, padded, size):
        (_, here), total = self._there(padded, FP32), self.lanes.variable(self.lanes.constant(0))
        with cgutils.for_range(self.builder, size) as loop:
            value = self.lanes.load(self.builder.add(here, times(self.builder, loop.index, FP32.bytes)))
            self.builder.store(self.builder.fadd(self.builder.load(total), value), total)
        return self.builder.load(total)

    def powers(self, squares, window):
        """1 / scale and scale**-beta; 0.75, the paper's value, by two roots, which are vector code."""
        size, share, beta, k = cgutils.unpack_tuple(self.builder, window)
        scale = self.lanes.fma(self.window_sum(squares, size), self.lanes.splat(share), self.lanes.splat(k))
        inverse, power = self.builder.fdiv(self.lanes.constant(1), scale), self.lanes.variable()
        with self.builder.if_else(self.builder.fcmp_ordered("==", beta, beta.type(0.75))) as (usual, other):
            with usual:
                root = self._call("sqrt", inverse)
                self.builder.store(self.builder.fmul(root, self._call("sqrt", root)), power)
            with other:
                self.builder.store(self._call("pow", inverse, self.lanes.splat(beta)), power)
        return inverse, self.builder.load(power)

    def _call(self, name, *values):
        signature = ir.FunctionType(self.lanes.type, [self.lanes.type] * len(values))
        name = f"llvm.{name}.v{self.lanes.width}f32"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), values)


@intrinsic
def _square_row(typing, count, kind, x, squares):
    """squares = x**2, float32."""
    read = number_type(kind)

    def codegen(context, builder, sig, args):
        count_, _, x_, squares_ = args
        for width, index in strips(builder, count_, V):
            strip = _Strip(builder, width, index)
            value = strip.load(x_, read)
            strip.store(builder.fmul(value, value), squares_)
        return context.get_dummy_value()

    return types.void(_I64, kind, _I64, _I64), codegen


@intrinsic
def _normalize_row(typing, count, kind, places, window, past):
    """y = x * scale**-beta; places: x, squares, y; past: the caches."""
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        count_, _, places_, window_, past_ = args
        x_, squares_, y_ = cgutils.unpack_tuple(builder, places_)
        for (is_past,) in cases(builder, (past_, 2)):
            for width, index in strips(builder, count_, V):
                strip = _Strip(builder, width, index)
                _, power = strip.powers(squares_, window_)
                strip.store(builder.fmul(strip.load(x_, number), power), y_, number, is_past)
        return context.get_dummy_value()

    return types.void(_I64, kind, places, _WINDOW, _I64), codegen


@intrinsic
def _weigh_row(typing, count, kind, places, window):
    """weighed = dy * scale**-beta and ratios = dy * y / scale, float32; places: x, dy, squares, weighed, ratios."""
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        count_, _, places_, window_ = args
        x_, dy_, squares_, weighed_, ratios_ = cgutils.unpack_tuple(builder, places_)
        for width, index in strips(builder, count_, V):
            strip = _Strip(builder, width, index)
            inverse, power = strip.powers(squares_, window_)
            value = builder.fmul(strip.load(dy_, number), power)
            strip.store(value, weighed_)
            strip.store(builder.fmul(builder.fmul(value, strip.load(x_, number)), inverse), ratios_)
        return context.get_dummy_value()

    return types.void(_I64, kind, places, _WINDOW), codegen


@intrinsic
def _gradient_row(typing, count, kind, places, size, factor, rectified, past):
    """dx = weighed + factor * x * the window's sum of ratios; rectified: where x is positive; places: all of these."""
    number = number_type(kind)

    def codegen(context, builder, sig, args):
        count_, _, places_, size_, factor_, rectified_, past_ = args
        x_, weighed_, ratios_, dx_ = cgutils.unpack_tuple(builder, places_)
        for masks, is_past in cases(builder, (rectified_, 2), (past_, 2)):
            for width, index in strips(builder, count_, V):
                strip = _Strip(builder, width, index)
                value, zero = strip.load(x_, number), strip.lanes.constant(0)
                part = builder.fmul(strip.lanes.splat(factor_), value)
                result = strip.lanes.fma(part, strip.window_sum(ratios_, size_), strip.load(weighed_))
                if masks:
                    result = builder.select(builder.fcmp_ordered(">", value, zero), result, zero)
                strip.store(result, dx_, number, is_past)
        return context.get_dummy_value()

    return types.void(_I64, kind, places, _I64, types.float32, _I64, _I64), codegen


# ---- all rows ----------------------------------------------------------------------------------------------------


@inlined
def _forward_body(first, last, x, window, y, past):
    channels, half = x.shape[1], window.size // 2
    squares = np.zeros(channels + window.size - 1, np.float32)
    for i in range(first, last):
        row = x.ctypes.data + i * x.strides[0]
        _square_row(channels, x.dtype, row, squares[half:].ctypes.data)
        places = row, squares.ctypes.data, y.ctypes.data + i * y.strides[0]
        _normalize_row(channels, x.dtype, places, window, past)


@kernel(parallel=True)
def _forward(at_once, x, window, y, past):
    for i in numba.prange((x.shape[0] + at_once - 1) // at_once):
        first = np.int64(i) * at_once
        _forward_body(first, min(first + at_once, x.shape[0]), x, window, y, past)


@inlined
def _backward_body(first, last, x, dy, window, rectified, dx, past):
    channels, half, factor = x.shape[1], window.size // 2, np.float32(-2) * window.share * window.beta
    squares, ratios, weighed = np.zeros((3, channels + window.size - 1), np.float32)
    for i in range(first, last):
        row = x.ctypes.data + i * x.strides[0]
        _square_row(channels, x.dtype, row, squares[half:].ctypes.data)
        of_dy, inside = dy.ctypes.data + i * dy.strides[0], ratios[half:].ctypes.data
        _weigh_row(channels, x.dtype, (row, of_dy, squares.ctypes.data, weighed.ctypes.data, inside), window)
        places = row, weighed.ctypes.data, ratios.ctypes.data, dx.ctypes.data + i * dx.strides[0]
        _gradient_row(channels, x.dtype, places, window.size, factor, rectified, past)


@kernel(parallel=True)
def _backward(at_once, x, dy, window, rectified, dx, past):
    for i in numba.prange((x.shape[0] + at_once - 1) // at_once):
        first = np.int64(i) * at_once
        _backward_body(first, min(first + at_once, x.shape[0]), x, dy, window, rectified, dx, past)


def _window(x, size, alpha, beta, k):
    check_input("lrn: x", x)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"lrn: found size {size}, expected an odd number of channels: use {size + 1}")
    return Window(size, np.float32(alpha / size), np.float32(beta), np.float32(k))


def lrn_forward(x, size, alpha, beta, k, y):
    """y = x * scale**-beta with scale = k + alpha / size * sum of x**2 over `size` channels centred on each.

    Parameters
    ----------
    x, y : (..., C) of a Number, y overwritten; it may be x where no backward pass follows

    Cost: size + 4 flops an element and the power: 3, of which two are roots, where beta is 0.75; reads x, writes y.
    Raises: TypeError, ValueError. Twin: reference.lrn_forward.
    """
    window = _window(x, size, alpha, beta, k)
    check_tensor("lrn: y", y, x.shape, x)
    x, y = (a.reshape(-1, x.shape[-1]) for a in (x, y))
    _forward(max(1, CHUNK // x.shape[1]), x, window, y, int(goes_past(y, y.shape[1], x)))


def lrn_backward(x, dy, size, alpha, beta, k, dx, rectified=False):
    """dx = dy * scale**-beta - 2*alpha*beta/size * x * (sum of dy*y/scale over `size` channels), of `lrn_forward`.

    x, dy, dx : (..., C) of a Number; dx overwritten, may be dy
    rectified : x is the output of a ReLU; dx is that of its input, 0 where x is not positive

    Cost: 2 * size + 10 flops an element and the power; reads x, dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.lrn_backward.
    """
    window = _window(x, size, alpha, beta, k)
    for name, array in (("dy", dy), ("dx", dx)):
        check_tensor(f"lrn: {name}", array, x.shape, x)
    x, dy, dx = (a.reshape(-1, x.shape[-1]) for a in (x, dy, dx))
    past = int(goes_past(dx, dx.shape[1], x, dy))
    _backward(max(1, CHUNK // x.shape[1]), x, dy, window, int(rectified), dx, past)
