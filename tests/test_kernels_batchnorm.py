"""Batch normalization against its twin, and the twin against central differences."""

import numpy as np
import pytest
from gradcheck import aligned, assert_close, assert_same_bits_with_threads, check_gradient, randn

from knltrain.kernels import (
    COEFFICIENTS,
    batchnorm_backward,
    batchnorm_forward,
    batchnorm_inference,
    batchnorm_table,
    batchnorm_workspace,
    reference,
)
from knltrain.kernels.store import goes_past

EPS = 1e-5
SHAPES = [(1, 7, 103, 3), (2, 7, 103, 5), (3, 9, 11, 17), (1, 7, 103, 33), (32, 14, 14, 16), (64, 130)]


def empty(x):
    pixels, channels = x.size // x.shape[-1], x.shape[-1]
    vectors = [np.full(channels, np.nan, np.float32) for _ in range(4)]
    return np.full_like(x, np.nan), *vectors, np.full(batchnorm_workspace(pixels, channels), np.nan, np.float32)


def run(x, dy, gamma, beta, residual, relu):
    """y, mean, var, dx, dgamma, dbeta, dresidual of the kernels."""
    y, mean, var, dgamma, dbeta, workspace = empty(x)
    batchnorm_forward(x, gamma, beta, EPS, y, mean, var, workspace, residual, relu)
    dx, dresidual = np.full_like(x, np.nan), None if residual is None else np.full_like(x, np.nan)
    if gamma is None:
        dgamma = dbeta = None
    workspace[:] = np.nan
    batchnorm_backward(x, y, dy, gamma, beta, mean, var, EPS, dx, dgamma, dbeta, workspace, relu, dresidual)
    if residual is None:  # nothing but the sign of y counts, and that follows from x
        again = np.full_like(x, np.nan)
        batchnorm_backward(x, None, dy, gamma, beta, mean, var, EPS, again, dgamma, dbeta, workspace, relu)
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
    y, mean, var, _, _, workspace = empty(x)
    batchnorm_forward(x, None, None, EPS, y, mean, var, workspace, moments=moments, counts=counts)
    expected = reference.batchnorm_forward(x.astype(np.float64), None, None, EPS, None, False)
    for have, want in zip((y, mean, var), expected, strict=True):
        assert_close(have, want, factor=4)
    for wrong in (counts + 1, counts * [0, *[1] * (parts - 1)]):
        with pytest.raises(ValueError, match="expected 721, no part empty"):
            batchnorm_forward(x, None, None, EPS, y, mean, var, workspace, moments=moments, counts=wrong)


@pytest.mark.parametrize("shape", [(3, 5, 7, 24), (64, 3)])
def test_batchnorm__normalizes_its_residual_too(shape):
    """As another batch norm, stored and added, does: to the bit in float32. Few channels are folded."""
    (x, r), (g, b, h, c) = randn(2, *shape, offset=3), randn(4, shape[-1], seed=1)
    y, mean, var, _, _, workspace = empty(x)
    batchnorm_forward(r, h, c, EPS, y, mean, var, workspace)
    table, both = np.empty((COEFFICIENTS, shape[-1]), np.float32), np.empty_like(y)
    batchnorm_table(h, c, mean, var, EPS, table)
    batchnorm_forward(x, g, b, EPS, both, mean, var, workspace, r, True, residual_table=table)
    batchnorm_forward(x, g, b, EPS, x, mean, var, workspace, y, True)
    assert np.array_equal(both, x) and (both > 0).any()
    with pytest.raises(ValueError, match="found a table and no residual, expected both"):
        batchnorm_forward(x, g, b, EPS, both, mean, var, workspace, residual_table=table)


def test_batchnorm__stores_past_the_caches_what_it_stores_otherwise(monkeypatch):
    def results():
        x, dy, residual = (aligned(randn(50, 3, 32, seed=seed)) for seed in range(3))
        y, mean, var, dgamma, dbeta, workspace = empty(x)
        y, dx = aligned(y), aligned(y)
        for r in (None, residual):
            batchnorm_forward(x, None, None, EPS, y, mean, var, workspace, r, True)
            yield y.copy()
            g = None if r is None else dy
            batchnorm_backward(x, y, dy, None, None, mean, var, EPS, dx, None, None, workspace, True, g)
            yield dx.copy()

    ordinary = list(results())
    monkeypatch.setattr("knltrain.kernels.store.PAST_BYTES", 0)
    assert goes_past(aligned(np.zeros((4, 32), np.float32)), 32)
    for have, want in zip(results(), ordinary, strict=True):
        np.testing.assert_array_equal(have, want)


