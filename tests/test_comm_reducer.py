"""The sum over slots: one binary tree, the same bits on any number of ranks, any shares and with any bucket size."""

import json
from functools import partial

import numpy as np
import pytest
from mpirun import ROOT, run_mpi
from ranks import on_ranks
from sum_slots import slot_gradient, sum_slots

from knltrain.comm import Links, Reducer, Travel, make_block
from knltrain.comm.communicator import Serial
from knltrain.comm.wire import Wire

SIZE = 32 + 16 + 704 + 16 + 240 + 16  # scalars, statistic and tensors, padded to cache lines


HEAD = 48  # floats of scalars and statistic


def _tree(slots, rounded=lambda x: x):
    """The specification, written as recursion: an even number in halves, an odd one behind the largest power of two.

    rounded: what happens to both addends of a sum, and to the result.
    """

    def total(first, count):
        if count == 1:
            return slot_gradient(first, SIZE)
        left = count // 2 if count % 2 == 0 else max(2**k for k in range(20) if 2**k < count)
        return rounded(total(first, left)) + rounded(total(first + left, count - left))

    return rounded(total(0, slots))


def _rounded(wire):
    """To the format of a wire and back, but for the head."""

    def rounded(x):
        x = x.copy()
        Wire(wire).round(x[HEAD:])
        return x

    return rounded


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7, 8, 12, 23])
def test_reducer__sums_slots_along_the_tree(slots):
    total = sum_slots(Serial(), slots, 1 << 20)
    assert total.size == SIZE
    assert np.array_equal(total, _tree(slots))


@pytest.mark.parametrize("bucket_bytes", [64, 1000, 4096])
def test_reducer__bucket_size_changes_no_bit(bucket_bytes):
    assert np.array_equal(sum_slots(Serial(), 12, bucket_bytes), _tree(12))


def _on_all(ranks, slots, bucket_bytes, layout=(), **options):
    """The sums that all ranks have, which must be the same."""
    results = on_ranks(ranks, lambda comm: sum_slots(comm, slots, bucket_bytes, **options), layout)
    assert all(np.array_equal(result, results[0], equal_nan=True) for result in results)
    return results[0]


@pytest.mark.parametrize("options", [{"algorithm": "direct"}, {"algorithm": "tree"}, {}, {"pretended_nodes": 3}])
@pytest.mark.parametrize("ranks", [2, 3, 5, 6, 7, 8, 12])
def test_reducer__any_number_of_ranks_gives_the_same_bits(ranks, options):
    assert np.array_equal(_on_all(ranks, 12 if ranks > 4 else 23, 900, **options), _tree(12 if ranks > 4 else 23))


@pytest.mark.parametrize(
    ("ranks", "slots", "options"),
    [
        (4, 8, {"speeds": [1, 1, 0.5, 0.3]}),
        (4, 8, {"speeds": [0.1, 1, 1, 1], "pretended_nodes": 2, "overlap": False}),
        (8, 64, {"speeds": [1, 1, 1, 0.7, 1, 1, 0.7, 0.2], "layout": [3, 1, 4]}),
        (6, 30, {"layout": [2, 2, 2]}),
        (6, 24, {"layout": [3, 3]}),
        (8, 8, {"layout": [3, 3, 2]}),
        (2, 6, {"overlap": False}),
        (4, 12, {"pretended_nodes": 2}),
        (8, 8, {"pretended_nodes": 4}),
        (12, 16, {"pretended_nodes": 5}),
        (4, 4, {"algorithm": "halving"}),
        (4, 8, {"algorithm": "doubling"}),
    ],
)
def test_reducer__any_shares_on_any_nodes_give_the_same_bits(ranks, slots, options):
    assert np.array_equal(_on_all(ranks, slots, 700, **options), _tree(slots))


@pytest.mark.parametrize(("ranks", "slots", "nodes"), [(3, 16, 0), (5, 24, 2)])
def test_reducer__does_the_same_under_mpi(tmp_path, ranks, slots, nodes):
    result = tmp_path / "total.npy"
    arguments = [str(slots), "1000", str(result), json.dumps({"pretended_nodes": nodes})]
    run = run_mpi(ranks, str(ROOT / "tests" / "sum_slots.py"), *arguments)
    assert run.returncode == 0, run.stderr
    assert np.array_equal(np.load(result), _tree(slots))


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
@pytest.mark.parametrize("slots", [1, 2, 3, 8, 12])
def test_reducer__rounds_every_sum_where_it_is_asked_to(slots, wire):
    total = sum_slots(Serial(), slots, 1000, wire=wire, every_sum=True)
    with np.errstate(invalid="ignore"):  # infinities of fp16 may meet
        assert np.array_equal(total, _tree(slots, _rounded(wire)), equal_nan=True)
    assert not np.array_equal(total, _tree(slots))


@pytest.mark.parametrize(
    ("ranks", "slots", "options"),
    [(2, 6, {}), (4, 12, {"pretended_nodes": 2}), (4, 4, {"algorithm": "halving"}), (5, 23, {"pretended_nodes": 2})]
    + [(3, 8, {"algorithm": name}) for name in ("direct", "tree")],
)
@pytest.mark.parametrize("warming", [False, True])
def test_reducer__rounds_every_sum_alike_on_any_number_of_ranks(ranks, slots, options, warming):
    total = _on_all(ranks, slots, 700, wire="bf16", every_sum=True, warming=warming, **options)
    assert np.array_equal(total, _tree(slots, _rounded("bf16")))


def test_reducer__refuses_to_end_a_slot_with_gradients_missing():
    from knltrain.arena import Parameter, Parameters

    parameters = Parameters()
    parameters.add(Parameter("w", (3,), lambda rng: np.zeros(3, np.float32)))
    parameters.allocate(0, partial(make_block, Links(Serial())))
    with pytest.raises(RuntimeError, match="gradients of w"):
        Reducer(parameters, Travel(parameters, parameters.block, 64)).end_slot()
