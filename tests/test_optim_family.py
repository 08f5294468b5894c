"""The optimizers, step by step: against what is written out here, and Optax and PyTorch where they are installed.

Gradients of a few steps are drawn once; biases (adapt=False) are among the tensors, and one is longer than a chunk.
"""

import inspect
import types

import numpy as np
import pytest
from costs import FLOPS, Counted, check_passes

from knltrain.arena import Parameter, Parameters
from knltrain.kernels import NORM_CHUNK, adaptive, combine_norms, update
from knltrain.layers import Observer
from knltrain.optim.adaptive import OPTIMIZERS, Lamb, RmspropWarmup, sgd_share
from knltrain.optim.average import Average
from knltrain.optim.lars import Lars
from knltrain.optim.options import Optim

SHAPES = {"a.w": (7, 5), "b.w": (NORM_CHUNK + 3,), "a.b": (6,)}
STEPS = 8
RTOL = 1e-6  # of a step's largest number


def network(states=()):
    parameters, rng = Parameters(), np.random.default_rng(1)
    for name, shape in SHAPES.items():
        weights = name.endswith(".w")
        values = rng.normal(0, 1, shape).astype(np.float32)
        parameters.add(Parameter(name, shape, lambda _, v=values: v, decay=weights, adapt=weights))
    parameters.allocate(0)
    for name in states:
        parameters.keep(name)
    return parameters


def gradients(step):
    rng = np.random.default_rng(100 + step)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def trained(optimizer_of, rates, states=()):
    """Weights by name after each step of an optimizer of ours."""
    parameters = network(states)
    optimizer, found = optimizer_of(parameters.parameters), []
    for step, lr in enumerate(rates):
        for p in parameters.parameters:
            p.dw[...] = gradients(step)[p.name]
        optimizer.at(step, step / 2, step / len(rates))
        optimizer.step(lr)
        found.append({p.name: p.w.copy() for p in parameters.parameters})
    return found


def close(found, expected):
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for name, array in ours.items():
            other = np.asarray(theirs[name])
            scale = np.abs(other).max()
            assert np.abs(array - other).max() <= RTOL * scale, (step, name, np.abs(array - other).max() / scale)


RATES = [0.02 * (step + 1) for step in range(STEPS)]


# ---- what it costs ---------------------------------------------------------------------------------------------

VARIANTS = [(Lars, "caffe2017", False), (Lars, "caffe2017", True), (Lamb, "lamb", False)]
VARIANTS += [(RmspropWarmup, "rmsprop_warmup", False)]
LOOPS = {  # of a kernel: over the elements of a chunk, and how many arrays it takes
    "squared_norm_chunks": (update, "_chunk_norms", 2),
    "momentum_update": (update, "_chunk_update", 3),
    "adaptive_moments": (adaptive, "_chunk_moments", 4),
    "adaptive_step": (adaptive, "_step", 3),
    "blended_update": (adaptive, "_blend", 4),
}


@pytest.mark.parametrize(("make", "variant", "nesterov"), VARIANTS)
def test_kernels__say_in_their_docstrings_what_an_update_costs(make, variant, nesterov, monkeypatch):
    ops, observer = {}, Observer()
    observer.begin = lambda op: ops.update({op.name: op})
    parameters = network(make.states)
    optimizer = make(parameters.parameters, Optim(variant, 0.01, epsilon=1e-4, nesterov=nesterov))
    optimizer.observe(observer)
    optimizer.step(0.1)
    assert len(ops) == (1 if make is RmspropWarmup else 2)
    for name, op in ops.items():
        check_passes(op)
        plain, with_nesterov = FLOPS.search(op.kernel.__doc__).groups()
        assert _flops_of_element(*LOOPS[name], nesterov, monkeypatch) == int(nesterov and with_nesterov or plain)


