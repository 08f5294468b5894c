"""Every rule of knltrain/recipe/lint.py: a recipe that it speaks of, and one beside it that it does not."""

import pytest

from knltrain import cli
from knltrain.recipe.config import load_recipe, parse_recipe
from knltrain.recipe.inherit import published
from knltrain.recipe.lint import IMAGENET, RULES, lint

SMALL = """
[model]
name = "resnet_cifar8"
[data]
train = "shards"
crop = 32
[batch]
global_batch = 64
[schedule]
base_lr = 0.1
[run]
epochs = 10
"""
LARS = "optim.trust_coefficient=0.001"
CAFFE = ["optim.variant=caffe2017", "optim.zero_norm=trust", "model.zero_gamma=true"]
NO_EPSILON = ["optim.variant=nus", LARS, "optim.epsilon="]


def rules_of(recipe, images=IMAGENET):
    return {finding.rule for finding in lint(recipe, images)}


@pytest.mark.parametrize(
    ("rule", "name", "wrong", "right"),
    [
        ("rate-without-warmup", "resnet50_8k_sgd", ["schedule.warmup_epochs=0"], []),
        ("rate-without-warmup", "resnet50_4k_lars", ["schedule.warmup_epochs=0"], ["schedule.warmup_epochs=1"]),
        ("decay-on-norm-and-bias", "alexnet_bn_32k_lars", [], ["optim.decay_bias_and_norm=false"]),
        ("zeros-at-raw-rate", "resnet50_32k_lars", ["optim.variant=caffe2017", "schedule.start_lr=0.5"], []),
        ("zeros-at-raw-rate", "resnet50_32k_lars_crop", ["schedule.start_lr=0.5"], []),
        ("gamma-held-at-zero", "resnet50_8k_lars", CAFFE, [*CAFFE, "model.zero_gamma=false"]),
        ("gamma-held-at-zero", "resnet50_8k_lars", CAFFE, [*CAFFE, "optim.variant=mlperf"]),
        ("rate-jump", "alexnet_bn_32k_lars", [], ["schedule.origin=warmup"]),
        ("warmup-too-long", "resnet50_8k_sgd", ["run.epochs=5"], ["run.epochs=5.1"]),
        ("slot-too-small", "resnet50_8k_sgd", ["batch.slot_batch=8"], ["batch.slot_batch=16"]),
        ("slot-too-small", "alexnet_bn", ["batch.slot_batch=8"], ["model.name=alexnet", "batch.slot_batch=8"]),
        ("augmentation-too-weak", "resnet50_32k_lars_crop", [], ["data.augmentation=scale_aspect"]),
        ("epochs-too-few", "resnet50_32k_lars", ["run.epochs=50"], ["run.epochs=56"]),
        ("epochs-too-few", "resnet50_60k_mlperf", ["run.epochs=75"], []),
        ("sgd-beyond-its-batch", "resnet50_8k_sgd", ["batch.global_batch=32768"], []),
        ("sgd-beyond-its-batch", "resnet50_32k_nesterov", ["optim.momentum=0.9"], []),
        ("fp16-without-scale", "alexnet_bn_64k_jia", ["compute.loss_scale=1"], []),
    ],
)
def test_rule__speaks_where_it_should_and_only_there(rule, name, wrong, right):
    assert rule in rules_of(load_recipe(name, wrong))
    assert rule not in rules_of(load_recipe(name, right))


def test_rule__ratio_without_bound_is_of_small_data():
    assert "ratio-without-bound" in rules_of(parse_recipe(SMALL, [*NO_EPSILON[:2], "optim.epsilon=0"]), 5000)
    assert "ratio-without-bound" not in rules_of(parse_recipe(SMALL, [*NO_EPSILON[:2], "optim.epsilon=1e-5"]), 5000)


def test_rule__warmup_too_long_counts_in_epochs_of_the_last_phase():
    grows = "[[phase]]\nfrom_epoch = 2\nbatch.global_batch = 640\nschedule.base_lr = 0.2\n"
    for warmup, spoken in ((0, False), (20, True)):
        recipe = parse_recipe(SMALL + grows + f"schedule.warmup_epochs = {warmup}\n", ["schedule.warmup_epochs=1"])
        assert ("warmup-too-long" in rules_of(recipe, 5000)) == spoken


def test_rules__all_have_a_case_above_and_say_fact_source_and_cure():
    spoken = set()
    for name in published():
        for finding in lint(load_recipe(name)):
            spoken.add(finding.rule)
            assert all(finding) and "\n" not in str(finding) and finding.cure.startswith("set ")
    assert {"rate-jump", "augmentation-too-weak"} <= spoken
    assert not lint(parse_recipe(SMALL), 5000) and len(RULES) == 12


def test_lint__looks_at_phases_too():
    grows = "[[phase]]\nfrom_epoch = 5\nbatch.slot_batch = 4\n"
    assert rules_of(parse_recipe(SMALL), 5000) == set()
    assert rules_of(parse_recipe(SMALL + grows), 5000) == {"slot-too-small"}


def test_command__prints_findings_and_refuses_nonsense(capsys):
    assert cli.main(["lint", "alexnet_bn_32k_lars"]) == 0
    text = capsys.readouterr().out
    assert "alexnet_bn_32k_lars: 2 findings by 12 rules, with 1,281,167 images" in text
    assert "\nrate-jump: the rate jumps from 32 to 25.92 where warm-up ends, after step 400\n  source: " in text
    assert text.count("\n  cure: set ") == 2
    assert cli.main(["lint", "alexnet_bn_32k_lars", "--images", "100"]) == 2
    assert "expected at most 100, the images in" in capsys.readouterr().err
