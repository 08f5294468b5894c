"""The loss's scale: it changes no bit where nothing overflows, and a step that does overflow changes no weight."""

import numpy as np
import pytest

from knltrain.arena import Parameter
from knltrain.optim.lars import Lars
from knltrain.optim.options import VARIANTS, Optim
from knltrain.optim.scaling import HOPELESS, PATIENCE, LossScale


def tensor(rng, name, **flags):
    p = Parameter(name, (301,), None, **flags)
    p.w, p.dw, p.v = (rng.standard_normal(p.shape).astype(np.float32) for _ in range(3))
    return p


# ---- the scale itself --------------------------------------------------------------------------------------------


def test_dynamic__halves_at_an_overflow_and_doubles_after_enough_good_steps():
    scaling = LossScale()
    scaling.count(False)
    assert (scaling.scale, scaling.skipped) == (2.0**15, 1)
    for _ in range(PATIENCE - 1):
        scaling.count(True)
    assert scaling.scale == 2.0**15
    scaling.count(True)
    assert (scaling.scale, scaling.good) == (2.0**16, 0)


def test_dynamic__stays_between_one_and_its_largest():
    low, high = LossScale(), LossScale()
    for step in range(HOPELESS):
        assert not low.hopeless, step
        low.count(False)
    assert low.scale == 1 and low.hopeless and low.skipped == HOPELESS
    for _ in range(10 * PATIENCE):
        high.count(True)
    assert high.scale == 2.0**24


def test_static__stays_but_counts():
    scaling = LossScale(1024.0)
    for fits in (False, True, False):
        scaling.count(fits)
    assert (scaling.scale, scaling.skipped, scaling.failed) == (1024.0, 2, 1)


def test_state__goes_on_as_if_never_left():
    one, other = LossScale(), LossScale()
    for step in range(100):
        one.count(step % 7 != 0)
    other.restore(one.state())
    for step in range(2 * PATIENCE):
        for scaling in (one, other):
            scaling.count(step != 50)
    assert one.state() == other.state()


# ---- the optimizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trust", [0.0, 0.02])
def test_lars__scaled_gradients_give_the_same_bits(variant, nesterov, trust):
    states = []
    for scale in (1.0, 2.0**13, 2.0**24):
        rng = np.random.default_rng(5)
        parameters = [tensor(rng, "w"), tensor(rng, "b", decay=False, adapt=False)]
        options = {"variant": variant, "nesterov": nesterov, "trust_coefficient": trust}
        optimizer = Lars(parameters, Optim(**options, weight_decay=1e-3, epsilon=1e-5))
        for step in range(5):
            for p in parameters:
                p.dw[:] = np.float32(scale) * rng.standard_normal(p.shape).astype(np.float32)
            optimizer.begin(0.1 * (step + 1), scale)
            for p in parameters:
                optimizer.update(p, optimizer.norms(p))
        states.append([array for p in parameters for array in (p.w, p.v)])
    for other in states[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(states[0], other, strict=True))


# ---- why master weights and norms are float32 (Jia et al. 2018, arXiv:1807.11205, section 3.1) ---------------------

RATE, TRUST, MOMENTUM, STEPS = 0.2, 0.001, 0.5, 600
IMAGES, FEATURES, CLASSES = 128, 24, 4
SMALL = 2.0**-13  # gradients as in a deep network: the largest about 1e-4, well in fp16's range; their squares are not


def _problem():
    rng = np.random.default_rng(11)
    labels = rng.integers(0, CLASSES, IMAGES)
    x = rng.standard_normal((CLASSES, FEATURES))[labels] + 0.5 * rng.standard_normal((IMAGES, FEATURES))
    return x, labels, (0.3 * rng.standard_normal((FEATURES, CLASSES))).astype(np.float32)


def _loss_and_gradient(x, labels, w, scale=1.0):
    """Of softmax regression; the gradient is SMALL, times `scale`, as fp16 holds it."""
    logits = x @ w.astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[range(IMAGES), labels]).mean()
    p[range(IMAGES), labels] -= 1
    return loss, (x.T @ p * (SMALL * scale / IMAGES)).astype(np.float16)


def _lars_fp16(w, g, v):
    """A step of `Lars`, mlperf, no decay, with every number an fp16, sums too, as NumPy rounds them; returns |g|."""
    half = np.float16
    w_norm, g_norm = (np.sqrt((a * a).sum(dtype=half)) for a in (w, g))
    ratio = half(TRUST) * w_norm / g_norm if w_norm > 0 and g_norm > 0 else half(1)
    v[...] = half(MOMENTUM) * v + half(RATE) * ratio * g
    w -= v
    return g_norm


def test_lars__in_fp16_alone_stops_where_fp32_masters_learn():
    x, labels, start = _problem()
    w, v = start.astype(np.float16), np.zeros(start.shape, np.float16)
    first, g = _loss_and_gradient(x, labels, w)
    assert 5e-5 < np.abs(g).max() < 2e-4 and np.count_nonzero(g) > 0.95 * g.size
    for _ in range(STEPS):
        assert _lars_fp16(w, _loss_and_gradient(x, labels, w)[1], v) == 0  # no norm, hence no ratio
    stuck, _ = _loss_and_gradient(x, labels, w)

    p, scale = Parameter("w", start.shape, None), 2.0**10
    p.w, p.v, p.dw = start.copy(), np.zeros(start.shape, np.float32), np.zeros(start.shape, np.float32)
    optimizer = Lars([p], Optim("mlperf", TRUST, MOMENTUM, weight_decay=0.0))
    for _ in range(STEPS):
        p.dw[...] = _loss_and_gradient(x, labels, p.w, scale)[1]
        optimizer.begin(RATE, scale)
        optimizer.update(p, optimizer.norms(p))
    learned, _ = _loss_and_gradient(x, labels, p.w)
    assert stuck > 0.95 * first and learned < 0.5 * first, (first, stuck, learned)