def _flops_of_element(module, loop, arrays, nesterov, monkeypatch):
    """As the loop of a chunk makes them in plain Python; those of scalars, once a chunk, are left out."""
    numbers = {"float64": lambda number: number, "zeros": lambda size: np.zeros(size, object)}
    monkeypatch.setattr(module, "np", types.SimpleNamespace(**vars(np) | numbers))
    monkeypatch.setattr(adaptive, "_first_six", lambda scalars: scalars[:6])
    counts = []
    for size in (1, 2):
        Counted.flops = 0
        chunk = [np.array([Counted()] * size) for _ in range(arrays)]
        rest = {"scalars": np.ones(7), "sums": np.zeros(2, object), "nesterov": nesterov}
        function = getattr(module, loop).py_func
        function(*chunk, *(rest[name] for name in list(inspect.signature(function).parameters)[arrays:]))
        counts.append(Counted.flops)
    return counts[1] - counts[0]


# ---- written out ----------------------------------------------------------------------------------------------


def test_lamb__is_what_is_written_out():
    w = {p.name: p.w.astype(np.float64) for p in network().parameters}
    m, s = ({name: 0 * array for name, array in w.items()} for _ in range(2))
    expected = []
    for t, lr in enumerate(RATES, start=1):
        for name, g in gradients(t - 1).items():
            m[name] = 0.9 * m[name] + 0.1 * g.astype(np.float64)
            s[name] = 0.99 * s[name] + 0.01 * g.astype(np.float64) ** 2
            u = m[name] / (1 - 0.9**t) / (np.sqrt(s[name] / (1 - 0.99**t)) + 1e-6)
            ratio = 1.0
            if name.endswith(".w"):
                u += 0.1 * w[name]
                ratio = np.linalg.norm(w[name]) / np.linalg.norm(u)
            w[name] = w[name] - lr * ratio * u
        expected.append({name: array.copy() for name, array in w.items()})
    options = {"momentum": 0.9, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.1}
    close(trained(lambda p: Lamb(p, Optim("lamb", **options)), RATES, ["second"]), expected)


def test_rmsprop_warmup__is_what_is_written_out():
    w = {p.name: p.w.astype(np.float64) for p in network().parameters}
    v, s = ({name: 0 * array for name, array in w.items()} for _ in range(2))
    expected = []
    for step, lr in enumerate(RATES):
        share = sgd_share(step / 2, 2.0)
        for name, g in gradients(step).items():
            d = g + (0.1 * w[name] if name.endswith(".w") else 0)
            s[name] = 0.99 * s[name] + 0.01 * d**2
            v[name] = 0.9 * v[name] + (share + (1 - share) * 0.01 / (np.sqrt(s[name]) + 1e-4)) * d
            w[name] = w[name] - lr * v[name]
        expected.append({name: array.copy() for name, array in w.items()})
    options = {"momentum": 0.9, "beta2": 0.99, "epsilon": 1e-4, "weight_decay": 0.1, "blend_epochs": 2.0}
    close(trained(lambda p: RmspropWarmup(p, Optim("rmsprop_warmup", 0.01, **options)), RATES, ["second"]), expected)


def test_larc_scale__step_by_hand():
    parameters = network()
    p = parameters.parameters[0]
    p.w[...], p.dw[...] = 1.0, 0.5
    Lars([p], Optim("larc_scale", trust_coefficient=0.001, momentum=0.9, weight_decay=5e-4)).step(0.08)
    # ratio (1 - 0.9) * 0.001 * 1 / 0.5 = 0.0002; v = 0.08 * 0.0002 * 0.5005
    np.testing.assert_allclose(p.v, 8.008e-6, rtol=1e-6)
    np.testing.assert_allclose(p.w, 1 - 8.008e-6, rtol=1e-6)


def test_momentum__goes_evenly_to_its_end():
    optimizer = Lars([], Optim(momentum=0.9, end_momentum=0.95))
    found = []
    for done in (0, 50, 100):
        optimizer.at(done, 0.0, done / 100)
        found.append(optimizer.momentum)
    assert found == pytest.approx([0.9, 0.925, 0.95])


