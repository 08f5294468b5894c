"""Convolution and fully connected layers: the same kernel, the second on 1 x 1 images."""

import math

from kernels import (
    bias_gradient,
    bias_gradient_workspace,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_pack,
    conv2d_pack_transposed,
    conv2d_plan,
)

from ..arena import Parameter
from . import init as initialisers
from .base import Layer


class Conv2d(Layer):
    """2-D convolution with `channels` outputs: w (R, S, C/groups, K), optional bias b (K,).

    init: a function of the weights' shape that returns an initialiser; bias: the bias's initial value, None for none.
    """

    adds_onto = True
    reads_y = False

    def __init__(self, name, channels, size, stride=1, pad=0, groups=1, bias=None, init=initialisers.he):
        super().__init__(name)
        self.channels, self.size, self.stride, self.pad, self.groups = channels, size, stride, pad, groups
        self.gives_moments = self.rectifies = False  # set by the batch norm or the ReLU behind it
        self.bias_value, self.init = bias, init

    def plan(self, x, parameters, arena):
        n, h, w, c = x.shape
        if c % self.groups or self.channels % self.groups:
            raise ValueError(
                f"layer {self.name!r}: {c} input and {self.channels} output channels in {self.groups} groups; "
                "expected both divisible by the groups: change the width"
            )
        shape = (self.size, self.size, c // self.groups, self.channels)
        self.kernel = conv2d_plan(x.shape, shape, self.stride, self.pad, self.groups)
        self.w = parameters.add(Parameter(f"{self.name}.w", shape, self.init(shape)))
        self.b = None
        if self.bias_value is not None:
            zero = initialisers.constant((self.channels,), self.bias_value)
            self.b = parameters.add(Parameter(f"{self.name}.b", (self.channels,), zero, decay=False, adapt=False))
        self.x, self.y = x, arena.take(self.kernel.y_shape)
        self.multiply_adds = self.kernel.multiply_adds // n
        self.arena = arena
        self.bias_floats = bias_gradient_workspace(math.prod(self.kernel.y_shape[:3]), self.channels) if self.b else 0
        arena.need_scratch(max(self.kernel.workspace_size + self.moments_floats, self.bias_floats))
        arena.need_panels(self.kernel.packed_size)
        return self.y

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        self.dy, self.accumulate = dy, onto is not None
        if need_dx:
            self.dx = arena.view(onto, self.x.shape) if onto else arena.take(self.x.shape)
            arena.need_panels(self.kernel.packed_t_size)
        arena.give(dy)
        self.give_y(arena)
        return self.dx

    def panels(self, pack, size):
        """The weights as the kernel reads them: packed just before, so that they lie in a cache, or as they are."""
        if self.kernel.direct:
            return self.w.w
        panels = self.arena.panels[:size]
        pack(self.kernel, self.w.w, panels)
        return panels

    @property
    def moments_floats(self) -> int:
        return math.prod(self.kernel.moments_shape) if self.gives_moments else 0

    @property
    def moments(self):
        """What forward tells the batch norm that runs next: the end of the workspace, which that leaves alone."""
        shape = self.kernel.moments_shape
        return self.arena.workspace[-math.prod(shape) :].reshape(shape)

    def forward(self, run):
        bias = None if self.b is None else self.b.w
        scratch = self.arena.workspace[: self.kernel.workspace_size]
        moments = self.moments if self.gives_moments and run.train else None
        weights = self.panels(conv2d_pack, self.kernel.packed_size)
        conv2d_forward(self.kernel, self.x.array, weights, bias, self.y.array, scratch, moments, self.rectifies)

    def backward(self, ready):
        scratch = self.arena.workspace[: self.kernel.workspace_size]
        conv2d_backward_weight(self.kernel, self.x.array, self.dy.array, self.w.dw, scratch)
        if self.b is not None:
            dy = self.dy.array.reshape(-1, self.channels)
            bias_gradient(dy, self.b.dw, self.arena.workspace[: self.bias_floats])
            ready(self.b)
        ready(self.w)
        if self.dx is not None:
            weights = self.panels(conv2d_pack_transposed, self.kernel.packed_t_size)
            conv2d_backward_input(self.kernel, self.dy.array, weights, self.dx.array, self.accumulate)

    def own_parameters(self):
        return [self.w] if self.b is None else [self.w, self.b]


class Linear(Conv2d):
    """Fully connected layer: y = x W + b with w (1, 1, C, K); an image (H, W, C) counts as one row of H*W*C."""

    def __init__(self, name, channels, bias=0.0, init=initialisers.he):
        super().__init__(name, channels, 1, bias=bias, init=init)

    def plan(self, x, parameters, arena):
        flat = (x.shape[0], 1, 1, math.prod(x.shape[1:]))
        self.image_shape = x.shape
        return super().plan(x if x.shape == flat else arena.view(x, flat), parameters, arena)

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        dx = super().plan_backward(dy, arena, need_dx, onto)
        if dx is None or self.image_shape == dx.shape:
            return dx
        return arena.view(dx, self.image_shape)
