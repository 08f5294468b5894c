"""Which kernels a training step calls, for which layer, with which arguments, and how long each takes.

The interpreter reports every call of a Python function (sys.setprofile); those of the public functions of `kernels`
are noted. So the benchmarks measure what a step really does, and no layer has to know of them.
"""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType

import numpy as np

import kernels

from ..layers import Layer, SoftmaxCrossEntropy
from ..optim import Lars

_PUBLIC = {f.__code__: name for name in kernels.__all__ if isinstance(f := getattr(kernels, name), FunctionType)}


@dataclass(frozen=True)
class Call:
    """One call of a public kernel. `arguments` by the kernel's own names; arrays are the step's own, not copies."""

    kernel: str
    owner: object  # the layer, the loss or the optimizer
    layer: str
    arguments: dict

    def run(self):
        """Do it again, on the same memory."""
        getattr(kernels, self.kernel)(**self.arguments)

    @property
    def signature(self) -> tuple:
        """Equal for two calls that do the same work: shapes and settings, not contents."""
        return (self.kernel, *((name, _kind(value)) for name, value in self.arguments.items()))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arguments that are arrays."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, np.ndarray)}


def _kind(value):
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str)
    if hasattr(value, "w_shape"):  # the plan of a convolution
        return (value.x_shape, value.w_shape, value.stride, value.pad, value.groups)
    return "number" if isinstance(value, float) else value  # a rate or a decay changes no work


@contextmanager
def watch(begin: Callable[[Call], object] = lambda call: None, end: Callable[[Call, object, float], None] = None):
    """While the context lasts: begin(call) before each kernel, end(call, what begin returned, seconds) after it.

    A kernel that another one calls is a part of that one.
    """
    open_frame, note, start = None, None, 0.0

    def profile(frame, event, _):
        nonlocal open_frame, note, start
        if event == "call" and open_frame is None and frame.f_code in _PUBLIC:
            call = _call(frame)
            if call.arrays():  # not a planner or a setting
                open_frame, note = frame, (call, begin(call))
                start = time.perf_counter()
        elif event == "return" and frame is open_frame:
            seconds = time.perf_counter() - start
            open_frame = None
            end(*note, seconds)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def _call(frame) -> Call:
    caller = frame.f_back
    while caller is not None:
        owner = caller.f_locals.get("self")
        if isinstance(owner, Layer):
            return Call(_PUBLIC[frame.f_code], owner, owner.name, dict(frame.f_locals))
        if isinstance(owner, (SoftmaxCrossEntropy, Lars)):
            name = "update" if isinstance(owner, Lars) else "loss"
            return Call(_PUBLIC[frame.f_code], owner, name, dict(frame.f_locals))
        caller = caller.f_back
    return Call(_PUBLIC[frame.f_code], None, "other", dict(frame.f_locals))
