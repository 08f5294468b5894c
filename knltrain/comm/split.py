"""A fully connected layer whose weights are split over a group of ranks; data parallel between groups.

Each rank of a group has some neighbouring shards of W (see `layers.sharded`), makes their part of y, of dx and of dw
for the slots of all members, and updates them. In a group x, y, dy and dx travel; between groups the sums of dw, those
of a rank's own rows only, along the tree. So the bits are those of one rank with the same shards.
"""

import time
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import numpy as np

from knltrain.kernels import aligned_zeros

from .block import SMALL_BYTES, MessageBlock
from .factors import SlotSums
from .gradients import Way
from .links import Group
from .piecewise import gather_parts
from .shares import Shares
from .wire import Wire


def group_sizes(shares: Shares, count: int, most: int) -> list[int]:
    """Ranks of a group that `count` shards allow, 2 or more and at most `most`: each member runs as many slots.

    >>> group_sizes(Shares.equal(24, 12), 8, 8), group_sizes(Shares.equal(24, 3), 8, 8)
    ([2, 4], [])
    """
    ranks, sizes = len(shares.ranges), list(map(len, shares.ranges))

    def alike(size):
        return all(len(set(sizes[first : first + size])) == 1 for first in range(0, ranks, size))

    return [size for size in range(2, min(most, ranks) + 1) if count % size == ranks % size == 0 and alike(size)]


class Split(Way):
    """One layer between the ranks of `block`, in groups of `size` neighbours. Collective in the group.

    layer: a `layers.dense.DenseGradient` that has a `sharded`. wire: of the thread that computes, to whose format the
    addends of sums of slots are rounded. at_once: does an exchange, told by name, among all others in their order, and
    waits for it.
    """

    what, stops = "shards of ", True

    def __init__(self, layer, block: MessageBlock, size: int, wire: Wire, at_once: Callable):
        links, sharded = block.links, layer.sharded
        comm, self.layer, self.block, self.at_once, self.slot = links.comm, layer, block, at_once, 0
        first = comm.rank // size * size
        self.group, self.counts = Group(comm, range(first, first + size)), first == 0
        own = [links.shares.ranges[rank] for rank in self.group.members]
        self.slots = len(own[0])  # in a step, of each member
        sharded.share(size, self.group.rank, self._swap, self.slots, lambda: self.slot, lambda: self.dys[self.slot])
        parameter, width = layer.parameter, layer.width
        self.bounds = [cut.start * width for cut in sharded.cuts] + [parameter.size]
        self.own = slice(*self.bounds[self.group.rank : self.group.rank + 2])
        parameter.sum_alone(self.own)
        layer.cut(sharded.rows[shard] for shard in sharded.own)
        self.made = SlotSums(layer, range(own[0].start, own[-1].stop), links.shares.slots, wire)
        groups = [list(range(rank, rank + size)) for rank in range(0, comm.size, size)]
        between = links.shares.merged(groups)
        parts = len(between.parts[comm.rank // size])
        self.rows = [aligned_zeros(self.own.stop - self.own.start) for _ in range(parts - 1)]
        across = Group(comm, range(self.group.rank, comm.size, size))
        self.wire = links.wire if links.every_sum else links.exact
        self.methods = links.among(across, between)[self.wire] if across.size > 1 else None
        self.dys = np.empty((self.slots, size, layer.images * width), layer.dtype)

    def part(self, bucket):
        return slice(bucket.start + self.own.start, bucket.start + self.own.stop)

    def end_slot(self, bucket, number):
        return self.exchange if number == self.slots - 1 else None

    def hand_over(self, all_split: Sequence):
        """Let backward keep dy of all members, and make dw of the own rows after the last slot, behind all layers."""
        self.layer.postpone(self.keep_gradient, self.make_gradient, all_split)

    def _swap(self, what: str, out: Sequence[np.ndarray], into: Sequence[np.ndarray]):
        """Give out[m] to member m of the group, and receive into[m] from it."""
        others = [m for m in range(self.group.size) if m != self.group.rank]

        def work():
            begin = time.perf_counter()
            self.group.trade([(out[m], m) for m in others], [(into[m], m) for m in others])
            self.block.pretend(begin, sum(out[m].nbytes for m in others) // 4, self.block.links.exact)

        self.at_once(f"{what} of {self.layer.name}", work)

    def keep_gradient(self, dy):
        """dy of the slots of all members."""
        dys = self.dys[self.slot]
        dys[self.group.rank] = dy.reshape(-1)
        self._swap("output gradients", [dys[self.group.rank]] * self.group.size, dys)

    def make_gradient(self, dw):
        """After the last slot: dw (1, 1, C, K), in the own rows, = the sum over the slots of the group."""
        self.slot = (self.slot + 1) % self.slots
        if self.slot:
            return
        layer, sharded, flat = self.layer, self.layer.sharded, dw.reshape(-1)
        places = [(slot, m) for m in range(self.group.size) for slot in range(self.slots)]
        dys = [self.dys[place].reshape(layer.images, layer.width) for place in places]
        for shard in sharded.own:
            first = sharded.rows[shard].start
            for rows in (rows for rows in layer.rows if rows.start in sharded.rows[shard]):
                columns = slice(rows.start - first, rows.stop - first)
                xs = (np.ascontiguousarray(sharded.columns(sharded.held[place], shard)[:, columns]) for place in places)
                start, stop = rows.start * layer.width, rows.stop * layer.width
                parts = [row[start - self.own.start : stop - self.own.start] for row in self.rows]
                self.made.make(zip(xs, dys, strict=True), self.scale, flat[start:stop], parts)

    def exchange(self):
        """The sum of the own rows over all groups. Collective between the ranks that have them."""
        begin, mine = time.perf_counter(), self.layer.parameter.gradient.reshape(-1)[self.own]
        if self.methods:
            self.methods[mine.nbytes > SMALL_BYTES].allreduce(mine, [*self.rows, mine])
        else:
            self.wire.round(mine)
        groups = self.block.links.comm.size // self.group.size
        self.block.pretend(begin, 2 * (1 - 1 / groups) * mine.size, self.wire)

    def complete(self, kinds: Collection[str], everywhere: bool = True):
        """Blocks of these kinds are whole, for this parameter, on all ranks, or on the first alone."""
        p, group = self.layer.parameter, self.group
        for flat in ((p.states | {"value": p.w, "momentum": p.v})[kind].reshape(-1) for kind in kinds):
            if everywhere:
                gather_parts(group, self.block.links.exact, flat, self.bounds)
            elif group.members[0] == 0:
                parts = [flat[start:stop] for start, stop in pairwise(self.bounds)]
                others = [(part, m) for m, part in enumerate(parts) if m] if group.rank == 0 else []
                group.trade([(parts[group.rank], 0)] if group.rank else [], others)
