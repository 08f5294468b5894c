"""The sum over slots: one binary tree, the same bits on 1, 2, 4 and 8 ranks and with any bucket size."""

import json
from functools import partial

import numpy as np
import pytest
from mpirun import ROOT, run_mpi
from sum_slots import slot_gradient, sum_slots

from knltrain.comm import Links, Reducer, allowed_ranks, make_block
from knltrain.comm.communicator import Serial
from knltrain.comm.wire import Wire

SIZE = 32 + 16 + 704 + 16 + 240 + 16  # scalars, statistic and tensors, padded to cache lines


HEAD = 48  # floats of scalars and statistic


def _tree(slots, rounded=lambda x: x):
    """The specification, written as recursion: runs of the odd part from left to right, then pairs of runs.

    rounded: what happens to both addends of a sum, and to the result.
    """
    run = slots
    while run % 2 == 0:
        run //= 2

    def total(first, count):
        if count == run:
            result = slot_gradient(first, SIZE)
            for slot in range(first + 1, first + run):
                result = rounded(result) + rounded(slot_gradient(slot, SIZE))
            return result
        half = count // 2
        return rounded(total(first, half)) + rounded(total(first + half, half))

    return rounded(total(0, slots))


def _rounded(wire):
    """To the format of a wire and back, but for the head."""

    def rounded(x):
        x = x.copy()
        Wire(wire).round(x[HEAD:])
        return x

    return rounded


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 6, 8, 12, 16])
def test_reducer__sums_slots_along_the_tree(slots):
    total = sum_slots(Serial(), slots, 1 << 20)
    assert total.size == SIZE
    assert np.array_equal(total, _tree(slots))


@pytest.mark.parametrize("bucket_bytes", [64, 1000, 4096])
def test_reducer__bucket_size_changes_no_bit(bucket_bytes):
    assert np.array_equal(sum_slots(Serial(), 12, bucket_bytes), _tree(12))


@pytest.mark.parametrize(
    ("ranks", "slots", "bucket_bytes", "options"),
    [
        (2, 2, 1 << 20, {}),
        (2, 6, 500, {"overlap": False}),
        (4, 12, 700, {"pretended_nodes": 2}),
        (4, 4, 900, {"algorithm": "halving"}),
        (4, 4, 900, {"algorithm": "tree", "overlap": False}),
        (4, 8, 3000, {"algorithm": "doubling"}),
        (8, 8, 64, {}),
        (8, 8, 1000, {"pretended_nodes": 4}),
    ],
)
def test_reducer__any_number_of_ranks_gives_the_same_bits(tmp_path, ranks, slots, bucket_bytes, options):
    result = tmp_path / "total.npy"
    arguments = [str(slots), str(bucket_bytes), str(result), json.dumps(options)]
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
    ("ranks", "slots", "options"), [(2, 6, {}), (4, 12, {"pretended_nodes": 2}), (4, 4, {"algorithm": "halving"})]
)
def test_reducer__rounds_every_sum_alike_on_any_number_of_ranks(tmp_path, ranks, slots, options):
    result = tmp_path / "total.npy"
    options = json.dumps(options | {"wire": "bf16", "every_sum": True})
    run = run_mpi(ranks, str(ROOT / "tests" / "sum_slots.py"), str(slots), "700", str(result), options)
    assert run.returncode == 0, run.stderr
    assert np.array_equal(np.load(result), _tree(slots, _rounded("bf16")))


def test_reducer__refuses_to_end_a_slot_with_gradients_missing():
    from knltrain.arena import Parameter, Parameters

    parameters = Parameters()
    parameters.add(Parameter("w", (3,), lambda rng: np.zeros(3, np.float32)))
    parameters.allocate(0, partial(make_block, Links(Serial())))
    with pytest.raises(RuntimeError, match="gradients of w"):
        Reducer(parameters, parameters.block, 1, 64).end_slot()


def test_allowed_ranks__are_the_powers_of_two_that_divide_the_slots():
    assert allowed_ranks(1) == [1]
    assert allowed_ranks(24) == [1, 2, 4, 8]
    assert allowed_ranks(512) == [2**j for j in range(10)]
