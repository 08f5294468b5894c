"""knltrain/data/sources.py and truth.py: the layouts in which pictures come, ILSVRC2012's above all."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from mpirun import run_mpi
from ranks import on_ranks

Image = pytest.importorskip("PIL.Image")

from knltrain.data import DataSet, pack  # noqa: E402
from knltrain.data.sources import list_source  # noqa: E402
from knltrain.data.truth import list_with_truth  # noqa: E402

SHARED = Path(os.environ.get("KNLTRAIN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
IDS = {1: "n03", 2: "n01", 3: "n02"}  # the development kit's numbers are not in the order of the names


def jpeg(seed, height=40, width=48):
    colour = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colour).resize((width, height)).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture
def tree(tmp_path):
    """Three classes of 6 files, named as ImageNet's are."""
    for label, name in enumerate(("n01", "n02", "n03")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "tree" / name / f"{name}_{i}.JPEG").write_bytes(jpeg(10 * label + i))
    return tmp_path / "tree"


def packed(src, out, **options):
    pack(src, out, **{"size": 32, "shard_bytes": 10_000, "report": None} | options)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def class_tars(tree, folder):
    folder.mkdir()
    for class_folder in tree.iterdir():
        with tarfile.open(folder / f"{class_folder.name}.tar", "w") as tar:
            for path in class_folder.iterdir():
                tar.add(path, arcname=path.name)
    return folder


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_source__takes_class_tars_in_a_tar_or_in_a_folder(tree, tmp_path, prefix):
    expected = packed(tree, tmp_path / "a")
    folder = class_tars(tree, tmp_path / "tars")
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as tar:
        for path in folder.iterdir():
            tar.add(path, arcname=prefix + path.name)
    assert packed(folder, tmp_path / "b") == expected
    assert packed(tmp_path / "ILSVRC2012_img_train.tar", tmp_path / "c") == expected


def test_source__explains_a_class_tar_that_is_cut_short(tree, tmp_path):
    folder = class_tars(tree, tmp_path / "tars")
    whole = (folder / "n02.tar").read_bytes()
    (folder / "n02.tar").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match="n02.tar: found no whole tar file"):
        list_source(folder)
    with tarfile.open(tmp_path / "outer.tar", "w") as tar:
        tar.add(folder, arcname=".")
    with pytest.raises(ValueError, match="outer.tar: found no whole tar file"):
        list_source(tmp_path / "outer.tar")


@pytest.mark.parametrize("top", [".", "train"])
def test_source__follows_a_linked_class_folder_in_a_tar_as_on_the_disk(tree, tmp_path, top):
    (tree / "n04").symlink_to("n01")
    (tree / "n05").symlink_to("n04")
    (tree / "n02" / "more").symlink_to("../n01")  # deeper links to folders are reported, never followed
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        tar.add(tree, arcname=top)
    lists = [list_source(src) for src in (tree, tmp_path / "tree.tar")]
    for classes, entries in lists:
        assert classes == ["n01", "n02", "n03", "n04", "n05"] and len(entries) == 5 * 6 + 1
        assert [entry.name for entry in entries if entry.fault] == ["n02/more"]
    names = [[entry.name for entry in entries] for _, entries in lists]
    assert names[0] == names[1]
    assert len(packed(tree, tmp_path / "a", max_bad=1)) == len(packed(tmp_path / "tree.tar", tmp_path / "b", max_bad=1))


