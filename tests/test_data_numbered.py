"""knltrain/data/samples.py, parquet.py and classes.py: sources in which a label is a number."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from test_data_layouts import jpeg, packed

from knltrain.cli import main
from knltrain.data import DataSet, PictureFolder, parquet
from knltrain.data.shards import Packed
from knltrain.data.sources import list_source

NAMES = ["tench", "goldfish", "crane", "crane", "sea/lion"]
PLAIN = ["tench", "goldfish", "crane-2", "crane-3", "sea-lion"]
LABELS = [3, 0, 4, 1, 2, 0, 3, 4]
PICTURES = [jpeg(i) for i in range(len(LABELS))]


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def samples(folder, labels=LABELS, per_tar=5, **more):
    """WebDataset tars of the pictures, keys with a folder before them and other members between."""
    folder.mkdir()
    for begin in range(0, len(labels), per_tar):
        members = {}
        for i in range(begin, min(begin + per_tar, len(labels))):
            members |= {f"a/{i:03}.jpg": PICTURES[i], f"a/{i:03}.cls": str(labels[i]).encode(), f"a/{i:03}.json": b"{}"}
        tar(folder / f"set-{begin:04}.tar", members | more)
    return folder


def table(path, columns, features=None):
    """A parquet file as the `datasets` library writes it."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    found = pa.table(columns)
    if features is not None:
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(found, path, row_group_size=3)
    return path


FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
STRUCTS = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(PICTURES)]


def content(folder):
    data = DataSet(folder)
    return sorted((data.class_names[data.labels[row]], bytes(data.image(row).data)) for row in range(len(data)))


def test_samples__are_the_pictures_of_class_folders(tmp_path):
    (tmp_path / "synsets.txt").write_text("".join(f"{name} words\n" for name in PLAIN))
    for i, (label, data) in enumerate(zip(LABELS, PICTURES, strict=True)):
        (tmp_path / "tree" / PLAIN[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / PLAIN[label] / f"{i}.jpg").write_bytes(data)
    packed(tmp_path / "tree", tmp_path / "a")
    packed(samples(tmp_path / "wds"), tmp_path / "b", synsets=tmp_path / "synsets.txt")
    assert DataSet(tmp_path / "b").class_names == PLAIN  # in the order of the numbers
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert {DataSet(tmp_path / "b").name(row).partition("/")[2][:9] for row in range(8)} == {"set-0000-", "set-0005-"}


def test_samples__without_names_are_called_by_their_numbers(tmp_path):
    classes, entries = list_source(samples(tmp_path / "wds", [0, 11, 2, 0, 0, 0, 0, 0]))
    assert classes == [f"{i:02}" for i in range(12)] and len(entries) == 8
    assert [entry.name for entry in entries if entry.name.startswith("11")] == ["11/set-0000-a-001.jpg"]
    one, _ = list_source(tmp_path / "wds" / "set-0000.tar")  # a tar alone
    assert one == classes
    assert len(PictureFolder(tmp_path / "wds", classes, Packed("raw", 32))) == 8


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ([0, "cat", 1], {}, "found b'cat' in set-0000/a/001.cls, expected the number of a class"),
        ([0, 1, 10**9], {}, "found the label 1000000000, expected 0 to 65535"),
        ([0, 1, "9" * 30], {}, "expected the number of a class"),
        ([0, 1], {"a/7.png": b"x"}, "found no cls of set-0000/a/7, expected one of each sample"),
        ([0, 1], {"a/7.cls": b"1"}, "found no picture of set-0000/a/7"),
    ],
)
def test_samples__that_do_not_fit_are_one_line(tmp_path, labels, more, message):
    with pytest.raises(ValueError, match=message):
        list_source(samples(tmp_path / "wds", labels, **more))


def test_parquet__is_packed_with_the_names_it_brings(tmp_path):
    for i in range(2):
        part = slice(4 * i, 4 * i + 4)
        table(tmp_path / "hub" / f"train-{i}.parquet", {"image": STRUCTS[part], "label": LABELS[part]}, FEATURES)
    packed(tmp_path / "hub", tmp_path / "a")
    packed(samples(tmp_path / "wds"), tmp_path / "b", synsets=_list(tmp_path))
    assert DataSet(tmp_path / "a").class_names == PLAIN
    assert content(tmp_path / "a") == content(tmp_path / "b")


