"""Updates that keep a second moment of each gradient: LAMB in two walks over memory, RMSprop's warm-up in one.

LAMB's rate of a tensor hangs on the norm of its whole step: the moments come first, with the norms of their chunks, and
then the step, which is cheaper to work out again than to keep. Chunks are those of `update`, and so are their sums:
exact, and equal on any number of threads and ranks.
"""

from typing import NamedTuple

import numba
import numpy as np

from ._jit import inlined, kernel
from .update import CHUNK, LANES, _check


class Adaptive(NamedTuple):
    """Numbers of a step of LAMB."""

    beta1: float
    beta2: float
    first: float  # 1 / (1 - beta1^t) where moments that began at zero are corrected, else 1
    second: float  # the same of beta2
    epsilon: float
    weight_decay: float


class Blended(NamedTuple):
    """Numbers of a step between RMSprop, whose share is `adaptive`, and gradient descent, whose share is `plain`."""

    momentum: float
    beta2: float
    plain: float
    adaptive: float
    epsilon: float
    weight_decay: float
    rate: float


def adaptive_moments(w, g, v, s, numbers):
    """Fold a gradient into both moments; returns (chunks, 2) float64: sum w² and sum u² of each CHUNK elements.

    v = beta1 * v + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * g²
    u = first * v / (sqrt(second * s) + epsilon) + weight_decay * w

    w, g, v, s : float32, C-contiguous, same shape; w and g are only read
    numbers : Adaptive
    Cost: 18 flops an element; reads w, g, v, s, writes v, s. Threads: each owns a chunk.
    Raises: TypeError for another dtype, ValueError for shapes that differ or memory that is not contiguous.
    """
    _check(w=w, g=g, v=v, s=s)
    sums = np.empty((max(1, -(-w.size // CHUNK)), 2))
    _moments(w.reshape(-1), g.reshape(-1), v.reshape(-1), s.reshape(-1), np.array(numbers, np.float32), sums)
    return sums


def adaptive_step(w, v, s, numbers, rate):
    """w = w - rate * u, with u as in `adaptive_moments` and its moments, in place.

    Cost: 9 flops an element; reads w, v, s, writes w. Threads and errors: as there.
    """
    _check(w=w, v=v, s=s)
    scalars = np.array([numbers.first, numbers.second, numbers.epsilon, numbers.weight_decay, rate], np.float32)
    _step(w.reshape(-1), v.reshape(-1), s.reshape(-1), scalars)


def blended_update(w, g, v, s, numbers):
    """One step between RMSprop and gradient descent with momentum (Akiba et al. 2017), in place on w, v and s.

    d = g + weight_decay * w
    s = beta2 * s + (1 - beta2) * d²
    v = momentum * v + (plain + adaptive / (sqrt(s) + epsilon)) * d
    w = w - rate * v

    w, g, v, s : float32, C-contiguous, same shape; g is only read
    numbers : Blended
    Cost: 15 flops an element; reads w, g, v, s, writes w, v, s. Threads and errors: as in `adaptive_moments`.
    """
    _check(w=w, g=g, v=v, s=s)
    _blend(w.reshape(-1), g.reshape(-1), v.reshape(-1), s.reshape(-1), np.array(numbers, np.float32))


@inlined
def _chunk_moments(w, g, v, s, scalars, sums):
    """One chunk; sums (2,) float64. Lane l takes elements l, l + LANES, …; then the lanes are added in order."""
    beta1, beta2, first, second, epsilon, decay = _first_six(scalars)
    one = np.float32(1)
    ww, uu = np.zeros(LANES), np.zeros(LANES)
    for start in range(0, w.size, LANES):
        for lane in range(min(LANES, w.size - start)):
            i = start + lane
            v[i] = beta1 * v[i] + (one - beta1) * g[i]
            s[i] = beta2 * s[i] + (one - beta2) * (g[i] * g[i])
            u = first * v[i] / (np.sqrt(second * s[i]) + epsilon) + decay * w[i]
            ww[lane] += np.float64(w[i]) * np.float64(w[i])
            uu[lane] += np.float64(u) * np.float64(u)
    sums[:] = 0.0
    for lane in range(LANES):
        sums[0] += ww[lane]
        sums[1] += uu[lane]


@kernel(parallel=True)
def _moments(w, g, v, s, scalars, sums):
    for i in numba.prange(sums.shape[0]):
        here = slice(i * CHUNK, (i + 1) * CHUNK)
        _chunk_moments(w[here], g[here], v[here], s[here], scalars, sums[i])


@inlined
def _first_six(scalars):
    return scalars[0], scalars[1], scalars[2], scalars[3], scalars[4], scalars[5]


@kernel(parallel=True)
def _step(w, v, s, scalars):
    first, second, epsilon, decay, rate = scalars[0], scalars[1], scalars[2], scalars[3], scalars[4]
    for c in numba.prange(-(-w.size // CHUNK)):
        for i in range(c * CHUNK, min((c + 1) * CHUNK, w.size)):
            w[i] -= rate * (first * v[i] / (np.sqrt(second * s[i]) + epsilon) + decay * w[i])


@kernel(parallel=True)
def _blend(w, g, v, s, scalars):
    momentum, beta2, plain, adaptive, epsilon, decay = _first_six(scalars)
    rate, one = scalars[6], np.float32(1)
    for c in numba.prange(-(-w.size // CHUNK)):
        for i in range(c * CHUNK, min((c + 1) * CHUNK, w.size)):
            d = g[i] + decay * w[i]
            s[i] = beta2 * s[i] + (one - beta2) * (d * d)
            v[i] = momentum * v[i] + (plain + adaptive / (np.sqrt(s[i]) + epsilon)) * d
            w[i] -= rate * v[i]
