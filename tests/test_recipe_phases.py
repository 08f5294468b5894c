"""Phases of a run: their steps, rates and refusals by hand; and a run whose batch, pictures and decay change."""

import pytest
from tinyrun import RECIPE, newest_state, same, train, write_recipe

import knltrain as kt
from knltrain.comm import world
from knltrain.evaluate import evaluate_run
from knltrain.recipe.config import RecipeError, at_phase, parse_recipe, resolved
from knltrain.recipe.experiment import check_sizes
from knltrain.recipe.phases import facts_at, leg_of, legs
from knltrain.tell.journal import read_log

IMAGENET = 1_281_167
SURFSARA = """
[model]
name = "resnet50"
[data]
train = "shards"
[batch]
global_batch = 14336
[schedule]
power = 1.0
base_lr = 4.8
start_lr = 0.1
warmup_epochs = 5
[run]
epochs = 90
[[phase]]
from_epoch = 30
batch.global_batch = 28672
[[phase]]
from_epoch = 85
data.augmentation = "crop_flip"
optim.weight_decay = 1e-4
schedule.base_lr = 0.254
schedule.power = 2.0
schedule.warmup_epochs = 0
"""
GROWING = """
[[phase]]
from_epoch = 1.0
batch.global_batch = 8
data.crop = 12
[[phase]]
from_epoch = 3.0
data.augmentation = "none"
data.crop = 16
batch.global_batch = 16
optim.weight_decay = 1e-3
schedule.base_lr = 0.01
schedule.power = 1.0
"""


def test_legs__steps_and_rates_by_hand():
    first, second, third = legs(parse_recipe(SURFSARA), IMAGENET)
    # 89 steps an epoch to epoch 30, 44 to epoch 85 and from there
    assert [(leg.start, leg.stop, leg.first) for leg in (first, second, third)] == [
        (0, 2670, 0), (2670, 5090, 1320), (5090, 5310, 3740),
    ]  # fmt: skip
    assert [first.rate(step) for step in (0, 445, 2669)] == pytest.approx([0.1, 4.8 * 85 / 90, 4.8 * (1 - 2669 / 8010)])
    assert [second.rate(step) for step in (2670, 5089)] == pytest.approx([3.2, 4.8 * (1 - 3739 / 3960)])
    assert [third.rate(step) for step in (5090, 5200)] == pytest.approx([0.254, 0.254 / 4])  # of its own 220 steps
    assert [leg_of([first, second, third], step) for step in (2669, 2670, 5310)] == [first, second, third]
    assert third.recipe.batch.global_batch == 28_672 and third.recipe.data.augmentation == "crop_flip"
    assert str(third.says).startswith("from epoch 85: data.augmentation 'crop_flip'")


def test_legs__end_where_a_run_is_cut_short():
    cut = parse_recipe(SURFSARA, ["run.max_steps=3000"])
    assert [(leg.start, leg.stop) for leg in legs(cut, IMAGENET)] == [(0, 2670), (2670, 3000)]
    assert len(legs(parse_recipe(SURFSARA, ["run.max_steps=9"]), IMAGENET)) == 1


