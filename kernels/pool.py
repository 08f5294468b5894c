"""Pooling of x (N,H,W,C) to y (N,P,Q,C), here: what all kinds share, average, and global average; `maxpool` is apart.

Windows are size x size, floor mode: one that sticks out behind the padding is not taken. Forward: a thread owns rows
of y. Backward gathers instead of scattering: a thread owns rows of dx and reads the windows that cover them, so no
two threads write the same place and the order of the sums is fixed. Channels are the vector axis.
Innermost loops stand in place and index whole images: a view of each pixel, or a call with one, would count references
atomically, in a cache line that all threads share.
Letters: (r, s) a place in the window at (p, q), h = p*stride - pad + r, w = q*stride - pad + s.
"""

import numba
import numpy as np

from ._jit import inlined, kernel
from ._shapes import check_input, check_tensor, output_size
from .element import widen
from .store import store_row

NOWHERE = 255  # in place of where a maximum was: its gradient goes to nobody


def check_windows(name, x_shape, y, size, stride, pad, like=None):
    """Checks y (or dy) against the input shape (N,H,W,C), and that it holds the Number of the array `like`."""
    n, h, w, c = x_shape
    if pad >= size or size * size > NOWHERE:
        raise ValueError(f"{name}: found size {size}, pad {pad}, expected pad < size <= 15: correct the layer")
    check_tensor(name, y, (n, output_size(h, size, stride, pad), output_size(w, size, stride, pad), c), like)


@inlined
def covering(place, size, stride, pad, outputs):
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
    check_windows("avgpool: y", x.shape, y, size, stride, pad)
    _avgpool_forward(x, size, stride, pad, y)


@inlined
def _avgpool_backward_row(h, dy, size, stride, pad, dx):
    # dy (P,Q,C) one image; dx (W,C) its row h
    p0, p1 = covering(h, size, stride, pad, dy.shape[0])
    sums = np.empty(dx.shape[1], np.float32)
    for w in range(dx.shape[0]):
        sums[:] = 0
        q0, q1 = covering(w, size, stride, pad, dy.shape[1])
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
    check_windows("avgpool: dy", dx.shape, dy, size, stride, pad)
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
