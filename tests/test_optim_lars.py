"""Every LARS variant at steps worked by hand, the traps of the published versions, and a written-out reference.

The scalar of the worked steps: w = 1, g = 0.5, weight decay 5e-4, trust coefficient 0.001, lr 32, momentum 0.9, v = 0.
"""

import numba
import numpy as np
import pytest

from knltrain.arena import Parameter
from knltrain.optim.adaptive import OPTIMIZERS
from knltrain.optim.lars import Lars, trust_ratio
from knltrain.optim.options import OTHERS, RULES, VARIANTS, Optim

SCALAR = {"trust_coefficient": 0.001, "momentum": 0.9, "weight_decay": 5e-4}
FLOAT32 = 1e-6  # relative, of one update


def tensor(w, g=0.0, name="w", **flags):
    """A parameter with value w, gradient g and no momentum."""
    w = np.atleast_1d(np.array(w, np.float32))
    p = Parameter(name, w.shape, None, **flags)
    p.w, p.dw, p.v = w.copy(), np.broadcast_to(np.float32(g), w.shape).copy(), np.zeros_like(w)
    return p


def lars(parameters, **options):
    return Lars(parameters, Optim(**{"trust_coefficient": 0.001, "weight_decay": 0.0} | options))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=FLOAT32)


# ---- worked by hand ------------------------------------------------------------------------------------------


def test_caffe2017__step_by_hand():
    p = tensor(1.0, 0.5)
    optimizer = lars([p], variant="caffe2017", **SCALAR)
    optimizer.step(32)
    close(optimizer.trust_ratios["w"], 0.001998002)  # 0.001 * 1 / (0.5 + 5e-4)
    close(p.v, [0.032])  # 32 * ratio * 0.5005
    close(p.w, [0.968])


def test_caffe2017__second_step_by_hand():
    p = tensor(1.0, 0.5)
    optimizer = lars([p], variant="caffe2017", **SCALAR)
    optimizer.step(32)
    p.dw[:] = 0.25
    optimizer.step(16)
    # g parallel to w: what is added is lr * 0.001 * |w| = 16 * 0.001 * 0.968; the past is 0.9 * 0.032
    close(p.v, [0.044288])
    close(p.w, [0.923712])


@pytest.mark.parametrize("variant", RULES)
def test_rate__of_a_tensor_multiplies_the_learning_rate(variant):
    options = Optim(variant, **SCALAR, epsilon=1e-6 if variant in OTHERS else 0.0)
    fast, plain, frozen = tensor(1.0, 0.5, "fast", rate=8.0), tensor(1.0, 0.5, "plain"), tensor(1.0, 0.5, "f", rate=0.0)
    for p in (fast, plain, frozen):
        p.states["second"] = np.zeros_like(p.w)
    for tensors, lr in (([fast, frozen], 1e-4), ([plain], 8e-4)):
        optimizer = OPTIMIZERS.get(variant, Lars)(tensors, options)
        optimizer.begin(lr)
        optimizer.step(lr)
    close(fast.w, plain.w)
    assert frozen.w == 1 and plain.w != 1


def test_mlperf__step_by_hand_and_skipped_bias():
    p, bias = tensor(1.0, 0.5), tensor(1.0, 0.5, "b", decay=True, adapt=False)
    optimizer = lars([p, bias], variant="mlperf", **SCALAR)
    optimizer.step(32)
    close(p.w, [0.968])
    close(bias.v, [16.0])  # 32 * 0.5: the plain rate, and no decay whatever its flag
    close(bias.w, [-15.0])
    assert list(optimizer.trust_ratios) == ["w"]


def test_mlperf__epsilon_stands_below():
    p = tensor(1.0, 0.5)
    optimizer = lars([p], variant="mlperf", epsilon=0.4995, **SCALAR)
    optimizer.step(1.0)
    close(optimizer.trust_ratios["w"], 0.001)  # 0.001 / (0.5 + 0.0005 + 0.4995)
    close(p.v, [0.0005005])


