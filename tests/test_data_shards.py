"""knltrain/data/shards.py: what a damaged or foreign file gets."""

import h5py
import numpy as np
import pytest
from tinyrun import RECIPE

from knltrain.data import DataSet, ShardError, files
from knltrain.data.shards import Row, Shard, finish_shard, write_shard
from knltrain.recipe.config import parse_recipe
from knltrain.recipe.experiment import identity


def write(folder, *, rows=20, shards=2, encoding="raw", size=4, last="class2", seed=0, plan=""):
    random = np.random.default_rng(seed)
    folder.mkdir()
    per = rows // shards
    for s in range(shards):
        content = []
        for i in range(per):
            data = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            data = data if encoding == "raw" else data.tobytes()[: 10 + i]
            content.append(Row(data, (s * per + i) % 3, f"class{(s * per + i) % 3}/é{s * per + i}.jpg"))
        path = folder / f"shard-{s:05d}.h5"
        names = ["class0", "class1", last]
        write_shard(path, content, encoding=encoding, size=size, first_row=s * per, class_names=names, plan=plan)
        finish_shard(path, path, rows)
    return folder


def change(path, name, value):
    with h5py.File(path, "r+") as file:
        if name in file.attrs:
            file.attrs[name] = value
        else:
            del file[name]
            if value is not None:
                file.create_dataset(name, **value)


def one_line(info):
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_dataset__reads_what_was_written(tmp_path, encoding):
    data = DataSet(write(tmp_path / "d", encoding=encoding))
    assert (data.n_rows, data.encoding, data.page_rows) == (20, encoding, 1)
    np.testing.assert_array_equal(data.labels, np.arange(20) % 3)
    assert data.name(13) == "class1/é13.jpg"
    assert data.read(13).shape == ((4, 4, 3) if encoding == "raw" else (13,))
    data.advise(np.arange(3, 17))
    with pytest.raises(IndexError, match="row 20"):
        data.read(20)


def test_dataset__digest_is_of_the_rows_and_not_of_the_place(tmp_path):
    first, moved = (DataSet(write(tmp_path / name)) for name in "ab")
    others = [DataSet(write(tmp_path / "c", seed=1)), DataSet(write(tmp_path / "d", plan="another"))]
    assert first.digest == moved.digest
    assert [other.n_rows == first.n_rows and other.digest != first.digest for other in others] == [True, True]


def test_identity__counts_the_rows(tmp_path):
    recipe = parse_recipe(RECIPE)
    first, moved, other = (
        identity(recipe, DataSet(write(tmp_path / name, seed=int(name[1])))) for name in ("a0", "b0", "c1")
    )
    assert first == moved and [key for key in first if first[key] != other[key]] == ["data.rows"]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_dataset__finds_every_flipped_byte_of_a_row(tmp_path, encoding):
    folder = write(tmp_path / "d", encoding=encoding)
    path = folder / "shard-00001.h5"
    whole, wanted = path.read_bytes(), bytes(DataSet(folder).read(12))
    at = whole.index(wanted)
    for byte in (at, at + len(wanted) - 1):
        damaged = bytearray(whole)
        damaged[byte] ^= 1
        path.write_bytes(damaged)
        data = DataSet(folder)
        with pytest.raises(ShardError, match=r"shard-00001.h5: row 12 \(class0/é12.jpg\): found checksum") as info:
            data.read(12)
        one_line(info)
        data.read(11), data.read(13)


@pytest.mark.parametrize(
    "name, value",
    [("class_names", b"klass1"), ("names", b"class1/e.jpg"), ("labels", 2), ("checksums", 7), ("offsets", 11)],
)
def test_dataset__finds_changed_metadata(tmp_path, name, value):
    folder = write(tmp_path / "d", encoding="jpeg")
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file[name][1] = value
    with pytest.raises(ShardError, match="shard-00000.h5: found metadata with checksum .* copy or pack") as info:
        DataSet(folder)
    one_line(info)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_dataset__rejects_a_truncated_shard(tmp_path, encoding, share):
    path = write(tmp_path / "d", encoding=encoding) / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ShardError, match="shard-00001.h5: found") as info:
        DataSet(tmp_path / "d")
    one_line(info)


