"""The contract of a layer, and the two ways to compose layers: `Sequential` and `Residual`.

A layer only declares. `forward(program, x)` registers its parameters, appends its ops to `program.forward` and returns
the tensor y. `backward(program, dy)`, called in reverse order, appends to `program.backward` and returns the gradient
of x. What may be left out, fused, or done in place is decided later, by whoever reads the lists.
"""

import numpy as np

from knltrain.kernels import FP32, add_forward

from .program import MEMORY, Op, Program, Tensor


class Layer:
    """The base of all layers. Between `forward` and `backward` of one program it remembers its tensors, no longer."""

    def __init__(self, name: str):
        self.name = name

    def forward(self, program: Program, x: Tensor) -> Tensor:
        """Declare y from x (N, H, W, C)."""
        raise TypeError(f"layer {self.name!r} has no forward; expected a layer that declares its ops")

    def backward(self, program: Program, dy: Tensor) -> Tensor:
        """Declare the gradients of x, which is returned, and of the parameters."""
        raise TypeError(f"layer {self.name!r} has no backward; expected a layer that declares its ops")

    @property
    def last(self) -> "Layer":
        """The layer, of those in this one, whose output is the output."""
        return self

    def tensor(self, what: str, shape, **options) -> Tensor:
        """A new tensor of this layer."""
        return Tensor(f"{self.name}.{what}", shape, **options)

    def output(self, program: Program, shape, as_read: bool = False) -> Tensor:
        """The tensor y: of the program's Number, or float32 where it is the logits.

        Raises ValueError where these are not what the layer can give: with `as_read`, numbers as x has them.
        """
        if as_read and program.last is self and program.number is not FP32:
            raise ValueError(
                f"layer {self.name!r} is the last one and gives {program.number.name}; expected one that gives float32 "
                "logits, as Linear and GlobalAvgPool do: put one behind it, or train in fp32"
            )
        return self.tensor("y", shape, dtype=np.float32 if program.last is self else program.number.dtype)

    def gradient(self, program: Program, what: str, shape) -> Tensor:
        """The gradient of an activation."""
        return self.tensor(what, shape, dtype=program.number.dtype)

    def scratch(self, what: str, shape, dtype=np.float32) -> Tensor:
        """Memory that an op uses beside its inputs and outputs."""
        return self.tensor(what, shape, dtype=dtype, scratch=True)


class Sequential(Layer):
    """Layers one after the other."""

    def __init__(self, name: str, *layers: Layer):
        super().__init__(name)
        self.layers = layers

    @property
    def last(self):
        return self.layers[-1].last if self.layers else self

    def forward(self, program, x):
        for layer in self.layers:
            x = layer.forward(program, x)
        return x

    def backward(self, program, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(program, dy)
        return dy


class Residual(Layer):
    """y = join(main(x), shortcut(x)), where `join` is the batch norm that adds, normalizes and rectifies in one pass.

    main: layers before the last batch norm. shortcut: a layer that fits the shapes together, or None for the identity.
    """

    def __init__(self, name: str, main: Layer, join: Layer, shortcut: Layer | None = None):
        super().__init__(name)
        self.main, self.join, self.shortcut = main, join, shortcut

    @property
    def last(self):
        return self.join.last

    def forward(self, program, x):
        shortcut = self.shortcut.forward(program, x) if self.shortcut else x
        return self.join.forward(program, self.main.forward(program, x), residual=shortcut)

    def backward(self, program, dy):
        d_main, d_shortcut = self.join.backward(program, dy)
        if self.shortcut:
            d_shortcut = self.shortcut.backward(program, d_shortcut)
        d_main = self.main.backward(program, d_main)
        dx = self.gradient(program, "dx", d_main.shape)
        reads, overwrites = {"a": d_shortcut, "b": d_main}, {"y": ("a", "b")}
        program.backward.append(Op(self, MEMORY, add_forward, reads, {"y": dx}, overwrites=overwrites))
        return dx
