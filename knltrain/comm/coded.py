"""Sums of numbers that travel as one byte each, and lose nothing for good: what coding loses is added the next time.

A worker is a group of slots, a subtree of the tree of sums, fixed by the recipe. Its sum is made in float32; then

    coded = int8(sum + residual of the worker), residual = what that loses

is sent, each rank the part that it owns; that rank adds the workers along the tree, codes the total with a residual of
its own, and sends it to all. So whatever travels is determined by slots and workers, not by ranks, nodes or buckets: a
rank that has all slots codes the same. Blocks of up to 256 numbers have a scale, and begin where tensors do. Sources:
Seide et al. 2014 (1-bit SGD), Dettmers 2015 (arXiv:1511.04561), Tang et al. 2019 (arXiv:1905.05957: both passes).
"""

import itertools
from collections.abc import Iterable

import numpy as np

from knltrain.kernels import INT8_BLOCK, accumulate_serial, decode_int8, encode_int8

from ..arena import Parameters
from .buckets import Bucket
from .piecewise import gather_parts
from .shares import Shares
from .tree import add_up, joins, subtrees
from .wire import Rooms

RESIDUAL = "residual"  # state of the parameters


class Coded:
    """The sums between the ranks of `group`, which have these shares.

    edges: floats of the gradient block at which blocks of a scale begin, the last one where it ends. residual (workers
    + 1, floats): of the workers, left to right, and of the total; `head` is the float of the gradient block at which it
    begins. Raises ValueError where a worker lies on several ranks of the group.
    """

    def __init__(self, group, exact, shares: Shares, edges: np.ndarray, residual: np.ndarray, head: int = 0):
        self.group, self.exact, self.edges, self.residual, self.head = group, exact, edges, residual, head
        workers = subtrees(range(shares.slots), shares.slots, shares.most)
        starts = [worker.start for worker in workers]
        for edge in shares.edges[1:-1]:
            if edge not in starts:
                raise ValueError(
                    f"{len(shares.ranges)} nodes (or ranks that share no memory), one of which begins with slot {edge},"
                    f" inside one of {shares.workers} workers of {shares.most} slots; expected whole workers on each: "
                    f"at most {shares.workers} nodes, or a larger comm.workers"
                )
        self.owners = [rank for rank, own in enumerate(shares.ranges) for start in starts if start in own]
        self.mine = [number for number, owner in enumerate(self.owners) if owner == group.rank]
        self.additions, _ = joins(workers, shares.slots)
        self._room = Rooms().get

    def part(self) -> int:
        """Number of the part that this rank owns."""
        return self.group.rank

    def allreduce(self, first: int, x: np.ndarray, rows: list[np.ndarray], bounds: list[int]):
        """x = the sum of all workers, on every rank; x begins at float `first` of the block, as do rows.

        rows: of this rank's workers, written over. bounds: of the parts that the ranks own, from `first` on, at edges.
        """
        rank, size, whole = self.group.rank, self.group.size, self._edges(first, first + x.size)
        blocks = np.searchsorted(whole, [first + bound for bound in bounds]).tolist()
        places = [bound + block for bound, block in zip(bounds, blocks, strict=True)]  # bytes
        floats, own = slice(first - self.head, first - self.head + x.size), slice(bounds[rank], bounds[rank + 1])
        parts = [slice(*pair) for pair in itertools.pairwise(places)]
        coded = self._room("coded", (len(rows), places[-1]), np.uint8)
        for number, row, codes in zip(self.mine, rows, coded, strict=True):
            encode_int8(row, self.residual[number, floats], whole, codes)
        others = [number for number, owner in enumerate(self.owners) if owner != rank]
        coming = self._room("coming", (len(others), places[rank + 1] - places[rank]), np.uint8)
        peers = [(rank + step) % size for step in range(1, size)]
        sends = [(codes[parts[peer]], peer) for peer in peers for codes in coded if bounds[peer] < bounds[peer + 1]]
        receives = [(row, self.owners[number]) for number, row in zip(others, coming, strict=True) if row.size]
        if peers:
            self.group.trade(sends, receives)
        here = whole[blocks[rank] : blocks[rank + 1] + 1]
        total = self._room("total", (places[-1],), np.uint8)
        if x[own].size:
            arrived = dict(zip(others, coming, strict=True)) | {
                number: codes[parts[rank]] for number, codes in zip(self.mine, coded, strict=True)
            }
            plain = dict(zip(others, self._room("plain", (len(others), x[own].size), np.float32), strict=True))
            plain |= {number: row[own] for number, row in zip(self.mine, rows, strict=True)}
            for number, codes in arrived.items():
                decode_int8(codes, here, plain[number])
            add_up([plain[number] for number in sorted(plain)], self.additions, accumulate_serial, into=x[own])
            encode_int8(x[own], self.residual[-1, floats][own], here, total[parts[rank]])
        gather_parts(self.group, self.exact, total, places)
        decode_int8(total, whole, x)

    def _edges(self, first: int, last: int) -> np.ndarray:
        """Those between, and both ends."""
        start, stop = np.searchsorted(self.edges, first, "right"), np.searchsorted(self.edges, last)
        return np.array([first, *self.edges[start:stop], last], np.int64)


class Residual:
    """What coding loses of the gradients in `block`, kept as a state of `parameters`: a row for each worker, and one
    for the total. tensors: see `block_edges`.
    """

    def __init__(self, parameters: Parameters, block, tensors: list[tuple[str, int, int]]):
        self.block, self.head = block, parameters.head
        if RESIDUAL not in parameters.states:
            parameters.keep(RESIDUAL, block.links.shares.workers + 1)
        self.rows = parameters.states[RESIDUAL]
        block.code(block_edges(tensors), self.rows, self.head)

    def complete(self, buckets: Iterable[Bucket]):
        """Give every rank the rows of all, as a checkpoint wants them. Collective."""
        for number, row in enumerate(self.rows):
            here = (self.block.coded_here(number, bucket.start, bucket.stop) for bucket in buckets if bucket.waits_for)
            spread(self.block.links.comm, row, [slice(own.start - self.head, own.stop - self.head) for own in here])


def spread(comm, row: np.ndarray, own: Iterable[slice]):
    """Give every rank the whole row, of which each number is one rank's `own`. Collective."""
    if comm.size > 1:
        whole = np.zeros_like(row)
        for here in own:
            whole[here] = row[here]
        comm.sum(whole.view(np.int32))  # the bits of the one who has them
        row[:] = whole


def block_edges(tensors: list[tuple[str, int, int]]) -> np.ndarray:
    """Where blocks of a scale begin in tensors (name, start, stop), ascending and gapless; last, where they end."""
    starts = [edge for _, start, stop in tensors for edge in range(start, stop, INT8_BLOCK)]
    return np.array([*starts, tensors[-1][2]], np.int64)
