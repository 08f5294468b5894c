"""Local response normalization against its twin, and the twin against central differences."""

import numpy as np
import pytest
from gradcheck import assert_close, assert_same_bits_with_threads, check_gradient, randn

from knltrain.kernels import lrn_backward, lrn_forward, reference

ALEXNET = (5, 1e-4, 0.75, 1.0)  # size, alpha, beta, k
STRONG = (3, 0.5, 0.6, 2.0)


def run(x, dy, size, alpha, beta, k):
    y, dx, rectified = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    lrn_forward(x, size, alpha, beta, k, y)
    lrn_backward(x, dy, size, alpha, beta, k, dx)
    lrn_backward(x, dy, size, alpha, beta, k, rectified, rectified=True)
    return y, dx, rectified


@pytest.mark.parametrize("shape", [(1, 7, 103, 3), (2, 5, 5, 17), (1, 3, 3, 33), (2, 1)])
@pytest.mark.parametrize("setting", [ALEXNET, STRONG, (7, 0.5, 0.75, 1.0), (1, 0.5, 0.75, 1.0)])
def test_lrn__equals_twin(shape, setting):
    x, dy = 3 * randn(*shape), randn(*shape, seed=1)
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    wanted = (
        reference.lrn_forward(x64, *setting),
        *(reference.lrn_backward(x64, dy64, *setting, r) for r in (False, True)),
    )
    for have, want in zip(run(x, dy, *setting), wanted, strict=True):
        assert_close(have, want)


def test_lrn__same_bits_for_any_thread_count():
    x = randn(2, 27, 27, 96)
    assert_same_bits_with_threads(lambda: run(x, x, *ALEXNET))


def test_lrn_backward__works_in_place():
    x, dy = randn(2, 5, 5, 17), randn(2, 5, 5, 17, seed=1)
    _, dx, _ = run(x, dy, *STRONG)
    lrn_backward(x, dy, *STRONG, dy)
    assert np.array_equal(dy, dx)


def test_lrn_twin__has_the_right_gradient():
    x, dy = randn(2, 3, 7).astype(np.float64), randn(2, 3, 7, seed=1).astype(np.float64)
    dx = reference.lrn_backward(x, dy, *STRONG)
    check_gradient(lambda a: (reference.lrn_forward(a, *STRONG) * dy).sum(), x, dx, share=0.5)


def test_lrn__rejects_an_even_window():
    x = randn(2, 8)
    with pytest.raises(ValueError, match="found size 4, expected an odd number"):
        lrn_forward(x, 4, 1e-4, 0.75, 1.0, x.copy())