def test_batchnorm__survives_a_large_mean():
    x = randn(4, 9, 9, 17, offset=1000)
    y, mean, var, *_ = empty(x)
    batchnorm_forward(x, None, None, EPS, y, mean, var, empty(x)[-1])
    assert_close(var, x.astype(np.float64).var(axis=(0, 1, 2)), factor=100)


def test_batchnorm_inference__equals_twin():
    x, gamma, beta, mean = randn(3, 5, 5, 33), randn(33), randn(33, seed=1), randn(33, seed=2)
    var, y = np.abs(randn(33, seed=3, offset=1)), np.empty_like(x)
    for relu, residual in ((False, None), (True, randn(3, 5, 5, 33, seed=4))):
        batchnorm_inference(x, gamma, beta, mean, var, EPS, y, residual, relu)
        wide = [a.astype(np.float64) for a in (x, gamma, beta, mean, var)]
        assert_close(y, reference.batchnorm_inference(*wide, EPS, residual, relu))


def test_batchnorm_backward__works_in_place():
    x, dy, gamma, beta = randn(2, 7, 9, 17), randn(2, 7, 9, 17, seed=1), randn(17), randn(17, seed=1)
    y, mean, var, dx, dgamma, dbeta, dresidual = run(x, dy, gamma, beta, randn(2, 7, 9, 17, seed=2), True)
    workspace = empty(x)[-1]
    g, other = dy.copy(), np.empty_like(x)
    batchnorm_backward(x, y, g, gamma, beta, mean, var, EPS, other, dgamma, dbeta, workspace, True, g)
    assert np.array_equal(g, dresidual) and np.array_equal(other, dx)
    g = dy.copy()
    batchnorm_backward(x, y, g, gamma, beta, mean, var, EPS, g, dgamma, dbeta, workspace, True)
    assert np.array_equal(g, dx)


def test_batchnorm_backward__takes_sums_that_it_is_told():
    x, dy, gamma, beta = randn(2, 7, 9, 17), randn(2, 7, 9, 17, seed=1), randn(17), randn(17, seed=1)
    _, mean, var, dx, dgamma, dbeta, _ = run(x, dy, gamma, beta, None, False)
    parts = [np.stack([rows, rows * (here - mean)]).sum(1) for rows, here in zip(*map(_parts, (dy, x)), strict=True)]
    told = np.empty_like(x), np.empty(17, np.float32), np.empty(17, np.float32)
    others = (empty(x)[-1], False, None, np.float32(parts))
    batchnorm_backward(x, None, dy, gamma, beta, mean, var, EPS, *told, *others)
    for found, expected in zip(told, (dx, dgamma, dbeta), strict=True):
        assert_close(found, expected)
    with pytest.raises(ValueError, match="found sums and a ReLU or residual"):
        batchnorm_backward(x, None, dy, gamma, beta, mean, var, EPS, *told, others[0], True, None, others[3])


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
    y, mean, var, gamma, beta, workspace = empty(x)
    with pytest.raises(ValueError, match="one of gamma and beta"):
        batchnorm_forward(x, gamma, None, EPS, y, mean, var, workspace)
    with pytest.raises(ValueError, match="workspace"):
        batchnorm_forward(x, gamma, beta, EPS, y, mean, var, workspace[:-1])
    with pytest.raises(ValueError, match=r"found shape \(5,\), expected \(2, 3, 3, 5\)"):
        batchnorm_forward(x, gamma, beta, EPS, mean, mean, var, workspace)
    with pytest.raises(TypeError, match="float64"):
        batchnorm_forward(x.astype(np.float64), gamma, beta, EPS, y, mean, var, workspace)
    with pytest.raises(ValueError, match="dx and dresidual"):
        batchnorm_backward(x, y, x, None, None, mean, var, EPS, y, None, None, workspace, dresidual=y)
