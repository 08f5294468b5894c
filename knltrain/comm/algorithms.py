"""Sums over ranks by messages: two algorithms, one interface; `piecewise` has two more, `bench.rings` yardsticks.

P ranks, n bytes, messages of latency a and bandwidth b. Every algorithm works in place on a flat float32 x. Where a
vector is cut into parts, part p is x[bounds[p] : bounds[p + 1]]. All follow the tree of sums (see `tree`), those of
`piecewise` between ranks of any shares.

| name     | time                             | ranks        | source                                  |
| -------- | -------------------------------- | ------------ | --------------------------------------- |
| halving  | 2 log2(P) a + 2 (P-1)/P n/b      | power of two | Thakur, Rabenseifner and Gropp 2005     |
| doubling | log2(P) (a + n/b)                | power of two | the same                                |
| direct   | (k P + log2 P) a + (k+1) (P-1)/P n/b, k partial sums a rank | any |                       |
| tree     | 2 depth (a + n/b)                | any          | binomial reduce, then broadcast         |
"""

import bisect
from collections.abc import Sequence

import numpy as np

LINE = 16  # floats of a cache line: parts begin at whole ones, two ranks never write the same line


def cut_evenly(size: int, parts: int) -> list[int]:
    """Bounds of `parts` parts of nearly equal size, whole cache lines each, the last one smaller."""
    lines = -(-size // LINE)
    return [min(size, lines * p // parts * LINE) for p in range(parts + 1)]


def cut_at(edges: list[int], start: int, stop: int, parts: int) -> list[int]:
    """As cut_evenly for [start, stop), relative to start, but cut only at `edges`, ascending; parts may be empty."""
    bounds = [0]
    for p in range(1, parts):
        wanted = start + (stop - start) * p // parts
        index = bisect.bisect_left(edges, wanted)
        near = min(edges[max(0, index - 1) : index + 1], key=lambda edge: abs(edge - wanted))
        bounds.append(max(bounds[-1], min(near, stop) - start))
    return [*bounds, stop - start]


class Algorithm:
    """A sum over `group`, whose ranks have these shares of the slots, in the format of `wire`.

    rows: the partial sums of this rank, left to right. Where there is one, as an algorithm that is not `piecewise`
    wants it, it stands in x already.
    """

    any_size = True  # works on any number of ranks, not only on powers of two
    piecewise = False  # works where ranks have several partial sums

    def __init__(self, group, wire, shares):
        self.group, self.wire, self.shares = group, wire, shares
        name = type(self).__name__.lower()
        if not self.any_size and not shares.even:
            raise ValueError(
                f"comm.algorithm {name} over {group.size} ranks; expected equal shares on a power of two of ranks, or "
                "direct, tree"
            )
        if not self.piecewise and (most := max(map(len, shares.parts))) > 1:
            raise ValueError(f"comm.algorithm {name} with {most} partial sums on a rank; expected direct or tree")

    def allreduce(self, x: np.ndarray, rows: Sequence[np.ndarray] = ()):
        """x = the sum over all ranks, the same bits on every rank; rows may be written over."""
        bounds = cut_evenly(x.size, self.group.size)
        self.reduce_scatter(x, bounds, rows)
        self.allgather(x, bounds)

    def part(self) -> int:
        """Number of the part that this rank owns between `reduce_scatter` and `allgather`."""
        return self.group.rank

    def reduce_scatter(self, x: np.ndarray, bounds: list[int], rows: Sequence[np.ndarray] = ()):
        """This rank's part of x = the sum over all ranks; the rest of x is undefined afterwards, as are rows."""
        raise TypeError(f"{type(self).__name__} sums whole vectors only")

    def allgather(self, x: np.ndarray, bounds: list[int]):
        """Every part of x = what its owner has there."""
        raise TypeError(f"{type(self).__name__} sums whole vectors only")


class Halving(Algorithm):
    """Reduce-scatter by vector halving and distance doubling, then allgather on the way back.

    In step j rank r meets rank r xor 2^j and each keeps half of what they have: at full bandwidth the tree over ranks.
    """

    any_size = False

    def _path(self):
        """(peer, parts kept, parts sent) of every step; parts are (first, last + 1)."""
        first, last, distance = 0, self.group.size, 1
        while distance < self.group.size:
            middle = (first + last) // 2
            low, high = (first, middle), (middle, last)
            keep, send = (low, high) if self.group.rank & distance == 0 else (high, low)
            yield self.group.rank ^ distance, keep, send
            first, last = keep
            distance *= 2

    def part(self):
        return [(0, 1), *(keep for _, keep, _ in self._path())][-1][0]

    def reduce_scatter(self, x, bounds, rows=()):
        for peer, keep, send in self._path():
            self.wire.add_from(self.group, _parts(x, bounds, send), peer, _parts(x, bounds, keep), peer)

    def allgather(self, x, bounds):
        self.wire.round(part_of(x, bounds, self.part()))
        for peer, keep, send in reversed(list(self._path())):
            self.wire.copy_from(self.group, _parts(x, bounds, keep), peer, _parts(x, bounds, send), peer)


class Doubling(Algorithm):
    """In step j rank r and rank r xor 2^j swap everything: half the messages of `halving`, for small vectors."""

    any_size = False

    def allreduce(self, x, rows=()):
        distance = 1
        while distance < self.group.size:
            peer = self.group.rank ^ distance
            self.wire.add_from(self.group, x, peer, x, peer)
            distance *= 2
        if self.group.size > 1:
            self.wire.round(x)


def _parts(x, bounds, parts):
    return x[bounds[parts[0]] : bounds[parts[1]]]


def part_of(x: np.ndarray, bounds: Sequence[int], part: int) -> np.ndarray:
    return x[bounds[part] : bounds[part + 1]]
