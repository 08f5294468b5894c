"""The contract of a layer, and the two ways to compose layers: `Sequential` and `Residual`.

A layer is planned once and run many times. `plan` receives the buffer it reads, registers its parameters, takes its
output from the arena and returns it. `plan_backward` is called in reverse order and does the same for gradients; by
then the arena knows which buffers nobody needs any more. Ownership is simple:

  - a layer that took its output `y` gives it back at the end of its own `plan_backward`, or, where no backward pass
    reads it, when the layer behind it has been planned: whoever takes next overwrites it in the middle of forward;
  - whoever receives `dy` owns it: it returns it (worked on in place) or gives it back.

`forward` and `backward` then only move numbers between buffers; they take nothing and return nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..arena import Arena, Buffer, Parameter, Parameters


@dataclass(frozen=True)
class Pass:
    """What one forward pass is for. keys: (N,) uint64, one per image, for what is random in training."""

    train: bool
    keys: np.ndarray


class Layer:
    """The base of all layers; what is not overridden does nothing."""

    adds_onto = False  # whether `plan_backward` can add dx to another gradient
    reads_x = reads_y = True  # whether `backward` reads what forward read, and what it wrote

    def __init__(self, name: str):
        self.name = name
        self.x = self.y = self.dx = self.dy = None
        self.multiply_adds = 0  # per image, forward

    def plan(self, x: Buffer, parameters: Parameters, arena: Arena) -> Buffer:
        """Plan y from x: register the parameters, take y from the arena and return it."""

    def plan_backward(self, dy: Buffer, arena: Arena, need_dx: bool = True, onto: Buffer | None = None):
        """Plan dx from dy and return it.

        need_dx=False: nobody will read dx, so it may be left out. onto: a buffer to which dx is added instead of taking
        one; only the first layer of a residual branch is asked to, and only if it `adds_onto`.
        """

    def give_y(self, arena: Arena):
        """Give back y, which this layer took, if that has not been done."""
        if not self.y.root.given:
            arena.give(self.y)

    def forward(self, run: Pass):
        """Read x, write y."""

    def backward(self, ready: Callable[[Parameter], None]):
        """Read dy (and what forward left), write dx and the parameters' gradients; report each with `ready`."""

    def own_parameters(self) -> list[Parameter]:
        return []

    def leaves(self) -> Iterator["Layer"]:
        """The layers that do the work, in forward order."""
        yield self


class InPlace(Layer):
    """A layer that works in its input's buffer, forward and backward."""

    def plan(self, x, parameters, arena):
        self.x = self.y = x
        return x

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        self.dy = self.dx = dy
        return dy


class Sequential(Layer):
    """Layers one after the other."""

    def __init__(self, name: str, *layers: Layer):
        super().__init__(name)
        self.layers = layers

    @property
    def adds_onto(self):
        return bool(self.layers) and self.layers[0].adds_onto

    def plan(self, x, parameters, arena):
        before = None
        for layer in self.layers:
            x = layer.plan(x, parameters, arena)
            if before and not (before.reads_y or layer.reads_x):
                before.give_y(arena)
            before = layer
        return x

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        for index, layer in reversed(list(enumerate(self.layers))):
            first = index == 0
            dy = layer.plan_backward(dy, arena, need_dx or not first, onto if first else None)
        return dy

    def forward(self, run):
        for layer in self.layers:
            layer.forward(run)

    def backward(self, ready):
        for layer in reversed(self.layers):
            layer.backward(ready)

    def leaves(self):
        for layer in self.layers:
            yield from layer.leaves()


class Residual(Layer):
    """y = join(main(x), shortcut(x)), where `join` is the batch norm that adds, normalizes and rectifies in one pass.

    main: layers before the last batch norm, beginning with a convolution: it adds its dx to that of the shortcut.
    shortcut: a Sequential that fits the shapes together, or None for the identity.
    """

    def __init__(self, name: str, main: Sequential, join: Layer, shortcut: Sequential | None = None):
        super().__init__(name)
        if not main.adds_onto:
            raise ValueError(
                f"residual {name!r}: main branch {main.name!r} cannot add its gradient to that of the shortcut; "
                "expected a Sequential that begins with a Conv2d"
            )
        self.main, self.join, self.shortcut = main, join, shortcut

    def plan(self, x, parameters, arena):
        shortcut = self.shortcut.plan(x, parameters, arena) if self.shortcut else x
        y = self.join.plan(self.main.plan(x, parameters, arena), parameters, arena, residual=shortcut)
        if self.shortcut and not self.shortcut.layers[-1].reads_y:
            self.shortcut.layers[-1].give_y(arena)
        return y

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        d_main, d_shortcut = self.join.plan_backward(dy, arena)
        if self.shortcut:
            d_shortcut = self.shortcut.plan_backward(d_shortcut, arena)
        return self.main.plan_backward(d_main, arena, onto=d_shortcut)

    def forward(self, run):
        if self.shortcut:
            self.shortcut.forward(run)
        self.main.forward(run)
        self.join.forward(run)

    def backward(self, ready):
        self.join.backward(ready)
        if self.shortcut:
            self.shortcut.backward(ready)
        self.main.backward(ready)

    def leaves(self):
        yield from self.main.leaves()
        if self.shortcut:
            yield from self.shortcut.leaves()
        yield from self.join.leaves()
