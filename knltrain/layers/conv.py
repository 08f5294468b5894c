"""Convolution and fully connected layers: the same kernel, the second on 1 x 1 images."""

import math

from knltrain.kernels import (
    FP32,
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
from .program import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, MEMORY, PACKING, Field, Op


class Conv2d(Layer):
    """2-D convolution with `channels` outputs: w (R, S, C/groups, K), optional bias b (K,).

    init: a function of the weights' shape that returns an initialiser; bias: the bias's initial value, None for none.
    """

    rate = 1.0  # of w: see Parameter

    def __init__(self, name, channels, size, stride=1, pad=0, groups=1, bias=None, init=initialisers.he):
        super().__init__(name)
        self.channels, self.size, self.stride, self.pad, self.groups = channels, size, stride, pad, groups
        self.bias_value, self.init = bias, init

    def forward(self, program, x):
        n, h, w, c = x.shape
        if c % self.groups or self.channels % self.groups:
            raise ValueError(
                f"layer {self.name!r}: {c} input and {self.channels} output channels in {self.groups} groups; "
                "expected both divisible by the groups: change the width"
            )
        shape = (self.size, self.size, c // self.groups, self.channels)
        numbers = program.number, FP32 if program.last is self else program.number
        self.plan = plan = conv2d_plan(x.shape, shape, self.stride, self.pad, self.groups, *numbers)
        w = Parameter(f"{self.name}.w", shape, self.init(shape), rate=self.rate)
        self.x, self.w, self.b = x, program.add(w), None
        if self.bias_value is not None:
            value = initialisers.constant((self.channels,), self.bias_value)
            self.b = program.add(Parameter(f"{self.name}.b", (self.channels,), value, decay=False, adapt=False))
        packed = self._panels(program.forward, conv2d_pack, "packed", plan.forward)
        y = self.output(program, plan.y_shape)
        bias = self.b and Field(self.b, "w")
        others = {"plan": plan, "bias": bias, "workspace": self.scratch("workspace", (plan.workspace_size,))}
        uses = (self.w, self.b) if self.b else (self.w,)
        self._direction(program.forward, FORWARD, conv2d_forward, {"x": x, "packed": packed}, {"y": y}, others, uses)
        return y

    def backward(self, program, dy):
        plan = self.plan
        others = {"plan": plan, "workspace": self.scratch("workspace", (plan.workspace_size,))}
        reads, writes = {"x": self.x, "dy": dy}, {"dw": Field(self.w, "dw")}
        self._direction(program.backward, BACKWARD_WEIGHT, conv2d_backward_weight, reads, writes, others)
        if self.b:
            pixels = math.prod(plan.y_shape[:3])
            scratch = self.scratch("workspace", (bias_gradient_workspace(pixels, self.channels),))
            reads, others = {"dy": dy.view(pixels, self.channels)}, {"workspace": scratch}
            program.backward.append(Op(self, MEMORY, bias_gradient, reads, {"db": Field(self.b, "dw")}, others))
        packed = self._panels(program.backward, conv2d_pack_transposed, "packed_t", plan.backward_input)
        dx = self.gradient(program, "dx", self.x.shape)
        reads, others = {"dy": dy, "packed_t": packed}, {"plan": plan}
        self._direction(program.backward, BACKWARD_INPUT, conv2d_backward_input, reads, {"dx": dx}, others, (self.w,))
        return dx

    def _direction(self, ops, kind, kernel, reads, writes, others, uses=()):
        flops, made = 2 * self.plan.multiply_adds, 2 * self.plan.arithmetic(kind)
        ops.append(Op(self, kind, kernel, reads, writes, others, flops=flops, arithmetic=made, uses=uses))

    def _panels(self, ops, pack, name, method):
        """The weights as the kernel reads them: packed just before, so that they lie in a cache, or as they are."""
        w = Field(self.w, "w")
        if self.plan.unpacked:
            return w
        panels = self.scratch(name, (method.packed_size,), method.panels.dtype)
        ops.append(Op(self, PACKING, pack, {"w": w}, {name: panels}, {"plan": self.plan}))
        return panels


class Whitening(Conv2d):
    """24 fixed filters of 2 x 2 pixels, whose outputs for photographs are equally large and unrelated; learned bias."""

    rate = 0.0

    def __init__(self, name, stride=1):
        super().__init__(name, 24, 2, stride, bias=0.0, init=initialisers.whitening)


class Linear(Conv2d):
    """Fully connected layer: y = x W + b with w (1, 1, C, K); an image (H, W, C) counts as one row of H*W*C."""

    def __init__(self, name, channels, bias=0.0, init=initialisers.he):
        super().__init__(name, channels, 1, bias=bias, init=init)

    def forward(self, program, x):
        self.image_shape = x.shape
        return super().forward(program, x.view(x.shape[0], 1, 1, math.prod(x.shape[1:])))

    def backward(self, program, dy):
        return super().backward(program, dy).view(*self.image_shape)
