"""`bench kernels`: what it counts, that it finds a wrong result, and what it prints."""

import json

import numpy as np
import pytest

from knltrain import cli, kernels
from knltrain.arena import Parameters
from knltrain.bench import twins
from knltrain.bench.kernels import observe_step, refill, shape
from knltrain.bench.workload import Workload
from knltrain.layers import BatchNorm, Conv2d, Op, Program, Tensor, run

TINY = {"width": 8, "input_size": 16}
SMALL_ALEXNET = {"width": 0.1, "hidden": 24, "input_size": 67, "classes": 7}
COMMAND = ["bench", "kernels", "--model", "resnet_cifar8", "--slot-batch", "3", "--set", "width=8", "--layer", "conv1"]


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def declared(layer, shape):
    """The program of one layer, forward and backward."""
    program = Program(Tensor("x", shape), Parameters(), True, np.zeros(shape[0], np.uint64))
    layer.backward(program, layer.forward(program, program.images))
    return program


def op_of(kernel, reads, writes):
    op = Op(Conv2d("c", 1, 1), "memory", getattr(kernels, kernel), reads, writes)
    op.bind()
    return op


# ---- costs -----------------------------------------------------------------------------------------------------


def test_cost__of_a_convolution_by_hand():
    packing, found = declared(Conv2d("c", 8, 3, pad=1, groups=2), (2, 5, 6, 4)).forward
    assert found.flops == found.arithmetic == 2 * (2 * 5 * 6 * 8) * (3 * 3 * 2)
    assert found.nbytes == 4 * (2 * 5 * 6 * 4 + 2 * 5 * 6 * 8) + packing.writes["packed"].nbytes
    found.arguments = found.others
    assert shape(found) == "2x5x6x4 -> 8, 3x3/1 in 2 groups"


def test_cost__of_a_batch_norm_reads_twice_and_knows_what_is_in_place():
    moments, _, normalize, sums, _, backward = declared(BatchNorm("n", relu=True), (6, 1, 1, 5)).ops
    assert [(one.read, one.written) for one in moments.traffic() + normalize.traffic()] == [(120, 0), (120, 120)]
    backward.writes["dx"].root.place = backward.reads["dy"].root.place = np.zeros(120, np.uint8)
    passes = sums.traffic() + backward.traffic()
    assert [(one.read, one.written, one.in_place) for one in passes] == [(240, 0, 0), (240, 120, 120)]


@pytest.mark.parametrize(
    ("model", "options", "precision"),
    [
        ("resnet_cifar8", TINY, "fp32"),
        ("resnet_cifar8", TINY, "bf16"),  # sums that are told before dx is rounded
        ("alexnet", SMALL_ALEXNET, "fp32"),
        ("alexnet_bn", SMALL_ALEXNET | {"norm": "jia"}, "fp32"),
    ],
)
def test_check__has_a_cost_and_a_twin_for_every_kernel_of_a_step(model, options, precision):
    workload = Workload(model, 2, options, precision=precision)
    seen = observe_step(workload, lambda op: op.nbytes >= 0, True)
    assert 0 < max(seen.errors) < (twins.TOLERANCE if precision == "fp32" else 1e-2)
    rows = seen.rows.values()
    assert sum(row.count * row.op.flops for row in rows) == workload.flops
    assert sum(row.op.kind == "forward" for row in rows) >= 5
    assert {row.op.owner.name for row in rows} >= {"conv1", "loss", "update"}


# ---- twins -----------------------------------------------------------------------------------------------------


def test_twin__finds_a_wrong_element():
    x, y = floats(3, 4), np.empty((3, 4), np.float32)
    op = op_of("relu_forward", {"x": x}, {"y": y})
    before = twins.snapshot(op)
    run(op)
    assert twins.error(op, before) == 0
    y[2, 3] += 1e-3
    with pytest.raises(RuntimeError, match="relu_forward of layer c: y differs"):
        twins.error(op, before)
    y[2, 3] = np.nan
    with pytest.raises(RuntimeError, match="differs"):
        twins.error(op, before)


# ---- repeating -------------------------------------------------------------------------------------------------


def test_refill__gives_back_only_what_a_kernel_works_on_in_place():
    a, b, y = floats(9), floats(9, seed=1), np.empty(9, np.float32)
    in_place, apart = op_of("add_forward", {"a": a, "b": b}, {"y": a}), op_of("add_forward", {"a": b, "b": b}, {"y": y})
    before, nothing = refill(in_place), refill(apart)
    before()
    original = a.copy()
    run(in_place)
    assert not np.array_equal(a, original)
    before()
    assert np.array_equal(a, original)
    y[:] = 5
    nothing()
    assert (y == 5).all()


# ---- the command -----------------------------------------------------------------------------------------------


def test_bench_kernels__prints_rows_with_the_keys_of_its_contract(capsys):
    assert cli.main([*COMMAND, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["pass"] for row in rows] == ["forward", "backward_weight"]  # packing is too small to be timed
    keys = {"layer", "pass", "shape", "seconds", "gflop_per_s", "share_of_peak", "share_of_roofline"}
    for row in rows:
        assert keys <= set(row)
        assert row["layer"] == "conv1" and row["shape"] == "3x32x32x3 -> 8, 3x3/1"
        assert row["seconds"] > 0 and row["share_of_peak"] > 0
        assert row["gflop_per_s"] == pytest.approx(row["flops"] / row["seconds"] / 1e9)


def test_bench_kernels__prints_a_table_and_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "roofline.png"
    assert cli.main([*COMMAND, "--pass", "forward", "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "GFLOP/s (multiply-add loop" in text and "GB/s read" in text
    assert "compared with NumPy" in text and "of roofline" in text
    (row,) = (line for line in text.splitlines() if line.startswith("conv1 "))
    assert "3x32x32x3 -> 8, 3x3/1" in row and row.count("%") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "conv9"], "no op of resnet_cifar8 fits"),
        (["--pass", "memory", "--plot", "x.png"], "found no kernel with flops"),
        (["--model", "resnet51"], "depth is 51"),
        (["--threads", "999"], "found 999 threads"),
    ],
)
def test_bench_kernels__refuses_in_one_line(arguments, message, capsys):
    command = [*COMMAND[:8], *arguments] if "--model" not in arguments else ["bench", "kernels", *arguments]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_workload__refuses_a_batch_of_nothing():
    with pytest.raises(ValueError, match="slot batch is 0"):
        Workload("resnet_cifar8", 0)


def test_bench__names_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "kernel"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "kernels" in error and "step" in error and error.count("\n") == 1
