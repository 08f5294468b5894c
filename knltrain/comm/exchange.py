"""The sum of gradients over all ranks: one block per rank, slices of it summed by the algorithm that fits.

`hierarchical`, where ranks share nodes: the blocks of a node's ranks lie in one shared window. Each rank sums its slice
of all of them at memory speed, into the first rank's block; between nodes the ranks of equal number exchange their
slices; then all ranks of the node read the one copy. The others (`algorithms`) work in each rank's own block. So the
sum stands in `total`: the first block of the node, or the own one.

`auto` is `hierarchical` where that keeps the summation tree, else `halving`, both with `doubling` for small slices;
ranks in a number that has no such tree get `hierarchical` or `ring`, with `tree` for small slices. Only the first row
of this promises the same bits on another number of ranks.
"""

import os
import time
from functools import partial

import numpy as np

from knltrain.kernels import (
    aligned_zeros,
    digest,
    meet_arrive,
    meet_wait,
    node_allreduce,
    squared_norm_chunks,
    sum_blocks,
    sum_scratch,
)

from .algorithms import BY_NAME, Algorithm, cut_at, cut_evenly
from .topology import Group, Topology
from .wire import WIRES, Wire

ALGORITHMS = ("auto", "hierarchical", *BY_NAME)
SMALL_BYTES = 1 << 16  # below, latency counts more than bandwidth
_SPINS = 4000  # looks at a meeting point before sleeping, about 50 us: only where each rank has a core


def allowed_ranks(slots: int) -> list[int]:
    """Rank counts that divide the slots and continue the tree: the powers of two that divide `slots`.

    >>> allowed_ranks(24)
    [1, 2, 4, 8]
    """
    return [1 << j for j in range(slots.bit_length()) if slots % (1 << j) == 0]


def sums_order(algorithm: str) -> str:
    """What results depend on: "tree" for the algorithms that sum along it on all usual machines, else the name."""
    return "tree" if algorithm in ("auto", "hierarchical") or BY_NAME[algorithm].tree else algorithm


