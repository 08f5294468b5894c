"""A 64-bit digest of numbers in memory, to compare what should be equal everywhere."""

import numba
import numpy as np

from ._jit import inlined, kernel

CHUNK = 1 << 16  # words hashed by one thread in one go
LANES = 16  # independent chains, so that they vectorize
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd: every step is invertible, so one changed bit always changes the digest


@kernel
def _chunk(words):
    lanes = np.empty(LANES, np.uint64)
    for lane in range(LANES):
        lanes[lane] = np.uint64(lane + 1) * _PRIME
    whole = words.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            h = (lanes[lane] ^ np.uint64(words[start + lane])) * _PRIME
            lanes[lane] = h ^ h >> np.uint64(32)
    for i in range(whole, words.size):
        lanes[0] = (lanes[0] ^ np.uint64(words[i])) * _PRIME
    return _combine(lanes)


@inlined
def _combine(values):
    total = np.uint64(values.size)
    for value in values:
        total = (total ^ value) * _PRIME
        total ^= total >> np.uint64(29)
    return total


@kernel(parallel=True)
def _digest(words, chunks):
    for i in numba.prange(chunks.size):
        chunks[i] = _chunk(words[i * CHUNK : (i + 1) * CHUNK])
    return _combine(chunks)


def digest(array) -> int:
    """The digest of a C-contiguous array of 4-byte numbers: equal for equal bits, on every machine and thread count.

    Arrays that differ in one word always differ in it; otherwise two are equal by chance once in 2^64.
    Cost: 4 integer operations and 4 bytes read per number. Threads: each owns a chunk.
    """
    words = array.reshape(-1).view(np.uint32)
    if words.size <= CHUNK:
        return int(_chunk(words))
    return int(_digest(words, np.empty(-(-words.size // CHUNK), np.uint64)))
