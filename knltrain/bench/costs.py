"""What each kernel must do: its flops, and the passes over memory that it cannot avoid.

A pass reads some tensors from end to end and writes others. What a kernel of this meaning must read twice (batch norm:
the statistics are known only after all of x has been seen) is two passes. A mask that follows from what is read anyway
is not counted, nor are vectors of a channel's length, nor workspace.
"""

import math
from dataclasses import dataclass

import numpy as np

from .probe import Call

FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, MEMORY, PACKING, UPDATE = PASSES = (
    "forward", "backward_input", "backward_weight", "memory", "packing", "update",
)  # fmt: skip
CONVOLUTION = PASSES[:3]


@dataclass(frozen=True)
class Pass:
    """Bytes read and written from end to end; in_place of them lie where they were read."""

    read: int
    written: int
    in_place: int


@dataclass(frozen=True)
class Cost:
    kind: str  # one of PASSES
    flops: int  # of the definition: what a step is worth, however it is computed
    arithmetic: int  # flops that are really made: fewer by Winograd's method
    passes: tuple[Pass, ...]

    @property
    def bytes(self) -> int:
        return sum(one.read + one.written for one in self.passes)


# kernel → (kind, passes), a pass being (what is read, what is written) by the names of the kernel's arguments; names of
# arguments that are None cost nothing. `plan.w`: the weights of a convolution, whether packed or not.
_TABLE = {
    "conv2d_forward": (FORWARD, [("x plan.w", "y")]),
    "conv2d_backward_input": (BACKWARD_INPUT, [("dy plan.w", "dx")]),
    "conv2d_backward_weight": (BACKWARD_WEIGHT, [("x dy", "plan.w")]),
    "conv2d_pack": (PACKING, [("w", "packed")]),
    "conv2d_pack_transposed": (PACKING, [("w", "packed_t")]),
    "batchnorm_forward": (MEMORY, [("x", ""), ("x residual", "y")]),
    "batchnorm_inference": (MEMORY, [("x residual", "y")]),
    "batchnorm_backward": (MEMORY, [("x dy", ""), ("x dy", "dx")]),
    "relu_forward": (MEMORY, [("x", "y")]),
    "relu_backward": (MEMORY, [("y dy", "dx")]),
    "add_forward": (MEMORY, [("a b", "y")]),
    "accumulate": (MEMORY, [("a b", "a")]),
    "dropout_forward": (MEMORY, [("x", "y")]),
    "dropout_backward": (MEMORY, [("dy", "dx")]),
    "bias_gradient": (MEMORY, [("dy", "")]),
    "maxpool_forward": (MEMORY, [("x", "y argmax")]),
    "maxpool_backward": (MEMORY, [("dy argmax", "dx")]),
    "avgpool_forward": (MEMORY, [("x", "y")]),
    "avgpool_backward": (MEMORY, [("dy", "dx")]),
    "global_avgpool_forward": (MEMORY, [("x", "y")]),
    "global_avgpool_backward": (MEMORY, [("dy", "dx")]),
    "lrn_forward": (MEMORY, [("x", "y scale")]),
    "lrn_backward": (MEMORY, [("x y scale dy", "dx")]),
    "softmax_cross_entropy": (MEMORY, [("logits", "dlogits")]),
    "rank_of_label": (MEMORY, [("logits", "")]),
    "squared_norms": (UPDATE, [("w g", "")]),
    "momentum_update": (UPDATE, [("w g v", "w v")]),
}
# with a residual, the masked gradient is itself an output: it is written in the first pass and read in the second
_BATCHNORM_BACKWARD_JOIN = [("x y dy", "dresidual"), ("x dresidual", "dx")]


def cost(call: Call) -> Cost:
    """Raises ValueError for a kernel without an entry in the table above."""
    if call.kernel not in _TABLE:
        raise ValueError(f"kernel {call.kernel} has no entry in knltrain/bench/costs.py; expected what it must move")
    kind, passes = _TABLE[call.kernel]
    if call.kernel == "batchnorm_backward" and call.arguments["dresidual"] is not None:
        passes = _BATCHNORM_BACKWARD_JOIN
    if call.kernel == "batchnorm_forward" and call.arguments["moments"] is not None:  # told by the convolution
        passes = passes[1:]
    plan = call.arguments.get("plan") if kind in CONVOLUTION else None
    flops, arithmetic = (2 * plan.multiply_adds, 2 * plan.arithmetic(kind)) if plan else (0, 0)
    passes = [_pass(call.arguments, read.split(), written.split()) for read, written in passes]
    if call.arguments.get("accumulate"):  # dx is read as well
        passes = [Pass(passes[0].read + passes[0].written, passes[0].written, passes[0].written)]
    return Cost(kind, flops, arithmetic, tuple(passes))


def _pass(arguments, read, written) -> Pass:
    places = {_place(arguments, name) for name in read}
    in_place = sum(_bytes(arguments, name) for name in written if _place(arguments, name) in places)
    sums = (sum(_bytes(arguments, name) for name in names) for names in (read, written))
    return Pass(*sums, in_place)


def _place(arguments, name):
    array = arguments.get(name)
    return array.ctypes.data if isinstance(array, np.ndarray) and array.size else name


def _bytes(arguments, name) -> int:
    if name == "plan.w":
        return 4 * math.prod(arguments["plan"].w_shape)
    return 0 if arguments[name] is None else arguments[name].nbytes


def shape(call: Call) -> str:
    """The work of a call in words: `32x56x56x64 -> 256, 1x1/1`; with a W where it is done by Winograd's method."""
    plan = call.arguments.get("plan")
    if plan is None:
        largest = max(call.arrays().values(), key=lambda array: array.size if array.ndim > 1 else 0)
        return "x".join(map(str, largest.shape))
    (r, s, _, k), groups = plan.w_shape, f" in {plan.groups} groups" if plan.groups > 1 else ""
    found = cost(call)
    by = " W" if found.arithmetic < found.flops else ""
    return f"{'x'.join(map(str, plan.x_shape))} -> {k}, {r}x{s}/{plan.stride}{groups}{by}"
