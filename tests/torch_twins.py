"""The networks in PyTorch's functions, as formulas of a state dict under torchvision's names; NumPy in and out.

They know nothing of this project: names and layouts are torchvision's, what a layer does is what the papers say.
"""

import numpy as np
import torch
from torch.nn import functional as F


class Twin:
    """A network's weights as PyTorch tensors of `dtype`; train: batch statistics instead of the running ones."""

    def __init__(self, weights: dict[str, np.ndarray], dtype=torch.float32, train=False):
        self.w = {name: torch.from_numpy(array.copy()).to(dtype) for name, array in weights.items()}
        self.dtype, self.train = dtype, train

    def conv(self, x, name, **options):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **options)

    def linear(self, x, name):
        return F.linear(x.flatten(1), self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name, eps=1e-5):
        mean, var = (self.w[f"{name}.running_{what}"].clone() for what in ("mean", "var"))
        scale, shift = (self.w.get(f"{name}.{what}") for what in ("weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift, self.train, 0.1, eps)

    def run(self, network, images: np.ndarray) -> np.ndarray:
        """The logits of images (N, H, W, C)."""
        with torch.no_grad():
            return network(self, _nchw(images, self.dtype)).numpy()

    def gradients(self, network, images, labels) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The logits, and the gradient of the mean cross-entropy with respect to every weight."""
        learned = {name: tensor for name, tensor in self.w.items() if "running_" not in name}
        for tensor in learned.values():
            tensor.requires_grad_()
        logits = network(self, _nchw(images, self.dtype))
        loss = F.cross_entropy(logits, torch.from_numpy(labels))
        found = torch.autograd.grad(loss, list(learned.values()))
        return logits.detach().numpy(), {name: g.numpy() for name, g in zip(learned, found, strict=True)}


def _nchw(images, dtype):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)


def resnet(net: Twin, x):
    """torchvision's ResNets, and CIFAR's, whose stem is a 3x3 at stride 1 without a pool; blocks by the names."""
    small = net.w["conv1.weight"].shape[-1] == 3
    x = F.relu(net.norm(net.conv(x, "conv1", stride=1 if small else 2, padding=1 if small else 3), "bn1"))
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    for block in dict.fromkeys(".".join(name.split(".")[:2]) for name in net.w if name.startswith("layer")):
        first = not block.startswith("layer1") and block.endswith(".0")
        x = _block(net, x, block, 2 if first else 1)
    return net.linear(x.mean((2, 3)), "fc")


def _block(net, x, name, stride):
    bottleneck = f"{name}.conv3.weight" in net.w
    padding, strides = ((0, 1, 0), (1, stride, 1)) if bottleneck else ((1, 1), (stride, 1))
    y = x
    for index, (pad, step) in enumerate(zip(padding, strides, strict=True), start=1):
        y = y if index == 1 else F.relu(y)
        y = net.norm(net.conv(y, f"{name}.conv{index}", stride=step, padding=pad), f"{name}.bn{index}")
    if f"{name}.downsample.0.weight" in net.w:
        x = net.norm(net.conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
    return F.relu(y + x)


def alexnet_owt(net: Twin, x):
    """torchvision's AlexNet without dropout."""
    for number, stride, pad in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        x = F.relu(net.conv(x, f"features.{number}", stride=stride, padding=pad))
        x = F.max_pool2d(x, 3, 2) if number in (0, 3, 10) else x
    return _head(net, x, "classifier.1", "classifier.4", "classifier.6")


def alexnet_bn(net: Twin, x):
    """You et al.'s AlexNet-BN, in two groups, without dropout."""
    for number, stride, pad, groups in ((1, 4, 0, 1), (2, 1, 2, 2), (3, 1, 1, 1), (4, 1, 1, 2), (5, 1, 1, 2)):
        x = F.relu(net.conv(x, f"conv{number}", stride=stride, padding=pad, groups=groups))
        x = F.max_pool2d(x, 3, 2) if number in (1, 2, 5) else x
        x = net.norm(x, f"bn{number + 1}", 1e-4) if number < 5 else x
    return _head(net, x, "fc6", "fc7", "fc8")


def _head(net, x, *names):
    for name in names[:-1]:
        x = F.relu(net.linear(x, name))
    return net.linear(x, names[-1])