def test_larc_clip__step_by_hand():
    p = tensor(1.0, 0.5)
    optimizer = lars([p], variant="larc_clip", **SCALAR)
    optimizer.step(0.08)
    close(optimizer.trust_ratios["w"], 0.0002)  # (1 - 0.9) * 0.001 * 1 / 0.5
    close(p.v, [0.0001001])  # min(0.08, 0.0002) * 0.5005
    close(p.w, [0.9998999])


def test_larc_clip__a_small_rate_is_not_raised():
    p = tensor(1.0, 0.5)
    lars([p], variant="larc_clip", **SCALAR).step(0.0001)
    close(p.v, [0.00005005])  # 0.0001 * 0.5005


def test_nus__two_steps_by_hand():
    p, bias = tensor(1.0, 0.5), tensor(1.0, 0.5, "b", adapt=False)
    optimizer = lars([p, bias], variant="nus", **SCALAR)
    optimizer.step(32)
    close(p.v, [0.5005])  # no rate inside
    close(p.w, [0.968])  # 1 - 32 * 0.001998002 * 0.5005
    close(bias.v, [0.5])
    optimizer.step(16)
    # v = 0.9 * 0.5005 + 0.5 + 0.0005 * 0.968 = 0.950934; ratio = 0.001 * 0.968 / (0.5 + 0.000484) = 0.0019341277
    close(p.v, [0.950934])
    close(p.w, [0.968 - 16 * 0.0019341277 * 0.950934])


def test_nesterov__by_hand():
    p = tensor(1.0, 0.5)
    optimizer = lars([p], trust_coefficient=0, momentum=0.9, nesterov=True)
    optimizer.step(0.1)
    close(p.w, [0.905])  # 1 - (0.9 * 0.05 + 0.05)
    optimizer.step(0.1)
    close(p.w, [0.7695])  # v = 0.095; 0.905 - (0.9 * 0.095 + 0.05)


# ---- traps ---------------------------------------------------------------------------------------------------


def test_trust_ratio__is_one_where_a_norm_is_zero():
    assert trust_ratio(0.0, 2.0, 0.001, 5e-4, 0.0) == 1
    assert trust_ratio(2.0, 0.0, 0.001, 5e-4, 0.0) == 1
    assert trust_ratio(0.0, 0.0, 0.001, 0.0, 0.0) == 1
    assert trust_ratio(2.0, 4.0, 0.001, 0.5, 3.0) == pytest.approx(0.00025)  # 0.002 / (4 + 1 + 3)


def test_zero_norm__trust_is_the_coefficient_in_place_of_one():
    assert trust_ratio(0.0, 2.0, 0.001, 5e-4, 0.0, "trust") == trust_ratio(2.0, 0.0, 0.001, 5e-4, 0.0, "trust") == 0.001
    p = tensor([0.0, 0.0], 0.5)
    lars([p], zero_norm="trust", **SCALAR).step(32)
    close(p.w, [-0.016, -0.016])  # 32 * 0.001 * 0.5


@pytest.mark.parametrize(
    "why, options, lr",
    [
        ("at most 1 is no harm", {}, 1.0),
        ("by the coefficient", {"zero_norm": "trust"}, 32),
        ("the tensor is skipped", {"variant": "mlperf"}, 32),
        ("the ratio only lowers the rate", {"variant": "larc_clip"}, 32),
        ("SGD has no ratio", {"trust_coefficient": 0}, 32),
    ],
)
def test_check_start__refuses_zeros_that_would_move_at_a_raw_rate_above_one(why, options, lr):
    parameters = [tensor([1.0]), tensor([0.0, 0.0], name="fc.b", adapt=False, decay=False)]
    lars(parameters, **SCALAR | options).check_start(lr / 2, lr)
    with pytest.raises(ValueError, match="fc.b begins with zeros.* raw rate would be 32,.* optim.zero_norm"):
        lars(parameters, **SCALAR).check_start(32)