def _list(tmp_path):
    path = tmp_path / "synsets.txt"
    path.write_text("".join(f"{name}\n" for name in PLAIN))
    return path


def test_parquet__takes_plain_bytes_other_names_and_texts(tmp_path):
    texts = [NAMES[label] for label in LABELS]
    path = table(tmp_path / "hub" / "all.parquet", {"id": [*range(8)], "img": PICTURES, "fine": LABELS, "label": texts})
    classes, entries = list_source(path)
    assert classes == ["crane", "goldfish", "sea-lion", "tench"]
    found = {entry.name: entry.read() for entry in entries}
    assert found["sea-lion/all-000002"] == PICTURES[2] and len(found) == 8
    fine = {"fine": {"_type": "ClassLabel", "names": NAMES}}
    path = table(tmp_path / "hub" / "fine.parquet", {"id": [*range(8)], "img": PICTURES, "fine": LABELS}, fine)
    assert list_source(path)[0] == PLAIN


def test_parquet__rows_without_a_picture_are_named_and_left_out(tmp_path):
    structs = [*STRUCTS[:6], None, {"bytes": None, "path": "elsewhere.jpg"}]
    _, entries = list_source(table(tmp_path / "hub" / "a.parquet", {"image": structs, "label": LABELS}, FEATURES))
    assert {entry.name: entry.fault for entry in entries if entry.fault} == {
        "crane-3/a-000006": "no bytes in its row",
        "sea-lion/a-000007": "no bytes in its row",
    }


def test_parquet__that_does_not_fit_is_one_line(tmp_path):
    hub = tmp_path / "hub"
    test = table(hub / "test.parquet", {"image": STRUCTS, "label": [-1] * 8}, FEATURES)
    with pytest.raises(ValueError, match="found the label -1, expected 0 to 65535: is it a test set"):
        list_source(test)
    train = table(hub / "train.parquet", {"image": STRUCTS, "label": LABELS}, FEATURES)
    with pytest.raises(ValueError, match=r"splits test, train, expected those of one.*\*test\*.parquet' \(in quotes\)"):
        list_source(hub)
    assert len(list_source(hub / "tr*.parquet")[1]) == 8
    with pytest.raises(ValueError, match="found no file of such a name"):
        list_source(hub / "x*.parquet")
    more = table(hub / "train2.parquet", {"image": STRUCTS, "label": LABELS}, FEATURES | {"label": {}})
    with pytest.raises(ValueError, match="train2.parquet: found other class names than in"):
        list_source(hub / "train*.parquet")
    more.write_bytes(train.read_bytes()[:-20])
    with pytest.raises(ValueError, match="train2.parquet: found no parquet file that can be read"):
        list_source(more)
    unlabelled = table(hub / "plain.parquet", {"image": STRUCTS, "caption": [0.5] * 8})
    with pytest.raises(ValueError, match=r"found columns image \(struct.*caption \(double\), expected `image`"):
        list_source(unlabelled)
    with pytest.raises(ValueError, match="found rows without a label"):
        list_source(table(hub / "plain.parquet", {"image": STRUCTS, "label": [None, *LABELS[1:]]}))
    with pytest.raises(ValueError, match="found the label 2, expected one of the 2 that have a name"):
        few = {"label": {"_type": "ClassLabel", "names": NAMES[:2]}}
        list_source(table(hub / "plain.parquet", {"image": STRUCTS, "label": LABELS}, few))


def test_parquet__that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 1 << 20)
    swollen = [{"bytes": bytes(1 << 20)}] * 20  # 20 MB in a file of some hundred kilobytes
    path = table(tmp_path / "hub" / "a.parquet", {"image": swollen, "label": [0] * 20})
    assert path.stat().st_size < (20 << 20) / parquet.MAX_RATIO
    with pytest.raises(ValueError, match="found pictures of more than 20 times the files"):
        list_source(path)


def test_synsets__beside_class_folders_are_refused(tmp_path):
    Path(tmp_path / "tree" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="found class folders, expected --synsets only where labels are numbers"):
        list_source(tmp_path / "tree", _list(tmp_path))


def test_pattern__that_the_shell_has_taken_apart_is_explained(tmp_path, capsys):
    assert main(["pack", "data/a.parquet", "data/b.parquet", str(tmp_path / "out")]) == 2
    assert "found 2 sources, expected one: put a pattern in quotes, as 'data/*.parquet'" in capsys.readouterr().err
