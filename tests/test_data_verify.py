"""knltrain/data/verify.py. That damage gives an error or a report, never a wrong picture, is in fuzz_files.py."""

import doctest
import io

import h5py
import numpy as np
import pytest
from PIL import Image

import knltrain.claims.text
from knltrain.data import Augment, DataSet, ShardError, read_mean_image
from knltrain.data.decode import DecodeError
from knltrain.data.mean import write_mean
from knltrain.data.shards import Row, finish_shard, write_shard
from knltrain.data.verify import summarize, verify

ROWS = 6


def test_text__counts_as_its_examples_do():
    results = doctest.testmod(knltrain.claims.text)
    assert results.failed == 0 < results.attempted


def write(folder, encoding, shards=2):
    random = np.random.default_rng(0)
    folder.mkdir()
    for s in range(shards):
        rows = []
        for i in range(ROWS):
            data = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            data = data if encoding == "raw" else data.tobytes()[: 20 + i]
            rows.append(Row(data, i % 3, f"class{i % 3}/{s}-{i}.jpg"))
        path = folder / f"shard-{s:05d}.h5"
        classes, skipped = [f"class{c}" for c in range(3)], ["class0/bad.jpg: empty file"] if s else []
        write_shard(path, rows, encoding=encoding, size=4, class_names=classes, plan="p", skipped=skipped)
        finish_shard(path, path, shards * ROWS, s * ROWS)
    return folder


def contents(folder):
    data = DataSet(folder)
    return [(data.class_names[data.labels[row]], data.name(row), bytes(data.read(row))) for row in range(len(data))]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_verify__finds_nothing_in_whole_shards(tmp_path, encoding):
    stream = io.StringIO()
    assert verify(write(tmp_path / "d", encoding), threads=2, report=stream) == 0
    assert "12 rows in 2 shards" in stream.getvalue() and "all checksums agree" in stream.getvalue()


def test_verify__names_every_problem(tmp_path):
    folder = write(tmp_path / "d", "raw", shards=4)
    rows = contents(folder)
    for shard, row in ((0, 2), (0, 5), (1, 9)):
        path = folder / f"shard-{shard:05d}.h5"
        path.write_bytes(path.read_bytes().replace(rows[row][2], bytes(48)))
    (folder / "shard-00002.h5").write_bytes(b"nothing")
    (folder / "shard-00009.partial").touch()
    stream = io.StringIO()
    assert verify(folder, threads=3, report=stream) == 2
    text = stream.getvalue()
    for name in ("row 2 (class2/0-2.jpg)", "row 5 (class2/0-5.jpg)", "row 9 (class0/1-3.jpg)", "shard-00002.h5"):
        assert name in text
    assert "1 unfinished shards" in text and "5 problems" in text


def test_verify__decodes_where_asked(tmp_path):
    def jpeg(side):
        out = io.BytesIO()
        Image.new("RGB", (side, 40), (200, 30, 30)).save(out, "JPEG")
        return out.getvalue()

    whole = jpeg(32)
    at = whole.index(b"\xff\xc0") + 5
    claims = whole[:at] + (20_000).to_bytes(2, "big") * 2 + whole[at + 4 :]  # height and width
    rows = [Row(data, 0, f"a/{i}.jpg") for i, data in enumerate([whole, whole[:-40], claims, jpeg(31)])]
    path = tmp_path / "shard-00000.h5"
    write_shard(path, rows, encoding="jpeg", size=32, class_names=["a"])
    finish_shard(path, path, 4)
    stream = io.StringIO()
    assert verify(tmp_path, report=io.StringIO()) == 0
    assert verify(tmp_path, decoding=True, report=stream) == 2
    text = stream.getvalue()
    for problem in ("row 1 (a/1.jpg): found no whole", "row 2 (a/2.jpg): found no whole", "found a short side of 31"):
        assert problem in text
    data, augment = DataSet(tmp_path), Augment("none", 16, (0, 0, 0), (1, 1, 1))
    augment.decode(data.read(0), 0, 0)
    for row, problem in (
        (1, "cut short, no end of image"),
        (2, "20000 x 20000 pixels, more than 89478485 are refused"),
    ):
        with pytest.raises(DecodeError, match=problem):
            augment.decode(data.read(row), 0, row)


