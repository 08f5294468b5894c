"""The gradients of this rank, and their sum over all ranks, slice by slice: by messages, or in shared memory first.

By messages a slice is summed in each rank's own block. In shared memory the blocks of a node's ranks lie in windows:
each rank sums its slice of all of them at memory speed, into the first rank's block; between nodes the ranks of equal
number exchange their slices; then all ranks of the node read the one copy. A rank whose slots are several subtrees of
the tree of sums has a row for each; backward writes the last one.
"""

import os
import time
from functools import partial

import numpy as np

from knltrain.kernels import aligned_zeros, meet_arrive, meet_wait, node_allreduce, sum_blocks, sum_scratch

from ..arena import GradientBlock
from .algorithms import LINE, Algorithm, cut_at, cut_evenly
from .coded import Coded, block_edges
from .links import Links
from .shares import Shares
from .tree import add_up, joins

SMALL_BYTES = 1 << 16  # below, latency counts more than bandwidth
_SPINS = 4000  # looks at a meeting point before sleeping, about 50 us: only where each rank has a core


def make_block(links: Links, floats: int, of: "MessageBlock | None" = None) -> "MessageBlock":
    """A block of `floats` zeros, in shared memory where `links` want it and there is enough. Collective.

    of: another block between the same ranks, whose memory is used instead of new. Raises ValueError for an algorithm
    that cannot work between these ranks.
    """
    note = ""
    if links.shared:
        blocks = of.blocks if of else links.node.window(4 * floats)
        more = blocks is not None and _more_rows(links, links.shares, floats)
        if all(links.comm.gather(blocks is not None and more is not None)):
            rows = blocks.view(np.float32)
            return SharedBlock(links, rows[links.node.rank, :floats], rows, more)
        note = (
            f"too little shared memory for {links.node.size} ranks' gradients of {4 * floats >> 20} MiB on a node: "
            "summing by messages, which is slower; enlarge /dev/shm"
        )
    return MessageBlock(links, of.mine if of else aligned_zeros(floats), note=note)


