"""Pooling: maximum, average, and the average over the whole image."""

import numpy as np

from kernels import (
    avgpool_backward,
    avgpool_forward,
    global_avgpool_backward,
    global_avgpool_forward,
    maxpool_backward,
    maxpool_forward,
    output_size,
)

from .base import Layer


class _Shrinking(Layer):
    """A layer with an output of its own, smaller than its input; backward reads neither."""

    reads_x = reads_y = False

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        self.dy, self.dx = dy, arena.take(self.x.shape)
        arena.give(dy)
        self.give_y(arena)
        return self.dx


class _Pool(_Shrinking):
    def __init__(self, name, size, stride, pad=0):
        super().__init__(name)
        self.size, self.stride, self.pad = size, stride, pad

    def plan(self, x, parameters, arena):
        n, h, w, c = x.shape
        p, q = (output_size(length, self.size, self.stride, self.pad) for length in (h, w))
        self.x, self.y = x, arena.take((n, p, q, c))
        return self.y


class MaxPool(_Pool):
    """Maximum over size x size windows; forward remembers which element won."""

    def plan(self, x, parameters, arena):
        y = super().plan(x, parameters, arena)
        self.argmax = arena.take(y.shape, np.uint8)
        return y

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        dx = super().plan_backward(dy, arena)
        arena.give(self.argmax)
        return dx

    def forward(self, run):
        maxpool_forward(self.x.array, self.size, self.stride, self.pad, self.y.array, self.argmax.array)

    def backward(self, ready):
        maxpool_backward(self.dy.array, self.argmax.array, self.size, self.stride, self.pad, self.dx.array)


class AvgPool(_Pool):
    """Mean over size x size windows, padding counted as zeros."""

    def forward(self, run):
        avgpool_forward(self.x.array, self.size, self.stride, self.pad, self.y.array)

    def backward(self, ready):
        avgpool_backward(self.dy.array, self.size, self.stride, self.pad, self.dx.array)


class GlobalAvgPool(_Shrinking):
    """Mean over all pixels: (N, H, W, C) to (N, 1, 1, C)."""

    def plan(self, x, parameters, arena):
        n, _, _, c = x.shape
        self.x, self.y = x, arena.take((n, 1, 1, c))
        return self.y

    def _rows(self, buffer):
        return buffer.array.reshape(buffer.shape[0], buffer.shape[-1])

    def forward(self, run):
        global_avgpool_forward(self.x.array, self._rows(self.y))

    def backward(self, ready):
        global_avgpool_backward(self._rows(self.dy), self.dx.array)