def test_dataset__notices_truncation_while_it_is_open(tmp_path):
    data = DataSet(write(tmp_path / "d", size=64))
    path = tmp_path / "d" / "shard-00000.h5"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ShardError, match="row 9"):
        data.read(9)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("version", 3, "found version 3, expected 2: copy or pack"),
        ("format", "other", "format .other., expected .knltrain-shard."),
        ("encoding", "png", "encoding 'png'"),
        ("total_rows", 0, "interrupted"),
        ("total_rows", 30, "another total_rows"),
        ("rows", 2**62, "expected at most 1099511627776"),
        ("rows", -1, "found rows -1, expected 0 or more"),
        ("size", 2**40, "expected at most 8192"),
        ("size", 4096, "found images"),
        ("size", 0, "found raw pictures of size 0"),
        ("size", 4.0, "found size of another type, expected a whole number"),
        ("plan", -1, "found plan of another type, expected text"),
        ("plan", np.array([b"a", b"b"]), "found plan of another type"),
        ("encoding", 1 + 2j, "found encoding of another type"),
        ("class_names", {"data": np.array([[b"x", b"y"]])}, "class_names as"),
        ("checksums", {"data": np.zeros(10, np.complex64)}, "found checksums as complex64"),
        ("first_row", 11, "a shard is missing or doubled"),
        ("metadata_checksum", 7, "metadata with checksum"),
        ("class_names", {"data": np.array([b"x"])}, "labels outside 0..0"),
        ("labels", {"data": np.arange(10, dtype=np.int64)}, "found labels as int64"),
        ("labels", {"data": -np.arange(10, dtype=np.int32)}, "labels outside"),
        ("labels", {"data": np.arange(10, dtype=np.int32), "chunks": (5,)}, "found .labels. in chunks"),
        ("labels", {"data": np.zeros(9, np.int32)}, "found labels"),
        ("checksums", None, "found no whole HDF5 file"),
        ("images", {"shape": (10, 4, 4, 3), "dtype": np.uint8}, ".images. needs"),  # never allocated
    ],
)
def test_dataset__rejects_what_it_does_not_know(tmp_path, name, value, message):
    change(write(tmp_path / "d") / "shard-00001.h5", name, value)
    with pytest.raises(ShardError, match=message) as info:
        DataSet(tmp_path / "d")
    one_line(info)


@pytest.mark.parametrize(
    "offsets", [[0, 5, 3], [1, 2, 3], [0, 2**62, -5], [-7, 0, 9], [0, 2**62, -(2**62)], [0, -(2**63), 2**63 - 1]]
)
def test_dataset__rejects_hostile_offsets(tmp_path, offsets):
    folder = write(tmp_path / "d", encoding="jpeg")
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["offsets"][:3] = offsets
    with pytest.raises(ShardError, match="offsets"):
        DataSet(folder)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_shard__may_be_empty_while_it_is_unfinished(tmp_path, encoding):
    path = tmp_path / "shard-00000.partial"
    write_shard(path, [], encoding=encoding, size=4, class_names=["a"], skipped=["a/x.jpg: empty file"])
    assert Shard(path, unfinished=True).skipped == ["a/x.jpg: empty file"]
    with pytest.raises(ShardError, match="found 0 rows of 0: the packing was interrupted"):
        Shard(path)


def test_dataset__of_a_folder_above_names_those_below(tmp_path):
    for name in ("train", "val"):
        write(tmp_path / name)
    with pytest.raises(ShardError, match="found no .*expected shards: there are some in .*train, .*val$"):
        DataSet(tmp_path)


def test_dataset__knows_how_pictures_were_fitted(tmp_path):
    folder = write(tmp_path / "d", shards=2)
    assert DataSet(folder).fit == "crop"
    change(folder / "shard-00001.h5", "fit", np.bytes_("warp"))
    with pytest.raises(ShardError, match="found another fit than in shard-00000.h5"):
        DataSet(folder)
    change(folder / "shard-00000.h5", "fit", np.bytes_("wrap"))
    with pytest.raises(ShardError, match="found fit 'wrap', expected one of crop, warp"):
        DataSet(folder)
    for path in folder.iterdir():  # as they were before they said so
        with h5py.File(path, "r+") as file:
            del file.attrs["fit"]
    assert DataSet(folder).fit == "crop"


def test_dataset__rejects_a_missing_shard(tmp_path):
    for missing in range(3):
        folder = write(tmp_path / f"d{missing}", rows=21, shards=3)
        (folder / f"shard-{missing:05d}.h5").unlink()
        with pytest.raises(ShardError, match="missing"):
            DataSet(folder)


def test_dataset__rejects_shards_of_other_classes(tmp_path):
    folder, other = write(tmp_path / "d"), write(tmp_path / "other", last="class3")
    (other / "shard-00001.h5").rename(folder / "shard-00001.h5")
    with pytest.raises(ShardError, match="another class_names"):
        DataSet(folder)


def test_dataset__rejects_missing_and_empty_folders(tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        DataSet(tmp_path / "absent")
    with pytest.raises(ShardError, match="no .*h5 file"):
        DataSet(tmp_path)
    (tmp_path / "x.h5").mkdir()
    with pytest.raises(ShardError, match="x.h5"):
        DataSet(tmp_path)


def test_dataset__keeps_few_files_open(tmp_path):
    data = DataSet(write(tmp_path / "d", rows=300, shards=300))
    for row in range(300):
        data.read(row)
    assert data._open.cache_info().currsize == 128


def test_dataset__reads_a_file_that_leaves_the_cache_meanwhile(tmp_path, monkeypatch):
    # what a thread meets when another one opens the same shard first, or 128 others
    monkeypatch.setattr(files, "OPEN_FILES", 0)
    data = DataSet(write(tmp_path / "a"))
    data.advise(np.arange(20))
    assert [data.name(row) for row in (0, 19)] == ["class0/é0.jpg", "class1/é19.jpg"]
    assert data.read(19).shape == (4, 4, 3)
