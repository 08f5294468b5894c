"""The network of public speed-runs on CIFAR-10: wide, shallow, with a first layer that need not be learned."""

from functools import partial

from ..layers import BatchNorm, Conv2d, GlobalAvgPool, Linear, MaxPool, ReLU, Whitening
from ..layers.init import gaussian, partly_identity


def speednet(classes=10, width=64, growth=4, stages=3, stem_stride=1, beta_rate=8.0):
    """Whitened patches of 2 x 2 pixels, then stages of two 3x3 convolutions with a pool behind the first of each.

    After Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498), the network of airbench94
    with ReLU for GELU, a learned gamma, and an average for the last pool. width: channels of the first stage; those
    behind it have growth times as many. stages: each halves the picture. stem_stride: 2 halves it at once, by patches
    that do not overlap. beta_rate: of batch norm's betas, times the learning rate.
    """
    layers = [Whitening("whiten", stem_stride), ReLU("whiten.relu")]  # output at 32: 31 x 31 x 24
    for stage in range(1, stages + 1):  # 15 x 15 x 64, 7 x 7 x 256, 3 x 3 x 256
        channels = width * (growth if stage > 1 else 1)
        for name, pooled in ((f"stage{stage}.conv1", True), (f"stage{stage}.conv2", False)):
            layers += [
                Conv2d(name, channels, 3, pad=1, init=partly_identity),
                *([MaxPool(f"{name}.pool", 2, 2)] if pooled else []),
                BatchNorm(f"{name}.bn", relu=True, beta_rate=beta_rate),
            ]
    return [*layers, GlobalAvgPool("pool"), Linear("fc", classes, init=partial(gaussian, std=0.01))]
