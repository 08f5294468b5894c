"""Weight initialisers: each returns a function of a generator, so that a layer is planned before numbers are drawn."""

import math

import numpy as np

FANS = ("fan_in", "fan_out")


def gaussian(shape, std: float):
    """N(0, std^2): what Caffe's AlexNet is initialised with."""
    return lambda rng: rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


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
