"""The ceilings that benchmarks divide by: that they do what they count."""

import numba
import numpy as np
import pytest

from knltrain.kernels import ARCH, STREAM_UNIT, STREAMS, fma_peak, stream


def aligned(floats):
    raw = np.zeros(floats + 16, np.float32)
    return raw[-raw.ctypes.data % 64 // 4 :][:floats]


def test_fma_peak__counts_two_flops_for_each_lane_chain_round_and_thread():
    flops = fma_peak(10)
    assert flops == 10 * fma_peak(1)
    assert flops % (2 * 10 * ARCH.tile().width * numba.get_num_threads()) == 0
    assert fma_peak(10, "dot2") == 2 * flops
    assert fma_peak(1, "amx") == numba.get_num_threads() * 4 * 16 * 16 * 32 * 2


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("units", [1, 7, 103])
def test_stream__does_what_its_name_says_and_counts_each_byte(name, units):
    source, target = aligned(units * STREAM_UNIT), aligned(units * STREAM_UNIT)
    source[:] = np.arange(source.size)
    target[:] = -1
    before = source.copy()
    moved = stream(name, source, target)
    assert moved == source.nbytes * (2 if "copy" in name else 1)
    assert np.array_equal(source, before)
    expected = source if "copy" in name else np.zeros_like(source) if "fill" in name else np.full_like(source, -1)
    assert np.array_equal(target, expected)


def test_stream__rejects_what_it_cannot_walk():
    with pytest.raises(ValueError, match="source: found shape"):
        stream("read", aligned(STREAM_UNIT + 1), aligned(STREAM_UNIT + 1))
    shifted = aligned(STREAM_UNIT + 1)[1:]
    with pytest.raises(ValueError, match="source begins within a cache line"):
        stream("read", shifted, shifted)
