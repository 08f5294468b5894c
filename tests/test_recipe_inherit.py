"""knltrain/recipe/inherit.py: what a recipe that extends another is, and what it is refused for."""

import re

import pytest

from knltrain import cli
from knltrain.recipe.config import RecipeError, load_recipe, parse_recipe, resolved
from knltrain.recipe.inherit import published
from knltrain.startup import warm_mark

BASE = """
[model]
name = "resnet_cifar"
depth = 20
[data]
train = "shards/train"
mean = [1, 2, 3]
[optim]
momentum = 0.8
"""


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def refused(path):
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_chain__the_nearest_file_decides_each_key_and_paths_start_at_their_own(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, base=BASE, middle='extends = "base"\n[optim]\nmomentum = 0.7\nnesterov = true\n[run]\nseed = 5')
    leaf = 'extends = "../middle.toml"\n[data]\nval = "v"\nmean = [4, 5, 6]\n[model]\ndepth = 32\n[run]\nseed = 6\n'
    write(tmp_path / "sub", leaf=leaf)
    recipe = load_recipe(tmp_path / "sub" / "leaf.toml", ["run.seed=7"])
    assert (recipe.optim.momentum, recipe.optim.nesterov, recipe.run.seed) == (0.7, True, 7)
    assert recipe.data.train == str(tmp_path / "shards/train") and recipe.data.val == str(tmp_path / "sub/v")
    assert recipe.data.mean == (4, 5, 6) and recipe.model.args == {"depth": 32}
    assert parse_recipe(resolved(recipe)) == recipe  # what a run keeps is whole
    assert "extends" not in resolved(recipe)


def test_chain__another_network_leaves_the_options_of_the_one_before(tmp_path):
    write(tmp_path, base=BASE + "[run]\nseed = 1", other='extends = "base"\n[model]\nname = "davidnet"\nwidth = 8')
    write(tmp_path, back='extends = "other"\n[model]\nname = "resnet_cifar"')
    assert load_recipe(tmp_path / "other.toml").model.args == {"width": 8}
    back = load_recipe(tmp_path / "back.toml")
    assert back.model.args == {} and back.run.seed == 1


def test_chain__a_published_recipe_by_name_unless_one_lies_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, mine='extends = "resnet50_8k_sgd"\n[batch]\nslot_batch = 64')
    mine, theirs = load_recipe("mine.toml"), load_recipe("resnet50_8k_sgd")
    assert mine.batch.slot_batch == 64 and mine.schedule == theirs.schedule and mine.data == theirs.data
    write(tmp_path, resnet50_8k_sgd=BASE)
    assert load_recipe("mine.toml").optim.momentum == 0.8
    assert load_recipe(published()["resnet50_8k_sgd"]) == theirs  # a published one never looks here


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("itself", "extends goes in a circle, itself -> itself; expected an end"),
        ("ring", "extends goes in a circle, ring -> ring2 -> ring3 -> ring2; expected an end"),
        ("typo", "extends 'resnet50_8k_sdg', which is unknown; .* did you mean the published resnet50_8k_sgd"),
        ("far", "nowhere.toml: No such file"),
        ("number", "extends is 3; expected the name of a recipe"),
        ("table", "extends is {'name': 1}; expected the name"),
        ("wrong", "broken.toml: unknown key optim.momentun; the nearest known one is optim.momentum"),
        ("behind", "broken2.toml: not valid TOML"),
        ("null", "extends is .*; expected the name of a recipe"),
    ],
)
def test_chain__is_refused_in_one_line(tmp_path, name, words):
    files = {"itself": 'extends = "itself"', "ring": 'extends = "ring2"', "ring2": 'extends = "ring3.toml"'}
    files |= {"ring3": 'extends = "./ring2.toml"', "typo": 'extends = "resnet50_8k_sdg"', "number": "extends = 3"}
    files |= {"far": 'extends = "nowhere.toml"', "table": "[extends]\nname = 1", "null": 'extends = "a\\u0000b"'}
    files |= {"wrong": 'extends = "broken"', "broken": BASE + "momentun = 1"}
    files |= {"behind": 'extends = "broken2"', "broken2": "[optim"}
    write(tmp_path, **files)
    assert re.search(words, refused(tmp_path / f"{name}.toml"))


def test_show__prints_a_recipe_whole_with_where_each_key_is_from(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(write(tmp_path, base=BASE, child='extends = "base"\n[optim]\nnesterov = true'))
    assert cli.main(["recipes", "--show", "child.toml", "--set", "run.seed=3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# child extends base\n[model]\n")
    lines = {line.split(" = ")[0]: line.rpartition("# ")[2] for line in text.splitlines() if " = " in line}
    assert (lines["depth"], lines["momentum"], lines["nesterov"]) == ("base", "base", "child")
    assert (lines["seed"], lines["weight_decay"]) == ("--set", "default")
    assert parse_recipe(text) == load_recipe("child.toml", ["run.seed=3"])
    assert cli.main(["recipes", "--show", "resnet50_32k_lasr"]) == 2
    assert "did you mean the published resnet50_32k_lars" in capsys.readouterr().err


def test_warm_mark__changes_with_what_is_extended(tmp_path):
    write(tmp_path, base=BASE, child='extends = "base"')
    before = warm_mark(tmp_path, tmp_path / "child.toml")
    write(tmp_path, base=BASE.replace("20", "32"))
    assert warm_mark(tmp_path, tmp_path / "child.toml") != before
