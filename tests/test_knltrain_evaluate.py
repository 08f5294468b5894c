"""Evaluation of a picture together with its mirror image, and of a run on other data."""

import shutil

import numpy as np
import pytest
from PIL import Image
from tinyrun import RECIPE

from knltrain.comm import world
from knltrain.data import Augment, DataSet, Synthetic, pack
from knltrain.evaluate import evaluate, evaluate_run
from knltrain.models import Model, build
from knltrain.models.state import state as state_of
from knltrain.recipe.config import parse_recipe, resolved
from knltrain.recipe.experiment import identity, make_model
from knltrain.run.checkpoint import CheckpointError, save


class Mirrored(Synthetic):
    """The same pictures, seen in a mirror."""

    def image(self, row):
        return np.ascontiguousarray(super().image(row)[:, ::-1])


def test_evaluate__a_picture_and_its_mirror_image_count_alike_where_both_are_asked():
    layers, shape = build("resnet_cifar8", width=8, input_size=16)
    model = Model(layers, shape, 8)
    augment = Augment("none", 16, (127, 127, 127), (60, 60, 60))
    sets = [kind(203, 16, 10, pictures=203) for kind in (Synthetic, Mirrored)]
    plain = [evaluate(model, data, augment, world()) for data in sets]
    both = [evaluate(model, data, augment, world(), mirror=True) for data in sets]
    assert both[0] == both[1] and both[0].images == 203
    assert plain[0] != plain[1]  # or the test would see nothing


def test_evaluate__moved_pictures_count_too():
    layers, shape = build("resnet_cifar8", width=8, input_size=16)
    model, seen = Model(layers, shape, 8), []
    model.infer = lambda: seen.append(model.images.copy()) or np.ones((8, 10), np.float32)
    augment = Augment("none", 16, (127, 127, 127), (60, 60, 60))
    evaluate(model, Synthetic(8, 16, 10), augment, world(), mirror=True, shift=2)
    plain, mirrored, down, down_mirrored, up, _ = seen
    assert np.array_equal(plain[:, :, ::-1], mirrored) and np.array_equal(down[:, :, ::-1], down_mirrored)
    assert np.array_equal(down[:, 2:, 2:], plain[:, :-2, :-2]) and not down[:, :2].any() and not down[:, :, :2].any()
    assert np.array_equal(up[:, :-2, :-2], plain[:, 2:, 2:]) and not up[:, -2:].any() and not up[:, :, -2:].any()


PACKED = {
    "raw": {"encoding": "raw", "size": 20},
    "warped": {"encoding": "raw", "size": 20, "fit": "warp"},
    "jpeg": {"encoding": "jpeg", "size": 0},
}


# ---- a run's checkpoint on other data ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network of three classes, and its pictures as class folders."""
    folder = tmp_path_factory.mktemp("evaluate")
    random = np.random.default_rng(5)
    for i in range(24):
        path = folder / "photos" / "abc"[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(path)
    recipes = {}
    for name, how in PACKED.items():
        pack(folder / "photos", folder / f"shards-{name}", **how, report=None)
        recipes[name] = parse_recipe(RECIPE.replace("shards", f"shards-{name}"), folder=folder)
        data = DataSet(folder / f"shards-{name}")
        state = state_of(make_model(recipes[name], 3, train=False).parameters)
        (folder / name).mkdir()
        (folder / name / "recipe.toml").write_text(resolved(recipes[name]))
        meta = {"step": 1, "previous_lr": 0.0, "experiment": identity(recipes[name], data)}
        save(folder / name / "checkpoints", 1, state, meta, keep=1)
    shutil.copytree(folder / "raw", folder / "foreign")
    meta["experiment"] = {"data.classes": [["a"], "b", "c"], "data.encoding": "raw", "data.size": 20}
    save(folder / "foreign" / "checkpoints", 2, state, meta, keep=1)
    return folder


@pytest.mark.parametrize("kind", PACKED)
def test_evaluate_run__a_folder_of_pictures_counts_as_its_shards_do(run, capsys, kind):
    evaluate_run(run / kind, None, [], True, world())
    shards = capsys.readouterr().out.splitlines()
    evaluate_run(run / kind, run / "photos", [], True, world())
    photos = capsys.readouterr().out.splitlines()
    assert shards[1:] == photos[1:] and "24 images" in photos[0]
    by_class = [line.split() for line in photos[2:]]
    assert [(words[-1], words[-2]) for words in by_class] == [("a", "8"), ("b", "8"), ("c", "8")]
    top1 = sum(float(words[1].rstrip("%")) for words in by_class) / 3
    assert f"{top1:.1f}" == f"{float(photos[1].split()[1].rstrip('%')):.1f}"


def test_evaluate_run__set_changes_how_it_evaluates(run, capsys):
    plain, mirrored = [], []
    for lines, settings in ((plain, []), (mirrored, ["data.val_mirror=true", "data.val_short_side=40"])):
        evaluate_run(run / "jpeg", None, settings, False, world())
        lines += capsys.readouterr().out.splitlines()[1:]
    assert len(plain) == 1 and plain != mirrored


def test_evaluate_run__names_what_does_not_fit_in_a_folder_of_pictures(run, tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(CheckpointError, match="no word of what pictures it was trained on"):
        evaluate_run(run / "foreign", tmp_path, [], False, world())
    with pytest.raises(ValueError, match="found a folder dog, expected only the 3 classes of the network, a to c"):
        evaluate_run(run / "raw", tmp_path, [], False, world())
    (tmp_path / "dog").rename(tmp_path / "b")
    with pytest.raises(ValueError, match="b/1.png: found no picture .*: take the file away"):
        evaluate_run(run / "raw", tmp_path, [], False, world())
