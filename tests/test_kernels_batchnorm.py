"""Batch normalization against its twin, and the twin against central differences."""

import numpy as np
import pytest
from gradcheck import aligned, assert_close, assert_same_bits_with_threads, check_gradient, randn
from normed import backward, forward, scratch

from knltrain.kernels import (
    BF16,
    batchnorm_backward,
    batchnorm_factors,
    batchnorm_inference,
    batchnorm_moments,
    batchnorm_normalize,
    batchnorm_plan,
    batchnorm_statistics,
    batchnorm_sums,
    reference,
)
from knltrain.kernels.store import goes_past

EPS = 1e-5
SHAPES = [(1, 7, 103, 3), (2, 7, 103, 5), (3, 9, 11, 17), (1, 7, 103, 33), (32, 14, 14, 16), (64, 130)]


def empty(x):
    """y, mean, var, dgamma, dbeta."""
    return np.full_like(x, np.nan), *(np.full(x.shape[-1], np.nan, np.float32) for _ in range(4))


def run(x, dy, gamma, beta, residual, relu):
    """y, mean, var, dx, dgamma, dbeta, dresidual of the kernels."""
    y, mean, var, dgamma, dbeta = empty(x)
    table = forward(x, gamma, beta, EPS, y, mean, var, residual, relu)
    dx, dresidual = np.full_like(x, np.nan), None if residual is None else np.full_like(x, np.nan)
    if gamma is None:
        dgamma = dbeta = None
    backward(x, y, dy, gamma, var, EPS, table, dx, dgamma, dbeta, relu, dresidual)
    if residual is None:  # nothing but the sign of y counts, and that follows from x
        again = np.full_like(x, np.nan)
        backward(x, None, dy, gamma, var, EPS, table, again, dgamma, dbeta, relu)
        np.testing.assert_array_equal(again, dx)
    return y, mean, var, dx, dgamma, dbeta, dresidual


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_batchnorm__equals_twin(shape, relu, affine, with_residual):
    x, dy = randn(*shape, offset=3), randn(*shape, seed=1)
    gamma, beta = (randn(shape[-1], offset=2), randn(shape[-1], seed=1)) if affine else (None, None)
    residual = randn(*shape, seed=2) if with_residual else None
    found = run(x, dy, gamma, beta, residual, relu)
    wide = [None if a is None else a.astype(np.float64) for a in (x, dy, gamma, beta, residual)]
    x64, dy64, gamma64, beta64, residual64 = wide
    y, mean, var = reference.batchnorm_forward(x64, gamma64, beta64, EPS, residual64, relu)
    # the mask comes from the output that the kernel was given
    expected = reference.batchnorm_backward(x64, found[0], dy64, gamma64, mean, var, EPS, relu)
    for have, want in zip(found, (y, mean, var, *expected), strict=True):
        if have is not None:
            assert_close(have, want, factor=4)


@pytest.mark.parametrize("rows, parts", [(100, 8), (100, 7), (360, 3)])
def test_batchnorm__begins_with_the_moments_it_is_told(rows, parts):
    x = randn(721, 5, offset=3)  # the last part has more rows than the others, or fewer
    pieces = [x[i * rows : (i + 1) * rows if i + 1 < parts else len(x)].astype(np.float64) for i in range(parts)]
    moments = np.array([[piece.mean(0), piece.var(0) * len(piece)] for piece in pieces], np.float32)
    counts = np.array([len(piece) for piece in pieces])
    y, mean, var, *_ = empty(x)
    table = scratch(batchnorm_plan(721, 5).table_shape)
    batchnorm_statistics(moments, counts, 721, None, None, EPS, mean, var, table)
    batchnorm_normalize(x, table, y)
    expected = reference.batchnorm_forward(x.astype(np.float64), None, None, EPS, None, False)
    for have, want in zip((y, mean, var), expected, strict=True):
        assert_close(have, want, factor=4)
    for wrong in (counts + 1, counts * [0, *[1] * (parts - 1)]):
        with pytest.raises(ValueError, match="expected 721, no part empty"):
            batchnorm_statistics(moments, wrong, 721, None, None, EPS, mean, var, table)


