"""`bench step`: the whole step, where its time goes, and PyTorch beside it."""

import doctest
import importlib.util
import json
import sys

import numba
import pytest

from knltrain import cli
from knltrain.bench import step, torch_process
from knltrain.bench.step import profile
from knltrain.bench.torch_process import (
    CONFIGURATIONS,
    TorchProcess,
    by_reference,
    check_installed,
    configurations,
    peak_memory_bytes,
)
from knltrain.bench.workload import Workload
from knltrain.models import build, declare

TINY = ["bench", "step", "--model", "resnet_cifar8", "--slot-batch", "2", "--set", "width=8", "--set", "input_size=16"]
KEYS = {
    "model", "slot_batch", "precision", "threads", "images_per_s", "gflop_per_s", "peak_gflop_per_s", "share_of_peak",
    "peak_memory_bytes",
}  # fmt: skip
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(step, "BLOCK_SECONDS", 0.02)
    threads = numba.get_num_threads()
    yield
    numba.set_num_threads(threads)


def test_bench_step__prints_the_keys_of_its_contract(capsys):
    assert cli.main([*TINY, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert KEYS <= set(found)
    assert (found["model"], found["slot_batch"], found["precision"]) == ("resnet_cifar8", 2, "fp32")
    assert found["threads"] == numba.get_num_threads()
    assert found["images_per_s"] == pytest.approx(2 / found["step_seconds"])
    assert found["share_of_peak"] > 0 and found["gflop_per_s"] > 0 and found["peak_gflop_per_s"] > 0
    assert found["peak_memory_bytes"] > 10**7
    assert {"conv1", "conv1.bn", "fc", "update", "loss"} <= set(found["by_layer"])


def test_own__has_as_its_share_of_peak_the_median_of_those_of_its_blocks():
    own = step.Own(Workload("resnet_cifar8", 2, {"width": 8, "input_size": 16}))
    flops = own.workload.flops
    own.seconds[:], own.peaks[:] = [1.0, 4.0, 2.0], [2 * flops, flops / 2, flops / 4]
    found = own.record()
    assert (found["share_of_peak"], found["images_per_s"]) == pytest.approx((0.5, 1.0))
    assert (found["gflop_per_s"], found["peak_gflop_per_s"]) == pytest.approx((flops / 2e9, flops / 2e9))


def test_bench_step__prints_a_table(capsys):
    assert cli.main(TINY) == 0
    text = capsys.readouterr().out
    assert "images/s" in text and "of peak" in text and "MiB peak resident memory" in text
    assert "backward_weight" in text and "by layer" in text and "PyTorch" not in text


def test_profile__splits_the_whole_step():
    kinds, layers = profile(Workload("resnet_cifar8", 2, {"width": 8, "input_size": 16}))
    assert all(taken > 0 for taken in kinds.values()) and "rest" in kinds
    assert set(layers["conv1"]) == {"forward", "backward_weight", "packing"}
    assert sum(sum(parts.values()) for parts in layers.values()) == pytest.approx(sum(kinds.values()) - kinds["rest"])


def test_peak_memory__counts_what_was_given_back():
    block = bytearray(96 << 20)
    block[::4096] = b"x" * len(block[::4096])  # touched: now it is resident
    del block
    assert 96 << 20 < peak_memory_bytes() < 1 << 40


# ---- against PyTorch -----------------------------------------------------------------------------------------


def test_against_torch__without_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "step", "--against", "torch"]) == 2
    assert capsys.readouterr().err == (
        "knltrain: error: PyTorch is not installed, expected it for --against torch: pip install torch\n"
    )
    with pytest.raises(ImportError):
        check_installed()


def test_configurations__of_16_bits_are_all_that_the_command_takes(capsys):
    assert configurations("fp32") == CONFIGURATIONS[:4] and configurations("bf16") == CONFIGURATIONS
    assert len(set(CONFIGURATIONS)) == 12
    with pytest.raises(SystemExit):
        cli.main(["bench", "step", "--configurations", *CONFIGURATIONS, "--slot-batch", "0"])
    assert "argument --slot-batch" in capsys.readouterr().err  # and not --configurations


def test_by_reference__names_what_onednn_had_no_kernel_for():
    lines = [
        "onednn_verbose,v1,info,cpu,isa:Intel AVX2",
        "onednn_verbose,v1,primitive,exec,cpu,convolution,jit_bf16:avx512_core_bf16,forward_training,src:bf16::blocked",
        "onednn_verbose,v1,primitive,exec,cpu,pooling,simple_nchw:any,forward_inference,src:f32::blocked:abcde::f0",
        "onednn_verbose,primitive,exec,cpu,inner_product,ref:any,backward_data,src:bf16::blocked",
        "a line of another library, exec, ref:any",
    ]
    assert by_reference("\n".join(lines)) == ["inner_product"]
    assert by_reference("\n".join(lines[:3])) == []
    assert doctest.testmod(torch_process).failed == 0


def test_against_torch__of_an_interpreter_without_it_is_one_line(tmp_path, capsys):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    for python, expected in ((bare, "found no PyTorch there"), (tmp_path / "none", "No such file")):
        assert cli.main(["bench", "step", "--against", "torch", "--torch", str(python)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(python) in line and expected in line


@needs_torch
def test_against_torch__refuses_a_model_that_it_does_not_have(capsys):
    assert cli.main([*TINY, "--against", "torch"]) == 2
    expected = "expected one of: resnet50 with classes or input_size; alexnet with classes, groups or input_size"
    assert expected in capsys.readouterr().err


@needs_torch
@pytest.mark.parametrize(
    ("model", "options"), [("resnet50", {}), ("alexnet", {}), ("alexnet_bn", {}), ("alexnet_bn", {"groups": 1})]
)
def test_torch_models__have_our_parameters(model, options):
    from knltrain.bench import torch_models

    parameters = declare(*build(model, **options)).parameters
    network = getattr(torch_models, model)(1000, **options)
    theirs = sorted(tuple(p.shape) for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == parameters.count
    assert len(theirs) == len(parameters.parameters)


@needs_torch
def test_against_torch__prints_the_ratio(capsys):
    command = ["bench", "step", "--model", "resnet50", "--slot-batch", "2", "--set", "input_size=32", "--json"]
    names = ["contiguous-eager", "channels_last-eager-autocast"]
    command += ["--against", "torch", "--torch", sys.executable, "--configurations", *names, "--threads", "1"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    assert found["ratio_to_torch"] > 0 and found["torch_images_per_s"] > 0
    assert [rival["configuration"] for rival in found["torch"]] == names
    assert all(not rival["error"] and rival["peak_memory_bytes"] > 10**7 for rival in found["torch"])


@needs_torch
def test_torch_process__that_cannot_run_says_why_in_a_line():
    settings = {
        "model": "resnet50", "slot_batch": 1, "threads": 1, "classes": -1, "size": 32,
        "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
    }  # fmt: skip
    process = TorchProcess(settings, CONFIGURATIONS[0])
    assert "Error" in process.error and "\n" not in process.error
    process.close()
