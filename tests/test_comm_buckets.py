"""Buckets are arithmetic: every float in exactly one, last tensors first, the cap respected."""

import itertools

import pytest

from knltrain.comm.algorithms import cut_at
from knltrain.comm.buckets import cut


def _tensors(sizes, head):
    ends = list(itertools.accumulate(sizes, initial=head))
    return [(f"t{i}", ends[i], ends[i + 1]) for i in range(len(sizes))]


@pytest.mark.parametrize("limit", [16, 48, 100, 1000, 10**6])
@pytest.mark.parametrize("sizes", [[16], [16, 32, 16, 16], [16] * 9, [1600, 16, 16], [16, 16, 1600], [64, 3200, 64]])
def test_cut__covers_every_float_once(sizes, limit):
    head = 32
    buckets = cut(_tensors(sizes, head), head, 4 * limit)
    spans = sorted((b.start, b.stop) for b in buckets)
    assert spans[0][0] == 0 and spans[-1][1] == head + sum(sizes)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert all(b.stop - b.start <= limit for b in buckets[:-1])


@pytest.mark.parametrize("limit", [16, 48, 1000])
def test_cut__last_tensor_first_and_head_last(limit):
    buckets = cut(_tensors([16, 32, 64, 16], 16), 16, 4 * limit)
    starts = [b.start for b in buckets]
    assert starts == sorted(starts, reverse=True)
    assert (buckets[-1].start, buckets[-1].stop, buckets[-1].waits_for) == (0, 16, frozenset())


def test_cut__a_bucket_waits_for_every_tensor_it_touches():
    tensors = _tensors([16, 160, 16, 48], 16)
    for bucket in cut(tensors, 16, 4 * 64)[:-1]:
        touched = {name for name, start, stop in tensors if start < bucket.stop and stop > bucket.start}
        assert bucket.waits_for == touched


def test_cut__fuses_small_tensors():
    assert len(cut(_tensors([16] * 10, 16), 16, 4 * 80)) == 3


def test_cut__ends_with_little():
    """What backward makes last waits neither for a share of a large tensor, nor that for it."""
    tensors = _tensors([16, 16, 1000, 16], 32)
    assert [(b.start, b.stop, *sorted(b.waits_for)) for b in cut(tensors, 32, 4 * 600)] == [
        (1064, 1080, "t3"), (464, 1064, "t2"), (64, 464, "t2"), (32, 64, "t0", "t1"), (0, 32),
    ]  # fmt: skip


def test_cut__rejects_a_limit_below_one_float():
    with pytest.raises(ValueError, match="bucket_bytes is 3"):
        cut(_tensors([16], 16), 16, 3)


def test_cut__before_named_tensors():
    tensors = _tensors([16, 160, 16, 48], 16)
    buckets = cut(tensors, 16, 4, ["t2", "t1"])
    assert [b.waits_for for b in buckets] == [{"t2", "t3"}, {"t1"}, {"t0"}, frozenset()]
    assert [(b.start, b.stop) for b in buckets] == [(192, 256), (32, 192), (16, 32), (0, 16)]
    with pytest.raises(ValueError, match="fc9"):
        cut(tensors, 16, 4, ["fc9"])


def test_cut__splits_a_tensor_at_multiples_of_the_grain():
    tensors = _tensors([48, 1600, 16], 16)
    buckets = cut(tensors, 16, 4 * 100, grain=64)
    inside = [b.start for b in buckets if b.waits_for >= {"t1"}]
    assert all((start - 64) % 64 == 0 for start in inside if start >= 64)
    assert sorted((b.start, b.stop) for b in buckets)[-1][1] == 16 + 48 + 1600 + 16


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_cut_at__cuts_only_at_edges(parts):
    edges = [10, 40, 100, 170, 220, 300]
    bounds = cut_at(edges, 40, 250, parts)
    assert len(bounds) == parts + 1 and bounds[0] == 0 and bounds[-1] == 210 and bounds == sorted(bounds)
    assert all(40 + b in edges for b in bounds[:-1])
