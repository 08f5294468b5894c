"""Counter-based random numbers: a value is a pure function of a key and a counter; there is no state to carry.

`sample_key` names what is drawn for (seed, epoch, row, purpose); `hash_u32` and `uniform` draw number j of it. All
are compiled, callable from Python and inlined into other kernels. 32-bit multiplies only in `hash_u32`, since
AVX-512F (KNL) has no vector multiply of 64 bits.
Source: Steele et al. 2014 (splitmix64); C. Wellons, "Prospecting for hash functions" (lowbias32).
"""

import numpy as np

from ._jit import inlined, kernel


@inlined
def _mix64(h):
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@kernel
def sample_key(seed, epoch, row, purpose):
    """uint64 key of (seed, epoch, row, purpose), integers; row is the index in the whole data set.

    Each part in turn is added to the state with the golden-ratio step of splitmix64, then mixed, so that
    neighbouring rows or epochs have unrelated keys. Twin: reference.sample_key.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    h = _mix64(np.uint64(seed) + step)
    h = _mix64(h + np.uint64(epoch) + step)
    h = _mix64(h + np.uint64(row) + step)
    return _mix64(h + np.uint64(purpose) + step)


@inlined
def _mix32(h):
    # the product of two uint32 is uint64 to Numba: the cast back makes it one 32-bit multiply
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@kernel
def hash_u32(key, j):
    """uint32 number j < 2**32 of the stream `key`: lowbias32 twice, one half of the key before each.

    Twin: reference.hash_u32.
    """
    low = np.uint32(np.uint64(key) & np.uint64(0xFFFFFFFF))
    high = np.uint32(np.uint64(key) >> np.uint64(32))
    return _mix32(np.uint32(_mix32(np.uint32(np.uint32(j) + low)) ^ high))


@kernel
def uniform(key, j):
    """Number j of the stream `key` in [0, 1), float64 with 32 random bits. Twin: reference.uniform."""
    return hash_u32(key, j) * (1.0 / 4294967296.0)
