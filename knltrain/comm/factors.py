"""The sum of a fully connected layer's dw, rebuilt from its factors: x and dy of all slots travel in place of dw.

dw of a slot of N images is C K numbers, its factors are N (C + K). So every node gathers the factors of all slots,
makes dw slot by slot with the kernel of the layer, and adds along the tree: the same bits as sums of dw. Where the
ranks of a node share memory the factors lie there once, and each rank makes some rows of dw.
"""

import time
from collections.abc import Iterable, Sequence

import numpy as np

from knltrain.kernels import accumulate, aligned_zeros

from .block import MessageBlock
from .gradients import Way
from .links import Group
from .piecewise import gather_parts
from .tree import kept_sums, turns
from .wire import Wire

LINE = 64  # bytes of a cache line


class SlotSums:
    """Rows of the sum of dw over the slots `own`, made slot by slot and added along the tree of all `slots`.

    layer, wire: as of Factors.
    """

    def __init__(self, layer, own: range, slots: int, wire: Wire):
        self.layer, self.add = layer, wire.add if wire.short else accumulate
        self.turns = turns(own, slots)
        most = max(map(len, layer.rows)) * layer.width
        self.sums = [aligned_zeros(most) for _ in range(kept_sums(own, slots) + 1)]

    def make(self, factors: Iterable[tuple[np.ndarray, np.ndarray]], scale, out: np.ndarray, parts: Sequence = ()):
        """out, flat = the last of the partial sums, `parts` the others, from (columns of x, dy) of each slot.

        scale: what dw of a slot is multiplied by.
        """
        spare, *kept = (array[: out.size] for array in self.sums)
        for (x, dy), turn in zip(factors, self.turns, strict=True):
            into = out if turn.keep is None else spare
            self.layer.make(x, dy, into)
            if scale != 1:
                into *= scale
            for number in turn.absorbs:
                self.add(into, kept[number])
            if turn.keep is not None:
                kept[turn.keep], spare = spare, kept[turn.keep]
        for part, total in zip(parts, kept, strict=False):
            np.copyto(part, total)


class Factors(Way):
    """The factors of one layer between the ranks of `block`. Collective. Raises MemoryError for too little memory.

    layer: a `layers.dense.DenseGradient`, or what does the same. wire: of this thread, to whose format
    the addends of all sums are rounded.

    Memory is [slot][columns of x for each part of dw | dy], slots in the order of `places`: those that a rank of a node
    sends lie side by side.
    """

    what = "factors of "

    def __init__(self, layer, block: MessageBlock, wire: Wire):
        self.layer, self.block, self.wire = layer, block, wire
        links = block.links
        shares, shared, me = links.shares, block.blocks is not None, links.comm.rank
        nodes = links.nodes if shared else [[rank] for rank in range(links.comm.size)]
        slices, local = (links.slices, links.node.rank) if shared else (1, 0)
        self.group = (links.across if shared else Group(links.comm, range(links.comm.size))) if len(nodes) > 1 else None
        item = layer.dtype.itemsize
        self.dy_starts = -(-layer.images * layer.depth * item // LINE) * LINE
        self.row_bytes = self.dy_starts + -(-layer.images * layer.width * item // LINE) * LINE
        self.places, self.bounds = {}, []  # of slots; of the parts that this rank's group gathers, in slots
        for number in range(slices):
            bounds = [len(self.places)]
            for ranks in nodes:
                own = [slot for rank in ranks[number::slices] for slot in shares.ranges[rank]]
                self.places |= {slot: len(self.places) + i for i, slot in enumerate(own)}
                bounds.append(len(self.places))
            if number == local:
                self.bounds = bounds
        self.memory = self._memory(shares.slots * self.row_bytes)
        mates = nodes[links.number if shared else me]
        parts = len(layer.rows)
        mine = slice(parts * local // len(mates), parts * (local + 1) // len(mates))
        self.own_rows = layer.rows[mine]  # of dw, that this rank makes
        self.own, self.next, self.counts = shares.ranges[me], 0, me == 0
        self.made = SlotSums(layer, range(shares.slots), shares.slots, wire)
        self.arrive = layer.hand_over(self.keep_factors, self.sum_factors)

    def _memory(self, nbytes: int) -> np.ndarray:
        """(slots, row_bytes) uint8, which the ranks of a node share where they share their blocks."""
        node = self.block.links.node
        if self.block.blocks is None:
            return aligned_zeros(nbytes // 4).view(np.uint8).reshape(-1, self.row_bytes)
        window = node.window(-(-nbytes // node.size))
        if not all(self.block.links.comm.gather(window is not None)):
            raise MemoryError(f"too little shared memory for {nbytes >> 20} MiB of factors")
        return window.reshape(-1)[:nbytes].reshape(-1, self.row_bytes)

    def keep_factors(self, x, dy, dw):
        """x and dy of this rank's next slot are there; dw is not made."""
        row, layer = self.memory[self.places[self.own[self.next]]], self.layer
        x = x.reshape(layer.images, layer.depth)
        for rows in layer.rows:
            np.copyto(self._columns(row, rows), x[:, rows.start : rows.stop])
        np.copyto(self._gradient(row), dy.reshape(layer.images, layer.width))
        self.next = (self.next + 1) % len(self.own)

    def end_slot(self, bucket, number):
        return self.gather if number == len(self.own) - 1 else None

    def gather(self):
        """After the last slot: the factors of all slots are in this node's memory. Collective."""
        begin = time.perf_counter()
        self.block.meet(0)
        if self.group and self.bounds:
            first, numbers = self.bounds[0], self.row_bytes // 4
            part = self.memory[first : self.bounds[-1]].reshape(-1).view(np.float32)
            bounds = [(bound - first) * numbers for bound in self.bounds]
            gather_parts(self.group, self.block.links.exact, part, bounds)
        self.block.meet(1)
        self.block.pretend(begin, self.block.crossing * self.memory.nbytes / 4, self.block.links.exact)

    def sum_factors(self, dw):
        """dw (1, 1, C, K) = the sum over all slots; on a node that shares it each rank makes some rows. Collective."""
        flat, width = dw.reshape(-1), self.layer.width
        for rows in self.own_rows:
            out = flat[rows.start * width : rows.stop * width]
            stored = (self.memory[self.places[slot]] for slot in range(len(self.places)))
            self.made.make(((self._columns(row, rows), self._gradient(row)) for row in stored), self.scale, out)
            self.wire.round(out)
        self.block.meet(3)

    def _columns(self, row, rows: range) -> np.ndarray:
        """Columns of x (N, rows) in the memory of a slot."""
        layer = self.layer
        return self._numbers(row, layer.images * rows.start * layer.dtype.itemsize, len(rows))

    def _gradient(self, row) -> np.ndarray:
        """dy (N, K) there."""
        return self._numbers(row, self.dy_starts, self.layer.width)

    def _numbers(self, row, start: int, columns: int) -> np.ndarray:
        images, dtype = self.layer.images, self.layer.dtype
        return row[start : start + images * columns * dtype.itemsize].view(dtype).reshape(images, columns)
