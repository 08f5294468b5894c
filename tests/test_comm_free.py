"""What a recipe calls free changes no bit: random recipes on one rank, and on several in random ways of exchanging."""

import contextlib
import random

import numpy as np
import pytest
from ranks import on_ranks
from rehearsal_ranks import train

from knltrain.comm import ALGORITHMS, FC, Serial
from knltrain.layers import BatchNorm, Conv2d
from knltrain.optim.options import RULES

DECIDES = {  # what is learned
    "optim.variant": [*RULES],
    "optim.trust_coefficient": [0, 0.01],
    "optim.nesterov": ["true", "false"],
    "optim.weight_decay": [0, 1e-3],
    "optim.decay_bias_and_norm": ["true", "false"],
    "optim.end_momentum": [0, 0.5],
    "optim.average": [0, 0.9],
    "optim.label_smoothing": [0, 0.1],
    "schedule.policy": ["poly", "cosine", "constant"],
    "schedule.warmup_epochs": [0, 0.5, 1],
    "compute.precision": ["fp32", "bf16", "fp16"],
    "comm.fc_shards": [1, 4],
    "comm.wire": ["auto", "fp32"],
}
FREE = {
    "comm.algorithm": ["auto", *ALGORITHMS],
    "comm.fc": FC,
    "comm.fc_group": [0, 2],
    "comm.bucket_bytes": [0, 2000, 1 << 20],
    "comm.overlap": ["true", "false"],
    "comm.shard_update": ["true", "false", "false"],
    "comm.pretended_nodes": [0, 2, 3],
}


def _draw(chance, keys):
    return [f"{name}={chance.choice(values)}" for name, values in keys.items()]


def _train(comm, slots, settings):
    """With all kinds of layers. Raises ValueError: the recipe is refused."""
    return train(comm, slots, settings, stem=lambda: [Conv2d("conv", 16, 3, pad=1), BatchNorm("norm", relu=True)])


def _several(chance, slots, settings):
    """What each rank has learned, in a random way; nothing where that is refused."""
    ranks, free = chance.choice([2, 3]), _draw(chance, FREE)
    layout = chance.choice([(), (1, ranks - 1)])
    try:
        return (ranks, layout, free), on_ranks(ranks, lambda comm: _train(comm, slots, [*settings, *free]), layout)
    except ValueError:
        return (ranks, layout, free), []


@pytest.mark.parametrize("seed", range(6))
def test_free__settings_ranks_and_nodes_change_no_bit(seed):
    chance, alone, compared = random.Random(seed), None, 0
    while compared < 4:
        if alone is None:
            slots, settings = chance.choice([4, 6, 8, 12]), _draw(chance, DECIDES)
            with contextlib.suppress(ValueError):  # refused: draw again
                alone = _train(Serial(), slots, settings)
            continue
        how, several = _several(chance, slots, settings)
        for found in several:
            compared += 1
            wrong = [name for name, array in alone.items() if not np.array_equal(found[name], array)]
            assert not wrong, f"{how}, {slots} slots, {settings}: {', '.join(wrong)}"
