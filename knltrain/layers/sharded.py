"""A fully connected layer in shards of its inputs: y = sum over shards s of x[:, s] W[s], always added in one order.

A shard is some rows of W, and stays in memory as it lies there. Each shard makes its own columns of dx, so only y is a
sum over shards. It is added in pairs, pairs of pairs, ...: any power of two of ranks that have neighbouring shards each
then make the same bits as one that has all. How the members of such a group exchange numbers is told by `share`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from knltrain.kernels import (
    FP32,
    accumulate,
    aligned_zeros,
    conv2d_backward_input,
    conv2d_forward,
    conv2d_pack,
    conv2d_pack_transposed,
    conv2d_plan,
    convert,
)

from .conv import Linear
from .dense import STEP
from .program import BACKWARD_INPUT, FORWARD, Field, Op, Program

Swap = Callable[[str, Sequence[np.ndarray], Sequence[np.ndarray]], None]  # what, to each member, from each


def shard_dense(program: Program, count: int) -> dict[str, "ShardedDense"]:
    """Put fully connected layers into `count` shards, a power of two, before anything is fused; by parameter.

    Layers of fewer than STEP inputs a shard stay as they are.
    """
    found = {}
    for ops in (program.forward, program.backward):
        for place, op in enumerate(ops):
            if op.kernel not in (conv2d_forward, conv2d_backward_input) or not isinstance(op.owner, Linear):
                continue
            w = op.uses[0]
            if count == 1 or w.shape[2] < STEP * count:
                continue
            if w.name not in found:
                found[w.name] = ShardedDense(w.name, op.others["plan"].shape, count)
            layer, weights = found[w.name], {"w": Field(w, "w")}
            w.cut(rows.start * layer.width for rows in layer.rows[1:])
            costs = {"flops": op.flops, "arithmetic": op.arithmetic, "uses": op.uses}
            if ops is program.forward:
                reads, others = {"x": op.reads["x"]} | weights, {"bias": op.others["bias"]}
                ops[place] = Op(op.owner, FORWARD, layer.sharded_forward, reads, op.writes, others, **costs)
            else:
                reads = {"dy": op.reads["dy"]} | weights
                ops[place] = Op(op.owner, BACKWARD_INPUT, layer.sharded_backward_input, reads, op.writes, **costs)
    return found


class ShardedDense:
    """The layer of shape `shape` whose weights are parameter `name`: forward and backward-input of a slot.

    rows: of W, by shard. cuts: the rows of each member of the group. own: the shards of this one, number `number`.
    held: of each slot of a step, by member, its x in the columns of the own shards, shard by shard.
    """

    def __init__(self, name: str, shape, count: int):
        self.name, self.images, self.depth, self.width = name, shape.x[0], shape.x[3], shape.w[3]
        self.dtype, units = shape.number.dtype, self.depth // STEP
        edges = [units * shard // count * STEP for shard in range(count)]
        self.rows = [range(start, stop) for start, stop in pairwise([*edges, self.depth])]
        self.number_type = shape.number
        self.share(1, 0, lambda what, out, into: None)

    def share(self, size: int, number: int, swap: Swap, slots=1, slot: Callable[[], int] = lambda: 0, dys=lambda: None):
        """From now on this is member `number` of a group of `size`, each of which runs `slots` slots in a step.

        swap: exchanges arrays with each member, its own left out; slot: which one of the step is computed; dys: dy of
        each member's slot, where the layer's own is not all.
        """
        each = len(self.rows) // size
        members = [range(each * m, each * (m + 1)) for m in range(size)]
        self.number, self.own, self.swap, self.slot, self.dys = number, members[number], swap, slot, dys
        self.cuts = [range(self.rows[m[0]].start, self.rows[m[-1]].stop) for m in members]
        own, (n, k) = len(self.cuts[number]), (self.images, self.width)
        sizes = {rows: ((size * n, 1, 1, rows), (1, 1, rows, k)) for rows in map(len, self.rows)}
        self.plans = {rows: conv2d_plan(*both, number=self.number_type, y_number=FP32) for rows, both in sizes.items()}
        self.workspace, self.packed = (
            aligned_zeros(max(max(sizes(plan)) for plan in self.plans.values()))
            for sizes in (lambda plan: (plan.workspace_size,), lambda plan: (plan.packed_size, plan.packed_t_size))
        )
        self.spare = np.empty((each.bit_length(), size * n * k), np.float32)
        self.some = np.empty((size, n * max(map(len, self.rows))), self.dtype)
        self.held = np.empty((slots, size, n * own), self.dtype)  # lives until dw is made
        self.back = np.empty((size, n * own), self.dtype)
        self.travel = [np.empty(n * len(cut), self.dtype) for cut in self.cuts]
        self.sums, self.terms = np.empty((2, size, n * k), np.float32)

    def columns(self, flat: np.ndarray, shard: int) -> np.ndarray:
        """Those of a shard, (N, columns), in what is held of a slot for the member that has it."""
        rows, cut = self.rows[shard], self.cuts[shard * len(self.cuts) // len(self.rows)]
        start, stop = (self.images * (edge - cut.start) for edge in (rows.start, rows.stop))
        return flat[start:stop].reshape(self.images, len(rows))

    # ---- ops of a program --------------------------------------------------------------------------------------

    def sharded_forward(self, x, w, bias, y):
        """y (N, 1, 1, K) = x (N, 1, 1, C) w (1, 1, C, K), plus bias (K,) if there is one. Collective in the group."""
        x, held = x.reshape(self.images, self.depth), self.held[self.slot()]
        out = [held[m] if m == self.number else travel for m, travel in enumerate(self.travel)]
        for shard, rows in enumerate(self.rows):
            np.copyto(self.columns(out[self._member(shard)], shard), x[:, rows.start : rows.stop])
        self.swap("inputs", out, held)
        self._sum(held, w, self.own, self.sums.reshape(-1), 0)
        self.terms[self.number] = self.sums[self.number]
        self.swap("outputs", self.sums, self.terms)
        total = _folded(list(self.terms)).reshape(self.images, self.width)
        if bias is not None:
            total += bias
        convert(total, y.reshape(total.shape))

    def sharded_backward_input(self, dy, w, dx):
        """dx (N, 1, 1, C) = dy (N, 1, 1, K) w^T. Collective in the group, whose `dys` are there."""
        dys = self.dys()
        dys = dy if dys is None else dys
        for shard in self.own:
            plan, weights = self._weights(w, shard, True)
            made = self._of_all(shard)
            conv2d_backward_input(plan, dys.reshape(plan.y_shape), weights, made.reshape(plan.x_shape))
            for columns, part in zip(self.back, made, strict=True):
                self.columns(columns, shard)[...] = part
        self.travel[self.number][...] = self.back[self.number]
        self.swap("gradients of inputs", self.back, self.travel)
        dx = dx.reshape(self.images, self.depth)
        for shard, rows in enumerate(self.rows):
            dx[:, rows.start : rows.stop] = self.columns(self.travel[self._member(shard)], shard)

    def _member(self, shard: int) -> int:
        return shard * len(self.cuts) // len(self.rows)

    def _of_all(self, shard: int) -> np.ndarray:
        """Room for columns of a shard, of all members: (members, N, columns)."""
        columns = len(self.rows[shard])
        return self.some.reshape(-1)[: len(self.cuts) * self.images * columns].reshape(-1, self.images, columns)

    def _sum(self, held, w, shards: range, total, level: int):
        """total (members N K) = the sum over a power of two of neighbouring shards."""
        if len(shards) > 1:
            half, spare = len(shards) // 2, self.spare[level]
            self._sum(held, w, shards[:half], total, level + 1)
            self._sum(held, w, shards[half:], spare, level + 1)
            accumulate(total, spare)
            return
        plan, weights = self._weights(w, shards[0], False)
        x = self._of_all(shards[0])
        for own, columns in zip(x, held, strict=True):
            own[...] = self.columns(columns, shards[0])
        y, workspace = total.reshape(plan.y_shape), self.workspace[: plan.workspace_size]
        conv2d_forward(plan, x.reshape(plan.x_shape), weights, None, y, workspace)

    def _weights(self, w, shard: int, backward: bool):
        """The plan of a shard, and its weights as the kernel of that direction wants them."""
        rows = self.rows[shard]
        plan = self.plans[len(rows)]
        own = w.reshape(self.depth, self.width)[rows.start : rows.stop].reshape(plan.w_shape)
        if plan.unpacked:
            return plan, own
        pack, method = (conv2d_pack_transposed, plan.backward_input) if backward else (conv2d_pack, plan.forward)
        packed = self.packed.view(method.panels.dtype)[: method.packed_size]
        pack(plan, own, packed)
        return plan, packed


def _folded(terms: list[np.ndarray]) -> np.ndarray:
    """The sum of a power of two of arrays, in pairs, pairs of pairs, ...; made in the first."""
    while len(terms) > 1:
        for into, other in zip(terms[::2], terms[1::2], strict=True):
            accumulate(into, other)
        terms = terms[::2]
    return terms[0]
