"""Element by element: ReLU, addition, dropout, and the bias gradient. All are bound by memory, not by arithmetic.

Arrays are cut into chunks of CHUNK floats; a chunk is written by one thread. An output may be one of the inputs.
A NaN passes through every function here, so that a diverged run shows it in its loss.
"""

import numba
import numpy as np

from ._jit import inlined, kernel
from ._shapes import CHUNK, check_array, check_input, check_tensor, check_workspace, chunk_count, chunk_rows, fold
from .each import MASK, RAISE, SUM, each
from .element import widen
from .random import hash_u32
from .store import store_row

EVERYTHING = np.float32(-np.inf)  # what nothing is less than


@kernel(parallel=True)
def _raise(chunk, x, low, y):
    for i in numba.prange((x.size + chunk - 1) // chunk):
        start, stop = i * chunk, (i + 1) * chunk
        each(RAISE, x[start:stop], x[start:stop], low, y[start:stop])


def relu_forward(x, y):
    """y = max(x, 0); same shape, y may be x. Raises: TypeError, ValueError. Twin: reference.relu_forward.

    Cost: 1 flop an element; reads x, writes y.
    """
    check_input("relu_forward: x", x)
    check_tensor("relu_forward: y", y, x.shape)
    _raise(CHUNK, x.reshape(-1), np.float32(0), y.reshape(-1))


def convert(x, y):
    """y = x, rounded to nearest, ties to even, where y holds a narrower Number. Raises: TypeError, ValueError.

    Cost: no flops; reads x, writes y. Twin: Number.narrow and Number.widen.
    """
    check_input("convert: x", x)
    check_tensor("convert: y", y, x.shape)
    _raise(CHUNK, x.reshape(-1), EVERYTHING, y.reshape(-1))


@kernel(parallel=True)
def _relu_backward(chunk, y, dy, dx):
    for i in numba.prange((y.size + chunk - 1) // chunk):
        start, stop = i * chunk, (i + 1) * chunk
        each(MASK, y[start:stop], dy[start:stop], np.float32(0), dx[start:stop])


def relu_backward(y, dy, dx):
    """dx = dy where y > 0, else 0; y is the output of the forward pass, dx may be dy.

    Cost: 1 flop an element; reads y, dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.relu_backward.
    """
    check_input("relu_backward: y", y)
    check_tensor("relu_backward: dy", dy, y.shape)
    check_tensor("relu_backward: dx", dx, y.shape)
    _relu_backward(CHUNK, y.reshape(-1), dy.reshape(-1), dx.reshape(-1))


@kernel(parallel=True)
def _add(chunk, a, b, low, y):
    for i in numba.prange((a.size + chunk - 1) // chunk):
        start, stop = i * chunk, (i + 1) * chunk
        each(SUM, a[start:stop], b[start:stop], low, y[start:stop])


def add_forward(a, b, y, relu=False):
    """y = a + b, then max(y, 0) if relu; y may be a or b.

    Cost: 1 flop an element, 2 with relu; reads a, b, writes y.
    Raises: TypeError, ValueError. Twin: reference.add_forward.
    """
    check_input("add_forward: a", a)
    check_tensor("add_forward: b", b, a.shape)
    check_tensor("add_forward: y", y, a.shape)
    _add(CHUNK, a.reshape(-1), b.reshape(-1), np.float32(0) if relu else EVERYTHING, y.reshape(-1))


def accumulate(a, b):
    """a += b. Cost: 1 flop an element; reads a, b, writes a. Raises: TypeError, ValueError."""
    add_forward(a, b, a)


# ---- dropout -------------------------------------------------------------------------------------------------


@inlined
def _dropout_body(key, first, x, threshold, scale, results):
    for j in range(x.size):
        kept = hash_u32(key, first + j) >= threshold
        results[j] = widen(x[j]) * (scale if kept else np.float32(0))


@kernel(parallel=True)
def _dropout(parts, x, threshold, scale, keys, purpose, y):
    for i in numba.prange(x.shape[0] * parts):
        n, part = i // parts, i % parts
        start, stop = part * x.shape[1] // parts, (part + 1) * x.shape[1] // parts
        results = np.empty(stop - start, np.float32)  # not y, which may be x: then the loop would not be vectorized
        _dropout_body(keys[n] ^ purpose, start, x[n, start:stop], threshold, scale, results)
        store_row(results.ctypes.data, results.size, y.dtype, y[n, start:stop].ctypes.data, False, False)


def dropout_forward(x, rate, keys, y, purpose=0):
    """y = x / (1 - rate) where kept, else 0; element j of image n is kept with probability 1 - rate.

    Parameters
    ----------
    x, y : (N, ...) of a Number; y may be x
    rate : 0 <= rate < 1
    keys : (N,) uint64, from `sample_key`: the mask is a pure function of (keys[n] ^ purpose, j), so nothing is stored
    purpose : a number that tells layers apart

    Cost: 1 flop and 8 integer operations of the hash an element; reads x, writes y.
    Raises: TypeError, ValueError. Twin: reference.dropout_forward.
    """
    check_input("dropout: x", x)
    check_tensor("dropout: y", y, x.shape)
    check_array("dropout: keys", keys, x.shape[:1], np.uint64)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: found rate {rate}, expected 0 <= rate < 1: correct the layer")
    images = x.reshape(x.shape[0], -1)
    parts = -(-images.shape[1] // CHUNK)
    threshold, scale = np.uint32(int(rate * 2**32)), np.float32(1 / (1 - rate))
    _dropout(parts, images, threshold, scale, keys, np.uint64(purpose), y.reshape(images.shape))


def dropout_backward(dy, rate, keys, dx, purpose=0):
    """dx = dy / (1 - rate) where kept, else 0: the forward pass again, on the gradient. dx may be dy.

    Cost: 1 flop and 8 integer operations an element; reads dy, writes dx.
    """
    dropout_forward(dy, rate, keys, dx, purpose)


# ---- bias gradient -------------------------------------------------------------------------------------------


def _bias_partition(pixels, channels):
    """fold, rows per chunk, chunks for dy viewed as (pixels / fold, fold * K)."""
    factor = fold(pixels, channels)
    rows = chunk_rows(factor * channels)
    return factor, rows, chunk_count(pixels // factor, factor * channels)


def bias_gradient_workspace(pixels: int, channels: int) -> int:
    """Floats of workspace that `bias_gradient` needs for dy (pixels, channels)."""
    factor, _, chunks = _bias_partition(pixels, channels)
    return chunks * factor * channels


@inlined
def _column_sums_body(i, rows, dy, partial):
    total = partial[i]
    total[:] = 0
    for r in range(i * rows, min((i + 1) * rows, dy.shape[0])):
        for c in range(total.size):
            total[c] += widen(dy[r, c])


@kernel(parallel=True)
def _bias_gradient(rows, dy, partial, db):
    for i in numba.prange(partial.shape[0]):
        _column_sums_body(np.int64(i), rows, dy, partial)
    # partial (chunks, fold * K) is (chunks * fold, K) in memory; float64 since there may be thousands of them
    groups = partial.reshape(-1, db.size)
    total = np.zeros(db.size)
    for i in range(groups.shape[0]):
        for c in range(db.size):
            total[c] += groups[i, c]
    for c in range(db.size):
        db[c] = total[c]


def bias_gradient(dy, db, workspace):
    """db (K,) = sum of dy (..., K) over all pixels, overwritten.

    Sums of a fixed partition in float32, added up in float64 in fixed order.
    workspace : flat float32, at least `bias_gradient_workspace(pixels, K)`.
    Cost: 1 flop an element; reads dy, writes db.
    Raises: TypeError, ValueError. Twin: reference.bias_gradient.
    """
    check_input("bias_gradient: dy", dy)
    channels = dy.shape[-1]
    pixels = dy.size // channels
    check_array("bias_gradient: db", db, (channels,))
    factor, rows, chunks = _bias_partition(pixels, channels)
    size = chunks * factor * channels
    check_workspace("bias_gradient: workspace", workspace, size)
    columns = factor * channels
    _bias_gradient(rows, dy.reshape(-1, columns), workspace[:size].reshape(chunks, columns), db)
