"""Which slots each rank runs: neighbouring ranges, in the order of the ranks, chosen alike by all.

A step lasts as long as its slowest rank. Of the choices that cost at most 5 % of that, those are taken whose ranges end
where the tree of sums is cut high up: a rank then has few partial sums to send.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .tree import halves, subtrees

TOLERANCE = 0.05  # of a step's arithmetic


@dataclass(frozen=True)
class Shares:
    """Rank r runs the slots from edges[r] to edges[r + 1].

    workers: groups of slots, equal subtrees of the tree of sums, whose sums travel one by one, by whoever has all of
    one; 0: there are none, and as few sums travel as may.
    """

    edges: tuple[int, ...]
    workers: int = 0

    @classmethod
    def of(cls, slots: int, speeds: Sequence[float], workers: int = 0) -> "Shares":
        """Shares for ranks that do slots at these speeds, in any unit. Raises ValueError for fewer slots than ranks.

        No more ranks than workers run whole ones; of a multiple of them as many share each.

        >>> Shares.of(8, [1, 1, 1]).edges, Shares.of(8, [1, 1, 0.5, 0.5]).edges
        ((0, 2, 5, 8), (0, 2, 5, 7, 8))
        """
        if len(speeds) > slots:
            raise ValueError(
                f"{len(speeds)} ranks cannot share {slots} slot{'s' * (slots > 1)} (global_batch / slot_batch); "
                f"expected at most {slots} ranks"
            )
        if len(speeds) <= workers < slots:
            edges = cls.of(workers, speeds).edges
            return cls(tuple(edge * slots // workers for edge in edges), workers)
        if workers > 1 and len(speeds) % workers == 0:
            each, size = len(speeds) // workers, slots // workers
            own = [cls.of(size, speeds[first : first + each]) for first in range(0, len(speeds), each)]
            return cls((*(size * i + edge for i, one in enumerate(own) for edge in one.edges[:-1]), slots), workers)
        most, whole = _most(slots, speeds), math.fsum(speeds)
        edges, later, ideal = [0], sum(most), 0.0
        for rank, (limit, speed) in enumerate(zip(most[:-1], speeds, strict=False)):
            later, ideal = later - limit, ideal + slots * speed / whole
            least, last = max(edges[-1] + 1, slots - later), slots - (len(speeds) - 1 - rank)
            ends = range(least, min(edges[-1] + limit, last) + 1)
            edges.append(min(ends, key=lambda end: (_depth(end, slots), abs(end - ideal))))
        return cls((*edges, slots), workers)

    @classmethod
    def equal(cls, slots: int, ranks: int) -> "Shares":
        """For ranks of one speed."""
        return cls.of(slots, [1.0] * ranks)

    @property
    def slots(self) -> int:
        return self.edges[-1]

    @cached_property
    def ranges(self) -> list[range]:
        return [range(start, stop) for start, stop in zip(self.edges, self.edges[1:], strict=False)]

    @cached_property
    def parts(self) -> list[list[range]]:
        """The subtrees that each rank sums alone."""
        return [subtrees(own, self.slots) for own in self.ranges]

    @cached_property
    def sums(self) -> list[list[range]]:
        """Those that each rank keeps: its parts, or the workers in them."""
        return [subtrees(own, self.slots, self.most) for own in self.ranges]

    @property
    def most(self) -> int:
        """Slots of a sum that is kept, at most; 0: any number."""
        return self.slots // self.workers if self.workers else 0

    @property
    def even(self) -> bool:
        """Whether a power of two of ranks has equal shares: then each has one subtree, and ranks meet in pairs."""
        sizes = set(map(len, self.ranges))
        return len(sizes) == 1 and len(self.ranges) & (len(self.ranges) - 1) == 0

    @property
    def over_mean(self) -> float:
        """By how much the largest share is larger than the mean, as a share of that."""
        return max(map(len, self.ranges)) * len(self.ranges) / self.slots - 1

    def merged(self, groups: Sequence[Sequence[int]]) -> "Shares":
        """The shares of groups of neighbouring ranks, as the nodes of a cluster are."""
        return Shares((*(self.edges[ranks[0]] for ranks in groups), self.slots), self.workers)

    def facts(self) -> dict:
        """For the log."""
        sizes, sums = list(map(len, self.ranges)), list(map(len, self.parts))
        return {"slots": sizes, "partial_sums": sums, "over_mean": round(self.over_mean, 4)}

    def __str__(self):
        sizes, sums, _ = self.facts().values()
        each = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        return (
            f"{self.slots} slots on {len(sizes)} ranks: {each} on a rank, the most {self.over_mean:.1%} over the mean; "
            f"{sum(sums) / len(sums):.2g} partial sums a rank, at most {max(sums)}"
        )


def _most(slots: int, speeds) -> list[int]:
    """Slots that each rank may have: so many that none takes more than TOLERANCE longer than the best choice would."""
    shares = [1] * len(speeds)
    queue = [(2 / speed, rank) for rank, speed in enumerate(speeds)]  # when a rank would be done with one slot more
    heapq.heapify(queue)
    for _ in range(slots - len(shares)):
        _, rank = queue[0]
        shares[rank] += 1
        heapq.heapreplace(queue, ((shares[rank] + 1) / speeds[rank], rank))
    longest = max(share / speed for share, speed in zip(shares, speeds, strict=True))
    return [max(1, int(longest * (1 + TOLERANCE) * speed + 1e-9)) for speed in speeds]


def _depth(edge: int, slots: int) -> int:
    """How far down the tree over the slots a cut between edge - 1 and edge lies."""
    node, depth = range(slots), 0
    while True:
        left, right = halves(node)
        if left.stop == edge:
            return depth
        node, depth = (left if edge < left.stop else right), depth + 1