def test_source__survives_links_in_a_circle(tree, tmp_path):
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        tar.add(tree, arcname=".")
        for name, target in (("n07", "n08"), ("n08", "n07"), ("n09", "."), ("n01/up", "..")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    _, entries = list_source(tmp_path / "tree.tar")
    assert len(entries) == 19 and [entry.name for entry in entries if entry.fault] == ["n01/up"]


# ---- ground truth --------------------------------------------------------------------------------------------


@pytest.fixture
def flat(tree, tmp_path):
    """The same pictures without folders, in another order, with lists as the development kit has them."""
    (tmp_path / "val").mkdir()
    names, numbers = sorted(tree.rglob("*.JPEG"), key=lambda path: path.name[::-1]), []
    for i, path in enumerate(names):
        (tmp_path / "val" / f"val_{i:08d}.JPEG").write_bytes(path.read_bytes())
        numbers.append(next(number for number, name in IDS.items() if name == path.parent.name))
    (tmp_path / "truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    (tmp_path / "ids.txt").write_text("".join(f"{number} {name}\n" for number, name in IDS.items()))
    return tmp_path / "val"


def test_truth__gives_the_classes_of_flat_files(flat, tree, tmp_path):
    lists = {"ground_truth": tmp_path / "truth.txt", "synsets": tmp_path / "ids.txt"}
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for path in flat.iterdir():
            tar.add(path, arcname=path.name)
    from_folder = packed(flat, tmp_path / "a", encoding="jpeg", size=0, **lists)
    assert packed(tmp_path / "val.tar", tmp_path / "b", encoding="jpeg", size=0, **lists) == from_folder
    data = DataSet(tmp_path / "a")
    assert data.class_names == ["n01", "n02", "n03"]
    originals = {path.read_bytes(): path.parent.name for path in tree.rglob("*.JPEG")}
    for row in range(18):
        wnid = data.class_names[data.labels[row]]
        assert originals[bytes(data.read(row))] == wnid == data.name(row).partition("/")[0]


def test_truth__takes_the_lists_of_caffe_too(flat, tmp_path):
    _, expected = list_with_truth(flat, tmp_path / "truth.txt", tmp_path / "ids.txt")
    classes = sorted(IDS.values())
    (tmp_path / "words.txt").write_text("".join(f"{name} some words, others\n" for name in classes))
    lines = [f"{entry.name.split('/')[1]} {classes.index(entry.class_name)}\n" for entry in reversed(expected)]
    (tmp_path / "val.txt").write_text("".join(lines))
    assert list_with_truth(flat, tmp_path / "val.txt", tmp_path / "words.txt") == (classes, expected)


@pytest.mark.parametrize(
    "truth, ids, message",
    [
        ("1\n" * 17, None, "found 17 lines, expected 18"),
        ("9\n" * 18, None, "found number 9"),
        ("1\n" * 17 + "x\n", None, "found other lines"),
        (None, "n01 a\nn02 b\nn03 c\n", "their order is not"),
        (None, "1 n01\n2 n01\n3 n02\n", "twice"),
        (None, "1 ../x\n2 n01\n3 n02\n", "no plain name"),
    ],
)
def test_truth__explains_lists_that_do_not_fit(flat, tmp_path, truth, ids, message):
    if truth is not None:
        (tmp_path / "truth.txt").write_text(truth)
    if ids is not None:
        (tmp_path / "ids.txt").write_text(ids)
    with pytest.raises(ValueError, match=message) as info:
        list_with_truth(flat, tmp_path / "truth.txt", tmp_path / "ids.txt")
    assert "\n" not in str(info.value)


@pytest.mark.skipif(not (SHARED / "imagenet-meta").is_dir(), reason="no shared/data/imagenet-meta")
def test_truth__reads_the_official_lists(tmp_path):
    for i in range(1, 50_001):  # links: 50,000 names without 50,000 pictures
        (tmp_path / f"ILSVRC2012_val_{i:08d}.JPEG").symlink_to("/dev/null")
    meta = SHARED / "imagenet-meta"
    classes, entries = list_with_truth(
        tmp_path, meta / "ILSVRC2012_validation_ground_truth.txt", meta / "ilsvrc2012_id_to_wnid.txt"
    )
    assert len(classes) == 1000 and len(entries) == 50_000
    labels = {entry.name.partition("/")[2]: classes.index(entry.class_name) for entry in entries}
    expected = dict(line.split() for line in (meta / "val.txt").read_text().splitlines())
    assert labels == {name: int(label) for name, label in expected.items()}


# ---- ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_pack__is_the_same_on_any_number_of_ranks(tree, tmp_path, ranks):
    (tree / "n02" / "bad.JPEG").write_bytes(jpeg(3)[:400])
    expected = packed(tree, tmp_path / "one", max_bad=1)
    assert len(expected) > 5
    told = io.StringIO()
    how = {"size": 32, "shard_bytes": 10_000, "max_bad": 1, "threads": 1, "report": told}
    on_ranks(ranks, lambda comm: pack(tree, tmp_path / "many", comm=comm, **how))
    assert "packed 18 images of 3 classes" in told.getvalue() and "skipped n02/bad.JPEG" in told.getvalue()
    assert {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()} == expected


def test_pack__ends_all_ranks_with_one_line(tmp_path):
    done = run_mpi(2, "-m", "knltrain", "pack", str(tmp_path / "absent"), str(tmp_path / "out"), timeout=60)
    assert done.returncode != 0 and "no such file or folder" in done.stderr and "Traceback" not in done.stderr