def test_average__follows_the_weights_and_takes_their_place_for_a_while():
    parameters = network()
    average, before = Average(parameters, 0.75), parameters.value.copy()
    parameters.value += 4.0
    average.step()
    now = parameters.value.copy()
    with average.in_place():
        for here in parameters.kept():
            np.testing.assert_allclose(parameters.value[here], before[here] + 1.0, atol=1e-6)
    assert np.array_equal(parameters.value, now)


@pytest.mark.parametrize(("variant", "make"), OPTIMIZERS.items())
def test_parts__give_the_bits_of_the_whole(variant, make):
    """What the sharded update does: parts that begin at chunks, norms summed over them."""
    whole, parts = network(["second"]), network(["second"])
    one, other = (make(net.parameters, Optim(variant, 0.001, epsilon=1e-6, weight_decay=0.1)) for net in (whole, parts))
    for step in range(2):
        for net in (whole, parts):
            for p in net.parameters:
                p.dw[...] = gradients(step)[p.name]
        one.at(step, step, step / 2)
        one.step(0.1)
        other.at(step, step, step / 2)
        cuts = [slice(0, NORM_CHUNK), slice(NORM_CHUNK, None)]
        sums = {}
        for p in parts.parameters:
            if other.adapts(p):
                sums[p.name] = np.concatenate([other.measure(p, c) for c in cuts if c.start < p.size])
        other.begin(0.1)
        for p in parts.parameters:
            norms = combine_norms(sums[p.name]) if sums else None
            for c in cuts:
                if c.start < p.size:
                    other.update(p, norms, c)
    for mine, its in zip(whole.blocks, parts.blocks, strict=True):
        assert np.array_equal(mine, its)


# ---- others ----------------------------------------------------------------------------------------------------


def by_optax(make):
    optax = pytest.importorskip("optax")
    import jax.numpy as jnp

    weights = {p.name: jnp.asarray(p.w) for p in network().parameters}
    mask, found = {name: name.endswith(".w") for name in SHAPES}, []
    transform = make(optax, mask, lambda count: jnp.asarray(RATES, jnp.float32)[count])
    state = transform.init(weights)
    for step in range(STEPS):
        updates, state = transform.update({n: jnp.asarray(g) for n, g in gradients(step).items()}, state, weights)
        weights = optax.apply_updates(weights, updates)
        found.append(weights)
    return found


def test_lamb__is_optax():
    def theirs(optax, mask, rate):
        return optax.lamb(rate, b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.1, mask=mask)

    # Optax takes a ratio of biases too: they are compared without
    options = {"momentum": 0.9, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.1}
    ours = trained(lambda p: Lamb(p, Optim("lamb", **options)), RATES, ["second"])
    without = [{name: array for name, array in step.items() if name.endswith(".w")} for step in ours]
    close(without, by_optax(theirs))


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars__is_optax_where_nothing_decays(nesterov):
    """Optax takes the norm of g + b w, not |g| + b |w|: without decay the two are one."""

    def theirs(optax, mask, rate):
        how = {"weight_decay": 0.0, "trust_coefficient": 0.5, "momentum": 0.9, "nesterov": nesterov}
        return optax.lars(rate, trust_ratio_mask=mask, **how)

    how = {"variant": "mlperf", "trust_coefficient": 0.5, "nesterov": nesterov, "weight_decay": 0.0}
    close(trained(lambda p: Lars(p, Optim(**how)), RATES), by_optax(theirs))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd__is_pytorch(nesterov):
    torch = pytest.importorskip("torch")
    weights = {p.name: torch.nn.Parameter(torch.from_numpy(p.w.copy())) for p in network().parameters}
    how = {"lr": RATES[0], "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    theirs, expected = torch.optim.SGD(weights.values(), **how), []
    for step, lr in enumerate(RATES):
        for name, gradient in gradients(step).items():
            weights[name].grad = torch.from_numpy(gradient)
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
        expected.append({name: w.detach().numpy().copy() for name, w in weights.items()})
    how = {"variant": "nus", "trust_coefficient": 0.0, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    close(trained(lambda p: Lars(p, Optim(decay_bias_and_norm=True, **how)), RATES), expected)