def _more_rows(links, shares: Shares, floats: int) -> np.ndarray | None:
    """Shared memory for the partial sums of a node's ranks but the last of each: (ranks, most of a rank, floats).

    None, on all ranks of the node, where there is too little. Collective on the node.
    """
    ranks = links.nodes[links.number]
    most, row = max(len(shares.sums[rank]) for rank in ranks) - 1, -(-floats // LINE) * LINE
    if most == 0:
        return np.empty((len(ranks), 0, floats), np.float32)
    window = links.node.window(4 * row * most)
    return None if window is None else window.view(np.float32)[:, : row * most].reshape(len(ranks), most, row)


class MessageBlock(GradientBlock):
    """A block that is summed by messages between all ranks, in place: `total` is `mine`.

    note: what a user should know about the choice. blocks: of all ranks of this node, where they share memory.
    rows: the sums that this rank keeps, left to right; the last one is `mine`. coding: where gradients travel so.
    """

    def __init__(self, links: Links, mine: np.ndarray, blocks: np.ndarray | None = None, note: str = ""):
        super().__init__(mine, mine if blocks is None else blocks[0, : mine.size])
        self.links, self.blocks, self.note = links, blocks, note
        self._first, slices, nodes = 0, 1, links.comm.size
        if blocks is not None:
            slices, nodes = links.slices, len(links.nodes)
            self._first = links.node.rank * nodes if links.across else None  # of this rank's parts
        self._parts, self._width = slices * nodes, nodes
        self._cut = lambda start, stop, parts: cut_evenly(stop - start, parts)  # bounds of the parts, from start on
        self._own = {}
        self.rows, self.coding = [mine], None
        self._settle()

    def arrange(self, shares: Shares):
        """From now on the ranks run these slots. Collective. Raises ValueError where shared memory is short."""
        self.links.arrange(shares)
        self._settle()

    def _settle(self):
        """Methods and rows for the shares of the links."""
        links = self.links
        self._methods = links.methods(self.blocks is not None)
        if self.blocks is None:
            more = len(links.shares.sums[links.comm.rank]) - 1
            self.rows = [*(aligned_zeros(self.mine.size) for _ in range(more)), self.mine]
            self._join(self.rows, [links.comm.rank])
        if links.wire.feeds_back:
            whole = [("", 0, self.mine.size)]
            self.code(block_edges(whole), np.zeros((links.shares.workers + 1, self.mine.size), np.float32))

    def _join(self, rows: list[np.ndarray], ranks: list[int]):
        """How the sums of these ranks, which lie in `rows`, are added: those that travel coded only to workers."""
        shares = self.links.shares
        kept = [row for rank in ranks for row in shares.sums[rank]]
        self._node_rows = rows
        self._joins = {coded: joins(kept, shares.slots, shares.most if coded else 0) for coded in (False, True)}

    def code(self, edges: np.ndarray, residual: np.ndarray, head: int = 0):
        """From now on blocks of a scale begin at these floats, and what is lost is kept in residual: see `Coded`."""
        links = self.links
        group, shares = links.between_whom(self.blocks is not None)
        self.cut_only_at(edges.tolist())
        self.coding = Coded(group, links.exact, shares, edges, residual, head) if group else None

    def cut_only_at(self, edges: list[int]):
        """From now on a part begins at one of these floats of the block, ascending: an update wants whole chunks."""
        self._cut, self._own = partial(cut_at, edges), {}

    def coded_here(self, number: int, start: int, stop: int) -> slice:
        """What of [start:stop] this rank codes: of worker `number`, or of the total behind them."""
        nothing, coding = slice(start, start), self.coding
        if coding is None:
            return nothing
        if number == len(coding.owners):
            return self.part(start, stop)
        return slice(*self._slice(start, stop)) if number in coding.mine else nothing

    @property
    def copies(self) -> float:
        """Of what is summed between nodes, or ranks, how many times its bytes leave each; 0: nothing does."""
        method = self._methods[self.links.exact][1] if self._methods else None
        if method is None or not method.piecewise:
            return 2.0 if method else 0.0
        return 1 + len(method.owners) / method.group.size

    def __str__(self):
        wire = self.links.wire
        methods = [self.coding] if wire.feeds_back and self._methods else self._methods.get(wire, ())
        names = (type(method).__name__.lower() for method in methods)
        return " and ".join(dict.fromkeys(names)) or "nobody to exchange with"

    # ---- summing -----------------------------------------------------------------------------------------------

    def allreduce(self, start: int, stop: int, exact: bool = False):
        """total[start:stop] = the sum over all ranks of mine[start:stop], on every rank; exact: whatever the wire."""
        begin, wire = time.perf_counter(), self.links.exact if exact else self.links.wire
        self._sum(start, stop, wire)
        copies = 1 + len(self.coding.mine) if wire.feeds_back and self.coding else 2
        self.pretend(begin, self.crossing * copies * (stop - start), wire)

    def part(self, start: int, stop: int) -> slice:
        """This rank's own share of [start:stop], as `reduce_scatter` leaves it."""
        if self._first is None:
            return slice(start, start)
        bounds, method = self._bounds(start, stop), self.coding or self._methods and self._scattering(self.links.wire)
        own = self._first + (method.part() if method else 0)
        return slice(start + bounds[own], start + bounds[own + 1])

    def reduce_scatter(self, start: int, stop: int):
        """total[part] = the sum over all ranks, where `part` is this rank's own share of [start:stop]."""
        begin, wire = time.perf_counter(), self.links.wire
        mine, rows = self._sum_node(start, stop, wire)
        if mine.size and self._methods:
            self._scattering(wire).reduce_scatter(mine, self._inner(start, stop), rows)
        if self.links.every_sum:
            wire.round(self.total[self.part(start, stop)])
        self.pretend(begin, self.crossing * (stop - start), wire)

    def allgather(self, start: int, stop: int):
        """total[start:stop] = what the owner of each `part` has put there, to the bit: it may be weights."""
        begin, wire = time.perf_counter(), self.links.exact
        if self._methods:
            first, last = self._slice(start, stop)
            self._scattering(wire).allgather(self.total[first:last], self._inner(start, stop))
        self.meet(1)
        self.pretend(begin, self.crossing * (stop - start), wire)

    def release(self):
        """This rank has read all sums it wants. Returns when all of the node have: the block may be written again."""

    def _sum(self, start, stop, wire):
        mine, rows = self._sum_node(start, stop, wire)
        if mine.size and wire.feeds_back:
            self.coding.allreduce(self._slice(start, stop)[0], mine, rows, self._inner(start, stop))
        elif mine.size and self._methods:
            self._methods[wire][mine.nbytes > SMALL_BYTES].allreduce(mine, rows)
        elif self.links.every_sum:
            wire.round(mine)
        self.meet(1)

    def _scattering(self, wire) -> Algorithm:
        return self._methods[wire][1]

    @property
    def crossing(self) -> float:
        """The share of what is spread over nodes, or ranks of one node, that is another's: (P - 1) / P."""
        peers = len(self.links.nodes) if len(self.links.nodes) > 1 else self.links.comm.size
        return 1 - 1 / peers

    def pretend(self, begin: float, numbers: float, wire):
        """Sleep until a node would have sent so many numbers over a network of `bandwidth`."""
        bandwidth = self.links.bandwidth
        if bandwidth and self.links.comm.size > 1:
            left = begin + numbers * wire.dtype().itemsize / bandwidth - time.perf_counter()
            if left > 0:
                time.sleep(left)

    # ---- slices and their parts --------------------------------------------------------------------------------

    def _bounds(self, start, stop):
        return self._cut(start, stop, self._parts)

    def _slice(self, start, stop):
        """This rank's slice of [start:stop], remembered: for small messages every microsecond counts."""
        own = self._own.get((start, stop))
        if own is None:
            own = (start, start)
            if self._first is not None:
                bounds = self._bounds(start, stop)
                own = start + bounds[self._first], start + bounds[self._first + self._width]
            self._own[start, stop] = own
        return own

    def _inner(self, start, stop):
        """Bounds of the parts of this rank's slice, relative to the slice."""
        inner = self._bounds(start, stop)[self._first : self._first + self._width + 1]
        return [bound - inner[0] for bound in inner]

    # ---- inside the node: nothing to do, until memory is shared ------------------------------------------------

    def _sum_node(self, start, stop, wire) -> tuple[np.ndarray, list[np.ndarray]]:
        """This rank's slice of the total of [start:stop], and the partial sums of the node there."""
        first, last = self._slice(start, stop)
        mine, rounded = self.total[first:last], self.links.every_sum and wire.short
        additions, sums = self._joins[wire.feeds_back]
        rows = [row[first:last] for row in self._node_rows]  # what is not this rank's is written over, too
        if not additions:
            return mine, rows
        add = (wire if rounded else self.links.exact).add
        add_up(rows, additions, add, into=mine if len(sums) == 1 else None)
        return mine, [mine] if len(sums) == 1 else [rows[i] for i in sums]

    def meet(self, point: int):
        """Meet the ranks of this node."""


class SharedBlock(MessageBlock):
    """A block that is summed inside its node first; `total` is the first rank's block.

    Each slice belongs to a rank of the node, each part of it to one of the nodes. more: see `_more_rows`.
    """

    def __init__(self, links: Links, mine: np.ndarray, blocks: np.ndarray, more: np.ndarray):
        node = links.node
        self._meeting = node.window(4 * 64)[0, : 4 * 64].view(np.int32).reshape(4, 16)
        self._turns = [0, 0, 0, 0]
        self._scratch = sum_scratch(node.size)
        self._spins = _SPINS if node.size <= _cores() else _SPINS // 40
        self._more = more
        super().__init__(links, mine, blocks)

    def __str__(self):
        return f"shared memory + {super().__str__()}" if self._methods else "shared memory"

    def arrange(self, shares):
        more = _more_rows(self.links, shares, self.mine.size)
        if not all(self.links.comm.gather(more is not None)):
            raise ValueError(
                f"found too little shared memory for {shares}; expected room for as many gradients on a node: enlarge "
                '/dev/shm, or set comm.algorithm = "direct"'
            )
        self._more = more
        super().arrange(shares)

    def _settle(self):
        super()._settle()
        links, floats = self.links, self.mine.size
        kept = [links.shares.sums[rank] for rank in links.nodes[links.number]]
        rows = [
            [*self._more[rank, : len(own) - 1, :floats], self.blocks[rank, :floats]] for rank, own in enumerate(kept)
        ]
        self.rows = rows[links.node.rank]
        self._join([row for own in rows for row in own], links.nodes[links.number])
        ranks = len(kept)  # is it the order of the kernel?
        pairs, _ = joins([range(i, i + 1) for i in range(ranks)], ranks)
        usual = len(self._node_rows) == ranks and (ranks % 2 == 1 or ranks & (ranks - 1) == 0)
        self._pairs = {coded: usual and additions == pairs for coded, (additions, _) in self._joins.items()}

    def release(self):
        self.meet(2)

    def _sum(self, start, stop, wire):
        if len(self.links.nodes) > 1 or self.links.every_sum or wire.feeds_back or not self._pairs[False]:
            super()._sum(start, stop, wire)
            return
        first, last = self._slice(start, stop)  # the whole exchange of one node in one call of a kernel
        turns, phase = self._turns, 0
        turns[0], turns[1] = turns[0] + 1, turns[1] + 1
        while phase := node_allreduce(
            self._meeting, turns[0], turns[1], self.blocks, first, last, self._scratch, self._spins, phase
        ):
            pass

    def _sum_node(self, start, stop, wire):
        self.meet(0)
        if self._pairs[wire.feeds_back] and not (self.links.every_sum and wire.short):
            first, last = self._slice(start, stop)
            sum_blocks(self.blocks, first, last, self._scratch)
            return self.total[first:last], [self.total[first:last]]
        return super()._sum_node(start, stop, wire)

    def meet(self, point):
        self._turns[point] += 1
        words, ranks, turn = self._meeting[point], self.blocks.shape[0], self._turns[point]
        meet_arrive(words, ranks, turn)
        while not meet_wait(words, ranks, turn, self._spins):
            pass


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