@pytest.mark.parametrize("shape", [(3, 5, 7, 24), (64, 3)])
def test_batchnorm__normalizes_its_residual_too(shape):
    """As another batch norm, stored and added, does: to the bit in float32. Few channels are folded."""
    (x, r), (g, b, h, c) = randn(2, *shape, offset=3), randn(4, shape[-1], seed=1)
    y, mean, var, *_ = empty(x)
    of_r, both = forward(r, h, c, EPS, y, mean, var), np.empty_like(y)
    table = forward(x, g, b, EPS, both, mean, var, r, True, of_r)
    batchnorm_normalize(x, table, x, y, True)
    assert np.array_equal(both, x) and (both > 0).any()
    with pytest.raises(ValueError, match="found a table and no residual, expected both"):
        batchnorm_normalize(x, table, both, residual_table=of_r)


def test_batchnorm__stores_past_the_caches_what_it_stores_otherwise(monkeypatch):
    def results():
        x, dy, residual = (aligned(randn(50, 3, 32, seed=seed)) for seed in range(3))
        y, mean, var, *_ = empty(x)
        y, dx = aligned(y), aligned(y)
        for r in (None, residual):
            table = forward(x, None, None, EPS, y, mean, var, r, True)
            yield y.copy()
            backward(x, y, dy, None, var, EPS, table, dx, None, None, True, None if r is None else dy)
            yield dx.copy()

    ordinary = list(results())
    monkeypatch.setattr("knltrain.kernels.store.PAST_BYTES", 0)
    assert goes_past(aligned(np.zeros((4, 32), np.float32)), 32)
    for have, want in zip(results(), ordinary, strict=True):
        np.testing.assert_array_equal(have, want)


def test_batchnorm__survives_a_large_mean():
    x = randn(4, 9, 9, 17, offset=1000)
    y, mean, var, *_ = empty(x)
    forward(x, None, None, EPS, y, mean, var)
    assert_close(var, x.astype(np.float64).var(axis=(0, 1, 2)), factor=100)


def test_batchnorm_inference__equals_twin():
    x, gamma, beta, mean = randn(3, 5, 5, 33), randn(33), randn(33, seed=1), randn(33, seed=2)
    var, y = np.abs(randn(33, seed=3, offset=1)), np.empty_like(x)
    for relu, residual in ((False, None), (True, randn(3, 5, 5, 33, seed=4))):
        batchnorm_inference(x, gamma, beta, mean, var, EPS, y, residual, relu)
        wide = [a.astype(np.float64) for a in (x, gamma, beta, mean, var)]
        assert_close(y, reference.batchnorm_inference(*wide, EPS, residual, relu))


def test_batchnorm_backward__works_in_place():
    x, dy, gamma, beta, residual = *randn(3, 2, 7, 9, 17)[:2], randn(17), randn(17, seed=1), randn(2, 7, 9, 17, seed=2)
    for more in (None, residual):
        y, _, var, dx, dgamma, dbeta, dresidual = run(x, dy, gamma, beta, more, True)
        table, g = forward(x, gamma, beta, EPS, *empty(x)[:3], more, True), dy.copy()
        result = g if more is None else np.empty_like(x)
        backward(x, y, g, gamma, var, EPS, table, result, dgamma, dbeta, True, None if more is None else g)
        assert np.array_equal(result, dx) and (more is None or np.array_equal(g, dresidual))


def test_batchnorm_factors__takes_sums_of_any_parts():
    x, dy, gamma, beta = randn(2, 7, 9, 17), randn(2, 7, 9, 17, seed=1), randn(17), randn(17, seed=1)
    _, mean, var, dx, dgamma, dbeta, _ = run(x, dy, gamma, beta, None, False)
    parts = [np.stack([rows, rows * (here - mean)]).sum(1) for rows, here in zip(*map(_parts, (dy, x)), strict=True)]
    told = np.empty_like(x), np.empty(17, np.float32), np.empty(17, np.float32)
    table = forward(x, gamma, beta, EPS, *empty(x)[:3])
    factors = scratch(table.shape)
    batchnorm_factors(np.float32(parts), 126, gamma, var, EPS, factors, *told[1:])
    batchnorm_backward(x, dy, table, factors, told[0])
    for found, expected in zip(told, (dx, dgamma, dbeta), strict=True):
        assert_close(found, expected)


