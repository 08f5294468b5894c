"""Norms and the momentum update against plain NumPy, at sizes around the chunk and lane boundaries."""

import numba
import numpy as np
import pytest

from knltrain.kernels import combine_norms, momentum_update, squared_norm_chunks

CHUNK = 1 << 16
SIZES = [1, 3, 127, 129, 7 * 103, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 517]
TOLERANCE = {"norm": 1e-12, "update": 1e-6}  # float64 sums; float32 elements of size about 1


def tensors(size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(np.float32) for _ in range(3)]


def squared_norms(w, g):
    return combine_norms(squared_norm_chunks(w, g))


def numpy_momentum_update(w, g, v, momentum, weight_decay, gradient_scale, step_scale, nesterov):
    """The update as its docstring writes it, in float64, on new arrays: (w, v)."""
    w, g, v = (np.float64(a) for a in (w, g, v))
    d = gradient_scale * (g + weight_decay * w)
    v = momentum * v + d
    return w - step_scale * (momentum * v + d if nesterov else v), v


@pytest.mark.parametrize("size", SIZES)
def test_squared_norms__equals_numpy(size):
    w, g, _ = tensors(size)
    expected = [np.sum(np.float64(a) ** 2) for a in (w, g)]
    np.testing.assert_allclose(squared_norms(w, g), expected, rtol=TOLERANCE["norm"])


def test_squared_norms__takes_any_shape_and_nothing():
    w = np.full((2, 3, 5), 2, np.float32)
    assert squared_norms(w, np.zeros_like(w)) == (120.0, 0.0)
    assert squared_norms(np.empty(0, np.float32), np.empty(0, np.float32)) == (0.0, 0.0)


def test_squared_norms__neither_overflows_nor_underflows():
    w, g = np.full(4, 1e30, np.float32), np.full(4, 1e-30, np.float32)
    np.testing.assert_allclose(squared_norms(w, g), (4e60, 4e-60), rtol=1e-6)


def test_squared_norms__passes_on_nan_and_infinity():
    ww, gg = squared_norms(np.array([1, np.nan], np.float32), np.array([np.inf, 1], np.float32))
    assert np.isnan(ww) and np.isinf(gg)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_momentum_update__equals_numpy(size, nesterov):
    w, g, v = tensors(size)
    scalars = (0.9, 5e-4, 0.3, 0.7, nesterov)
    expected_w, expected_v = numpy_momentum_update(w, g, v, *scalars)
    gradient = g.copy()
    momentum_update(w, g, v, *scalars)
    np.testing.assert_allclose(w, expected_w, rtol=TOLERANCE["update"], atol=TOLERANCE["update"])
    np.testing.assert_allclose(v, expected_v, rtol=TOLERANCE["update"], atol=TOLERANCE["update"])
    assert np.array_equal(g, gradient)


def test_update__any_thread_count_gives_the_same_bits():
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, min(2, before)):
            numba.set_num_threads(threads)
            w, g, v = tensors(3 * CHUNK + 517)
            norms = squared_norms(w, g)
            momentum_update(w, g, v, 0.9, 5e-4, 0.3, 0.7, True)
            results.append((norms, w.tobytes(), v.tobytes()))
    finally:
        numba.set_num_threads(before)
    assert results[0] == results[1]


def test_update__rejects_what_it_cannot_read():
    w = np.ones((4, 4), np.float32)
    with pytest.raises(TypeError, match="g is float64; expected float32"):
        squared_norms(w, np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"g has shape \(16,\); expected \(4, 4\)"):
        squared_norms(w, np.ones(16, np.float32))
    with pytest.raises(ValueError, match="v is not C-contiguous"):
        momentum_update(w, w, np.ones((4, 4), np.float32).T[::-1], 0.9, 0, 1, 1, False)
