"""Layers that work element by element, in place where they may: ReLU and dropout."""

import numpy as np

from knltrain.kernels import dropout_backward, dropout_forward, relu_backward, relu_forward

from ..arena import name_key
from .base import Layer
from .program import MEMORY, Op


class ReLU(Layer):
    """y = max(x, 0)."""

    def forward(self, program, x):
        self.y = self.output(program, x.shape)
        program.forward.append(Op(self, MEMORY, relu_forward, {"x": x}, {"y": self.y}, overwrites={"y": ("x",)}))
        return self.y

    def backward(self, program, dy):
        dx = self.gradient(program, "dx", dy.shape)
        reads, overwrites = {"y": self.y, "dy": dy}, {"dx": ("dy",)}
        program.backward.append(Op(self, MEMORY, relu_backward, reads, {"dx": dx}, overwrites=overwrites))
        return dx


class Dropout(Layer):
    """y = x * m / (1 - rate) with m in {0, 1}; m is a function of (image key, layer name, element) alone."""

    def __init__(self, name, rate=0.5):
        super().__init__(name)
        if not 0 <= rate < 1:
            raise ValueError(f"layer {name!r}: dropout rate {rate}, expected 0 <= rate < 1")
        self.rate, self.purpose = rate, np.uint64(name_key(name))

    def forward(self, program, x):
        if not program.train:
            return x
        return self._masked(program, program.forward, dropout_forward, "x", x, "y", self.output(program, x.shape))

    def backward(self, program, dy):
        dx = self.gradient(program, "dx", dy.shape)
        return self._masked(program, program.backward, dropout_backward, "dy", dy, "dx", dx)

    def _masked(self, program, ops, kernel, source, value, target, out):
        others = {"rate": self.rate, "keys": program.keys, "purpose": self.purpose}
        ops.append(Op(self, MEMORY, kernel, {source: value}, {target: out}, others, overwrites={target: (source,)}))
        return out
