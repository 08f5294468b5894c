"""Whole steps on ranks that are threads of this process: any number of them, any shares, train the same weights."""

from contextlib import closing
from functools import cache

import numpy as np
import pytest
from ranks import ALONE, learned, on_ranks

from knltrain.assembly import make_trainer
from knltrain.comm import Serial
from knltrain.data.synthetic import Synthetic
from knltrain.recipe.config import parse_recipe

NETWORKS = {
    "resnet": '[model]\nname = "resnet_cifar8"\nwidth = 4\n',
    "alexnet": '[model]\nname = "alexnet_bn"\nwidth = 0.125\nhidden = 32\nstem_size = 3\nstem_stride = 1\n',
}
RECIPE = """
[data]
train = "unused"
crop = {}
[batch]
global_batch = 14
slot_batch = 2
[optim]
trust_coefficient = 0.01
[run]
epochs = 1.0
"""
STEPS, SLOTS = 3, 7


def _train(comm, *settings, network="resnet", speeds=()):
    """What is learned in some steps, and the losses; speeds: what the ranks share the slots by after the first."""
    crop = {"resnet": 8, "alexnet": 24}[network]
    recipe, data = parse_recipe(NETWORKS[network] + RECIPE.format(crop), settings), Synthetic(14 * STEPS, crop + 4, 3)
    with closing(make_trainer(recipe, data, comm, ALONE)) as trainer:
        return learned(trainer, STEPS, speeds)


@pytest.fixture(scope="module")
def alone():
    """What one rank learns with a network in a precision."""
    return cache(lambda network, precision="fp32": _train(Serial(), f"compute.precision={precision}", network=network))


@pytest.fixture(scope="module")
def coded_alone():
    """What one rank learns where gradients are coded."""
    return _train(Serial(), *CODED)


def _same(expected, ranks, work):
    """What all ranks learn is what is `expected`, which was learned alone before: nothing is left to compile."""
    for result in on_ranks(ranks, work):
        assert result.keys() == expected.keys()
        for name, array in result.items():
            assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize(
    ("network", "ranks", "settings"),
    [
        ("resnet", 2, ["bucket_bytes=4000"]),
        ("resnet", 3, ["shard_update=true", "algorithm=direct"]),
        ("resnet", 4, ["shard_update=true", "pretended_nodes=2", "bucket_bytes=9000"]),
        ("resnet", 5, ["pretended_nodes=2", "bucket_bytes=9000"]),
        ("resnet", 7, ["shard_update=true", "pretended_nodes=3"]),
        ("alexnet", 2, ["cut_before=['fc6.w']", "overlap=false"]),
        ("alexnet", 2, ["shard_update=true", "bucket_bytes=300000"]),
    ],
)
def test_trainer__any_number_of_ranks_trains_the_same(alone, network, ranks, settings):
    settings = [f"comm.{setting}" for setting in settings]
    _same(alone(network), ranks, lambda comm: _train(comm, *settings, network=network))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("settings", [["comm.shard_update=true"], ["comm.pretended_nodes=2", "comm.bucket_bytes=8192"]])
def test_trainer__trains_the_same_in_16_bits_on_two_ranks(alone, precision, settings):
    settings = [*settings, f"compute.precision={precision}"]
    _same(alone("resnet", precision), 2, lambda comm: _train(comm, *settings))


@pytest.mark.parametrize("settings", [["comm.shard_update=true"], ["comm.algorithm=direct"]])
def test_trainer__goes_on_with_other_shares_to_the_bit(alone, settings):
    _same(alone("resnet"), 3, lambda comm: _train(comm, *settings, speeds=[1.0, 0.2, 0.4]))


CODED = ["batch.global_batch=16", "comm.wire=int8", "comm.workers=4", "run.epochs=2", "schedule.warmup_epochs=0.5"]


@pytest.mark.parametrize(
    ("ranks", "settings", "speeds"),
    [
        (2, ["pretended_nodes=2", "bucket_bytes=4000"], ()),
        (3, ["pretended_nodes=3", "overlap=false"], ()),
        (4, ["pretended_nodes=2"], ()),
        (4, ["pretended_nodes=4", "bucket_bytes=9000"], ()),
        (3, ["algorithm=direct"], [1.0, 0.2, 0.4]),
        (8, ["pretended_nodes=2"], ()),
    ],
)
def test_trainer__trains_the_same_where_gradients_are_coded(coded_alone, ranks, settings, speeds):
    """Residuals too: `learned` has them. The first step is warm-up, in which they stay zero."""
    settings = [*CODED, *(f"comm.{setting}" for setting in settings)]
    _same(coded_alone, ranks, lambda comm: _train(comm, *settings, speeds=speeds))


def test_trainer__warms_up_in_fp32(coded_alone):
    exact = _train(Serial(), "batch.global_batch=16", "run.epochs=2", "schedule.warmup_epochs=0.5")
    assert exact["loss"][:2] == coded_alone["loss"][:2]
    assert not np.array_equal(exact["value/fc.w"], coded_alone["value/fc.w"])
    lost = [array for name, array in coded_alone.items() if name.startswith("residual/")]
    assert all(len(array) == 5 for array in lost) and all(np.abs(array).max() > 0 for array in lost)


def test_trainer__coding_hides_no_infinity():
    """A scale with which every step overflows in fp16: none changes a weight, and no residual is lost."""
    settings = ["schedule.warmup_epochs=0", "compute.precision=fp16", "compute.loss_scale=16777216.0"]
    found, exact = _train(Serial(), *CODED, *settings), _train(Serial(), "batch.global_batch=16", *settings)
    for name, array in found.items():
        assert np.array_equal(array, exact[name]) if name in exact else np.isfinite(array).all(), name


def test_trainer__more_ranks_than_slots_are_refused():
    with pytest.raises(ValueError, match="8 ranks cannot share 7 slots .*; expected at most 7 ranks"):
        on_ranks(8, _train)