def test_names__are_printed_on_one_line(tmp_path):
    name = "bad\nknltrain: packed 10000 images, all is well\x1b[2A\u202e.png"
    path = tmp_path / "shard-00000.h5"
    write_shard(path, [Row(b"x", 0, name)], encoding="jpeg", size=0, class_names=["a\rb"], skipped=[name], plan="\x07")
    finish_shard(path, path, 1)
    stream = io.StringIO()
    verify(tmp_path, decoding=True, report=stream)
    for text, lines in ((stream.getvalue(), 2), (summarize(tmp_path), 8)):
        assert r"bad\nknltrain: packed 10000 images, all is well\x1b[2A\u202e.png" in text
        assert len(text.splitlines()) == lines and all(c.isprintable() for line in text.split("\n") for c in line)


def test_verify__notices_a_missing_shard(tmp_path):
    folder = write(tmp_path / "d", "jpeg", shards=3)
    (folder / "shard-00001.h5").unlink()
    stream = io.StringIO()
    assert verify(folder, report=stream) == 2 and "missing" in stream.getvalue()
    with pytest.raises(ShardError, match="no .*h5 file"):
        verify(tmp_path, report=None)


def test_summarize__says_what_is_there(tmp_path):
    text = summarize(write(tmp_path / "d", "jpeg"))
    parts = ["12 images in 2 shards", "jpeg, short side 4", "20 to 25 bytes", "class0 to class2, 4 images each"]
    assert not [part for part in [*parts, "1 files", "class0/bad.jpg: empty file"] if part not in text]


@pytest.mark.parametrize("threads", [1, 3])
def test_mean__is_that_of_all_pictures(tmp_path, threads):
    data = DataSet(write(tmp_path / "d", "raw"))
    text = write_mean(tmp_path / "d", tmp_path / "mean.npy", threads=threads, report=None)
    expected = np.mean([data.read(row) for row in range(len(data))], axis=0, dtype=np.float64)
    found = read_mean_image(tmp_path / "mean.npy", 4)
    assert found.dtype == np.float32 and np.array_equal(found, expected.astype(np.float32))
    assert f"colour {expected[:, :, 0].mean():.1f}, " in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "mean.npy"]


def test_mean__refuses_what_has_none(tmp_path):
    with pytest.raises(ValueError, match="found jpeg shards, expected raw ones"):
        write_mean(write(tmp_path / "j", "jpeg"), tmp_path / "mean.npy", report=None)
    with pytest.raises(ValueError, match=r"ends in \.npy"):
        write_mean(tmp_path / "j", tmp_path / "mean.png", report=None)
    with pytest.raises(ValueError, match="in a folder that is there"):
        write_mean(tmp_path / "j", tmp_path / "nowhere" / "mean.npy", report=None)
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


@pytest.mark.parametrize("dtype", ["S4", "V4", "i4,f4", "c8", "?", "M8[s]"])
def test_mean__is_of_numbers(tmp_path, dtype):
    path = tmp_path / "mean.npy"
    np.save(path, np.zeros((4, 4, 3), dtype))
    with pytest.raises(ValueError, match="mean.npy: found .*expected a mean picture"):
        read_mean_image(path, 4)


def test_shard__is_what_its_page_says(tmp_path):
    """docs/shards.md, read back with h5py alone."""
    expected = contents(write(tmp_path / "d", "jpeg"))
    with h5py.File(tmp_path / "d" / "shard-00001.h5") as file:
        assert file.attrs["format"].decode() == "knltrain-shard" and file.attrs["version"] == 2
        facts = {name: file.attrs[name].item() for name in ("size", "rows", "first_row", "total_rows")}
        assert facts == {"size": 4, "rows": 6, "first_row": 6, "total_rows": 12}
        assert file["class_names"].asstr()[:].tolist() == ["class0", "class1", "class2"]
        assert file["names"].asstr()[4] == "class1/1-4.jpg"
        offsets = file["offsets"][:]
        row = file["bytes"][offsets[4] : offsets[5]]
        assert bytes(row) == expected[10][2]
        assert file["skipped"].asstr()[:].tolist() == ["class0/bad.jpg: empty file"]
