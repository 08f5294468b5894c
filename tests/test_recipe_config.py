"""Recipes: what is read, what is refused and with which words, and that a resolved recipe reads back equal."""

import dataclasses

import pytest

from knltrain.data.augment import LEVELS, MIRRORS
from knltrain.recipe.config import SECTIONS, RecipeError, load_recipe, parse_recipe, resolved, rules
from knltrain.recipe.derived import derive

SMALL = """
[model]
name = "resnet"
depth = 20
widths = [16, 32]
[data]
train = "shards/train"
[batch]
global_batch = 128
[schedule]
base_lr = 2
milestones = [30, 60.5]
"""


def refused(text, *overrides) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, overrides, source="small.toml")
    message = str(error.value)
    assert "\n" not in message
    return message


def test_recipe__defaults_then_recipe_then_overrides():
    recipe = parse_recipe(SMALL, ["batch.global_batch=64", "optim.nesterov=true", "optim.variant=nus"])
    assert recipe.run.epochs == 90 and recipe.schedule.base_lr == 2.0
    assert recipe.batch.global_batch == 64 and recipe.optim.nesterov is True and recipe.optim.variant == "nus"
    assert isinstance(recipe.schedule.base_lr, float)
    assert recipe.schedule.milestones == (30.0, 60.5)


def test_recipe__model_takes_free_arguments():
    recipe = parse_recipe(SMALL, ["model.depth=50", "model.stem=small", "model.bn=false"])
    assert recipe.model.args == {"depth": 50, "widths": [16, 32], "stem": "small", "bn": False}
    assert "model.when is" in refused(SMALL + "[model.when]\nx = 1")


def test_recipe__paths_start_at_the_recipe_and_overrides_at_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "small.toml"
    path.write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path, ["data.val=2024"])
    assert recipe.data.train == str(tmp_path / "recipes" / "shards" / "train")
    assert recipe.data.val == str(tmp_path / "2024")


def test_recipe__is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_recipe(SMALL).run.seed = 3


def test_recipe__unknown_names_get_the_nearest():
    unknown = "unknown key optim.moment; the nearest known one is optim.momentum"
    assert refused(SMALL + "[optim]\nmoment = 0.9") == f"small.toml: {unknown}"
    assert refused(SMALL, "optim.moment=0.9") == f"--set optim.moment=0.9: {unknown}"
    assert refused(SMALL, "optim.base_lr=2").endswith("the nearest known one is schedule.base_lr")
    assert "unknown section [sched]; the nearest known one is [schedule]" in refused(SMALL + "[sched]")
    assert "the nearest known one is run.epochs" in refused("epochs = 3" + SMALL)
    assert "expected section.key=value" in refused(SMALL, "epochs")


@pytest.mark.parametrize(
    "override, words",
    [
        ("run.epochs=many", "run.epochs is 'many'; expected a number"),
        ("run.seed=1.5", "run.seed is 1.5; expected a whole number"),
        ("run.seed=true", "run.seed is True; expected a whole number"),
        ("optim.nesterov=1", "optim.nesterov is 1; expected true or false"),
        ("data.mean=3", "data.mean is 3; expected a list of numbers"),
        ("data.mean=[1, 'x', 2]", "data.mean is 'x'; expected a number"),
        ("data.mean=[1, 2]", "expected a list of 3 numbers"),
        ("data.std=[1, 0, 2]", "expected more than 0"),
        ("data.train=''", "data.train is ''; expected a name"),
        ("batch.slot_batch=48", "batch.slot_batch is 48; expected a divisor of batch.global_batch, 128"),
        ("batch.slot_batch=0", "expected more than 0"),
        ("optim.momentum=1", "optim.momentum is 1.0; expected less than 1"),
        ("optim.weight_decay=-1", "optim.weight_decay is -1.0; expected 0 or more"),
        ("optim.variant=lars", "expected one of caffe2017, mlperf, larc_clip, larc_scale, nus"),
        ("optim.end_momentum=1", "optim.end_momentum is 1.0; expected less than 1"),
        ("optim.beta2=1", "optim.beta2 is 1.0; expected less than 1"),
        ("schedule.policy=exp", "schedule.policy is 'exp'; expected one of poly, step, cosine, constant"),
        ("schedule.warmup=cubic", "expected one of linear, quadratic"),
        ("schedule.base_lr=nan", "expected a finite number"),
        ("schedule.milestones=[9, 3]", "expected rising epochs"),
        ("run.seed=9223372036854775808", "expected at most 9223372036854775807"),
        ("data.prefetch=0", "data.prefetch is 0; expected more than 0"),
        ("data.prefetch=65", "data.prefetch is 65; expected at most 64"),
        ("data.reader_threads=257", "data.reader_threads is 257; expected at most 256"),
        ("data.min_area=1.5", "data.min_area is 1.5; expected at most 1"),
        ("run.epochs=1e308", "run.epochs is 1e+308; expected at most 1000000"),
        ("run.epochs=inf", "run.epochs is inf; expected a finite number"),
        (f"run.epochs={'9' * 400}", "run.epochs is inf; expected a finite number"),
        (f"run.max_steps={'9' * 400}", "expected at most 1000000000"),
        (f"run.max_steps={'9' * 5000}", "expected a whole number"),
        (f"run.max_steps=0x{'f' * 5000}", "run.max_steps is 0xffff"),
        (f"data.pad={10**30}", "expected at most 1024"),
        (f"data.mean={'[' * 3000}", "expected a list of numbers"),
        ("data.val=~no_such_user/x", "data.val is '~no_such_user/x'; expected a path"),
        ("data.val=\udcff", "expected a path ('utf-8' codec"),
        ('data.val="\\u0000"', "expected a path (embedded null byte)"),
    ],
)
def test_recipe__wrong_values_say_what_was_expected(override, words):
    assert words in refused(SMALL, override)