def test_phases__load_back_equal_and_are_inherited_as_a_whole(tmp_path):
    recipe = parse_recipe(SURFSARA)
    assert parse_recipe(resolved(recipe)) == recipe and at_phase(recipe, 0).phases == ()
    (tmp_path / "base.toml").write_text(SURFSARA)
    assert parse_recipe('extends = "base"', folder=tmp_path).phases == recipe.phases
    assert parse_recipe('extends = "base"\nphase = []', folder=tmp_path).phases == ()


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("from_epoch = 0", "the phases begin at 0; expected rising epochs between 0 and run.epochs, 4"),
        ("from_epoch = 4", "the phases begin at 4; expected rising"),
        ("batch.global_batch = 32", "phase 1: from_epoch is ''; expected a number"),
        ("from_epoch = 1\nbatch.global_batch = 6", "phase 1: batch.slot_batch is 4; expected a divisor"),
        ("from_epoch = 1\noptim.momentum = 2", "phase 1: optim.momentum is 2.0; expected less than 1"),
        ("from_epoch = 1\noptim.momentun = 2", "phase 1: unknown key optim.momentun; the nearest"),
        ("from_epoch = 1\ncompute.precision = 'bf16'", "phase 1 sets compute.precision; expected one of data.augm"),
        ("from_epoch = 1\nmodel.width = 2", "phase 1 sets model.args; expected one of"),
    ],
)
def test_phases__are_refused_in_one_line(phase, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe(f"{RECIPE}\n[[phase]]\n{phase}\n")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_phases__a_network_that_hangs_on_the_size_of_pictures_is_refused():
    alexnet = RECIPE.replace('"resnet_cifar8"\nwidth = 8', '"alexnet_bn"').replace("crop = 16", "crop = 227")
    recipe = parse_recipe(alexnet + "[[phase]]\nfrom_epoch = 1\ndata.crop = 195\n")
    with pytest.raises(ValueError, match="data.crop 195 of a phase: fc6.w has another size than at 227; expected"):
        check_sizes([at_phase(recipe, 0), at_phase(recipe, 1)], 10)


def test_facts__of_a_checkpoint_are_those_of_its_phase():
    phases = [[1.0, {"data.crop": 12}], [3.0, {"data.crop": 16, "batch.global_batch": 16}]]
    meta = {"experiment": {"data.crop": 32, "phases": phases}}
    assert [facts_at(meta | {"phase": number})["data.crop"] for number in (0, 1, 2)] == [32, 12, 16]
    assert facts_at(meta)["data.crop"] == 16  # where the file says nothing: as the run ends
    for phases in (5, [1], [[1, 5]], [[1, {}, {}]]):
        with pytest.raises(RecipeError, match="the file has phases .*; expected a list of epochs and keys"):
            facts_at({"experiment": {"phases": phases}})


def test_run__in_phases_goes_on_to_the_bit_on_other_ranks_and_with_a_sharded_update(tmp_path, capsys):
    """3 steps at 16 images and crop 16, 12 at 8 and 12, 3 at 16 and 16: in one go, and cut in the second phase.

    With LAMB and an average, so that every kind of state goes through a phase, a shard, a checkpoint and other ranks.
    """
    write_recipe(tmp_path)
    optim = 'variant = "lamb"\nepsilon = 1e-6\naverage = 0.9\nend_momentum = 0.95'
    (tmp_path / "tiny.toml").write_text(RECIPE.replace('variant = "mlperf"', optim) + GROWING)
    whole = train(tmp_path, "whole")
    assert whole.returncode == 0, whole.stderr
    assert "from epoch 1: data.crop 12, batch.global_batch 8" in whole.stdout + whole.stderr
    part = train(tmp_path, "parts", "--set", "run.max_steps=7", "--set", "comm.shard_update=true", ranks=2)
    assert part.returncode == 0, part.stderr
    assert kt.load(tmp_path / "parts").input_shape == (12, 12, 3)  # of the phase that was trained last
    (phase,) = [record for record in read_log(tmp_path / "parts") if record["kind"] == "phase"]
    assert (phase["step"], phase["global_batch"], phase["slots"], phase["steps_per_epoch"]) == (3, 8, 2, 6)
    (told,) = [record for record in read_log(tmp_path / "parts") if record["kind"] == "evaluation"]
    evaluate_run(tmp_path / "parts", None, [], False, world())
    assert f"top-1 {told['top1']:.2%}" in capsys.readouterr().out
    rest = train(tmp_path, "parts")
    assert rest.returncode == 0, rest.stderr
    state = newest_state(tmp_path, "whole", 18)
    same(state, newest_state(tmp_path, "parts", 18))
    assert {name.partition("/")[0] for name in state} == {"value", "momentum", "second", "average", "running"}
