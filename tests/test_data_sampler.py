"""knltrain/data/sampler.py: every row at most once an epoch, any step directly, the same on any number of ranks."""

import numpy as np
import pytest

from knltrain.data import Order, eval_rows
from knltrain.data.sampler import permutation


def epoch_rows(order, epoch):
    """(steps, slots, slot_batch)"""
    steps, slots = range(order.steps_per_epoch), range(order.slots)
    return np.array([[order.rows(epoch, step, slot) for slot in slots] for step in steps])


@pytest.mark.parametrize("page_rows", [1, 7, 64])
@pytest.mark.parametrize("n, slots, slot_batch", [(16, 1, 16), (1000, 4, 32), (1001, 8, 5), (515, 2, 64), (97, 3, 1)])
def test_order__gives_every_row_at_most_once(n, slots, slot_batch, page_rows):
    order = Order(n, page_rows, slots, slot_batch, seed=3, window_pages=2)
    dropped = []
    for epoch in range(3):
        rows = epoch_rows(order, epoch).ravel()
        assert rows.dtype == np.int64 and rows.min() >= 0 and rows.max() < n
        assert len(np.unique(rows)) == len(rows) == order.steps_per_epoch * slots * slot_batch
        assert n - len(rows) < slots * slot_batch
        dropped.append(frozenset(range(n)) - set(rows.tolist()))
    if 1 < len(dropped[0]) and n > 8 * page_rows:
        assert len(set(dropped)) > 1


def test_order__reaches_any_step_without_replay():
    first, second = (Order(5000, 20, 4, 32, seed=1) for _ in range(2))
    all_rows = epoch_rows(first, 2)
    np.testing.assert_array_equal(second.rows(2, 17, 3), all_rows[17, 3])
    np.testing.assert_array_equal(second.rows(2, 3, 1), all_rows[3, 1])


def test_order__differs_by_epoch_and_seed():
    base = epoch_rows(Order(2000, 8, 2, 50, seed=0), 0)
    assert (base != epoch_rows(Order(2000, 8, 2, 50, seed=0), 1)).mean() > 0.9
    assert (base != epoch_rows(Order(2000, 8, 2, 50, seed=1), 0)).mean() > 0.9


def test_order__opens_few_pages_at_a_time():
    order = Order(100_000, 100, 4, 32, seed=0, window_pages=4)
    rows = np.concatenate([order.rows(0, step, 2) for step in range(12)])  # 384 of the 400 rows of a window
    assert len(np.unique(rows // 100)) <= 5
    assert set(rows.tolist()) <= set(order.window(0, 0, 2).tolist())


def test_order__mixes_rows_well():
    order = Order(5000, 19, 2, 32, seed=0)
    means = epoch_rows(order, 0).mean(axis=2)  # of batches; 2500 with a deviation of 1443 / sqrt(32) if independent
    assert abs(means.mean() - 2500) < 100 and 150 < means.std() < 500


@pytest.mark.parametrize("n, batch", [(0, 5), (1, 4), (103, 10), (64, 16)])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_eval_rows__counts_every_row_once(n, batch, size):
    parts = [eval_rows(n, rank, size, batch) for rank in range(size)]
    assert np.concatenate([np.empty(0, np.int64), *(rows for part in parts for rows in part)]).tolist() == list(
        range(n)
    )
    assert all(len(rows) == batch for part in parts for rows in part[:-1])


def test_permutation__is_pinned():
    assert permutation(8, 1, 2).tolist() == [2, 7, 3, 1, 5, 6, 0, 4]  # packed data sets and finished runs depend on it
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))


def test_order__rejects_impossible_sizes():
    with pytest.raises(ValueError, match="10 rows, one global batch needs 4 slots x 3"):
        Order(10, 1, 4, 3, seed=0)
    with pytest.raises(ValueError, match="positive"):
        Order(10, 0, 1, 3, seed=0)
    with pytest.raises(ValueError, match="step 5"):
        Order(10, 1, 1, 2, seed=0).rows(0, 5, 0)
