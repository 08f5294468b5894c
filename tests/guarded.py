"""Run by test_kernels_bounds in a process of its own: kernels on arrays that end, or begin, at a page nobody may touch.

Who reads or writes outside of such an array ends the process. What was running was printed before.
"""

import ctypes
import mmap
import sys

import numpy as np
from test_kernels_conv import KINDS, KINDS_HERE, SHAPES, _plan

from knltrain.bench.workload import Workload
from knltrain.kernels import (
    COEFFICIENTS,
    FP32,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_pack,
    conv2d_pack_transposed,
)
from knltrain.layers.memory import storages

PAGE, FORBIDDEN = mmap.PAGESIZE, 0
SMALL = 0x3C  # each byte of a number of any kind that is small, and no denormal
BEGIN, END = "begin", "end"
TINY = {"input_size": 67, "hidden": 50}
NETWORKS = [("resnet_cifar8", {"width": 5}), ("alexnet", TINY), ("alexnet_bn", TINY)]


def guarded(shape, dtype, side):
    """An array of small numbers whose first or last byte lies at a forbidden page."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    inside = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, inside + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + inside):
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(page), PAGE, FORBIDDEN):
            raise OSError(ctypes.get_errno(), "mprotect")
    array = np.frombuffer(memory, np.uint8, size, PAGE + (inside - size if side == END else 0))
    array[...] = SMALL
    return array.view(dtype).reshape(shape)


def convolve(shape, kind, side):
    """All directions of a convolution, with all that they may tell."""

    def array(shape, dtype=FP32.dtype):
        return guarded(shape, dtype, side)

    plan, number = _plan(shape, kind), KINDS[kind][0].dtype
    channels, w = plan.x_shape[3], array(plan.w_shape)
    x, dx, above, y, dy = (array(shape, number) for shape in [plan.x_shape] * 3 + [plan.y_shape] * 2)
    packed, packed_t, workspace, moments = w, w, array((plan.workspace_size,)), array(plan.moments_shape)
    if not plan.unpacked:
        packed = array((plan.packed_size,), plan.forward.panels.dtype)
        packed_t = array((plan.packed_t_size,), plan.backward_input.panels.dtype)
        conv2d_pack(plan, w, packed)
        conv2d_pack_transposed(plan, w, packed_t)
    conv2d_forward(plan, x, packed, array(plan.y_shape[3:]), y, workspace)
    conv2d_forward(plan, x, packed, None, y, workspace, moments, relu=True)
    conv2d_backward_input(plan, dy, packed_t, dx)
    table, sums = array((COEFFICIENTS, channels)), array(plan.sums_shape)
    conv2d_backward_input(plan, dy, packed_t, dx, True, x, above, table, sums)
    conv2d_backward_weight(plan, x, dy, array(plan.w_shape), workspace)


def step(name, options, precision, side):
    """Forward and backward of a network, every tensor of which has pages of its own."""
    model = Workload(name, 3, options, precision=precision).model
    images = model.training.images
    images.lie_in(guarded((images.nbytes,), np.uint8, side))
    for storage in storages(model.training):
        memory = guarded((max(tensor.nbytes for tensor in storage.tensors),), np.uint8, side)
        for tensor in storage.tensors:
            tensor.lie_in(memory[: tensor.nbytes])
    model.training.bind()
    model.forward()
    model.backward()


def step_outside(side):
    """Write a byte where none may be."""
    array = guarded((5,), np.float32, side)
    ctypes.memset(array.ctypes.data + (array.nbytes if side == END else -1), 0, 1)


if __name__ == "__main__":
    if sys.argv[1:]:
        step_outside(sys.argv[1])
    for side in (BEGIN, END):
        for kind in KINDS_HERE:
            for shape in SHAPES:
                print("convolution", shape, kind, side, flush=True)
                convolve(shape, kind, side)
        for name, options in NETWORKS:
            for precision in ("fp32", "bf16", "fp16"):
                print("network", name, precision, side, flush=True)
                step(name, options, precision, side)
    print("all inside")
