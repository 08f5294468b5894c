"""What a recipe calls free changes no bit: random recipes on one rank, and on several in random ways of exchanging."""

import random
from contextlib import closing, suppress

import numpy as np
import pytest
from ranks import on_ranks
from rehearsal_ranks import made, train

from knltrain.comm import ALGORITHMS, FC, Serial
from knltrain.layers import BatchNorm, Conv2d
from knltrain.models.state import state
from knltrain.optim.options import RULES
from knltrain.run.restart import Restart

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


def _stem():
    """With the layers behind it, there are all kinds."""
    return [Conv2d("conv", 16, 3, pad=1), BatchNorm("norm", relu=True)]


def _train(comm, slots, settings):
    """Raises ValueError: the recipe is refused."""
    return train(comm, slots, settings, stem=_stem)


def _go_on(comm, slots, settings, folder, until, speeds=()):
    """From the checkpoint in a folder, if there is one, to one of step `until`, and what is learned by then."""
    with (
        closing(made(comm, slots, settings, stem=_stem)) as trainer,
        closing(Restart(folder, trainer, comm, {}, trainer.parts.leg.recipe.run, lambda line: None)) as restart,
    ):
        try:
            restart.restore("auto")
        except ValueError as error:  # is no refusal of the recipe, after which another way is drawn
            raise AssertionError(f"no way back: {error}") from error
        trainer.seek(trainer.done)
        while trainer.done < until:
            trainer.step()
            if speeds:
                trainer.share(speeds[: comm.size])
        restart.save(until)
        restart.leave(until)
        trainer.parts.update.complete()
        return {name: array.copy() for name, array in state(trainer.model.parameters).items()}


def _several(chance, slots, settings, work=_train, *more):
    """What `work` finds on each rank, in a random way; nothing where that is refused."""
    ranks, free = chance.choice([2, 3]), _draw(chance, FREE)
    layout = chance.choice([(), (1, ranks - 1)])
    try:
        found = on_ranks(ranks, lambda comm: work(comm, slots, [*settings, *free], *more), layout)
    except ValueError:
        found = []
    return (ranks, layout, free), found


@pytest.mark.parametrize("seed", range(6))
def test_free__settings_ranks_and_nodes_change_no_bit(seed):
    chance, alone, compared = random.Random(seed), None, 0
    while compared < 4:
        if alone is None:
            slots, settings = chance.choice([4, 6, 8, 12]), _draw(chance, DECIDES)
            with suppress(ValueError):  # refused: draw again
                alone = _train(Serial(), slots, settings)
            continue
        how, several = _several(chance, slots, settings)
        for found in several:
            compared += 1
            wrong = [name for name, array in alone.items() if not np.array_equal(found[name], array)]
            assert not wrong, f"{how}, {slots} slots, {settings}: {', '.join(wrong)}"


@pytest.mark.parametrize("seed", range(6))
def test_free__a_run_that_stops_goes_on_elsewhere_to_the_bit(seed, tmp_path):
    chance, alone = random.Random(seed), None
    for folder in ("alone", "several"):
        (tmp_path / folder).mkdir()
    while alone is None:
        slots, settings = chance.choice([6, 12]), [*_draw(chance, DECIDES), "run.epochs=2.0"]
        with suppress(ValueError):
            alone = _go_on(Serial(), slots, settings, tmp_path / "alone", 4)
    ways = []
    for until in (chance.choice([1, 2]), 3, 4):
        several = []
        while not several:
            speeds = chance.choice([(), [1.0, 2.0, 1.0]])
            how, several = _several(chance, slots, settings, _go_on, tmp_path / "several", until, speeds)
        ways.append((until, how, speeds))
    for found in several:
        wrong = [name for name, array in alone.items() if not np.array_equal(found[name], array)]
        assert not wrong, f"{ways}, {slots} slots, {settings}: {', '.join(wrong)}"
