"""Pooling against its twins, and the twins against central differences."""

import numpy as np
import pytest
from gradcheck import assert_close, assert_same_bits_with_threads, check_gradient, randn

from knltrain.kernels import (
    avgpool_backward,
    avgpool_forward,
    batchnorm_normalize,
    batchnorm_plan,
    global_avgpool_backward,
    global_avgpool_forward,
    maxpool_backward,
    maxpool_forward,
    output_size,
    reference,
)

# shape, size, stride, pad
CASES = [
    ((1, 7, 103, 3), 3, 2, 0),
    ((2, 7, 103, 17), 3, 2, 1),
    ((1, 9, 8, 5), 2, 2, 0),
    ((3, 11, 7, 33), 5, 3, 2),
    ((2, 6, 6, 16), 2, 3, 1),
    ((1, 5, 5, 1), 1, 1, 0),
    ((2, 4, 4, 64), 3, 1, 1),
]


def pooled(shape, size, stride, pad, dtype=np.float32):
    n, h, w, c = shape
    return np.zeros((n, output_size(h, size, stride, pad), output_size(w, size, stride, pad), c), dtype)


def run_max(x, size, stride, pad):
    y, argmax = pooled(x.shape, size, stride, pad), pooled(x.shape, size, stride, pad, np.uint8)
    maxpool_forward(x, size, stride, pad, y, argmax)
    dx = np.full_like(x, np.nan)
    maxpool_backward(y, argmax, size, stride, pad, dx)
    return y, argmax, dx


def run_average(x, size, stride, pad):
    y, dx = pooled(x.shape, size, stride, pad), np.full_like(x, np.nan)
    avgpool_forward(x, size, stride, pad, y)
    avgpool_backward(y, size, stride, pad, dx)
    return y, dx


@pytest.mark.parametrize(("shape", "size", "stride", "pad"), CASES)
def test_maxpool__equals_twin(shape, size, stride, pad):
    x = randn(*shape, offset=-2)  # mostly negative: padding must not win
    y, argmax, dx = run_max(x, size, stride, pad)
    expected, places = reference.maxpool_forward(x, size, stride, pad)
    assert np.array_equal(y, expected) and np.array_equal(argmax, places)
    assert_close(dx, reference.maxpool_backward(y.astype(np.float64), places, shape, size, stride, pad))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "size", "stride", "pad"), CASES)
def test_maxpool__of_a_batch_norm_normalizes_what_it_reads(shape, size, stride, pad, relu):
    """To the bit as if that was stored; scales of either sign."""
    x, c = randn(*shape), shape[-1]
    y, argmax = pooled(shape, size, stride, pad), pooled(shape, size, stride, pad, np.uint8)
    table, normal = np.tile(randn(3, c, seed=1), 2), np.empty_like(x)
    columns = batchnorm_plan(x.size // c, c).table_shape[1]
    batchnorm_normalize(x, np.tile(table[:, :c], columns // c), normal, relu=relu)
    maxpool_forward(x, size, stride, pad, y, argmax, table=table, relu=relu)
    expected, places = reference.maxpool_forward(normal, size, stride, pad)
    assert np.array_equal(y, expected) and np.array_equal(argmax, places) and (y != 0).any()
    with pytest.raises(ValueError, match="maxpool: table: found shape"):
        maxpool_forward(x, size, stride, pad, y, argmax, table=table[:2])


@pytest.mark.parametrize(("shape", "size", "stride", "pad"), CASES)
def test_maxpool_of_a_relu__gives_nothing_where_it_passes_nothing(shape, size, stride, pad):
    x = np.maximum(randn(*shape, offset=-1), 0)
    (y, argmax, _), told = run_max(x, size, stride, pad), pooled(shape, size, stride, pad, np.uint8)
    maxpool_forward(x, size, stride, pad, y, told, rectified=True)
    assert np.array_equal(told, reference.maxpool_forward(x, size, stride, pad, rectified=True)[1])
    dy, dx, masked = randn(*y.shape, seed=1), np.empty_like(x), np.empty_like(x)
    maxpool_backward(dy, argmax, size, stride, pad, dx)
    maxpool_backward(dy, told, size, stride, pad, masked)
    assert np.array_equal(masked, np.where(x > 0, dx, 0)) and (masked != dx).any()


def test_maxpool__takes_the_first_of_equals_and_keeps_nan():
    x = np.zeros((1, 2, 2, 3), np.float32)
    x[0, 1, 0, 1] = np.nan
    y, argmax, _ = run_max(x, 2, 2, 0)
    assert argmax.ravel().tolist() == [0, 2, 0] and np.isnan(y).ravel().tolist() == [False, True, False]


@pytest.mark.parametrize(("shape", "size", "stride", "pad"), CASES)
def test_avgpool__equals_twin(shape, size, stride, pad):
    x = randn(*shape)
    y, dx = run_average(x, size, stride, pad)
    assert_close(y, reference.avgpool_forward(x.astype(np.float64), size, stride, pad))
    assert_close(dx, reference.avgpool_backward(y.astype(np.float64), shape, size, stride, pad))


@pytest.mark.parametrize("shape", [(1, 7, 103, 3), (5, 7, 7, 33)])
def test_global_avgpool__equals_twin(shape):
    x, dx = randn(*shape), np.full(shape, np.nan, np.float32)
    y = np.full((shape[0], shape[3]), np.nan, np.float32)
    global_avgpool_forward(x, y)
    global_avgpool_backward(y, dx)
    assert_close(y, reference.global_avgpool_forward(x.astype(np.float64)))
    assert_close(dx, reference.global_avgpool_backward(y.astype(np.float64), shape))


def test_pool__same_bits_for_any_thread_count():
    x = randn(3, 13, 13, 32)
    assert_same_bits_with_threads(lambda: [*run_max(x, 3, 2, 1), *run_average(x, 3, 2, 1)])


@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 2, 1), (2, 2, 0), (2, 3, 1)])
def test_pool_twins__have_the_right_gradient(size, stride, pad):
    x = randn(2, 5, 6, 3).astype(np.float64)
    y, places = reference.maxpool_forward(x, size, stride, pad)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    dx = reference.maxpool_backward(dy, places, x.shape, size, stride, pad)
    check_gradient(lambda a: (reference.maxpool_forward(a, size, stride, pad)[0] * dy).sum(), x, dx)
    dx = reference.avgpool_backward(dy, x.shape, size, stride, pad)
    check_gradient(lambda a: (reference.avgpool_forward(a, size, stride, pad) * dy).sum(), x, dx)
    dx = reference.global_avgpool_backward(dy[:, 0, 0], x.shape)
    check_gradient(lambda a: (reference.global_avgpool_forward(a) * dy[:, 0, 0]).sum(), x, dx)


def test_pool__rejects_what_does_not_fit():
    x, y = randn(1, 5, 5, 3), np.zeros((1, 2, 2, 3), np.float32)
    with pytest.raises(ValueError, match="expected pad < size"):
        avgpool_forward(x, 2, 2, 2, y)
    with pytest.raises(ValueError, match=r"expected \(1, 1, 1, 3\)"):
        avgpool_forward(x, 5, 1, 0, y)
    with pytest.raises(TypeError, match="maxpool: y: found uint16"):
        maxpool_forward(np.zeros((1, 4, 4, 3), np.float32), 2, 2, 0, np.zeros((1, 2, 2, 3), np.uint16), None)
    with pytest.raises(TypeError, match="uint8"):
        maxpool_forward(x, 2, 2, 0, y, y)
    with pytest.raises(ValueError, match="larger images"):
        avgpool_forward(x, 7, 1, 0, y)
