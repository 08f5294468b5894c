"""Workers that train apart: each as a rank alone would, the mean when they meet, and no bit that depends on ranks."""

from contextlib import closing
from functools import cache

import numpy as np
import pytest
from ranks import ALONE, learned, on_ranks
from tinyrun import newest_state, same, train, write_recipe

from knltrain.assembly import make_trainer
from knltrain.comm import Serial
from knltrain.data.synthetic import Synthetic
from knltrain.recipe.config import RecipeError, parse_recipe

RECIPE = """
[model]
name = "resnet_cifar8"
width = 4
[data]
train = "unused"
crop = 8
[batch]
global_batch = 16
slot_batch = 2
[optim]
variant = "mlperf"
momentum = 0.9
[schedule]
policy = "constant"
[run]
epochs = 4.0
[comm]
workers = 4
[[phase]]
from_epoch = 1.0
optim.local_steps = 3
[[phase]]
from_epoch = 3.0
optim.local_steps = 1
"""
STEPS = 7  # two of all together, four apart, of which the last behind their meeting; then one together


def _trainer(comm, *settings):
    data = Synthetic(32, 12, 3)  # two steps an epoch
    return make_trainer(parse_recipe(RECIPE, settings), data, comm, ALONE)


def _train(comm, *settings, steps=STEPS, speeds=()):
    with closing(_trainer(comm, *settings)) as trainer:
        return learned(trainer, steps, speeds)


@pytest.fixture(scope="module")
def alone():
    return cache(lambda *settings: _train(Serial(), *settings))


@pytest.mark.parametrize(
    ("ranks", "settings", "speeds"),
    [
        (2, [], ()),
        (4, ["comm.pretended_nodes=2"], ()),
        (3, ["comm.algorithm=direct", "comm.bucket_bytes=4000"], ()),
        (3, ["comm.overlap=false"], [1.0, 1.0, 4.0]),
        (4, ["comm.pretended_nodes=4", "comm.wire=int8"], ()),
    ],
)
def test_local__any_number_of_ranks_trains_the_same(alone, ranks, settings, speeds):
    expected = alone(*(setting for setting in settings if "wire" in setting))
    for result in on_ranks(ranks, lambda comm: _train(comm, *settings, speeds=speeds)):
        same(result, expected)


def test_local__workers_differ_until_they_meet_but_in_momentum():
    with closing(_trainer(Serial())) as trainer:
        trainer.seek(0)
        for _ in range(2):
            trainer.step()
        begun, moved = trainer.model.parameters.value.copy(), []
        for _ in range(3):
            trainer.step()
            moved.append(trainer.parts.update.weights.copy())
        momenta = trainer.parts.update.momenta.copy()
    assert all(not np.array_equal(moved[0][0], moved[0][worker]) for worker in (1, 2, 3))
    assert all(np.array_equal(moved[2][0], moved[2][worker]) for worker in (1, 2, 3))  # they met
    assert not np.array_equal(momenta[0], momenta[1])  # these did not
    assert not np.array_equal(begun, moved[2][0])


def test_local__the_first_step_apart_is_the_update_by_own_gradients():
    """SGD without momentum and decay: the mean of the workers moves as all together would."""
    settings = ["optim.momentum=0.0", "optim.weight_decay=0.0"]
    apart = _train(Serial(), *settings, steps=3)
    with closing(_together(*settings)) as trainer:
        together = learned(trainer, 3)
    for name in (name for name in together if name.startswith("value/")):
        np.testing.assert_allclose(apart[name], together[name], rtol=1e-5, atol=1e-7)


def _together(*settings):
    alone = RECIPE.partition("[[phase]]")[0]
    return make_trainer(parse_recipe(alone, ["comm.workers=0", *settings]), Synthetic(32, 12, 3), Serial(), ALONE)


def test_local__with_one_worker_is_training_as_ever():
    """The mean of one is itself, and one worker's gradient is that of all."""
    one = _train(Serial(), "comm.workers=1")
    with closing(_together()) as trainer:
        ever = learned(trainer, STEPS)
    same({name: array for name, array in one.items() if not name.startswith("local")}, ever)


def test_local__goes_on_to_the_bit_between_two_meetings_on_other_ranks(tmp_path):
    write_recipe(tmp_path)
    with (tmp_path / "tiny.toml").open("a") as recipe:
        recipe.write("[comm]\nworkers = 2\n[[phase]]\nfrom_epoch = 1.0\noptim.local_steps = 4\n")
    assert train(tmp_path, "whole", "--set", "comm.check_every_steps=5").returncode == 0
    assert train(tmp_path, "parts", "--set", "run.max_steps=5", ranks=2).returncode == 0
    halfway = newest_state(tmp_path, "parts", 5)
    assert not np.array_equal(*halfway["local/fc.w"])
    assert np.array_equal(halfway["value/fc.w"], halfway["local/fc.w"].sum(axis=0) / 2)
    assert train(tmp_path, "parts").returncode == 0
    same(newest_state(tmp_path, "parts"), newest_state(tmp_path, "whole"))


def test_local__half_a_worker_on_a_rank_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="rank 0 of 8 runs slots 0 to 0; expected whole workers of 2 slots .* most 4"):
        on_ranks(8, _trainer)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("comm.workers=0", "phase 1: comm.workers is 0; expected with optim.local_steps 3 a power of two"),
        ("comm.shard_update=true", "phase 1: comm.shard_update is True; expected false with optim.local_steps 3"),
        ("optim.average=0.9", "optim.variant, optim.average is"),
        ("compute.precision=fp16", "phase 1: compute.loss_scale is 'auto'; expected auto, and fp32 or bf16, with"),
    ],
)
def test_local__recipes_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(RECIPE, [setting])
    assert message in str(error.value)
