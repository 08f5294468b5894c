"""The weight gradients of fully connected layers, as what makes them: x and dy of a slot, and rows of dw from both.

dw = x^T dy: its rows from c0 to c1 need the columns from c0 to c1 of x. The kernel that makes all of dw makes some rows
too, with the same bits: an element is one sum over the images, in their order.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

import numpy as np

from knltrain.kernels import conv2d_backward_weight, conv2d_plan

from .program import BACKWARD_WEIGHT, MEMORY, Field, Observer, Op, Program, run

STEP = 32  # rows: parts begin at whole ones, and none has fewer unless all of dw has
PART = 1 << 20  # numbers of a part: some stay in a cache, and a call is short beside it


def dense_ops(program: Program) -> list[Op]:
    """The ops that make the weight gradients of fully connected layers."""
    return [op for op in program.backward if op.kind == BACKWARD_WEIGHT and is_dense(op)]


def is_dense(op: Op) -> bool:
    """Whether an op of a convolution is of a fully connected layer: one on images of one pixel."""
    return op.others["plan"].x_shape[1:3] == (1, 1)


class DenseGradient:
    """How dw (C, K) of the layer of `op` follows from x (N, C) and dy (N, K) of a slot.

    rows: into which parts dw is cut. observer: who is to be told of ops, asked whenever one runs.
    """

    def __init__(self, program: Program, op: Op, observer: Callable[[], Observer | None]):
        self.program, self.op, self.observer = program, op, observer
        self.parameter, shape = op.writes["dw"].owner, op.others["plan"].shape
        self.images, self.depth, self.width = shape.x[0], shape.x[3], shape.w[3]
        self.dtype = shape.number.dtype
        edges = [*range(0, max(self.depth - STEP, 0) + 1, max(STEP, PART // self.width // STEP * STEP)), self.depth]
        self.rows = [range(start, stop) for start, stop in pairwise(edges)]

    @property
    def name(self) -> str:
        """Of the parameter."""
        return self.parameter.name

    @property
    def flops(self) -> int:
        """Of dw of a slot."""
        return self.op.flops

    @cached_property
    def _plans(self) -> dict:
        """By rows. What the whole layer does not do, multiply pairs, or tiles of them, its parts must not."""
        shape = self.op.others["plan"].shape
        dot = shape.dot if shape.tiles else "dot2" if shape.pairs else "widen"
        counts = {len(rows) for rows in self.rows}
        sizes = {count: ((self.images, 1, 1, count), (1, 1, count, self.width)) for count in counts}
        return {count: conv2d_plan(*both, number=shape.number, dot=dot) for count, both in sizes.items()}

    @cached_property
    def _workspace(self) -> np.ndarray:
        return np.empty(max(plan.workspace_size for plan in self._plans.values()), np.float32)

    def make(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray):
        """A part of dw, flat, from these columns of x and all of dy, contiguous."""
        plan = self._plans[dw.size // self.width]
        x, dy, dw = x.reshape(plan.x_shape), dy.reshape(plan.y_shape), dw.reshape(plan.w_shape)
        conv2d_backward_weight(plan, x, dy, dw, self._workspace)

    def hand_over(self, keep: Callable, rebuild: Callable) -> Callable[[], None]:
        """From now on backward gives x and dy to `keep(x, dy, dw)` in place of making dw.

        Returns what runs `rebuild(dw)`, which makes the sum of dw over all slots and ranks, as an op.
        """
        op, ops, whole = self.op, self.program.backward, {"dw": Field(self.parameter, "gradient")}
        kept = Op(op.owner, MEMORY, keep, op.reads, op.writes, passes=((tuple(op.reads), ()),), flops=op.flops)
        late = Op(op.owner, BACKWARD_WEIGHT, rebuild, {}, whole, arithmetic=op.arithmetic)
        ops[ops.index(op)] = kept
        for one in (kept, late):
            one.bind()
        return lambda: run(late, self.observer())
