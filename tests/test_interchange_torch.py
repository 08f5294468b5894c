"""The same weights and images here and in PyTorch: the same logits, and the same gradients of every tensor."""

import numpy as np
import pytest

from knltrain.interchange import entries, give
from knltrain.models import Model, build
from knltrain.models.state import state

torch = pytest.importorskip("torch")
twins = pytest.importorskip("torch_twins")

NETWORKS = {
    "resnet50": (twins.resnet, {"input_size": 64, "width": 16, "classes": 50, "zero_gamma": False}),
    "resnet18": (twins.resnet, {"input_size": 64, "width": 16, "classes": 50, "zero_gamma": False}),
    "alexnet_bn": (twins.alexnet_bn, {"input_size": 131, "width": 0.25, "hidden": 64, "classes": 50, "dropout": 0.0}),
    "alexnet_owt": (twins.alexnet_owt, {"input_size": 131, "hidden": 64, "classes": 50, "dropout": 0.0}),
    "resnet_cifar20": (twins.resnet, {"zero_gamma": False}),
}
IMAGES, DRAWS, ROUNDING = 4, 3, 1e-4


def drawn(name, seed, options):
    """(our model, its table of tensors, its weights there, images, labels), all values drawn at random.

    Batch norm's beta is about 4 or -4: a ReLU whose input is nearly 0 would turn a rounding into a whole element of a
    gradient, and float32 would be a percent away from float64, in PyTorch too.
    """
    layers, input_shape = build(name, **options)
    model, rng = Model(layers, input_shape, IMAGES, seed=seed), np.random.default_rng(seed)
    for parameter in model.parameters.parameters:
        if parameter.w.ndim == 1:  # gamma, beta and biases away from where they begin
            parameter.w += rng.normal(0, 0.1, parameter.shape).astype(np.float32)
        if parameter.name.endswith(".beta"):
            parameter.w += rng.choice(np.float32([-4, 4]), parameter.shape)
    for statistic in model.parameters.statistics:
        statistic.running[...] = rng.uniform(0.5, 1.5, statistic.shape)
    table = entries(layers, input_shape)
    images = rng.normal(0, 1, (IMAGES, *input_shape)).astype(np.float32)
    labels = rng.integers(0, model.logits.shape[1], IMAGES)
    return model, table, give(table, state(model.parameters, momentum=False)), images, labels


def differences(name, seed, options, twin):
    """{tensor: by how much its gradient is further from PyTorch's in float64 than it may be}: see below."""
    model, table, weights, images, labels = drawn(name, seed, options)
    model.feed(images, labels)
    model.forward()
    model.backward()
    _, exact = twins.Twin(weights, torch.float64, train=True).gradients(twin, images, labels)
    _, single = twins.Twin(weights, torch.float32, train=True).gradients(twin, images, labels)
    ours = {e.theirs: e.give(model.parameters.named[e.ours.partition("/")[2]].dw) for e in table if e.theirs in exact}
    assert ours.keys() == exact.keys() and len(ours) == len(model.parameters.parameters)
    found = {}
    for tensor, expected in exact.items():
        error, theirs = (np.linalg.norm(one[tensor] - expected) for one in (ours, single))
        found[tensor] = error / (4 * theirs + ROUNDING * np.linalg.norm(expected))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_logits__are_those_of_pytorch(name):
    twin, options = NETWORKS[name]
    model, _, weights, images, _ = drawn(name, 3, options)
    model.feed(images)
    expected = twins.Twin(weights).run(twin, images)
    assert np.abs(model.infer() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients__of_all_tensors_are_those_of_pytorch(name):
    """We may be 1e-4 away from PyTorch in float64, or 4 times as far as PyTorch's own float32.

    A ReLU or a maximum within a rounding of a tie sends a gradient elsewhere: then another draw decides.
    """
    twin, options = NETWORKS[name]
    for seed in range(DRAWS):
        wrong = {tensor: error for tensor, error in differences(name, seed, options, twin).items() if error > 1}
        if not wrong:
            return
    assert not wrong
