"""Every layer inside a small network: the gradient of the loss by central differences, in float32 storage.

The kernels compute in float32, so single differences are noisy. A directional derivative over all elements of one
tensor averages the noise: for a random direction d, (L(w + h d) - L(w - h d)) / 2h must equal <grad, d>. Checked are
every parameter and the images; a 1x1 convolution is put first, so that the layer under test must work out its dx.
"""

import numpy as np
import pytest

from knltrain.layers import (
    AvgPool,
    BatchNorm,
    Conv2d,
    Dropout,
    GlobalAvgPool,
    Linear,
    LocalResponseNorm,
    MaxPool,
    ReLU,
    Residual,
    Sequential,
)
from knltrain.models import Model

CLASSES = 5


def _rectified(conv):
    return [conv, ReLU(f"{conv.name}.relu")]


def _told(conv, **options):
    """A convolution, and the batch norm that it tells the moments of what it made."""
    return [conv, BatchNorm(f"{conv.name}.bn", **options)]


def _residual(name, stride):
    first = _told(Conv2d(f"{name}.1", 12, 3, stride, pad=1), relu=True)
    convs = [*first, Conv2d(f"{name}.2", 12, 1)]
    projection = Sequential(f"{name}.s", Conv2d(f"{name}.s", 12, 1, stride), BatchNorm(f"{name}.s.bn"))
    shortcut = projection if stride > 1 else None
    return Residual(name, Sequential(f"{name}.main", *convs), BatchNorm(f"{name}.2.bn", relu=True), shortcut)


FC = Linear("fc", CLASSES)
NETWORKS = {
    "plain": [Conv2d("c", 7, 3, pad=1, bias=0.1), ReLU("r"), FC],
    "rectified by the convolution": [*_rectified(Conv2d("c", 7, 3, pad=1, bias=0.1)), FC],
    "Winograd": [Conv2d("c", 32, 1, bias=0.1), *_rectified(Conv2d("d", 16, 5, pad=2)), Conv2d("e", 48, 3, pad=1), FC],
    "stride and groups": [Conv2d("a", 6, 3, 2, 1), Conv2d("b", 8, 3, 2, 1, groups=2, bias=0.1), FC],
    "batch norm": [Conv2d("c", 17, 3), BatchNorm("n", relu=True), Conv2d("d", 5, 1), BatchNorm("m"), FC],
    "batch norm, told the moments": [*_told(Conv2d("c", 17, 3), relu=True), *_told(Conv2d("d", 5, 1)), FC],
    "batch norm, pooled": [Conv2d("c", 17, 3), BatchNorm("n", relu=True), MaxPool("p", 3, 2, 1), FC],
    "non-affine": [Conv2d("c", 7, 3), BatchNorm("n", affine=False, eps=1e-4), FC],
    "a batch norm whose output is given back": [
        *_told(Conv2d("c", 8, 3), relu=True), MaxPool("p", 3, 2, 1), Conv2d("d", 32, 1), Conv2d("e", 8, 1), FC,
    ],
    "max pool": [Conv2d("c", 9, 3, bias=0.0), MaxPool("p", 3, 2, 1), FC],
    "average pool": [Conv2d("c", 9, 3, bias=0.0), AvgPool("p", 2, 2), FC],
    "lrn": [Conv2d("c", 9, 3, bias=0.5), LocalResponseNorm("l", alpha=0.5), FC],
    "dropout": [Conv2d("c", 9, 3, bias=0.5), Dropout("d", 0.4), FC],
    "residual identity": [Conv2d("c", 12, 3), _residual("r", 1), GlobalAvgPool("g"), FC],
    "residual of a batch norm": [
        Conv2d("c", 12, 3),
        Residual("r", Sequential("r.main", BatchNorm("r.1", relu=True), Conv2d("r.2", 12, 1)), BatchNorm("r.3")),
        FC,
    ],
    "residual projection": [Conv2d("c", 6, 3), _residual("r", 2), _residual("s", 1), GlobalAvgPool("g"), FC],
}


def _loss(model, labels, keys):
    model.feed(model.images, labels, keys)
    model.forward()
    return float(np.mean(model.loss.losses, dtype=np.float64))


def _unit(direction):
    return direction / max(np.linalg.norm(direction), 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_backward__equals_central_differences(name):
    batch, stem = 6, Conv2d("stem", 3, 1)
    model = Model(Sequential(name, stem, *NETWORKS[name]), (11, 9, 3), batch, smoothing=0.1, seed=1)
    rng = np.random.default_rng(7)
    model.images[...] = rng.standard_normal(model.images.shape)
    labels, keys = rng.integers(0, CLASSES, batch), np.arange(batch, dtype=np.uint64)
    parameters = model.parameters
    for p in parameters.parameters:  # away from symmetric points: gamma 1 and beta 0 would hide mistakes
        p.w += 0.1 * rng.standard_normal(p.shape).astype(np.float32)
    _loss(model, labels, keys)
    ready = []
    model.backward(ready.append)
    assert sorted(p.name for p in ready) == sorted(p.name for p in parameters.parameters)
    step = 4e-3  # small against the distance to the kinks of ReLU and max, large against float32 rounding
    tensors = [(p.name, p.w, p.dw) for p in parameters.parameters]
    by_stem = next(op for op in model.training.backward if op.owner is stem)
    tensors.append(("images", model.images, by_stem.arguments["dy"] @ stem.w.w[0, 0].T))  # y = x W, so dx = dy W^T
    for tensor, w, dw in tensors:
        here, gradient = w.copy(), dw.astype(np.float64)
        slopes, products = [], []
        for _ in range(4):
            direction = _unit(_unit(rng.standard_normal(w.shape)) + _unit(gradient)).astype(np.float32)
            losses = []
            for sign in (1, -1):
                w[...] = here + np.float32(sign * step) * direction
                losses.append(_loss(model, labels, keys))
            slopes.append((losses[0] - losses[1]) / (2 * step))
            products.append(float(np.vdot(gradient, direction)))
        w[...] = here
        scale = max(np.linalg.norm(gradient), 1e-3)
        assert np.abs(np.subtract(slopes, products)).max() < 0.04 * scale, (tensor, slopes, products)
