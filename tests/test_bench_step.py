"""`bench step`: the whole step, where its time goes, and PyTorch beside it."""

import importlib.util
import json

import numba
import pytest

from knltrain import cli
from knltrain.bench import step
from knltrain.bench.step import profile
from knltrain.bench.torch_process import CONFIGURATIONS, TorchProcess, check_installed, peak_memory_bytes
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
    assert found["share_of_peak"] == pytest.approx(found["gflop_per_s"] / found["peak_gflop_per_s"], rel=0.5)
    assert found["peak_memory_bytes"] > 10**7
    assert {"conv1", "conv1.bn", "fc", "update", "loss"} <= set(found["by_layer"])


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


@needs_torch
def test_against_torch__refuses_a_model_that_it_does_not_have(capsys):
    assert cli.main([*TINY, "--against", "torch"]) == 2
    assert "expected one of resnet50, alexnet, alexnet_bn" in capsys.readouterr().err


@needs_torch
@pytest.mark.parametrize("model", ["resnet50", "alexnet", "alexnet_bn"])
def test_torch_models__have_our_parameters(model):
    from knltrain.bench import torch_models

    parameters = declare(*build(model)).parameters
    network = getattr(torch_models, model)(1000)
    theirs = sorted(tuple(p.shape) for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == parameters.count
    assert len(theirs) == len(parameters.parameters)


@needs_torch
def test_against_torch__prints_the_ratio(capsys):
    command = ["bench", "step", "--model", "resnet50", "--slot-batch", "2", "--set", "input_size=32", "--json"]
    command += ["--against", "torch", "--configurations", "contiguous-eager", "--threads", "1"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    assert found["ratio_to_torch"] > 0 and found["torch_images_per_s"] > 0
    (rival,) = found["torch"]
    assert rival["configuration"] == "contiguous-eager" and not rival["error"] and rival["peak_memory_bytes"] > 10**7


@needs_torch
def test_torch_process__that_cannot_run_says_why_in_a_line():
    settings = {
        "model": "resnet50", "slot_batch": 1, "threads": 1, "classes": -1, "size": 32, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 0.0,
    }  # fmt: skip
    process = TorchProcess(settings, CONFIGURATIONS[0])
    assert "Error" in process.error and "\n" not in process.error
    process.close()
