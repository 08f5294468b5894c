"""knltrain/tools/show.py: the sheets of `knltrain show`, and that a sample drawn is the sample trained on."""

import numpy as np
import pytest
from tinyrun import write_recipe

from knltrain.cli import main
from knltrain.data import DataSet
from knltrain.recipe.config import load_recipe
from knltrain.recipe.experiment import make_augment

pytest.importorskip("matplotlib")

from knltrain.tools import show  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    write_recipe(folder)
    return folder


def drawn(monkeypatch, name):
    """Arguments with which a function of plots is called."""
    calls, real = [], getattr(show, name)

    def spy(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(show, name, spy)
    return calls


def test_show__draws_classes_counts_sizes_and_mean(folder, monkeypatch, capsys):
    calls, png = drawn(monkeypatch, "data_overview"), folder / "a.png"
    assert main(["show", str(folder / "shards"), "--out", str(png)]) == 0
    line = "52 pictures of 3 classes, 17 to 18 each; 20 x 20 pixels (median); mean colour "
    assert line in capsys.readouterr().out and png.read_bytes().startswith(b"\x89PNG")
    rows, counts, sizes, mean, *_ = calls[0]
    data = DataSet(folder / "shards")
    assert [name for name, _ in rows] == ["0", "1", "2"] and counts == {"0": 18, "1": 17, "2": 17}
    own = {bytes(data.image(row).data) for row in range(52) if data.labels[row] == 1}
    assert len(rows[1][1]) == show.COLUMNS and {image.tobytes() for image in rows[1][1]} <= own
    assert (sizes == 20).all()
    assert np.abs(mean - np.mean([data.image(row) for row in range(52)], axis=0)).max() <= 0.5


def test_show__draws_the_samples_that_are_trained_on(folder, monkeypatch, capsys):
    calls, png = drawn(monkeypatch, "contact_sheet"), folder / "b.png"
    arguments = ["--recipe", str(folder / "tiny.toml"), "--out", str(png), "--set", "data.crop=20"]
    assert main(["show", str(folder / "shards"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "10 pictures in 6 epochs\nwarning: data.augmentation crop_flip at crop 20" in out
    rows, _, title, heads = calls[0]
    assert title == "tiny: augmentation crop_flip, crop 20"
    assert heads == ["stored", *(f"epoch {i}" for i in range(6)), "evaluation"]
    data, augment = DataSet(folder / "shards"), make_augment(
        load_recipe(folder / "tiny.toml", ["data.crop=20"]), DataSet(folder / "shards"), "crop_flip"
    )  # fmt: skip
    stored = rows[3][1][0]
    row = next(row for row in range(52) if (data.image(row) == stored).all())
    for epoch in range(6):  # at this crop a sample is the picture or its mirror image
        mirror = augment.window(20, 20, epoch, row).mirror
        assert (rows[3][1][1 + epoch] == (stored[:, ::-1] if mirror else stored)).all()
    assert (rows[3][1][-1] == stored).all()


def test_show__refuses_in_one_line(folder, tmp_path, capsys):
    assert main(["show", str(folder / "nothing")]) == 2
    assert "found no such folder, expected shards" in capsys.readouterr().err
    assert main(["show", str(folder / "shards"), "--out", str(tmp_path / "a.txt")]) == 2
    assert "Format 'txt' is not supported" in capsys.readouterr().err
