"""Pooling: maximum, average, and the average over the whole image. Backward reads neither x nor y."""

import numpy as np

from knltrain.kernels import (
    avgpool_backward,
    avgpool_forward,
    global_avgpool_backward,
    global_avgpool_forward,
    maxpool_backward,
    maxpool_forward,
    output_size,
)

from .base import Layer
from .program import MEMORY, Op


class _Pool(Layer):
    def __init__(self, name, size, stride, pad=0):
        super().__init__(name)
        self.window = {"size": size, "stride": stride, "pad": pad}

    def pooled(self, program, x, as_read=False):
        """y."""
        n, h, w, c = x.shape
        self.x_shape = x.shape
        return self.output(program, (n, *(output_size(length, *self.window.values()) for length in (h, w)), c), as_read)

    def backward(self, program, dy):
        dx = self.gradient(program, "dx", self.x_shape)
        kernel, more = self.backward_kernel()
        program.backward.append(Op(self, MEMORY, kernel, {"dy": dy, **more}, {"dx": dx}, self.window))
        return dx


class MaxPool(_Pool):
    """Maximum over size x size windows; forward remembers which element won."""

    def forward(self, program, x):
        y = self.pooled(program, x, as_read=True)
        self.argmax = self.tensor("argmax", y.shape, dtype=np.uint8)
        writes = {"y": y, "argmax": self.argmax}
        others = self.window | {"rectified": False}
        program.forward.append(Op(self, MEMORY, maxpool_forward, {"x": x}, writes, others))
        return y

    def backward_kernel(self):
        return maxpool_backward, {"argmax": self.argmax}


class AvgPool(_Pool):
    """Mean over size x size windows, padding counted as zeros."""

    def forward(self, program, x):
        y = self.pooled(program, x)
        program.forward.append(Op(self, MEMORY, avgpool_forward, {"x": x}, {"y": y}, self.window))
        return y

    def backward_kernel(self):
        return avgpool_backward, {}


class GlobalAvgPool(Layer):
    """Mean over all pixels: (N, H, W, C) to (N, 1, 1, C)."""

    def forward(self, program, x):
        self.x_shape = n, _, _, c = x.shape
        y = self.output(program, (n, 1, 1, c))
        program.forward.append(Op(self, MEMORY, global_avgpool_forward, {"x": x}, {"y": y.view(n, c)}))
        return y

    def backward(self, program, dy):
        n, _, _, c = self.x_shape
        dx = self.gradient(program, "dx", self.x_shape)
        program.backward.append(Op(self, MEMORY, global_avgpool_backward, {"dy": dy.view(n, c)}, {"dx": dx}))
        return dx