@pytest.mark.parametrize("variant", ["caffe2017", "mlperf", "nus"])
def test_zero_weights__still_move_at_the_raw_rate(variant):
    p = tensor([0.0, 0.0], 0.5)
    lars([p], variant=variant, **SCALAR).step(0.1)
    close(p.w, [-0.05, -0.05])


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_gradient__leaves_only_decay(variant):
    p = tensor([1.0, -2.0])
    lars([p], variant=variant, **SCALAR).step(0.1)
    close(p.w, [1 - 5e-5, -2 + 1e-4])


def test_flags__decay_false_is_not_decayed_but_counts_in_the_ratio():
    p = tensor(1.0, 0.5, decay=False)
    optimizer = lars([p], variant="caffe2017", **SCALAR)
    optimizer.step(32)
    close(optimizer.trust_ratios["w"], 0.001998002)
    close(p.v, [0.031968032])  # 32 * ratio * 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_flags__decay_bias_and_norm_decays_every_tensor(variant):
    p = tensor(2.0, 0.0, decay=False, adapt=False)
    lars([p], variant=variant, **SCALAR, decay_bias_and_norm=True).step(0.1)
    close(p.w, [2 - 0.1 * 5e-4 * 2])


def test_momentum_correction__scales_the_past_while_the_rate_rises():
    p = tensor(1.0, 0.5)
    optimizer = lars([p], trust_coefficient=0, momentum=0.5, momentum_correction=True)
    optimizer.step(0.1)
    close(p.v, [0.05])
    optimizer.step(0.2)
    close(p.v, [0.15])  # 0.5 * (0.2 / 0.1) * 0.05 + 0.2 * 0.5
    optimizer.step(0.1)
    close(p.v, [0.125])  # falling: plain 0.5 * 0.15 + 0.05
    assert optimizer.state() == {"previous_lr": 0.1}


def test_momentum_correction__equals_momentum_over_gradients():
    # with the correction v / lr is exactly the buffer of a variant without lr inside
    corrected, plain = tensor(1.0, 0.5), tensor(1.0, 0.5)
    first = lars([corrected], variant="caffe2017", trust_coefficient=0, momentum_correction=True)
    second = lars([plain], variant="nus", trust_coefficient=0)
    for step in range(1, 9):
        for optimizer, p in ((first, corrected), (second, plain)):
            p.dw[:] = p.w
            optimizer.step(0.01 * step)
    np.testing.assert_allclose(corrected.w, plain.w, rtol=1e-5)


def test_options__that_do_not_go_together_are_named():
    for variant in RULES:
        found = [problem[0] for problem in Optim(variant, momentum_correction=True, epsilon=1e-6).problems()]
        assert ("optim.momentum_correction" in found) == (variant not in ("caffe2017", "mlperf", "larc_scale"))
    (found,) = Optim("lamb").problems()
    assert found == ("optim.epsilon, optim.nesterov", (0.0, False), "more than 0, and false, with lamb")
    assert not list(Optim("lamb", epsilon=1e-6).problems())
    assert len(list(Optim("rmsprop_warmup", epsilon=1e-8, nesterov=True).problems())) == 2  # and no trust coefficient


# ---- all variants, many steps --------------------------------------------------------------------------------


