"""knltrain/data/sampler.py at the size of ImageNet, and how random its orders are."""

import numpy as np
import pytest

from knltrain.data import Order, eval_rows
from knltrain.data.sampler import KINDS

TRAIN, VAL = 1_281_167, 50_000
PAGE_ROWS = 21  # of raw 256 x 256 pixels, 4 MB


def rank_rows(order, epoch, rank, ranks):
    """(steps, slots of the rank, slot_batch)"""
    share = order.slots // ranks
    slots = range(rank * share, (rank + 1) * share)
    per_slot = [[order.rows(epoch, step, slot) for step in range(order.steps_per_epoch)] for slot in slots]
    return np.array(per_slot).swapaxes(0, 1)


# 32,768 images in slots of 32 or 16; 7 ranks divide 1,022 slots
@pytest.mark.parametrize("ranks, slots, slot_batch", [(1, 1024, 32), (7, 1022, 32), (512, 1024, 32), (2048, 2048, 16)])
def test_order__gives_every_row_of_imagenet_once(ranks, slots, slot_batch):
    left_out = []
    orders = [Order(TRAIN, PAGE_ROWS, slots, slot_batch, seed=5) for _ in range(2)]  # nothing is carried along
    for epoch in (0, 89):
        seen = np.zeros(TRAIN, np.uint8)
        for rank in range(ranks):
            rows = rank_rows(orders[rank % 2], epoch, rank, ranks)
            assert rows.shape == (39, slots // ranks, slot_batch)  # equal steps on all ranks
            np.add.at(seen, rows.ravel(), 1)
        assert seen.max() == 1
        left_out.append(np.flatnonzero(seen == 0))
        assert len(left_out[-1]) == TRAIN - 39 * slots * slot_batch == (3215 if slots != 1022 else 5711)
    assert len(np.intersect1d(*left_out)) < 0.05 * len(left_out[0])  # other rows in each epoch


@pytest.mark.parametrize("kind", ["full", "sequential"])
def test_order__of_the_other_kinds_gives_every_row_once_too(kind):
    order = Order(TRAIN, PAGE_ROWS, 64, 512, seed=5, kind=kind)
    left_out = []
    for epoch in (0, 1):
        rows = rank_rows(order, epoch, 0, 1).ravel()
        seen = np.bincount(rows, minlength=TRAIN)
        assert seen.max() == 1 and len(rows) == 39 * 32_768 and rows.dtype == np.int64
        left_out.append(np.flatnonzero(seen == 0))
    assert len(left_out[0]) == 3215 and len(np.intersect1d(left_out[0], left_out[1])) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_order__reaches_any_step_at_once(kind):
    order = Order(TRAIN, PAGE_ROWS, 1024, 32, seed=5, kind=kind)
    fresh = Order(TRAIN, PAGE_ROWS, 1024, 32, seed=5, kind=kind)
    for slot in (0, 511, 1023):
        walked = [order.rows(3, step, slot) for step in range(39)]
        np.testing.assert_array_equal(fresh.rows(3, 38, slot), walked[38])
        np.testing.assert_array_equal(fresh.rows(3, 0, slot), walked[0])


@pytest.mark.parametrize("kind", KINDS)
def test_order__announces_what_it_reads(kind):
    order = Order(20_000, 10, 4, 32, seed=1, kind=kind, window_pages=8)
    for epoch in range(2):
        for slot in range(4):
            announced, plans = set(), [order.windows(epoch, step) for step in range(order.steps_per_epoch)]
            for step, (now, after) in enumerate(plans):
                assert step == 0 or now in plans[step - 1]  # it was announced, at the latest, in the step before
                announced |= set(order.window(*now, slot).tolist()) | set(order.window(*after, slot).tolist())
                assert set(order.rows(epoch, step, slot).tolist()) <= announced
            assert plans[-1][1] == (epoch + 1, 0)


@pytest.mark.parametrize("ranks", [1, 7, 512, 2048])
def test_eval__counts_each_of_50_000_rows_once(ranks):
    parts = [eval_rows(VAL, rank, ranks, 32) for rank in range(ranks)]
    rows = np.concatenate([batch for part in parts for batch in part])
    np.testing.assert_array_equal(np.sort(rows), np.arange(VAL))
    assert {len(part) for part in parts} <= {-(-(VAL // ranks) // 32), -(-(VAL // ranks + 1) // 32)}


# ---- randomness ----------------------------------------------------------------------------------------------


def scatter(order, values, epoch=0):
    """Variance of the mean of `values` over a global batch, divided by what it is for a full shuffle: 1 is perfect.

    Drawn without replacement, a batch of B of n values has a mean with variance s^2 / B * (n - B) / (n - 1).
    """
    n, batch = order.n_rows, order.slots * order.slot_batch
    rows = rank_rows(order, epoch, 0, 1).reshape(order.steps_per_epoch, -1)
    expected = values.var() / batch * (n - batch) / (n - 1)
    return (values[rows].mean(1) - values.mean()).__pow__(2).mean() / expected


@pytest.mark.parametrize("slots", [2, 8, 64])
def test_order__is_nearly_as_random_as_a_full_shuffle(slots):
    n = 200_000
    ratio = {}
    # the worst case: what matters is stored in order. As packed: the stored order is shuffled already
    for stored, values in (("sorted", np.arange(n) / n), ("shuffled", np.random.default_rng(0).permutation(n) / n)):
        for kind in KINDS:
            orders = [Order(n, PAGE_ROWS, slots, 32, seed=seed, kind=kind) for seed in range(3 if slots > 8 else 1)]
            ratio[stored, kind] = np.mean([scatter(order, values) for order in orders])
    assert 0.8 < ratio["sorted", "full"] < 1.25
    assert 0.8 < ratio["shuffled", "quasi"] < 1.25
    # 32 rows of 16 pages: two or three of a page come together, as if the batch were a third as large
    assert 1.2 < ratio["sorted", "quasi"] < 4 and ratio["sorted", "quasi"] < 0.1 * ratio["sorted", "sequential"]


def test_order__brings_other_rows_together_in_every_epoch():
    """Of the pairs of rows in a slot's batch, how many meet again in the next epoch: pages must not stay together."""
    order = Order(200_000, PAGE_ROWS, 64, 32, seed=0)
    batch_of = np.full((2, 200_000), -1)
    for epoch in range(2):
        rows = rank_rows(order, epoch, 0, 1)
        index = np.broadcast_to(np.arange(rows.shape[0] * rows.shape[1]).reshape(*rows.shape[:2], 1), rows.shape)
        batch_of[epoch, rows.ravel()] = index.ravel()
    met = again = 0
    for batch in range(0, batch_of[0].max(), 50):
        next_batches = batch_of[1][batch_of[0] == batch]
        met += len(next_batches) * (len(next_batches) - 1)
        counts = np.unique(next_batches[next_batches >= 0], return_counts=True)[1]
        again += int((counts * (counts - 1)).sum())
    assert again / met < 0.02  # 32 of 336 rows of a window: rows of one page meet again in one of ten cases
