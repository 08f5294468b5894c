"""AlexNet by its published variants (Krizhevsky et al. 2012, as Caffe and Intel Caffe ship it).

The name of a variant is its normalization:
  "lrn"  Caffe's bvlc_alexnet: local response normalization between the ReLU and the pool of blocks 1 and 2.
  "bn"   You et al.: no LRN; non-affine batch norm after pool1, pool2, conv3 and conv4 (train_val2 of Intel Caffe's
         alexnet_bn recipe), eps 1e-4.
  "jia"  Jia et al. 2018: the same places with affine batch norm, and one more after pool5.
`alexnet_owt` is another network: one tower, narrower (Krizhevsky 2014), as torchvision ships it.
"""

from functools import partial

from ..layers import BatchNorm, Conv2d, Dropout, Layer, Linear, LocalResponseNorm, MaxPool, ReLU
from ..layers.init import FANS, gaussian, he

NORMS = ("lrn", "bn", "jia")


def alexnet(
    classes=1000, norm="lrn", groups=2, width=1.0, hidden=4096, stem_size=11, stem_stride=4, dropout=0.5, init="caffe"
) -> list[Layer]:
    """AlexNet as a list of layers.

    classes: outputs. groups: 2 for the two halves of the original, 1 for the single-tower form. width: factor on the
    channels of all convolutions; hidden: units of fc6 and fc7.
    stem_size, stem_stride: conv1's filter, smaller for small images. dropout: rate after fc6 and fc7.
    init: "caffe" is N(0, 0.01) (fc6, fc7: 0.005) with biases 0.01 (fc6, fc7: 0.1), never zero, so that LARS on biases
    has a norm to work with; "fan_in" and "fan_out" scale with a layer's size (He et al.), which narrow variants need.
    """
    if norm not in NORMS:
        raise ValueError(f"alexnet: norm is {norm!r}, expected one of {', '.join(NORMS)}")
    if init not in ("caffe", *FANS):
        raise ValueError(f"alexnet: init is {init!r}; expected one of caffe, {', '.join(FANS)}")

    def channels(count):
        return max(groups, round(count * width / groups) * groups)

    def filler(std):
        return partial(gaussian, std=std) if init == "caffe" else partial(he, fan=init)

    def conv(name, count, size, **options):
        return rectified(Conv2d(name, channels(count), size, bias=0.01, **options, init=filler(0.01)))

    def dense(name, count, std, bias):
        return Linear(name, count, bias=bias, init=filler(std))

    def rectified(layer):
        return [layer, ReLU(f"{layer.name}.relu")]

    normalize = partial(_normalize, norm)
    return [  # output at 227, two groups
        *conv("conv1", 96, stem_size, stride=stem_stride),  # 55 x 55 x 96
        *normalize("norm1", ["lrn"]),
        MaxPool("pool1", 3, 2),  # 27 x 27 x 96
        *normalize("bn2", ["bn", "jia"]),
        *conv("conv2", 256, 5, pad=2, groups=groups),  # 27 x 27 x 256
        *normalize("norm2", ["lrn"]),
        MaxPool("pool2", 3, 2),  # 13 x 13 x 256
        *normalize("bn3", ["bn", "jia"]),
        *conv("conv3", 384, 3, pad=1),  # 13 x 13 x 384
        *normalize("bn4", ["bn", "jia"]),
        *conv("conv4", 384, 3, pad=1, groups=groups),  # 13 x 13 x 384
        *normalize("bn5", ["bn", "jia"]),
        *conv("conv5", 256, 3, pad=1, groups=groups),  # 13 x 13 x 256
        MaxPool("pool5", 3, 2),  # 6 x 6 x 256
        *normalize("bn6", ["jia"]),
        *rectified(dense("fc6", hidden, 0.005, 0.1)),  # 4096
        Dropout("drop6", dropout),
        *rectified(dense("fc7", hidden, 0.005, 0.1)),  # 4096
        Dropout("drop7", dropout),
        dense("fc8", classes, 0.01, 0.01),  # classes
    ]


def _normalize(norm, name, places) -> list[Layer]:
    """The normalization named `name`, where the variant `norm` has one."""
    if norm not in places:
        return []
    if norm == "lrn":
        return [LocalResponseNorm(name, n=5, alpha=1e-4, beta=0.75)]
    return [BatchNorm(name, affine=norm == "jia", eps=1e-4)]


alexnet_bn = partial(alexnet, norm="bn")  # batch norm in place of LRN; "jia" has more of it


def alexnet_owt(classes=1000, hidden=4096, dropout=0.5, init="fan_in") -> list[Layer]:
    """The AlexNet of "One weird trick" (Krizhevsky 2014, arXiv:1404.5997), layer by layer as in torchvision.

    One tower, no normalization, dropout before fc6 and fc7. torchvision's weights want 6 x 6 pixels before fc6: 224.
    hidden, dropout: as in `alexnet`. init: "fan_in" or "fan_out"; fc8 is N(0, 0.01).
    """
    filler = partial(he, fan=init)

    def conv(name, channels, size, stride=1, pad=1):
        return [Conv2d(name, channels, size, stride, pad, bias=0.0, init=filler), ReLU(f"{name}.relu")]

    return [  # output at 224
        *conv("conv1", 64, 11, 4, 2),  # 55 x 55 x 64
        MaxPool("pool1", 3, 2),  # 27 x 27 x 64
        *conv("conv2", 192, 5, pad=2),  # 27 x 27 x 192
        MaxPool("pool2", 3, 2),  # 13 x 13 x 192
        *conv("conv3", 384, 3),  # 13 x 13 x 384
        *conv("conv4", 256, 3),  # 13 x 13 x 256
        *conv("conv5", 256, 3),  # 13 x 13 x 256
        MaxPool("pool5", 3, 2),  # 6 x 6 x 256
        *(Dropout("drop6", dropout), Linear("fc6", hidden, init=filler), ReLU("fc6.relu")),  # 4096
        *(Dropout("drop7", dropout), Linear("fc7", hidden, init=filler), ReLU("fc7.relu")),  # 4096
        Linear("fc8", classes, init=partial(gaussian, std=0.01)),  # classes
    ]
