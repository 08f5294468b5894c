"""The parameter update: norms of a tensor and its gradient, and one momentum step in place, each one walk over memory.

Both cut a tensor into chunks of CHUNK elements whatever the number of threads; a thread owns whole chunks, and the sums
of the chunks are combined exactly. So every thread count and every rank get the same norms to the bit.
"""

import math

import numba
import numpy as np

from ._jit import kernel

CHUNK = 1 << 16  # elements: 256 KB of float32, enough to hide a fork, few enough to balance
LANES = 128  # independent float64 sums in a chunk, written out so that they vectorize in one order on every machine


def squared_norm_chunks(w, g):
    """(chunks, 2) float64: sum w² and sum g² of each chunk of CHUNK elements, the last one shorter.

    w, g : float32, C-contiguous, same shape (any, also empty)

    Products and sums are float64: a float32 sum of 38 million squares (AlexNet's fc6) would lose four digits. A part of
    a tensor that begins at a multiple of CHUNK has the chunks of the whole: parts may be summed anywhere.
    Cost: 4 flops an element; reads w, g. Threads: each owns a chunk.
    Raises: TypeError for another dtype, ValueError for shapes that differ or memory that is not contiguous.
    """
    _check(w=w, g=g)
    sums = np.empty((max(1, -(-w.size // CHUNK)), 2))
    if w.size <= CHUNK:  # most tensors of a network are small: no fork
        _chunk_norms(w.reshape(-1), g.reshape(-1), sums[0])
    else:
        _squared_norms(w.reshape(-1), g.reshape(-1), sums)
    return sums


def combine_norms(sums):
    """(sum w², sum g²) of a tensor from those of its chunks: exact, so in no order that could matter."""
    return math.fsum(sums[:, 0]), math.fsum(sums[:, 1])


def momentum_update(w, g, v, momentum, weight_decay, gradient_scale, step_scale, nesterov):
    """One step of gradient descent with momentum, in place on w and v.

    d = g + weight_decay * w
    v = momentum * v + gradient_scale * d
    w = w - step_scale * v                                      plain
    w = w - step_scale * (momentum * v + gradient_scale * d)    Nesterov

    A learning rate inside the buffer is gradient_scale, one outside is step_scale.

    w, g, v : float32, C-contiguous, same shape; g is only read
    Cost: 7 flops an element, 9 with Nesterov; reads w, g, v, writes w, v. Threads: each owns a chunk.
    Raises: as squared_norm_chunks.
    """
    _check(w=w, g=g, v=v)
    scalars = np.array([momentum, weight_decay, gradient_scale, step_scale], np.float32)
    update = _chunk_update if w.size <= CHUNK else _momentum_update
    update(w.reshape(-1), g.reshape(-1), v.reshape(-1), scalars, bool(nesterov))


def _check(**arrays):
    shape = arrays["w"].shape
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise TypeError(f"{name} is {array.dtype}; expected float32")
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {shape}, the shape of w")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not C-contiguous; pass a copy or a view of a flat block")


@kernel
def _chunk_norms(w, g, sums):
    """w, g: one chunk; sums (2,) float64. Lane l takes elements l, l + LANES, …; then the lanes are added in order."""
    ww, gg = np.zeros(LANES), np.zeros(LANES)
    for start in range(0, w.size, LANES):
        a, b = w[start : start + LANES], g[start : start + LANES]
        for lane in range(a.size):
            ww[lane] += np.float64(a[lane]) * np.float64(a[lane])
            gg[lane] += np.float64(b[lane]) * np.float64(b[lane])
    sums[:] = 0.0
    for lane in range(LANES):
        sums[0] += ww[lane]
        sums[1] += gg[lane]


@kernel(parallel=True)
def _squared_norms(w, g, sums):
    for i in numba.prange(sums.shape[0]):
        _chunk_norms(w[i * CHUNK : (i + 1) * CHUNK], g[i * CHUNK : (i + 1) * CHUNK], sums[i])


@kernel
def _chunk_update(w, g, v, scalars, nesterov):
    momentum, decay, gradient_scale, step_scale = scalars[0], scalars[1], scalars[2], scalars[3]
    if nesterov:
        for i in range(w.size):
            d = gradient_scale * (g[i] + decay * w[i])
            v[i] = momentum * v[i] + d
            w[i] -= step_scale * (momentum * v[i] + d)
    else:
        for i in range(w.size):
            v[i] = momentum * v[i] + gradient_scale * (g[i] + decay * w[i])
            w[i] -= step_scale * v[i]


@kernel(parallel=True)
def _momentum_update(w, g, v, scalars, nesterov):
    for i in numba.prange(-(-w.size // CHUNK)):
        here = slice(i * CHUNK, (i + 1) * CHUNK)
        _chunk_update(w[here], g[here], v[here], scalars, nesterov)
