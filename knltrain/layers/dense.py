"""The weight gradients of fully connected layers, as what makes them: x and dy of a slot, and rows of dw from both.

dw = x^T dy: its rows from c0 to c1 need the columns from c0 to c1 of x. The kernel that makes all of dw makes some rows
too, with the same bits: an element is one sum over the images, in their order.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from knltrain.kernels import conv2d_backward_weight, conv2d_plan

from .program import BACKWARD_WEIGHT, MEMORY, Field, Observer, Op, Program, run

STEP = 32  # rows: parts begin at whole ones, and none has fewer unless all of dw has
PART = 1 << 18  # numbers of a part: some stay in a cache, and a call is short beside it


def dense_ops(program: Program) -> list[Op]:
    """The ops that make the weight gradients of fully connected layers."""
    return [op for op in program.backward if op.kind == BACKWARD_WEIGHT and is_dense(op)]


def is_dense(op: Op) -> bool:
    """Whether an op of a convolution is of a fully connected layer: one on images of one pixel."""
    return op.others["plan"].x_shape[1:3] == (1, 1)


class DenseGradient:
    """How dw (C, K) of the layer of `op` follows from x (N, C) and dy (N, K) of a slot.

    rows: into which parts dw is cut. observer: who is to be told of ops, asked whenever one runs. sharded: the
    `sharded.ShardedDense` of the layer, if it is in shards.
    """

    def __init__(self, program: Program, op: Op, observer: Callable[[], Observer | None], sharded=None):
        self.program, self.op, self.observer, self.sharded = program, op, observer, sharded
        self.parameter, shape = op.writes["dw"].owner, op.others["plan"].shape
        self.images, self.depth, self.width = shape.x[0], shape.x[3], shape.w[3]
        self.dtype = shape.number.dtype
        self._plans, self._workspace = {}, np.empty(0, np.float32)
        self.cut([range(self.depth)])

    @property
    def name(self) -> str:
        """Of the parameter."""
        return self.parameter.name

    @property
    def flops(self) -> int:
        """Of dw of a slot."""
        return self.op.flops

    def cut(self, pieces: Iterable[range]):
        """From now on parts are rows of one of these pieces, which begin at multiples of STEP."""
        step, self.rows = max(STEP, PART // self.width // STEP * STEP), []
        for piece in pieces:
            edges = [*range(piece.start, max(piece.stop - STEP, piece.start) + 1, step), piece.stop]
            self.rows += [range(start, stop) for start, stop in pairwise(edges)]

    def plan(self, count: int):
        """Of so many rows. What the whole layer does not do, multiply pairs, or tiles of them, its parts must not."""
        if count not in self._plans:
            shape = self.op.others["plan"].shape
            dot, sizes = shape.dot if shape.tiles else "dot2" if shape.pairs else "widen", (count, self.width)
            plan = conv2d_plan((self.images, 1, 1, count), (1, 1, *sizes), number=shape.number, dot=dot)
            self._plans[count] = plan
            if self._workspace.size < plan.workspace_size:
                self._workspace = np.empty(plan.workspace_size, np.float32)
        return self._plans[count]

    def make(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray):
        """A part of dw, flat, from these columns of x and all of dy, contiguous."""
        plan = self.plan(dw.size // self.width)
        x, dy, dw = x.reshape(plan.x_shape), dy.reshape(plan.y_shape), dw.reshape(plan.w_shape)
        conv2d_backward_weight(plan, x, dy, dw, self._workspace[: plan.workspace_size])

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

    def postpone(self, keep: Callable, make: Callable, behind: Iterable["DenseGradient"]):
        """From now on backward gives dy to `keep(dy)` in place of making dw, which `make(dw)` does as an op of its own.

        It runs when the layers `behind`, of which this is one, have made all else.
        """
        op, ops, owners = self.op, self.program.backward, [layer.op.owner for layer in behind]
        kept = Op(op.owner, MEMORY, keep, {"dy": op.reads["dy"]}, {})
        late = Op(op.owner, BACKWARD_WEIGHT, make, {}, op.writes, flops=op.flops, arithmetic=op.arithmetic)
        ops[ops.index(op)] = kept
        ops.insert(1 + max(place for place, one in enumerate(ops) if one.owner in owners), late)
        for one in (kept, late):
            one.bind()