def _parts(x):
    """Pixels in parts of unequal size."""
    return np.split(x.reshape(-1, x.shape[-1]), [5, 80])


def test_batchnorm__same_bits_for_any_thread_count():
    x, dy, gamma, beta = randn(16, 13, 13, 48), randn(16, 13, 13, 48, seed=1), randn(48), randn(48, seed=1)
    assert_same_bits_with_threads(lambda: run(x, dy, gamma, beta, dy, True))


@pytest.mark.parametrize("relu", [False, True])
def test_batchnorm_twin__has_the_right_gradient(relu):
    x, weight, gamma, beta, residual = (
        a.astype(np.float64)
        for a in (randn(2, 3, 4, 3), randn(2, 3, 4, 3, seed=1), randn(3), randn(3, seed=1), randn(2, 3, 4, 3, seed=2))
    )

    def loss(_):
        return (reference.batchnorm_forward(x, gamma, beta, EPS, residual, relu)[0] * weight).sum()

    y, mean, var = reference.batchnorm_forward(x, gamma, beta, EPS, residual, relu)
    gradients = reference.batchnorm_backward(x, y, weight, gamma, mean, var, EPS, relu)
    for argument, gradient in zip((x, gamma, beta, residual), gradients, strict=True):
        check_gradient(loss, argument, gradient, share=0.5)


def test_batchnorm__rejects_what_does_not_fit():
    x = randn(2, 3, 3, 5)
    y, mean, var, gamma, beta = empty(x)
    table = forward(x, gamma, beta, EPS, y, mean, var)
    plan = batchnorm_plan(18, 5)
    moments = scratch(plan.moments_shape)
    with pytest.raises(ValueError, match="one of gamma and beta"):
        batchnorm_inference(x, gamma, None, mean, var, EPS, y)
    with pytest.raises(ValueError, match="one of gamma and beta"):
        batchnorm_statistics(moments, plan.moments_counts, 18, gamma, None, EPS, mean, var, table)
    with pytest.raises(ValueError, match="moments: found shape"):
        batchnorm_moments(x, moments[..., :-1])
    with pytest.raises(ValueError, match=r"found shape \(5,\), expected \(2, 3, 3, 5\)"):
        batchnorm_normalize(x, table, mean)
    with pytest.raises(ValueError, match=r"table: found shape \(2, 10\)"):
        batchnorm_normalize(x, table[:2], y)
    with pytest.raises(TypeError, match="float64"):
        batchnorm_normalize(x.astype(np.float64), table, y)
    with pytest.raises(TypeError, match="residual: found uint16"):
        batchnorm_normalize(x, table, y, BF16.narrow(x))
    with pytest.raises(TypeError, match="y: found uint16"):
        batchnorm_sums(x, BF16.narrow(x), x, table, moments, True, y)
    with pytest.raises(TypeError, match="table: found list"):
        batchnorm_statistics(moments, plan.moments_counts, 18, gamma, beta, EPS, mean, var, [1])
    with pytest.raises(ValueError, match="found 0 pixels"):
        batchnorm_factors(moments, 0, gamma, var, EPS, table, beta, beta)
    with pytest.raises(ValueError, match="all or none"):
        batchnorm_factors(moments, 18, gamma, var, EPS, table, beta)
    with pytest.raises(ValueError, match="behind a residual and no y"):
        batchnorm_sums(x, None, x, table, moments, True, y)
    with pytest.raises(ValueError, match=r"factors: found shape"):
        batchnorm_backward(x, y, table, table[:, :5], y)
