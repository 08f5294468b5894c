"""Whole steps on ranks that are threads of this process: any number of them, any shares, train the same weights."""

from contextlib import closing, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from ranks import on_ranks

from knltrain.comm import Serial
from knltrain.config import parse_recipe
from knltrain.data.synthetic import Synthetic
from knltrain.models.state import state
from knltrain.trainer import Trainer

RECIPE = """
[model]
name = "resnet_cifar8"
width = 4
[data]
train = "unused"
crop = 8
[batch]
global_batch = 14
slot_batch = 2
[optim]
trust_coefficient = 0.01
[run]
epochs = 1.0
"""
STEPS, SLOTS = 3, 7
ALONE = SimpleNamespace(ranks_on_node=1, on=lambda name: nullcontext())


def _train(comm, *settings, speeds=()):
    """What is learned in some steps, and the losses; speeds: what the ranks share the slots by after the first."""
    recipe = parse_recipe(RECIPE, settings)
    with closing(Trainer.of(recipe, Synthetic(14 * STEPS, 12, 3), comm, ALONE)) as trainer:
        trainer.seek(0)
        losses = [trainer.step().loss]
        if speeds:
            trainer.share(speeds)
        losses += [trainer.step().loss for _ in range(STEPS - 1)]
        trainer.update.complete()
        return {name: array.copy() for name, array in state(trainer.model.parameters).items()} | {"loss": losses}


@pytest.fixture(scope="module")
def alone():
    return _train(Serial())


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, ["comm.bucket_bytes=4000"]),
        (3, ["comm.shard_update=true", "comm.algorithm=direct"]),
        (5, ["comm.pretended_nodes=2", "comm.bucket_bytes=9000"]),
        (7, ["comm.shard_update=true", "comm.pretended_nodes=3"]),
    ],
)
def test_trainer__any_number_of_ranks_trains_the_same(alone, ranks, settings):
    for result in on_ranks(ranks, lambda comm: _train(comm, *settings)):
        assert result.keys() == alone.keys()
        for name, array in result.items():
            assert np.array_equal(array, alone[name]), name


@pytest.mark.parametrize("settings", [["comm.shard_update=true"], ["comm.algorithm=direct"]])
def test_trainer__goes_on_with_other_shares_to_the_bit(alone, settings):
    for result in on_ranks(3, lambda comm: _train(comm, *settings, speeds=[1.0, 0.2, 0.4])):
        for name, array in result.items():
            assert np.array_equal(array, alone[name]), name


def test_trainer__more_ranks_than_slots_are_refused():
    with pytest.raises(ValueError, match="8 ranks cannot share 7 slots .*; expected at most 7 ranks"):
        on_ranks(8, _train)
