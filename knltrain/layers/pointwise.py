"""Layers that work element by element, in place: ReLU and dropout."""

import numpy as np

from kernels import dropout_backward, dropout_forward, relu_backward, relu_forward

from ..arena import name_key
from .base import InPlace


class ReLU(InPlace):
    """y = max(x, 0). after: the Conv2d that makes x and runs immediately before, which does this as it stores x."""

    def __init__(self, name, after=None):
        super().__init__(name)
        self.done = after is not None
        if after:
            after.rectifies = True

    def forward(self, run):
        if not self.done:
            relu_forward(self.x.array, self.y.array)

    def backward(self, ready):
        relu_backward(self.y.array, self.dy.array, self.dx.array)


class Dropout(InPlace):
    """y = x * m / (1 - rate) with m in {0, 1}; m is a function of (image key, layer name, element) alone."""

    def __init__(self, name, rate=0.5):
        super().__init__(name)
        if not 0 <= rate < 1:
            raise ValueError(f"layer {name!r}: dropout rate {rate}, expected 0 <= rate < 1")
        self.rate, self.purpose = rate, np.uint64(name_key(name))

    def plan(self, x, parameters, arena):
        self.keys = np.zeros(x.shape[0], np.uint64)
        return super().plan(x, parameters, arena)

    def forward(self, run):
        if run.train:
            np.bitwise_xor(run.keys, self.purpose, out=self.keys)
            dropout_forward(self.x.array, self.rate, self.keys, self.y.array)

    def backward(self, ready):
        dropout_backward(self.dy.array, self.rate, self.keys, self.dx.array)
