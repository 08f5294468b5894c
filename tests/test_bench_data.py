"""knltrain/bench/data.py and feed.py: what they print is what a number needs beside it; no time is asserted."""

import json

import numpy as np
import pytest

from knltrain.bench import data, feed
from knltrain.data.shards import Row, finish_shard, write_shard


@pytest.fixture
def shards(tmp_path):
    """A raw and a jpeg folder of 40 pictures each."""
    pytest.importorskip("PIL.Image")
    from knltrain.data.decode import encode_jpeg

    random = np.random.default_rng(0)
    for encoding in ("raw", "jpeg"):
        pictures = random.integers(0, 256, (40, 48, 48, 3), dtype=np.uint8)
        rows = [Row(p if encoding == "raw" else encode_jpeg(p), i % 2, f"{i % 2}/{i}") for i, p in enumerate(pictures)]
        (tmp_path / encoding).mkdir()
        path = tmp_path / encoding / "shard-00000.h5"
        write_shard(path, rows, encoding=encoding, size=48, class_names=["0", "1"])
        finish_shard(path, path, 40)
    return tmp_path


def test_data__measures_every_combination(shards, capsys):
    folders = [shards / "raw", shards / "jpeg"]
    data.run(folders, levels=("crop_flip", "color"), threads=(1, 2), crop=32, seconds=0.05, as_json=True)
    records = json.loads(capsys.readouterr().out)
    keys = [(r["encoding"], r["augmentation"], r["threads"]) for r in records]
    assert keys == [(e, a, t) for e in ("raw", "jpeg") for a in ("crop_flip", "color") for t in (1, 2)]
    for record in records:
        assert record["images_per_s"] > 0 and record["mb_per_s"] > 0
        assert abs(sum(record[f"{name}_share"] for name in ("read", "decode", "augment")) - 1) < 1e-6
        is_jpeg = record["encoding"] == "jpeg"
        for key in ("decoder_alone_images_per_s", "share_of_decoder", "pillow_images_per_s", "share_of_pillow"):
            assert (record[key] is not None) == is_jpeg and (not is_jpeg or record[key] > 0)


def test_data__prints_a_table(shards, capsys):
    data.run([shards / "jpeg"], levels=("none",), threads=(1,), crop=32, seconds=0.05)
    machine, head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["encoding", "augmentation", "threads"] and line.split()[:3] == ["jpeg", "none", "1"]


def test_data__draws_photos_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("PIL.Image")
    monkeypatch.setattr(data, "PHOTOS", 34)
    records = data.run(levels=("none",), threads=(1,), seconds=0.05, as_json=True)
    assert [record["encoding"] for record in records] == ["raw", "jpeg"]


def test_feed__opens_as_many_shards_as_it_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feed, "ROWS", 100)
    monkeypatch.setattr(feed, "SHARDS", 7)
    monkeypatch.setattr(feed, "CLASSES", 5)
    feed.index(tmp_path / "many")
    feed.index(tmp_path / "many")
    assert capsys.readouterr().out.count("100 rows in 7 shards opened in") == 2


def test_feed__packs_as_much_as_the_bare_loop_reads(tmp_path, monkeypatch, capsys):
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(feed, "COPIES_SECONDS", 0.1)
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (60, 40), (i, 0, 0)).save(tmp_path / "tree" / "a" / f"{i}.jpg")
    assert feed.packing(tmp_path / "tree", ranks=1) > 0
    assert "bare loop, 1 threads" in capsys.readouterr().out
