"""The arena and the blocks of parameters: nobody's memory is anybody else's."""

import numpy as np
import pytest

from knltrain.arena import ALIGN, SCALARS, Arena, Parameter, Parameters, Statistic


def _span(array):
    start = array.ctypes.data
    return start, start + array.nbytes


def _disjoint(arrays):
    spans = sorted(_span(a) for a in arrays)
    return all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def _cells(buffers):
    return sum(-(-b.nbytes // ALIGN) * ALIGN for b in buffers)


@pytest.mark.parametrize("seed", range(30))
def test_arena__live_buffers_never_overlap(seed):
    rng = np.random.default_rng(seed)
    arena, live, lives = Arena(), [], []
    for _ in range(80):
        if live and rng.random() < 0.45:
            arena.give(live.pop(rng.integers(len(live))))
        else:
            dtype = (np.float32, np.uint8)[rng.integers(2)]
            live.append(arena.take(rng.integers(1, 9, size=rng.integers(1, 4)), dtype))
        lives.append(list(live))
    arena.need_scratch(50)
    arena.need_scratch(20)
    arena.need_panels(70)
    arena.allocate()
    always = [arena.workspace, arena.panels]
    for together in lives:
        assert _disjoint([b.array for b in together] + always)
    for buffer in arena.buffers:
        assert buffer.array.shape == buffer.shape and buffer.array.ctypes.data % ALIGN == 0
    assert arena.workspace.shape == (50,) and arena.panels.shape == (70,)
    assert all(array.ctypes.data % ALIGN == 0 for array in always)
    assert max(map(_cells, lives)) <= arena.size <= _cells(arena.buffers)


def test_arena__takes_nothing_back_twice():
    arena = Arena()
    a = arena.take((4,))
    arena.give(a)
    with pytest.raises(RuntimeError, match="given back before"):
        arena.give(arena.view(a, (2, 2)))


def test_arena__memory_given_back_is_used_again():
    arena = Arena()
    a, b, c = (arena.take((16,)) for _ in range(3))
    arena.give(a)
    arena.give(arena.view(b, (4, 4)))  # a view gives its buffer; the two holes become one
    d, e = arena.take((32,)), arena.take((16,))
    arena.give(e)
    arena.take((48,))  # grows the hole at the end
    assert (d.offset, c.offset, e.offset, arena.size) == (0, 128, 192, 384)


def test_arena__views_are_the_same_memory():
    arena = Arena()
    buffer = arena.take((2, 3, 4))
    flat = arena.view(buffer, (6, 4))
    again = arena.view(flat, (24,))
    arena.allocate()
    buffer.array[...] = np.arange(24).reshape(2, 3, 4)
    assert flat.array.shape == (6, 4) and np.array_equal(again.array, np.arange(24))
    assert _span(flat.array) == _span(again.array) == _span(buffer.array)
    assert again.root is buffer


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


def test_parameters__names_are_unique():
    parameters = _parameters()
    for tensor in (Parameter("s1", (1,), np.zeros), Statistic("p1", (1,), 0.0, 0.9)):
        with pytest.raises(ValueError, match=f"two tensors are named '{tensor.name}'"):
            parameters.add(tensor)
