"""Residual networks by depth (He et al. 2015, "Deep Residual Learning for Image Recognition")."""

from functools import partial

from ..layers import BatchNorm, Conv2d, GlobalAvgPool, Linear, MaxPool, Residual, Sequential
from ..layers.init import gaussian, he

# depth: (blocks per stage, bottleneck)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def _he(init):
    """Conv2d, its weights drawn by He et al.'s rule for this fan."""
    return partial(Conv2d, init=partial(he, fan=init))


def _conv_bn(conv, name, channels, size, stride=1, relu=True):
    """Convolution without bias, batch norm, ReLU."""
    return [conv(name, channels, size, stride, pad=size // 2), BatchNorm(f"{name}.bn", relu=relu)]


def _block(conv, name, c_in, channels, c_out, stride, bottleneck, stride_on, zero_gamma):
    """One residual block: its convolutions, the joining batch norm, and a 1x1 shortcut where shapes differ."""
    if bottleneck:
        on_1x1 = stride if stride_on == "1x1" else 1
        convs = [
            *_conv_bn(conv, f"{name}.conv1", channels, 1, on_1x1),
            *_conv_bn(conv, f"{name}.conv2", channels, 3, stride // on_1x1),
            conv(f"{name}.conv3", c_out, 1),
        ]
    else:
        convs = [*_conv_bn(conv, f"{name}.conv1", channels, 3, stride), conv(f"{name}.conv2", c_out, 3, pad=1)]
    join = BatchNorm(f"{convs[-1].name}.bn", relu=True, gamma=0.0 if zero_gamma else 1.0)
    shortcut = None
    if stride != 1 or c_in != c_out:
        shortcut = Sequential(f"{name}.shortcut", *_conv_bn(conv, f"{name}.shortcut", c_out, 1, stride, relu=False))
    return Residual(name, Sequential(f"{name}.main", *convs), join, shortcut)


def _stages(conv, blocks, widths, c_in, bottleneck, stride_on, zero_gamma):
    expansion = 4 if bottleneck else 1
    layers = []
    for stage, (count, channels) in enumerate(zip(blocks, widths, strict=True), start=1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            c_out = channels * expansion
            name = f"stage{stage}.{index}"
            layers.append(_block(conv, name, c_in, channels, c_out, stride, bottleneck, stride_on, zero_gamma))
            c_in = c_out
    return layers


def resnet(depth=50, classes=1000, width=64, stride_on="3x3", zero_gamma=True, init="fan_out"):
    """ImageNet ResNet of `depth` 18, 34, 50, 101 or 152.

    width: channels of the first stage. stride_on: where a bottleneck halves the image, "3x3" (fb.resnet.torch, "v1.5")
    or "1x1" (the paper, Intel Caffe). zero_gamma: start the last batch norm of each block at 0 (Goyal et al. 2017).
    init: "fan_out" (fb.resnet.torch, torchvision, Caffe2) or "fan_in" (Intel Caffe), the fan of He et al.'s rule: |w|^2
    of a 1x1 that expands or reduces differs 4 x, conv1's 21 x, and with them LARS's first rates.
    """
    if depth not in DEPTHS:
        raise ValueError(f"resnet: depth is {depth}, expected one of {', '.join(map(str, DEPTHS))}")
    if stride_on not in ("3x3", "1x1"):
        raise ValueError(f"resnet: stride_on is {stride_on!r}, expected 3x3 or 1x1")
    blocks, bottleneck = DEPTHS[depth]
    conv, widths = _he(init), [width * factor for factor in (1, 2, 4, 8)]
    return [  # output of depth 50 at 224
        *_conv_bn(conv, "conv1", width, 7, 2),  # 112 x 112 x 64
        MaxPool("pool1", 3, 2, pad=1),  # 56 x 56 x 64
        *_stages(conv, blocks, widths, width, bottleneck, stride_on, zero_gamma),  # 7 x 7 x 2048
        GlobalAvgPool("pool5"),  # 2048
        Linear("fc", classes, init=partial(gaussian, std=0.01)),  # classes
    ]


def resnet_cifar(depth=20, classes=10, width=16, stem_stride=1, zero_gamma=True, init="fan_in"):
    """The small-image family of section 4.2: a 3x3 stem and three stages of (depth - 2) / 6 basic blocks.

    depth: 20, 32, 44, 56, 110. width: channels of the first stage. stem_stride: 2 halves images of 64 pixels at once.
    The shortcuts that change shape are 1x1 convolutions (the paper's option B). init: as in `resnet`.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet_cifar: depth is {depth}, expected 6n + 2: 8, 14, 20, 32, 44, 56 or 110")
    blocks = ((depth - 2) // 6,) * 3
    conv, widths = _he(init), [width * factor for factor in (1, 2, 4)]
    return [  # output at 32
        *_conv_bn(conv, "conv1", width, 3, stem_stride),  # 32 x 32 x 16
        *_stages(conv, blocks, widths, width, False, "3x3", zero_gamma),  # 8 x 8 x 64
        GlobalAvgPool("pool"),  # 64
        Linear("fc", classes, init=partial(gaussian, std=0.01)),  # classes
    ]


def davidnet(classes=10, width=64, early_block=True, zero_gamma=True, init="fan_in"):
    """Nine layers for small pictures (D. Page 2018, "How to Train Your ResNet", known as DavidNet from DAWNBench).

    Wide and shallow: it learns more from a picture than the narrow, deep `resnet_cifar` at the same cost. width:
    channels of the first layer. early_block: the residual block after the first pool (False: 7 layers, 20 % cheaper).
    A pool stands before its batch norm, which then has a quarter of the work; the head is an average, as in the others.
    init: as in `resnet`.
    """

    conv = _he(init)

    def halving(name, channels):
        return [conv(name, channels, 3, pad=1), MaxPool(f"{name}.pool", 2, 2), BatchNorm(f"{name}.bn", relu=True)]

    def block(name, channels):
        return _block(conv, name, channels, channels, channels, 1, False, "3x3", zero_gamma)

    return [  # output at 32, width 64
        *_conv_bn(conv, "conv1", width, 3),  # 32 x 32 x 64
        *halving("conv2", 2 * width),  # 16 x 16 x 128
        *([block("block2", 2 * width)] if early_block else []),
        *halving("conv3", 4 * width),  # 8 x 8 x 256
        *halving("conv4", 8 * width),  # 4 x 4 x 512
        block("block4", 8 * width),
        GlobalAvgPool("pool"),  # 512
        Linear("fc", classes, init=partial(gaussian, std=0.01)),  # classes
    ]
