"""Weight initialisers: each returns a function of a generator, so that a layer is planned before numbers are drawn."""

import math

import numpy as np


def gaussian(shape, std: float):
    """N(0, std^2): what Caffe's AlexNet is initialised with."""
    return lambda rng: rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def he(shape):
    """N(0, 2 / (R*S*C)) for w (R, S, C, K): He et al. 2015, "Delving Deep into Rectifiers", eq. 10."""
    return gaussian(shape, math.sqrt(2.0 / math.prod(shape[:-1])))


def constant(shape, value: float):
    """`value` everywhere."""
    return lambda rng: np.full(shape, value, np.float32)
