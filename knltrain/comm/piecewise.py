"""Sums over ranks with any shares of the slots: each brings the subtrees that it has summed alone, one or several.

`direct`, for large vectors: every rank sends the part p of its partial sums straight to rank p, which adds those of all
along the tree; then each collects the finished parts, twice as many in each step. `tree`, for small ones: the tree
itself, a message for every sum whose two halves lie on two ranks.
"""

from itertools import accumulate, zip_longest

import numpy as np

from .algorithms import Algorithm, part_of
from .tree import add_up, joins


class Piecewise(Algorithm):
    """What both know: the partial sums of all ranks, left to right, whose they are and how they are added."""

    piecewise = True

    def __init__(self, group, wire, shares):
        super().__init__(group, wire, shares)
        self.owners = [rank for rank, parts in enumerate(shares.parts) for _ in parts]
        self.first = [0, *accumulate(map(len, shares.parts))][group.rank]  # of this rank's
        self.additions, _ = joins([part for parts in shares.parts for part in parts], shares.slots)


class Direct(Piecewise):
    """Every partial sum goes once to each rank, a part of it, and every part of the result from rank to rank."""

    def reduce_scatter(self, x, bounds, rows=()):
        terms, own = self._collect(rows, bounds), part_of(x, bounds, self.group.rank)
        if own.size:
            add_up(terms, self.additions, self.wire.add, own)

    def _collect(self, rows, bounds) -> list[np.ndarray]:
        """This rank's part of the partial sums of all, left to right."""
        group, wire = self.group, self.wire
        width = bounds[group.rank + 1] - bounds[group.rank]
        coming = wire.room((len(self.owners), width))
        coded = [wire.outgoing(row, f"out {number}") for number, row in enumerate(rows)]
        sends, receives = [], []
        for step in range(1, group.size):
            to, source = (group.rank + step) % group.size, (group.rank - step) % group.size
            sends += [(part_of(row, bounds, to), to) for row in coded if bounds[to] < bounds[to + 1]]
            receives += [(coming[i], source) for i, owner in enumerate(self.owners) if owner == source and width]
        group.trade(sends, receives)
        mine = range(self.first, self.first + len(rows))
        return [
            part_of(rows[i - self.first], bounds, group.rank) if i in mine else wire.incoming(row, f"in {i}")
            for i, row in enumerate(coming)
        ]

    def allgather(self, x, bounds):
        self.wire.round(part_of(x, bounds, self.group.rank))
        gather_parts(self.group, self.wire, x, bounds)


class Tree(Piecewise):
    """A sum goes to whoever has its left half; the result from rank 0 to all, in a tree."""

    def allreduce(self, x, rows=()):
        rank, size, wire = self.group.rank, self.group.size, self.wire
        terms = dict(enumerate(rows, self.first))
        for into, other in self.additions:
            here, there = self.owners[into], self.owners[other]
            if here == there == rank:
                wire.add(terms[into], terms[other])
            elif here == rank:
                wire.add_from(self.group, None, 0, terms[into], there)
            elif there == rank:
                wire.add_from(self.group, terms[other], here, None, 0)
        if rank == 0:
            if x is not terms[0]:
                np.copyto(x, terms[0])
            wire.round(x)
        for distance in reversed([1 << j for j in range((size - 1).bit_length())]):
            below = rank % (2 * distance)
            if below == distance:
                wire.copy_from(self.group, None, 0, x, rank - distance)
            elif below == 0 and rank + distance < size:
                wire.copy_from(self.group, x, rank + distance, None, 0)


def gather_parts(group, wire, x, bounds):
    """Every part of x = what the rank of its number has there, rounded already: (P-1)/P n in log2(P) steps."""
    have = 1
    while have < group.size:  # the parts of so many ranks, from this one on
        count = min(have, group.size - have)
        to, source = (group.rank - have) % group.size, (group.rank + have) % group.size
        out, into = (_around(x, bounds, first, count) for first in (group.rank, source))
        for one, other in zip_longest(out, into):
            wire.copy_from(group, one, to, other, source)
        have += count


def _around(x, bounds, first, count):
    """The parts from `first` on, `count` of them, behind the last one again the first: one slice or two, not empty."""
    parts, last = len(bounds) - 1, first + count
    pieces = [x[bounds[first] : bounds[min(last, parts)]]]
    if last > parts:
        pieces.append(x[: bounds[last - parts]])
    return pieces
