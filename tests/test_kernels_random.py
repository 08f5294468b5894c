"""Counter-based random numbers against their twins in Python integers."""

import numpy as np

from knltrain.kernels import reference, sample_key, uniform


def test_sample_key__equals_twin():
    for parts in [(0, 0, 0, 0), (1, 2, 3, 4), (2**31, 89, 1_281_166, 7), (2**62, 2**40, 2**33, 0)]:
        assert int(sample_key(*parts)) == reference.sample_key(*parts)


def test_sample_key__pins_one_value():
    # a change here changes every augmentation and dropout mask of every recipe
    assert reference.sample_key(1, 2, 3, 4) == 3705391937491829246


def test_sample_key__tells_every_part_apart():
    keys = {sample_key(*np.unravel_index(i, (6, 6, 6, 6))) for i in range(6**4)}
    assert len(keys) == 6**4


def test_uniform__equals_twin():
    key = sample_key(1, 2, 3, 4)
    assert key.bit_length() <= 64
    counters = np.array([0, 1, 2, 1000, 2**31, 2**32 - 1])
    assert [uniform(key, int(j)) for j in counters] == reference.uniform(key, counters).tolist()


def test_uniform__is_uniform_and_uncorrelated():
    draws = np.stack([reference.uniform(reference.sample_key(0, 0, row, 0), np.arange(256)) for row in range(256)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=16, range=(0, 1))[0]
    expected = draws.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-squared with 15 degrees of freedom: 1e-5
    for a, b in ((draws[:, 1:], draws[:, :-1]), (draws[1:], draws[:-1])):  # neighbouring counters, neighbouring rows
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
