"""The one tree in which slots are summed, and what a range of slots holds of it. Plain arithmetic.

A node is a range of slots; its sum is that of its two halves. An even number of slots is cut in the middle, an odd one
behind the largest power of two: 12 = 6 + 6, 6 = 3 + 3, 3 = 2 + 1. A rank, or a node of the cluster, that runs any range
of neighbouring slots can sum some subtrees alone, whole ones; what is left of the tree lies between the ranks. Because
everybody adds along the same tree, and a + b and b + a are the same bits, the sum does not depend on the ranges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TILE = 1 << 14  # floats added at once, row by row: large beside a call, small beside a cache


def halves(node: range) -> tuple[range, range]:
    """The two nodes below a node of two slots or more.

    >>> halves(range(0, 12)), halves(range(8, 15))
    ((range(0, 6), range(6, 12)), (range(8, 12), range(12, 15)))
    """
    count = len(node)
    middle = node.start + (count // 2 if count % 2 == 0 else 1 << (count.bit_length() - 1))
    return range(node.start, middle), range(middle, node.stop)


def subtrees(own: range, slots: int, most: int = 0) -> list[range]:
    """The largest whole subtrees within `own`, left to right: as few partial sums as its slots give.

    most: slots that one may have, here and below; 0: any number.

    >>> subtrees(range(2, 8), 8)
    [range(2, 4), range(4, 8)]
    """

    def visit(node):
        if node.stop <= own.start or own.stop <= node.start:
            return []
        if own.start <= node.start and node.stop <= own.stop and len(node) <= (most or slots):
            return [node]
        left, right = halves(node)
        return visit(left) + visit(right)

    return visit(range(slots))


def joins(given: Sequence[range], slots: int, most: int = 0) -> tuple[list[tuple[int, int]], list[int]]:
    """How to make as few sums as possible of the subtrees `given`, neighbours from left to right.

    Returns the additions, as pairs (into, other) of indices of `given`, in an order in which they may be done, and the
    indices where the sums then stand, left to right: each where its leftmost part stood.

    >>> joins([range(1, 2), range(2, 4), range(4, 8)], 8)
    ([(1, 2)], [0, 1])
    """
    place = {(node.start, node.stop): i for i, node in enumerate(given)}
    first, last, additions = given[0].start, given[-1].stop, []

    def visit(node):
        if (node.start, node.stop) in place:
            return [place[node.start, node.stop]]
        if node.stop <= first or last <= node.start:
            return []
        left, right = map(visit, halves(node))
        if first <= node.start and node.stop <= last and len(node) <= (most or slots):
            additions.append((left[0], right[0]))
            return left
        return left + right

    return additions, visit(range(slots))


def add_up(rows: Sequence[np.ndarray], additions, add: Callable, into: np.ndarray | None = None):
    """Do `additions` (see `joins`) on rows of equal size, tile by tile; `into`, if given, gets what row 0 ends as."""
    for start in range(0, rows[0].size, TILE):
        tiles = [row[start : start + TILE] for row in rows]
        for here, other in additions:
            add(tiles[here], tiles[other])
        if into is not None:
            np.copyto(into[start : start + TILE], tiles[0])


@dataclass(frozen=True)
class Turn:
    """What to do when a slot is done: add the kept sums `absorbs` to it, then keep it as number `keep`.

    keep is None for the last slot of a rank: what it ends as is the rank's last partial sum.
    """

    absorbs: tuple[int, ...]
    keep: int | None


def turns(own: range, slots: int, most: int = 0) -> list[Turn]:
    """The turns of a rank that runs the slots `own` one after another.

    Kept sums are numbered: first the rank's partial sums but the last, left to right, then those that only wait.

    >>> turns(range(1, 4), 4)
    [Turn(absorbs=(), keep=0), Turn(absorbs=(), keep=1), Turn(absorbs=(1,), keep=None)]
    """
    lefts: dict[int, list[int]] = {}  # slot → where those nodes begin that are summed with what it completes

    def visit(node):
        if len(node) == 1 or node.stop <= own.start or own.stop <= node.start:
            return
        left, right = halves(node)
        visit(left)
        visit(right)
        if own.start <= node.start and node.stop <= own.stop and len(node) <= (most or slots):
            lefts.setdefault(node.stop - 1, []).append(left.start)

    visit(range(slots))
    parts = {(part.start, part.stop): i for i, part in enumerate(subtrees(own, slots, most))}
    kept, free, count, result = {}, [], len(parts) - 1, []
    for slot in own:
        begins = lefts.get(slot, [])
        absorbs = tuple(kept.pop(begin) for begin in begins)
        free += absorbs
        begin = begins[-1] if begins else slot
        if slot == own[-1]:
            keep = None
        elif (begin, slot + 1) in parts:
            keep = parts[begin, slot + 1]
        elif free:
            keep = free.pop()
        else:
            keep, count = count, count + 1
        kept[begin] = keep
        result.append(Turn(absorbs, keep))
    return result


def kept_sums(own: range, slots: int, most: int = 0) -> int:
    """Copies of the gradient block that a rank with the slots `own` keeps, besides the one that backward writes.

    >>> [kept_sums(range(slots), slots) for slots in (1, 2, 3, 8, 12)]
    [0, 1, 1, 3, 3]
    """
    return 1 + max(-1 if turn.keep is None else turn.keep for turn in turns(own, slots, most))