def test_recipe__correction_needs_its_variant():
    words = refused(SMALL, "optim.variant=nus", "optim.momentum_correction=true")
    asked = "--set optim.momentum_correction=true: "  # not small.toml, which says nothing of it
    assert words.startswith(f"{asked}optim.momentum_correction is True; expected false")
    assert refused(SMALL, "run.epochs=-1").startswith("--set run.epochs=-1: run.epochs is -1.0; expected")


def test_recipe__says_what_is_missing_or_unreadable(tmp_path):
    assert refused("[data]\ntrain = 'x'") == "small.toml: model.name is missing; add it under [model]"
    for broken in ("[model\n", f"[run]\nseed = {'[' * 3000}", f"[run]\nseed = {'9' * 5000}"):
        assert "small.toml: not valid TOML" in refused(broken)
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "binary.toml")


def test_resolved__loads_back_equal(tmp_path):
    overrides = ["optim.weight_decay=1e-5", "schedule.end_lr=1e-7", "run.epochs=2.5"]
    recipe = parse_recipe(SMALL, overrides, folder=tmp_path / 'a "quoted" \\ földer\x7f')
    odd = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, args={"odd key": [1, "x\n", True]}))
    for original in (recipe, odd):
        (tmp_path / "resolved.toml").write_text(resolved(original), encoding="utf-8")
        assert load_recipe(tmp_path / "resolved.toml") == original


def test_resolved__names_every_key():
    text = resolved(parse_recipe(SMALL))
    for section in SECTIONS.values():
        for key in dataclasses.fields(section):
            assert key.name == "args" or f"\n{key.name} = " in text


def test_derive__steps_slots_and_schedule():
    overrides = ["run.epochs=100", "schedule.warmup_epochs=10", "batch.slot_batch=64", "batch.global_batch=32768"]
    derived = derive(parse_recipe(SMALL, overrides), 1_281_167)
    assert (derived.slots, derived.steps_per_epoch, derived.total_steps) == (512, 39, 3900)
    assert (derived.rate.total_steps, derived.rate.warmup_steps) == (3900, 390)
    assert derived.evaluate_every_steps == derived.checkpoint_every_steps == 39
    assert [derived.rate.steps(epoch) for epoch in derived.rate.schedule.milestones] == [1170, round(60.5 * 39)]
    assert derived.rate(390) == pytest.approx(2 * 0.81)


def test_derive__max_steps_ends_the_run_and_keeps_the_schedule():
    whole, short = (derive(parse_recipe(SMALL, o), 1280) for o in ([], ["run.max_steps=7"]))
    assert (whole.total_steps, short.total_steps) == (900, 7)
    assert whole.rate == short.rate


def test_derive__the_shorter_checkpoint_interval_counts():
    def every(steps, epochs):
        overrides = [f"run.checkpoint_every_steps={steps}", f"run.checkpoint_every_epochs={epochs}"]
        return derive(parse_recipe(SMALL, overrides), 1280).checkpoint_every_steps

    assert [every(0, 0), every(25, 0), every(0, 0.5), every(7, 1), every(25, 1)] == [0, 25, 5, 7, 10]


def test_recipe__that_names_no_optimizer_is_sgd_with_momentum():
    bare = parse_recipe('[model]\nname = "davidnet"\n[data]\ntrain = "t"\n').optim
    assert (bare.trust_coefficient, bare.momentum, bare.nesterov) == (0.0, 0.9, False)


def test_derive__too_few_images():
    with pytest.raises(RecipeError, match="batch.global_batch is 128; expected at most 100, the images in "):
        derive(parse_recipe(SMALL), 100)


def test_choices__are_those_of_the_augmentation():
    choices = {name: rule.one_of for name, rule in rules().items()}
    assert choices["data.augmentation"] == LEVELS and choices["data.mirror"] == MIRRORS
