"""The tree and the shares as arithmetic, up to 2,048 ranks: what each has, adds, sends, and what rank 0 keeps."""

import numpy as np
import pytest

from knltrain.comm.shares import TOLERANCE, Shares
from knltrain.comm.tree import joins, kept_sums, subtrees, turns

COUNTS = [(512, 512), (512, 448), (1000, 1000), (2048, 1000), (2048, 1600), (2048, 2048), (64, 48), (7, 5), (64, 3)]


def _text(first, count):
    """The sum of some slots, as it is specified, in words."""
    if count == 1:
        return str(first)
    left = count // 2 if count % 2 == 0 else max(2**k for k in range(12) if 2**k < count)
    return f"({_text(first, left)}+{_text(first + left, count - left)})"


@pytest.mark.parametrize(("slots", "ranks"), COUNTS)
def test_tree__the_additions_of_all_ranks_are_the_one_tree(slots, ranks):
    shares = Shares.equal(slots, ranks)
    brought = []  # by each rank: what its turns make of its slots
    for own in shares.ranges:
        kept, last = {}, None
        for slot, turn in zip(own, turns(own, slots), strict=True):
            last = str(slot)
            for number in turn.absorbs:
                last = f"({kept.pop(number)}+{last})"
            if turn.keep is not None:
                assert turn.keep not in kept
                kept[turn.keep] = last
        parts = len(subtrees(own, slots))
        assert sorted(kept) == list(range(parts - 1))
        brought += [*(kept[number] for number in range(parts - 1)), last]
    additions, sums = joins([part for parts in shares.parts for part in parts], slots)
    for into, other in additions:
        brought[into] = f"({brought[into]}+{brought[other]})"
    assert sums == [0] and brought[0] == _text(0, slots)


def test_shares__end_where_workers_do():
    assert Shares.of(24, [1, 1, 1], 8).edges == (0, 6, 15, 24)
    slow = Shares.of(24, [1, 1, 1, 0.2, 1, 1, 1, 1], 2)
    assert slow.edges[4] == 12 and slow.edges != Shares.of(24, [1] * 8, 2).edges
    assert [len(rows) for rows in Shares.of(24, [1, 1], 8).sums] == [4, 4]


@pytest.mark.parametrize(("slots", "ranks"), COUNTS)
def test_shares__cover_the_slots_at_little_cost(slots, ranks):
    shares = Shares.equal(slots, ranks)
    assert shares.edges[0] == 0 and shares.slots == slots and len(shares.ranges) == ranks
    assert min(map(len, shares.ranges)) >= 1
    assert max(map(len, shares.ranges)) <= max(1, int((1 + TOLERANCE) * -(-slots // ranks)))
    assert np.mean([len(parts) for parts in shares.parts]) <= 3.5
    assert shares.even == (slots % ranks == 0 and ranks & (ranks - 1) == 0)
    assert all(len(parts) == 1 for parts in shares.parts) or not shares.even


@pytest.mark.parametrize(("slots", "ranks", "most"), [(512, 448, 1), (2048, 1600, 1), (512, 100, 2), (512, 48, 4)])
def test_shares__have_few_partial_sums(slots, ranks, most):
    shares = Shares.equal(slots, ranks)
    assert max(map(len, shares.parts)) == most
    assert all(kept_sums(own, slots) <= most - 1 + len(own).bit_length() for own in shares.ranges)


@pytest.mark.parametrize(("slots", "ranks"), [(512, 448), (2048, 1000)])
def test_direct__every_part_travels_once(slots, ranks):
    """Messages and bytes of a rank, from the shares alone: k (P - 1) of a part each, then log2 P to collect."""
    parts = [len(own) for own in Shares.equal(slots, ranks).parts]
    sent = max(parts) * (ranks - 1) / ranks + (ranks - 1) / ranks
    assert sent <= 1 + max(parts) and sum(parts) <= 2.5 * ranks


def test_shares__follow_the_speeds():
    speeds = [1.0] * 96 + [0.7] * 4
    shares = Shares.of(2048, speeds)
    times = [len(own) / speed for own, speed in zip(shares.ranges, speeds, strict=True)]
    assert max(times) <= 1.10 * 2048 / sum(speeds)
    assert max(map(len, Shares.equal(2048, 100).ranges)) / 0.7 > 1.3 * max(times)  # what equal ones would take
    with pytest.raises(ValueError, match="9 ranks cannot share 8 slots"):
        Shares.equal(8, 9)


def test_shares__of_nodes_are_those_of_their_ranks():
    shares = Shares.equal(24, 6)
    merged = shares.merged([[0, 1], [2, 3, 4], [5]])
    assert merged.ranges == [range(0, 8), range(8, 20), range(20, 24)] and not merged.even
    assert Shares.equal(24, 6).merged([[0, 1, 2], [3, 4, 5]]).even
