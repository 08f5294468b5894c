"""The blocks of parameters: no tensor's memory is another's."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from knltrain.arena import ALIGN, SCALARS, Parameter, Parameters, Statistic


def _span(array):
    start = array.ctypes.data
    return start, start + array.nbytes


def _disjoint(arrays):
    spans = sorted(_span(a) for a in arrays)
    return all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def _parameters():
    parameters = Parameters()
    for index, shape in enumerate([(3,), (4, 4), (5, 7), (1,)]):
        parameters.add(Parameter(f"p{index}", shape, lambda rng, shape=shape: rng.standard_normal(shape)))
        parameters.add(Statistic(f"s{index}", shape, float(index), 0.9))
    return parameters


def test_parameters__slices_are_disjoint_aligned_and_cover_the_blocks():
    parameters = _parameters()
    parameters.allocate(seed=1)
    values, statistics = parameters.parameters, parameters.statistics
    everything = [a for p in values for a in (p.w, p.dw, p.v)] + [a for s in statistics for a in (s.batch, s.running)]
    assert _disjoint([*everything, parameters.scalars]) and parameters.scalars.shape == (len(SCALARS),)
    assert all(a.ctypes.data % ALIGN == 0 for a in everything)
    place = parameters.head
    for p in values:
        here = parameters.gradient_slice(p)
        assert here.start == place and here.stop - here.start >= p.size and p.dw.shape == p.w.shape == p.shape
        place = here.stop
    assert place == parameters.gradient.size
    assert parameters.value.size == parameters.momentum.size == place - parameters.head
    blocks = (parameters.value, parameters.gradient, parameters.momentum, parameters.running)
    assert parameters.total_bytes == sum(block.base.nbytes for block in blocks)
    assert parameters.count == 3 + 16 + 35 + 1


def test_parameters__values_depend_on_seed_and_name_alone():
    one, two, alone = _parameters(), _parameters(), Parameters()
    one.allocate(seed=1)
    two.allocate(seed=2)
    p = alone.add(Parameter("p2", (5, 7), lambda rng: rng.standard_normal((5, 7))))
    alone.allocate(seed=1)
    assert np.array_equal(one.parameters[2].w, p.w) and not np.array_equal(two.parameters[2].w, p.w)
    assert all((s.running == index).all() for index, s in enumerate(one.statistics))


def test_forget__gives_memory_back_and_keeps_the_own_part():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    parameters, megabyte = Parameters(), 1 << 18
    for name, own in (("a", slice(None)), ("b", slice(megabyte, 2 * megabyte)), ("c", slice(None))):
        shape = (8 if name == "b" else 1, megabyte)
        parameters.add(Parameter(name, shape, lambda rng, shape=shape: np.ones(shape, np.float32), own=own))
    parameters.allocate(0)
    parameters.momentum[...] = 1
    before = resident()
    parameters.forget(parameters.value, parameters.momentum)
    for block in (parameters.value, parameters.momentum):
        a, b, c = block[:megabyte], block[megabyte : 9 * megabyte].reshape(8, -1), block[9 * megabyte :]
        assert (a == 1).all() and (b[1] == 1).all() and (c == 1).all()
        if sys.platform == "linux":
            assert np.count_nonzero(b) <= megabyte + mmap.PAGESIZE // 2
    assert before - resident() > 13 << 20 or sys.platform != "linux"  # of 14 megabytes


def test_parameters__names_are_unique():
    parameters = _parameters()
    for tensor in (Parameter("s1", (1,), np.zeros), Statistic("p1", (1,), 0.0, 0.9)):
        with pytest.raises(ValueError, match=f"two tensors are named '{tensor.name}'"):
            parameters.add(tensor)
