"""Weight initialisers: each returns a function of a generator, so that a layer is planned before numbers are drawn."""

import math

import numpy as np

FANS = ("fan_in", "fan_out")
# of photographs (CIFAR-10), by principal component: sum and difference of neighbours, luminance and two of colours
_VARIANCES = (1.93, 0.07), (1.93, 0.07), (2.8, 0.16, 0.04)
_LEAST_VARIANCE = 5e-4  # no difference is enlarged more than this allows


def gaussian(shape, std: float):
    """N(0, std^2): what Caffe's AlexNet is initialised with."""

    def draw(rng):
        numbers = rng.standard_normal(shape, dtype=np.float32)
        numbers *= np.float32(std)  # in place: the largest tensors are hundreds of megabytes
        return numbers

    return draw


def he(shape, fan: str = "fan_in"):
    """N(0, 2 / fan) for w (R, S, C, K): He et al. 2015, "Delving Deep into Rectifiers".

    fan: "fan_in" is R*S*C, which keeps the variance forward (eq. 10; Caffe's msra); "fan_out" is R*S*K, which keeps
    it backward (eq. 14; fb.resnet.torch, torchvision, Caffe2).
    """
    if fan not in FANS:
        raise ValueError(f"init is {fan!r}; expected one of {', '.join(FANS)}")
    inputs, outputs = shape[-2:]
    return gaussian(shape, math.sqrt(2.0 / (math.prod(shape[:-2]) * (inputs if fan == "fan_in" else outputs))))


def constant(shape, value: float):
    """`value` everywhere."""
    return lambda rng: np.full(shape, value, np.float32)


def partly_identity(shape):
    """As `he`, but the first outputs are the inputs as they are: what is known is handed on until it is changed.

    w (R, S, C, K), with R and S odd. Jordan 2024, arXiv:2404.00498.
    """

    def draw(rng):
        w, same = he(shape)(rng), range(min(shape[2:]))
        w[..., : len(same)] = 0
        w[shape[0] // 2, shape[1] // 2, same, same] = 1
        return w

    return draw


def whitening(shape):
    """What makes patches of 2 x 2 pixels of photographs white: w (2, 2, 3, 24), 12 filters and their negatives.

    The principal components of such patches are known without the data: sums and differences of neighbours times
    luminance and two differences of colours. Each is divided by its deviation, of colours standardized one by one.
    Jordan 2024, arXiv:2404.00498, takes both from the training set.
    """
    if shape != (2, 2, 3, 24):
        raise ValueError(f"whitening of weights {shape}; expected (2, 2, 3, 24)")
    along = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    variance = np.einsum("r,s,c->rsc", *_VARIANCES).reshape(-1) + _LEAST_VARIANCE
    filters = np.einsum("ar,bs,dc->rscabd", along, along, colours).reshape(*shape[:3], 12) / np.sqrt(variance)
    return lambda rng: np.concatenate([filters, -filters], -1).astype(np.float32)
