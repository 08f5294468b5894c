"""recipe/starter.py writes recipes that train as they are; `misfits` says where recipe and shards do not fit."""

import numpy as np
import pytest

from knltrain.cli import main
from knltrain.data import DataSet
from knltrain.data.shards import Row, finish_shard, write_shard
from knltrain.recipe.config import load_recipe, parse_recipe
from knltrain.recipe.experiment import misfits
from knltrain.recipe.starter import write_starter


def shards(folder, size=8, rows=40, classes=2, encoding="raw"):
    """Pictures of noise around (200, 100, 50)."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).normal((200, 100, 50), 10, (rows, size, size, 3)).clip(0, 255).astype(np.uint8)
    if encoding == "jpeg":
        pytest.importorskip("PIL.Image")
        from knltrain.data.decode import encode_jpeg

        pixels = [encode_jpeg(one) for one in pixels]
    data = [Row(one, i % classes, f"{i}") for i, one in enumerate(pixels)]
    write_shard(folder / "a", data, encoding=encoding, size=size, class_names=[f"c{i}" for i in range(classes)])
    finish_shard(folder / "a", folder / "a.h5", rows)
    return folder


CASES = [(8, 3, "raw", "resnet_cifar20", 8), (64, 20, "raw", "resnet_cifar20", 56), (101, 16, "jpeg", "resnet18", 88)]
CASES += [(256, 9, "jpeg", "resnet18", 224), (300, 2, "raw", "resnet18", 224)]


@pytest.mark.parametrize("size, rows, encoding, model, crop", CASES)
def test_init__writes_a_recipe_that_fits(tmp_path, size, rows, encoding, model, crop):
    train = shards(tmp_path / "train", size, rows, encoding=encoding)
    said = write_starter(train, None, tmp_path / "recipes.toml")
    recipe = load_recipe(tmp_path / "recipes.toml")
    assert (recipe.model.name, recipe.data.crop, recipe.data.train, recipe.data.val) == (model, crop, str(train), "")
    assert f"knltrain train {tmp_path}/recipes.toml" in said
    np.testing.assert_allclose(recipe.data.mean, (200, 100, 50), atol=2)
    np.testing.assert_allclose(recipe.data.std, (10, 10, 10), atol=4)
    assert misfits(recipe, DataSet(train), DataSet(train)) == []


def test_init__writes_a_recipe_that_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / 'a "b" #c' / "train"), shards(tmp_path / 'a "b" #c' / "val", rows=6)
    assert main(["init", 'a "b" #c/train']) == 0
    assert load_recipe("recipe.toml").data.val == str(tmp_path / 'a "b" #c' / "val")
    assert main(["init", 'a "b" #c/train']) == 2 and "recipe.toml: found a file" in capsys.readouterr().err
    assert main(["train", "recipe.toml", "--set", "run.max_steps=2"]) == 0


@pytest.mark.parametrize(
    "keys, expected",
    [
        ("crop = 8\naugmentation = 'none'", []),
        ("crop = 9\naugmentation = 'none'", ["data.crop 9 is larger than the 8 pixels stored in "]),
        ("crop = 8\nshort_side = 7\naugmentation = 'none'", ["data.crop 8 is larger than data.short_side 7"]),
        ("crop = 8", ["crop_flip at crop 8, as large as the pictures, only mirrors"]),
        ("crop = 8\npad = 1", []),
        ("crop = 7\naugmentation = 'scale_aspect'", ["holds squares of 8 pixels: what packing cut off is never seen"]),
    ],
)
def test_misfits__are_named(tmp_path, keys, expected):
    data = DataSet(shards(tmp_path / "train"))
    recipe = parse_recipe(f"[model]\nname = 'resnet50'\n[data]\ntrain = 'x'\n{keys}")
    found = misfits(recipe, data, data)
    assert len(found) == len(expected) and all(part in line for part, line in zip(expected, found, strict=True))
    assert all(line.startswith("warning: ") for line in found)
