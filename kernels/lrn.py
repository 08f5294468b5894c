"""Local response normalization across channels, as Caffe computes it; x is read as (pixels, C).

A task owns a chunk of pixels. Sums over a window of channels are written as `size` shifted vector additions of a row
with zeros at both ends.
Source: Krizhevsky et al. 2012, section 3.3; Caffe's lrn_layer (alpha is divided by the window size).
"""

import numba
import numpy as np

from ._jit import inlined, kernel
from ._shapes import CHUNK, check_array, check_input, check_tensor
from .element import narrow, widen


@inlined
def _power(scale, beta, y):
    """y = scale**-beta on a row; 0.75, the value of the paper, from two square roots, which are vector code."""
    if beta == np.float32(0.75):
        for c in range(y.size):
            root = np.sqrt(scale[c])
            y[c] = np.float32(1) / (root * np.sqrt(root))
    else:
        for c in range(y.size):
            y[c] = scale[c] ** -beta


@inlined
def _window_sums(padded, size, y):
    """y[c] = sum of padded[c : c + size]; padded (C + size - 1) has size // 2 zeros at each end."""
    for c in range(y.size):
        y[c] = padded[c]
    for k in range(1, size):
        for c in range(y.size):
            y[c] += padded[k + c]


@inlined
def _forward_body(x, size, alpha, beta, k, y, scale):
    # x, y, scale (rows, C); helpers get rows of their own: a view of a shared array would count references atomically
    half, channels = size // 2, x.shape[1]
    padded = np.zeros(channels + size - 1, np.float32)
    sums, power = np.empty(channels, np.float32), np.empty(channels, np.float32)
    share = alpha / np.float32(size)
    for i in range(x.shape[0]):
        for c in range(channels):
            value = widen(x[i, c])
            padded[half + c] = value * value
        _window_sums(padded, size, sums)
        for c in range(channels):
            sums[c] = k + share * sums[c]
            scale[i, c] = sums[c]
        _power(sums, beta, power)
        for c in range(channels):
            y[i, c] = narrow(y.dtype, widen(x[i, c]) * power[c])


@kernel(parallel=True)
def _forward(rows, x, size, alpha, beta, k, y, scale):
    for i in numba.prange((x.shape[0] + rows - 1) // rows):
        a, b = i * rows, (i + 1) * rows
        _forward_body(x[a:b], size, alpha, beta, k, y[a:b], scale[a:b])


def _check(x, size):
    check_input("lrn: x", x)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"lrn: found size {size}, expected an odd number of channels: use {size + 1}")


def lrn_forward(x, size, alpha, beta, k, y, scale):
    """y = x * scale**-beta with scale = k + alpha / size * sum of x**2 over `size` channels centred on each.

    Parameters
    ----------
    x, y : (..., C) of a Number, y overwritten; it may be x where no backward pass follows
    scale : like x but float32, overwritten; kept for backward

    Cost: size + 3 flops an element and the power, 4 of which two are roots at 0.75; reads x, writes y, scale.
    Raises: TypeError, ValueError. Twin: reference.lrn_forward.
    """
    _check(x, size)
    check_tensor("lrn: y", y, x.shape)
    check_array("lrn: scale", scale, x.shape)
    channels = x.shape[-1]
    rows = max(1, CHUNK // channels)
    x, y, scale = (a.reshape(-1, channels) for a in (x, y, scale))
    _forward(rows, x, size, np.float32(alpha), np.float32(beta), np.float32(k), y, scale)


@inlined
def _backward_body(x, y, scale, dy, size, alpha, beta, dx):
    # all (rows, C)
    half, channels = size // 2, x.shape[1]
    padded = np.zeros(channels + size - 1, np.float32)
    sums, power, row = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    factor = np.float32(2) * alpha * beta / np.float32(size)
    for i in range(x.shape[0]):
        for c in range(channels):
            row[c] = scale[i, c]
            padded[half + c] = widen(dy[i, c]) * widen(y[i, c]) / row[c]
        _window_sums(padded, size, sums)
        _power(row, beta, power)
        for c in range(channels):
            power[c] *= widen(dy[i, c])
        for c in range(channels):
            dx[i, c] = narrow(dx.dtype, power[c] - factor * widen(x[i, c]) * sums[c])


@kernel(parallel=True)
def _backward(rows, x, y, scale, dy, size, alpha, beta, dx):
    for i in numba.prange((x.shape[0] + rows - 1) // rows):
        a, b = i * rows, (i + 1) * rows
        _backward_body(x[a:b], y[a:b], scale[a:b], dy[a:b], size, alpha, beta, dx[a:b])


def lrn_backward(x, y, scale, dy, size, alpha, beta, dx):
    """dx = dy * scale**-beta - 2*alpha*beta/size * x * (sum of dy*y/scale over `size` channels).

    All arrays (..., C) of a Number, scale float32; y and scale from `lrn_forward`; dx overwritten, may be dy.
    Cost: size + 5 flops an element and the power; reads x, y, scale, dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.lrn_backward.
    """
    _check(x, size)
    for name, array in (("y", y), ("dy", dy), ("dx", dx)):
        check_tensor(f"lrn: {name}", array, x.shape)
    check_array("lrn: scale", scale, x.shape)
    channels = x.shape[-1]
    rows = max(1, CHUNK // channels)
    x, y, scale, dy, dx = (a.reshape(-1, channels) for a in (x, y, scale, dy, dx))
    _backward(rows, x, y, scale, dy, size, np.float32(alpha), np.float32(beta), dx)