def reference_step(variant, p, lr, c, momentum):
    """One step in float64 as the table of the variants reads; p: dict of w, g, v and flags."""
    w, g, v = p["w"], p["g"], p["v"]
    skipped = variant in ("mlperf", "nus") and not p["adapt"]
    w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
    if variant in ("larc_clip", "larc_scale"):
        ratio = (1 - c["momentum"]) * c["trust_coefficient"] * w_norm / (g_norm + c["epsilon"])
        rate = min(lr, ratio) if variant == "larc_clip" else lr * ratio
    elif skipped:
        rate = lr
    else:
        below = g_norm + c["weight_decay"] * w_norm + c["epsilon"]
        rate = lr * c["trust_coefficient"] * w_norm / below
    d = g if skipped or not p["decay"] else g + c["weight_decay"] * w
    inside, outside = (1, rate) if variant == "nus" else (rate, 1)
    p["v"] = momentum * v + inside * d
    p["w"] = w - outside * (momentum * p["v"] + inside * d if c["nesterov"] else p["v"])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_lars__many_steps_equal_the_written_out_reference(variant, nesterov):
    rng = np.random.default_rng(3)
    constants = {"trust_coefficient": 0.02, "momentum": 0.9, "weight_decay": 1e-3, "epsilon": 1e-5}
    constants["nesterov"] = nesterov
    correction = variant in ("caffe2017", "mlperf")
    flags = [(True, True), (False, False), (False, True)]
    parameters = [tensor(rng.standard_normal(37), 0, str(f), decay=f[0], adapt=f[1]) for f in flags]
    reference = [{"w": np.float64(p.w), "v": np.zeros(37), "decay": p.decay, "adapt": p.adapt} for p in parameters]
    optimizer = lars(parameters, variant=variant, **constants, momentum_correction=correction)
    rates = [0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1]
    for previous, lr in zip([0, *rates], rates, strict=False):
        momentum = 0.9 * (lr / previous if correction and 0 < previous < lr else 1)
        for p, r in zip(parameters, reference, strict=True):
            p.dw[...] = rng.standard_normal(37)
            r["g"] = np.float64(p.dw)
            reference_step(variant, r, lr, constants, momentum)
        optimizer.step(lr)
    for p, r in zip(parameters, reference, strict=True):
        np.testing.assert_allclose(p.w, r["w"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("trust_coefficient, lr", [(0, 0.05), (0.02, 0.2)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_lars__minimizes_a_quadratic(variant, trust_coefficient, lr, nesterov):
    rng = np.random.default_rng(0)
    scale = np.array([0.5, 1, 2, 4], np.float32)  # loss = sum of scale * (w - goal)^2 / 2
    goal = np.array([1, -2, 3, -1], np.float32)
    p = tensor(rng.standard_normal(4))
    # nus multiplies old gradients by a ratio over the new one: without epsilon it is thrown out where gradients vanish
    epsilon = 0.1 if variant == "nus" else 0.0
    optimizer = lars([p], variant=variant, trust_coefficient=trust_coefficient, nesterov=nesterov, epsilon=epsilon)
    start = scale @ (p.w - goal) ** 2
    steps = 4000  # |change of w| is about lr * trust_coefficient * |w| whatever the gradient: small rates, many steps
    for step in range(steps):
        p.dw[...] = scale * (p.w - goal)
        optimizer.step(lr * (1 - step / steps) ** 2)
    assert scale @ (p.w - goal) ** 2 < 1e-3 * start


@pytest.mark.parametrize("variant", VARIANTS)
def test_sgd__is_trust_coefficient_zero(variant):
    p, rng = tensor([1.0, -3.0, 0.0]), np.random.default_rng(1)
    w, v = np.float64(p.w), np.zeros(3)
    optimizer = lars([p], variant=variant, trust_coefficient=0, momentum=0.9, weight_decay=0.01)
    for _ in range(10):
        p.dw[...] = rng.standard_normal(3)
        v = 0.9 * v + p.dw + 0.01 * w
        w = w - 0.1 * v
        optimizer.step(0.1)
    np.testing.assert_allclose(p.w, w, rtol=1e-5)
    assert optimizer.trust_ratios == {}


def test_lars__any_thread_count_gives_the_same_bits():
    before, results = numba.get_num_threads(), []
    try:
        for threads in (1, min(2, before)):
            numba.set_num_threads(threads)
            rng = np.random.default_rng(2)
            p = tensor(rng.standard_normal((3, 70_001)))
            optimizer = lars([p], **SCALAR)
            for _ in range(3):
                p.dw[...] = rng.standard_normal(p.shape)
                optimizer.step(10.0)
            results.append((p.w.tobytes(), p.v.tobytes(), optimizer.trust_ratios["w"]))
    finally:
        numba.set_num_threads(before)
    assert results[0] == results[1]
