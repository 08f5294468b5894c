"""The published recipes: by name, wherever one stands, and listed."""

from pathlib import Path

import pytest

from knltrain import cli
from knltrain.recipe.config import RecipeError, load_recipe
from knltrain.recipe.inherit import published

ROOT = Path(__file__).resolve().parents[1]


def test_recipes__are_listed_with_a_line_each(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "jobs/recipes").glob("*.toml"))
    assert all(40 < len(line) <= 150 for line in lines)


def test_recipe__is_found_by_name_with_paths_relative_to_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("resnet50_32k_lars").batch == load_recipe(published()["resnet50_32k_lars"]).batch
    assert load_recipe("resnet50_32k_lars").data.train == str(tmp_path / "shards/imagenet/train")
    Path("resnet50_32k_lars").write_text("[model]\n")  # a file of that name comes first
    with pytest.raises(RecipeError, match="model.name is missing"):
        load_recipe("resnet50_32k_lars")


def test_recipe__misspelt_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean the published resnet50_32k_lars"):
        load_recipe("resnet50_32k_lasr")
