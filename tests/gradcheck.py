"""What the kernel tests compare with: tolerances, central differences for the twins, one and two threads."""

import os

import numba
import numpy as np

from knltrain.kernels import BF16, FP16, FP32, aligned_zeros

# on code for another CPU: those that matter there, for each is a compilation more
NUMBERS = [n for n in (FP32, BF16, FP16) if n.name in os.environ.get("TEST_NUMBERS", "fp32 bf16 fp16").split()]

TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-6}  # of the largest magnitude; float64: differences


def assert_close(found, expected, factor=1):
    """|found - expected| <= factor * tolerance of found's dtype * the largest |expected|, everywhere."""
    assert found.shape == np.shape(expected)
    scale = max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=factor * TOLERANCE[found.dtype] * scale)


def check_gradient(function, x, dx, *, share=0.1, step=1e-6, seed=0):
    """Compare dx with (f(x + h) - f(x - h)) / 2h on a random `share` of the entries of x (at least three).

    function : x (float64 array) to a scalar; x is changed in place during the check and restored.
    """
    rng = np.random.default_rng(seed)
    flat, gradient = x.reshape(-1), dx.reshape(-1)
    chosen = rng.choice(flat.size, size=min(flat.size, max(3, int(share * flat.size))), replace=False)
    numeric = np.empty(chosen.size)
    for i, index in enumerate(chosen):
        value = flat[index]
        flat[index] = value + step
        above = function(x)
        flat[index] = value - step
        below = function(x)
        flat[index] = value
        numeric[i] = (above - below) / (2 * step)
    assert_close(gradient[chosen], numeric, factor=max(1, np.abs(dx).max()))


def assert_same_bits_with_threads(run):
    """`run()` returns arrays: one thread and all threads must give the same bits."""
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            numba.set_num_threads(threads)
            results.append([array.copy() for array in run()])
    finally:
        numba.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert np.array_equal(one, many)


def randn(*shape, seed=0, offset=0.0):
    """float32 normal numbers around `offset`."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape, dtype=np.float32) + np.float32(offset)


def aligned(array):
    """A copy that begins at a cache line."""
    copy = aligned_zeros(-(-array.nbytes // 4)).view(array.dtype)[: array.size].reshape(array.shape)
    copy[...] = array
    return copy
