"""`bench kernels`: what it watches, what it counts, that it finds a wrong result, and what it prints."""

import json
import sys

import numpy as np
import pytest

import kernels
from knltrain import cli
from knltrain.bench import twins
from knltrain.bench.costs import cost, shape
from knltrain.bench.kernels import check, distinct_calls, refill
from knltrain.bench.probe import Call, watch
from knltrain.bench.workload import Workload

TINY = {"width": 8, "input_size": 16}
SMALL_ALEXNET = {"width": 0.1, "hidden": 24, "input_size": 67, "classes": 7}
COMMAND = ["bench", "kernels", "--model", "resnet_cifar8", "--slot-batch", "3", "--set", "width=8", "--layer", "conv1"]


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def call_of(kernel, **arguments):
    """A call as the probe would have seen it."""
    seen = []
    with watch(seen.append, lambda call, note, seconds: None):
        getattr(kernels, kernel)(**arguments)
    return seen[0]


# ---- probe -----------------------------------------------------------------------------------------------------


def test_watch__sees_every_kernel_with_its_layer_and_a_nested_one_once():
    workload = Workload("resnet_cifar8", 2, TINY)
    seen = []
    with watch(lambda call: call.kernel, lambda call, note, seconds: seen.append((call.layer, note, seconds))):
        workload.step()
        kernels.accumulate(floats(7), floats(7))
    assert all(seconds > 0 for _, _, seconds in seen)
    names = [(layer, kernel) for layer, kernel, _ in seen]
    assert names.count(("conv1", "conv2d_forward")) == 1
    assert names.count(("conv1", "conv2d_backward_weight")) == 1
    assert ("conv1", "conv2d_backward_input") not in names  # nobody reads the gradient of the images
    assert ("loss", "softmax_cross_entropy") in names and ("update", "momentum_update") in names
    assert names[-1] == ("other", "accumulate")  # and not the add_forward that it calls


def test_watch__ends_with_its_context_even_after_an_error():
    with pytest.raises(ZeroDivisionError), watch():
        raise ZeroDivisionError
    assert sys.getprofile() is None


# ---- costs -----------------------------------------------------------------------------------------------------


def test_cost__of_a_convolution_by_hand():
    plan = kernels.conv2d_plan((2, 5, 6, 4), (3, 3, 2, 8), stride=1, pad=1, groups=2)
    arguments = {"plan": plan, "bias": None, "x": floats(2, 5, 6, 4), "y": floats(2, 5, 6, 8)}
    call = Call("conv2d_forward", None, "c", arguments)
    found = cost(call)
    assert found.flops == 2 * (2 * 5 * 6 * 8) * (3 * 3 * 2)
    assert found.bytes == 4 * (2 * 5 * 6 * 4 + 2 * 5 * 6 * 8 + 3 * 3 * 2 * 8)
    assert shape(call) == "2x5x6x4 -> 8, 3x3/1 in 2 groups"


def test_cost__of_a_batch_norm_reads_twice_and_knows_what_is_in_place():
    x, dy = floats(6, 5), floats(6, 5)
    mean, var, gamma, vector = np.zeros(5, np.float32), np.ones(5, np.float32), floats(5), np.empty(5, np.float32)
    scratch = np.empty(kernels.batchnorm_workspace(6, 5), np.float32)
    call = call_of(
        "batchnorm_backward", x=x, y=None, dy=dy, gamma=gamma, beta=gamma, mean=mean, var=var, eps=1e-5, dx=dy,
        dgamma=vector, dbeta=vector.copy(), workspace=scratch,
    )  # fmt: skip
    first, second = cost(call).passes
    assert (first.read, first.written) == (2 * x.nbytes, 0)
    assert (second.read, second.written, second.in_place) == (2 * x.nbytes, x.nbytes, x.nbytes)


@pytest.mark.parametrize(
    ("model", "options"),
    [("resnet_cifar8", TINY), ("alexnet", SMALL_ALEXNET), ("alexnet_bn", SMALL_ALEXNET | {"norm": "jia"})],
)
def test_check__has_a_cost_and_a_twin_for_every_kernel_of_a_step(model, options):
    assert 0 < check(model, options, lambda call: cost(call).bytes >= 0) < twins.TOLERANCE
    rows = distinct_calls(Workload(model, 2, options))
    assert sum(row.count * row.cost.flops for row in rows) == Workload(model, 2, options).flops
    assert sum(row.cost.kind == "forward" for row in rows) >= 5


def test_cost__of_an_unknown_kernel_names_the_table():
    with pytest.raises(ValueError, match="costs.py"):
        cost(Call("uniform", None, "", {}))


# ---- twins -----------------------------------------------------------------------------------------------------


def test_twin__finds_a_wrong_element():
    x, y = floats(3, 4), np.empty((3, 4), np.float32)
    call = call_of("relu_forward", x=x, y=y)
    before = twins.snapshot(call)
    assert twins.error(call, before) == 0
    y[2, 3] += 1e-3
    with pytest.raises(RuntimeError, match="relu_forward of layer other: y differs"):
        twins.error(call, before)
    y[2, 3] = np.nan
    with pytest.raises(RuntimeError, match="differs"):
        twins.error(call, before)


# ---- repeating -------------------------------------------------------------------------------------------------


def test_refill__gives_back_only_what_a_kernel_works_on_in_place():
    a, b, y = floats(9), floats(9, seed=1), np.empty(9, np.float32)
    in_place, apart = call_of("add_forward", a=a, b=b, y=a), call_of("add_forward", a=b, b=b, y=y)
    before, nothing = refill(in_place), refill(apart)
    before()
    original = a.copy()
    in_place.run()
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
        (["--layer", "conv9"], "no call of resnet_cifar8 fits"),
        (["--pass", "memory", "--plot", "x.png"], "found no kernel with flops"),
        (["--model", "resnet51"], "depth is 51"),
        (["--slot-batch", "0"], "slot batch is 0"),
        (["--threads", "999"], "found 999 threads"),
    ],
)
def test_bench_kernels__refuses_in_one_line(arguments, message, capsys):
    command = [*COMMAND[:8], *arguments] if "--model" not in arguments else ["bench", "kernels", *arguments]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_bench__names_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "kernel"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "kernels" in error and "step" in error and error.count("\n") == 1
