"""The same three networks in plain PyTorch, to be measured against. Only `torch_process` imports this file."""

import torch
from torch import nn


def _conv_bn(c_in, c_out, size, stride=1):
    return [nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(c_out)]


class _Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, around a shortcut."""

    def __init__(self, c_in, channels, stride):
        super().__init__()
        c_out = 4 * channels
        relu = nn.ReLU(inplace=True)
        self.main = nn.Sequential(
            *_conv_bn(c_in, channels, 1), relu, *_conv_bn(channels, channels, 3, stride), relu,
            *_conv_bn(channels, c_out, 1),
        )  # fmt: skip
        fits = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if fits else nn.Sequential(*_conv_bn(c_in, c_out, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.main(x) + self.shortcut(x))


def resnet50(classes):
    """ResNet-50 with the stride on the 3x3 (as knltrain's default)."""
    layers = [*_conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    c_in = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        channels = 64 << stage
        for index in range(count):
            layers.append(_Bottleneck(c_in, channels, 2 if stage > 0 and index == 0 else 1))
            c_in = 4 * channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


def _alexnet(classes, groups, lrn):
    def conv(*shape, **options):
        return [nn.Conv2d(*shape, **options), nn.ReLU(inplace=True)]

    def local():
        return [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)] if lrn else []

    def batch(channels):
        return [] if lrn else [nn.BatchNorm2d(channels, eps=1e-4, affine=False)]

    return nn.Sequential(
        *conv(3, 96, 11, stride=4), *local(), nn.MaxPool2d(3, 2), *batch(96),
        *conv(96, 256, 5, padding=2, groups=groups), *local(), nn.MaxPool2d(3, 2), *batch(256),
        *conv(256, 384, 3, padding=1), *batch(384),
        *conv(384, 384, 3, padding=1, groups=groups), *batch(384),
        *conv(384, 256, 3, padding=1, groups=groups), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, classes),
    )  # fmt: skip


def alexnet(classes, groups=2):
    """Caffe's AlexNet: local response normalization, two groups; 227 x 227."""
    return _alexnet(classes, groups, lrn=True)


def alexnet_bn(classes, groups=2):
    """AlexNet with batch norm without scale and shift (You et al. 2017)."""
    return _alexnet(classes, groups, lrn=False)


class Trainer:
    """One training step of a model on one fixed random batch: forward, cross-entropy, backward, SGD with momentum.

    options: of the model. sgd: lr, momentum, weight_decay. autocast: to bf16. conv_bf16: tensors stay float32, oneDNN
    may compute in bf16.
    """

    def __init__(self, model, options, slot_batch, size, sgd, channels_last, compiled, autocast, conv_bf16):
        torch.manual_seed(0)
        if conv_bf16:
            torch.backends.mkldnn.conv.fp32_precision = "bf16"
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network = {"resnet50": resnet50, "alexnet": alexnet, "alexnet_bn": alexnet_bn}[model](**options)
        self.network = network.to(memory_format=layout).train()
        self.images = torch.randn(slot_batch, 3, size, size).to(memory_format=layout)
        self.labels = torch.randint(0, options["classes"], (slot_batch,))
        self.optimizer = torch.optim.SGD(self.network.parameters(), fused=True, **sgd)
        self.loss = nn.CrossEntropyLoss()
        self.run = torch.compile(self.network) if compiled else self.network

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = self.loss(self.run(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