class Exchange:
    """Sums over ranks. `allocate` makes this rank's block of gradients, `mine`, and the place of the sums, `total`.

    algorithm, wire: see ALGORITHMS and `wire.WIRES`; the wire is for gradients, what is `exact` travels as float32.
    pretended_nodes: cut the ranks of one machine into so many nodes. bandwidth: if not 0, a network of so many bytes/s
    is pretended, by sleeping. Collective. Raises ValueError for a choice that cannot work.
    """

    def __init__(
        self, comm, algorithm: str = "auto", wire: str = "fp32", pretended_nodes: int = 0, bandwidth: float = 0.0
    ):
        if algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {algorithm!r}; expected one of {', '.join(ALGORITHMS)}")
        self.comm, self.wire, self.bandwidth = comm, Wire(wire), bandwidth
        self._exact = Wire("fp32") if self.wire.short else self.wire
        self.topology = Topology(comm, pretended_nodes)
        self.cut = lambda start, stop, parts: cut_evenly(stop - start, parts)  # bounds of the parts, from start on
        self.note = ""  # what a user should know about the choice
        self.algorithm = self._choose(algorithm)

    def allocate(self, floats: int, of: "Exchange | None" = None) -> np.ndarray:
        """This rank's block: `floats` float32 zeros, in shared memory if the algorithm wants it. Collective, once.

        of: another exchange between the same ranks, whose memory is used instead of new.
        """
        node, group, blocks = self.topology.node, Group(self.comm, range(self.comm.size)), None
        if self.algorithm == "hierarchical":
            group = self.topology.across
            blocks = of.blocks.view(np.uint8) if of else node.window(4 * floats)
        if self.algorithm == "hierarchical" and not all(self.comm.gather(blocks is not None)):
            self.note = (
                f"too little shared memory for {node.size} gradients of {4 * floats >> 20} MiB on a node: "
                "summing by messages, which is slower; enlarge /dev/shm"
            )
            blocks, group = None, Group(self.comm, range(self.comm.size))
            self.algorithm = self._choose("auto", shared=False)
        self._methods = {wire: self._choose_methods(group, wire) for wire in {self.wire, self._exact}}
        if blocks is None:
            self.mine = self.total = of.mine if of else aligned_zeros(floats)
            return self.mine
        self.blocks = blocks.view(np.float32)
        self.mine, self.total = self.blocks[node.rank, :floats], self.blocks[0, :floats]
        self._meeting = node.window(4 * 64)[0, : 4 * 64].view(np.int32).reshape(4, 16)
        self._turns, self._slices = [0, 0, 0], {}
        self._sums = sum_scratch(node.size)
        self._spins = _SPINS if node.size <= _cores() else _SPINS // 40
        return self.mine

    def cut_only_at(self, edges: list[int]):
        """From now on a part begins at one of these floats of the block, ascending: an update wants whole chunks."""
        self.cut = partial(cut_at, edges)

    # ---- choosing ----------------------------------------------------------------------------------------------

    def _choose(self, name: str, shared: bool = True) -> str:
        """The name of the algorithm for this topology."""
        topology, size = self.topology, self.comm.size
        power = size & (size - 1) == 0
        if name != "auto":
            return name
        if shared and topology.slices > 1 and (topology.continues_tree or not power):
            return "hierarchical"
        return "halving" if power else "ring"

    def _choose_methods(self, group, wire) -> tuple[Algorithm, Algorithm] | None:
        """Algorithms between the ranks of `group` for (small, large) slices."""
        if group is None or group.size == 1:
            return None
        if self.algorithm == "hierarchical":
            power = group.size & (group.size - 1) == 0
            names = ("doubling", "halving") if power else ("tree", "ring")
        elif self.algorithm == "halving":
            names = ("doubling", "halving")
        else:
            names = (self.algorithm, self.algorithm)
        return tuple(BY_NAME[name](group, wire) for name in names)

    @property
    def tree(self) -> bool:
        """Whether sums keep the one tree over ranks, so that another number of ranks gives the same bits."""
        if self.comm.size == 1:
            return True
        inside = self.algorithm != "hierarchical" or self.topology.continues_tree
        power = self.comm.size & (self.comm.size - 1) == 0
        return inside and power and (self.algorithm == "hierarchical" or BY_NAME[self.algorithm].tree)

    def __str__(self):
        methods = self._methods[self.wire] or ()
        between = " and ".join(dict.fromkeys(type(method).__name__.lower() for method in methods))
        inside = "shared memory" if self.algorithm == "hierarchical" else ""
        return " + ".join(filter(None, [inside, between])) or "nobody to exchange with"

    # ---- summing -----------------------------------------------------------------------------------------------

    def allreduce(self, start: int, stop: int, exact: bool = False):
        """total[start:stop] = the sum over all ranks of mine[start:stop], on every rank; exact: whatever the wire."""
        begin, wire = time.perf_counter(), self._exact if exact else self.wire
        if self.comm.size > 1 and self.algorithm != "hierarchical":
            self._between(stop - start, wire).allreduce(self.mine[start:stop])
        elif self.comm.size > 1 and len(self.topology.nodes) == 1:
            self._within(start, stop)
        elif self.comm.size > 1:
            mine = self._sum_node(start, stop)
            if mine.size:
                self._between(mine.size, wire).allreduce(mine)
            self._meet(1)
        self._pretend(begin, 2 * (stop - start), wire)

    def part(self, start: int, stop: int) -> slice:
        """This rank's own share of [start:stop], as `reduce_scatter` leaves it."""
        bounds, part = self._bounds(start, stop), self._part()
        return slice(start, start) if part is None else slice(start + bounds[part], start + bounds[part + 1])

    def reduce_scatter(self, start: int, stop: int):
        """total[part] = the sum over all ranks, where `part` is this rank's own share of [start:stop]."""
        begin = time.perf_counter()
        bounds = self._bounds(start, stop)
        if self.algorithm != "hierarchical" and self.comm.size > 1:
            self._scattering().reduce_scatter(self.mine[start:stop], bounds)
        elif self.comm.size > 1:
            mine = self._sum_node(start, stop)
            if mine.size and len(self.topology.nodes) > 1:
                self._scattering().reduce_scatter(mine, self._inner(bounds))
        self._pretend(begin, stop - start, self.wire)

    def allgather(self, start: int, stop: int):
        """total[start:stop] = what the owner of each `part` has put there, to the bit: it may be weights."""
        begin = time.perf_counter()
        bounds = self._bounds(start, stop)
        if self.algorithm != "hierarchical" and self.comm.size > 1:
            self._scattering(self._exact).allgather(self.mine[start:stop], bounds)
        elif self.comm.size > 1:
            if self.topology.across and len(self.topology.nodes) > 1:
                inner = self._inner(bounds)
                first = bounds[self.topology.node.rank * len(self.topology.nodes)]
                mine = self.total[start + first : start + first + inner[-1]]
                self._scattering(self._exact).allgather(mine, inner)
            self._meet(1)
        self._pretend(begin, stop - start, self._exact)

    def release(self):
        """This rank has read all sums it wants. Returns when all of the node have: the block may be written again."""
        if self.algorithm == "hierarchical":
            self._meet(2)

    # ---- parts: each slice belongs to a rank of the node, each part of it to one of the nodes -----------------------

    def _bounds(self, start, stop):
        parts = self.comm.size
        if self.algorithm == "hierarchical":
            parts = self.topology.slices * len(self.topology.nodes)
        return self.cut(start, stop, parts)

    def _part(self):
        """Number of this rank's part; None for a rank that owns nothing (one too many on an uneven node)."""
        if self.algorithm != "hierarchical":
            return self._scattering().part() if self.comm.size > 1 else 0
        if self.topology.across is None:
            return None
        nodes = len(self.topology.nodes)
        return self.topology.node.rank * nodes + (self._scattering().part() if nodes > 1 else 0)

    def _inner(self, bounds):
        """Bounds of the parts of this rank's slice, relative to the slice."""
        nodes, local = len(self.topology.nodes), self.topology.node.rank
        inner = bounds[local * nodes : (local + 1) * nodes + 1]
        return [b - inner[0] for b in inner]

    def _between(self, floats, wire) -> Algorithm:
        return self._methods[wire][4 * floats > SMALL_BYTES]

    def _scattering(self, wire=None) -> Algorithm:
        method = self._methods[wire or self.wire][1]
        if not method.scatters:
            raise ValueError(f"{self.algorithm} leaves no parts; expected halving, ring, torus or hierarchical")
        return method

    # ---- inside the node -------------------------------------------------------------------------------------------

    def _slice(self, start, stop):
        """This rank's slice of [start:stop]."""
        bounds, nodes, local = self._bounds(start, stop), len(self.topology.nodes), self.topology.node.rank
        own = (start, start)
        if local < self.topology.slices:
            own = start + bounds[local * nodes], start + bounds[(local + 1) * nodes]
        self._slices[start, stop] = own  # looked up from now on: for small messages every microsecond counts
        return own

    def _within(self, start, stop):
        """The whole exchange of one node in one call of a kernel."""
        first, last = self._slices.get((start, stop)) or self._slice(start, stop)
        turns, phase = self._turns, 0
        turns[0], turns[1] = turns[0] + 1, turns[1] + 1
        while phase := node_allreduce(
            self._meeting, turns[0], turns[1], self.blocks, first, last, self._sums, self._spins, phase
        ):
            pass

    def _sum_node(self, start, stop) -> np.ndarray:
        """This rank's slice of the node's block, summed over the node."""
        first, last = self._slice(start, stop)
        self._meet(0)
        sum_blocks(self.blocks, first, last, self._sums)
        return self.total[first:last]

    def _meet(self, point: int):
        """Meet the ranks of this node."""
        self._turns[point] += 1
        words, ranks, turn = self._meeting[point], self.blocks.shape[0], self._turns[point]
        meet_arrive(words, ranks, turn)
        while not meet_wait(words, ranks, turn, self._spins):
            pass

    def _pretend(self, begin: float, numbers: int, wire):
        """Sleep until a network of `bandwidth` would be done with so many numbers, out and in together."""
        if self.bandwidth and self.comm.size > 1:
            left = begin + numbers * wire.dtype().itemsize / 2 / self.bandwidth - time.perf_counter()
            if left > 0:
                time.sleep(left)


def compile_ahead():
    """Call every kernel of this package once, on little data: what a job on many nodes finds in its cache."""
    words, blocks, sums = np.zeros((4, 16), np.int32), np.zeros((1, 64), np.float32), sum_scratch(1)
    node_allreduce(words, 1, 1, blocks, 0, 64, sums, 1, 0)
    sum_blocks(blocks, 0, 64, sums)
    meet_arrive(words[2], 1, 1)
    meet_wait(words[2], 1, 1, 1)
    for name in WIRES:
        wire = Wire(name)
        wire.round(blocks[0])
        wire.accumulate(blocks[0], np.zeros(64, wire.dtype))
    digest(blocks)
    digest(np.zeros(1 << 17, np.float32))
    squared_norm_chunks(blocks, blocks)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
