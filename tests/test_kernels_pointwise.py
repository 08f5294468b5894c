"""ReLU, addition, dropout and the bias gradient against their twins."""

import numpy as np
import pytest
from gradcheck import assert_close, assert_same_bits_with_threads, check_gradient, randn

from knltrain.kernels import (
    accumulate,
    add_forward,
    bias_gradient,
    bias_gradient_workspace,
    dropout_backward,
    dropout_forward,
    reference,
    relu_backward,
    relu_forward,
    sample_key,
)

SHAPES = [(1, 1), (1, 7, 103, 3), (2, 7, 103, 33), (5, 17), (3, 40, 40, 16), (2, 40_001)]  # the last: two chunks


def keys_of(images):
    return np.array([sample_key(1, 2, n, 3) for n in range(images)], np.uint64)


@pytest.mark.parametrize("shape", SHAPES)
def test_relu_and_add__equal_twins(shape):
    a, b, y = randn(*shape), randn(*shape, seed=1), np.full(shape, np.nan, np.float32)
    relu_forward(a, y)
    assert np.array_equal(y, reference.relu_forward(a))
    dx = np.empty_like(a)
    relu_backward(y, b, dx)
    assert np.array_equal(dx, reference.relu_backward(y, b))
    for relu in (False, True):
        add_forward(a, b, y, relu)
        assert np.array_equal(y, reference.add_forward(a, b, relu))


def test_pointwise__works_in_place():
    a, b = randn(70001), randn(70001, seed=1)
    y, dx = a.copy(), b.copy()
    relu_forward(y, y)
    relu_backward(y, dx, dx)
    assert np.array_equal(y, reference.relu_forward(a)) and np.array_equal(dx, reference.relu_backward(a, b))
    total = a.copy()
    accumulate(total, b)
    assert np.array_equal(total, a + b)


def test_relu__lets_nan_through():
    x = np.array([np.nan, -1, 2], np.float32)
    relu_forward(x, x)
    assert np.isnan(x[0]) and x[1:].tolist() == [0, 2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
def test_dropout__equals_twin(shape, rate):
    x, y, dx, keys = randn(*shape), np.empty(shape, np.float32), np.empty(shape, np.float32), keys_of(shape[0])
    dropout_forward(x, rate, keys, y)
    dropout_backward(x, rate, keys, dx)
    assert_close(y, reference.dropout_forward(x.astype(np.float64), rate, keys))
    assert np.array_equal(dx, y)


def test_dropout__keeps_the_stated_share_and_differs_between_images():
    x = np.ones((2, 100_000), np.float32)
    y = np.empty_like(x)
    dropout_forward(x, 0.3, keys_of(2), y)
    kept = y > 0
    assert np.all(np.abs(kept.mean(axis=1) - 0.7) < 0.01)  # seven standard deviations
    assert abs((kept[0] == kept[1]).mean() - (0.7**2 + 0.3**2)) < 0.01
    assert abs((kept[0, 1:] == kept[0, :-1]).mean() - (0.7**2 + 0.3**2)) < 0.01


def test_dropout__of_one_image_does_not_depend_on_its_batch():
    x, keys = randn(4, 3, 1000), keys_of(4)
    whole, alone = np.empty_like(x), np.empty_like(x[2:3])
    dropout_forward(x, 0.5, keys, whole)
    dropout_forward(x[2:3], 0.5, keys[2:3], alone)
    assert np.array_equal(whole[2:3], alone)


def run_bias(dy):
    channels = dy.shape[-1]
    db = np.full(channels, np.nan, np.float32)
    bias_gradient(dy, db, np.full(bias_gradient_workspace(dy.size // channels, channels), np.nan, np.float32))
    return db


@pytest.mark.parametrize("shape", [*SHAPES, (2, 56, 56, 64), (100, 1000)])
def test_bias_gradient__equals_twin(shape):
    dy = randn(*shape, offset=1)
    assert_close(run_bias(dy), reference.bias_gradient(dy.astype(np.float64)))


def test_pointwise__same_bits_for_any_thread_count():
    x, y = randn(4, 31, 31, 24), np.empty((4, 31, 31, 24), np.float32)

    def run():
        dropout_forward(x, 0.5, keys_of(4), y)
        return run_bias(x), y

    assert_same_bits_with_threads(run)


def test_pointwise_twins__have_the_right_gradient():
    x, dy = randn(3, 4, 5).astype(np.float64), randn(3, 4, 5, seed=1).astype(np.float64)
    keys, bias = keys_of(3), np.zeros(5)
    relu = reference.relu_backward(reference.relu_forward(x), dy)
    check_gradient(lambda a: (reference.relu_forward(a) * dy).sum(), x, relu)
    check_gradient(
        lambda a: (reference.dropout_forward(a, 0.4, keys) * dy).sum(), x, reference.dropout_backward(dy, 0.4, keys)
    )
    check_gradient(lambda b: ((x + b) * dy).sum(), bias, reference.bias_gradient(dy))


def test_pointwise__rejects_what_does_not_fit():
    x = randn(4, 6)
    with pytest.raises(ValueError, match="C-contiguous"):
        relu_forward(x.T, x.T)
    with pytest.raises(ValueError, match="found rate 1"):
        dropout_forward(x, 1, keys_of(4), x)
    with pytest.raises(TypeError, match="uint64"):
        dropout_forward(x, 0.5, keys_of(4).astype(np.int64), x)
    with pytest.raises(ValueError, match="expected at least one element"):
        relu_forward(x[:0], x[:0])
