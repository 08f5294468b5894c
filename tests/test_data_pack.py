"""knltrain/data/pack.py and sources.py: folder and tar to shards; bad input leaves nothing behind."""

import csv
import importlib
import io
import os
import signal
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from knltrain.data import DataSet, pack, shards  # noqa: E402
from knltrain.data.decode import decode, fit_square  # noqa: E402
from knltrain.data.progress import Progress  # noqa: E402

decode_module = importlib.import_module("knltrain.data.decode")
SHARED = Path(os.environ.get("KNLTRAIN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def tree(tmp_path):
    """Three classes of 5, 6 and 7 JPEG files of different sizes, and files that do not count."""
    random = np.random.default_rng(0)
    for label, count in enumerate((5, 6, 7)):
        folder = tmp_path / "tree" / f"class{label}"
        (folder / "more").mkdir(parents=True)
        for i in range(count):
            colour = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(colour).resize((40 + 3 * i, 40 - 2 * i))
            image.save((folder / "more" if i == 4 else folder) / f"{i}.jpg", quality=95)
    (tmp_path / "tree" / "README.md").write_text("not a class")
    (tmp_path / "tree" / "class0" / ".hidden").write_text("not an image")
    return tmp_path / "tree"


def contents(folder):
    data = DataSet(folder)
    return [(data.name(row), int(data.labels[row]), bytes(data.read(row))) for row in range(len(data))]


def same_bytes(a, b):
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (a, b)]
    return files[0] == files[1]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_pack__round_trip(tree, tmp_path, encoding):
    report = pack(tree, tmp_path / "out", encoding=encoding, size=32, shard_bytes=6_000, threads=3, report=None)
    data = DataSet(tmp_path / "out")
    assert (report.rows, len(data), report.bad) == (18, 18, [])
    assert report.shards == len(list((tmp_path / "out").iterdir())) > 1
    assert data.class_names == ["class0", "class1", "class2"] and data.encoding == encoding and data.size == 32
    names = [data.name(row) for row in range(18)]
    assert sorted(names) == sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.jpg")) and names != sorted(
        names
    )
    for row, name in enumerate(names):
        original, stored = decode((tree / name).read_bytes()), data.image(row)
        assert data.class_names[data.labels[row]] == name.split("/")[0]
        if encoding == "raw":
            np.testing.assert_array_equal(stored, fit_square(original, 32))
        else:
            assert min(stored.shape[:2]) == 32
            assert abs(stored.shape[0] / stored.shape[1] - original.shape[0] / original.shape[1]) < 0.05
        np.testing.assert_allclose(stored.mean(), original.mean(), atol=25)


@pytest.mark.parametrize("size", [0, 40])
def test_pack__keeps_the_bytes_of_jpeg_files_that_fit(tree, tmp_path, size):
    pack(tree, tmp_path / "out", encoding="jpeg", size=size, report=None)
    for name, _, data in contents(tmp_path / "out"):
        fits = size == 0 or name.endswith("/0.jpg")  # 40 x 40
        assert (data == (tree / name).read_bytes()) == fits


@pytest.mark.parametrize("kind, top", [("w", ""), ("w", "train/"), ("w", "./"), ("w:gz", ""), ("w:xz", "train/")])
def test_pack__tar_equals_folder(tree, tmp_path, kind, top):
    with tarfile.open(tmp_path / "tree.tar", kind) as tar:
        tar.add(tree, arcname=top or ".")
    pack(tree, tmp_path / "a", size=32, shard_bytes=20_000, threads=1, report=None)
    pack(tmp_path / "tree.tar", tmp_path / "b", size=32, shard_bytes=20_000, threads=4, report=None)
    for a in (tmp_path / "a").iterdir():
        assert a.read_bytes() == (tmp_path / "b" / a.name).read_bytes()


def test_pack__lists_and_skips_bad_files(tree, tmp_path):
    (tree / "class1" / "broken.jpg").write_bytes((tree / "class1" / "0.jpg").read_bytes()[:300])
    (tree / "class2" / "empty.jpg").touch()
    (tree / "class2" / "dangling.jpg").symlink_to("nowhere")
    stream = io.StringIO()
    report = pack(tree, tmp_path / "out", size=32, max_bad=3, report=stream)
    assert report.rows == 18 and sorted(name for name, _ in report.bad) == [
        "class1/broken.jpg",
        "class2/dangling.jpg",
        "class2/empty.jpg",
    ]
    assert "skipped class2/empty.jpg: empty file" in stream.getvalue() and "3 unreadable" in stream.getvalue()


def test_pack__stops_at_too_many_bad_files(tree, tmp_path):
    for i in range(2):
        (tree / "class1" / f"bad{i}.jpg").write_text("no image")
    for max_bad in (0, 0.01, 1, 0.09):
        with pytest.raises(ValueError, match="unreadable files .*--max-bad"):
            pack(tree, tmp_path / "new" / "out", size=32, max_bad=max_bad, report=None)
        assert not (tmp_path / "new").exists()
    for max_bad in (2, 0.1, 1.0):
        assert pack(tree, tmp_path / f"{max_bad}" / "out", size=32, max_bad=max_bad, report=None).rows == 18


@pytest.mark.parametrize("kind, top", [("w", "."), ("w:gz", "train")])
def test_pack__follows_links_in_a_tar_as_in_a_folder(tree, tmp_path, kind, top):
    (tree / "class0" / ".store").mkdir()
    (tree / "class1" / "0.jpg").rename(tree / "class0" / ".store" / "x")
    (tree / "class1" / "0.jpg").symlink_to("../class0/.store/x")
    (tree / "class2" / "a chain.jpg").symlink_to("../class1/0.jpg")
    (tree / "class2" / "hard.jpg").hardlink_to(tree / "class0" / "2.jpg")
    with tarfile.open(tmp_path / "tree.tar", kind) as tar:
        tar.add(tree, arcname=top)
        assert {member.type for member in tar.getmembers()} >= {tarfile.SYMTYPE, tarfile.LNKTYPE}
    for src, out in ((tree, "a"), (tmp_path / "tree.tar", "b")):
        assert pack(src, tmp_path / out, size=32, max_bad=0, report=None).rows == 20
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_pack__reads_only_regular_files_inside_a_tar(tree, tmp_path):
    bad = [(tarfile.FIFOTYPE, ""), (tarfile.SYMTYPE, "4"), (tarfile.SYMTYPE, "more"), (tarfile.LNKTYPE, "class0/x.jpg")]
    bad += [(tarfile.SYMTYPE, str(tree / "class0" / "0.jpg")), (tarfile.SYMTYPE, "../../tree/class0/0.jpg")]
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        tar.add(tree, arcname=".")
        for i, (kind, target) in enumerate([*bad, (tarfile.SYMTYPE, "bad6.jpg")]):  # the last one leads to itself
            member = tarfile.TarInfo(f"class0/bad{i}.jpg")
            member.type, member.linkname = kind, target
            tar.addfile(member)
    report = pack(tmp_path / "tree.tar", tmp_path / "out", size=32, max_bad=7, report=None)
    reasons = dict(report.bad)
    assert report.rows == 18 and sorted(reasons) == [f"class0/bad{i}.jpg" for i in range(7)]
    assert reasons.pop("class0/bad0.jpg") == "not a regular file"
    assert reasons["class0/bad2.jpg"] == "a link to class0/more, expected one to a regular file inside the tar"
    assert all("expected one to a regular file inside the tar" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda tree: tree / "absent", "no such file or folder"),
        (lambda tree: tree / "class0" / "more", "no class folders"),
        (lambda tree: (tree.parent / "none" / "class3").mkdir(parents=True) or tree.parent / "none", "found no images"),
        (lambda tree: tree / "README.md", "no whole tar file"),
    ],
)
def test_pack__explains_a_wrong_source(tree, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        pack(make(tree), tmp_path / "out", size=32, report=None)
    assert not (tmp_path / "out").exists()


def test_pack__explains_a_truncated_tar(tree, tmp_path):
    for kind in ("w", "w:gz"):
        with tarfile.open(tmp_path / "tree.tar", kind) as tar:
            tar.add(tree, arcname=".")
        whole = (tmp_path / "tree.tar").read_bytes()
        (tmp_path / "tree.tar").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="no whole tar file"):
            pack(tmp_path / "tree.tar", tmp_path / "out", size=32, report=None)


def test_pack__refuses_a_folder_in_use(tree, tmp_path):
    with pytest.raises(ValueError, match="not empty"):
        pack(tree, tree, size=32, report=None)
    with pytest.raises(ValueError, match="found a file"):
        pack(tree, tree / "README.md", size=32, report=None)
    (tmp_path / "empty").mkdir()
    pack(tree, tmp_path / "empty", size=32, report=None)


def test_pack__reports_a_class_whose_images_are_all_bad(tree, tmp_path):
    (tree / "class3").mkdir()
    (tree / "class3" / "a.jpg").write_text("no image")
    with pytest.raises(ValueError, match="class class3: found no readable image"):
        pack(tree, tmp_path / "out", size=32, max_bad=1, report=None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fail_at", ["write_shard", "finish_shard"])
def test_pack__goes_on_after_an_interruption(tree, tmp_path, monkeypatch, fail_at, number):
    calls, handler = [], signal.getsignal(number)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number) if fail_at == "write_shard" else interrupt()
        return getattr(shards, fail_at)(*args, **kwargs)

    def interrupt():
        raise KeyboardInterrupt

    options = {"size": 32, "shard_bytes": 10_000, "threads": 1, "report": None}
    pack(tree, tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(pack.__globals__, fail_at, interrupted)
        pack(tree, tmp_path / "out", **options)
    assert signal.getsignal(number) is handler
    left = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert left and set(left) <= {".partial", ".h5"}
    result = pack(tree, tmp_path / "out", **options)
    assert 0 < result.resumed == len(left) and (result.resumed < result.shards) == (fail_at == "write_shard")
    assert same_bytes(tmp_path / "whole", tmp_path / "out")
    assert pack(tree, tmp_path / "out", **options).resumed == result.shards  # once more does nothing


def test_pack__works_outside_the_main_thread(tree, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pack, tree, tmp_path / "out", size=32, report=None).result().rows == 18


def test_pack__removes_what_a_killed_run_left(tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-00007.partial").write_bytes(b"half a shard")
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        pack(tree, tmp_path / "out", size=32, report=None)
    assert len(list((tmp_path / "out").iterdir())) == 2
    (tmp_path / "out" / "mine.txt").unlink()
    pack(tree, tmp_path / "out", size=32, report=None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shard-00000.h5"]


WRONG_OPTIONS = [{"encoding": "png"}, {"size": 0}, {"shard_bytes": 0}]
WRONG_OPTIONS += [{"max_bad": value} for value in (-1, -0.5, 1.5, float("nan"))]


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_pack__rejects_wrong_options(tree, tmp_path, options):
    with pytest.raises(ValueError, match="expected"):
        pack(tree, tmp_path / "out", report=None, **options)


def test_progress__redraws_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    Progress(stream, 10).show(10)
    assert stream.getvalue().startswith("\r[######") and "10/10" in stream.getvalue()


@pytest.mark.skipif(not (SHARED / "cifar10-jpeg").is_dir(), reason="no shared/data/cifar10-jpeg")
def test_pack__keeps_cifar_untouched(tmp_path):
    report = pack(SHARED / "cifar10-jpeg" / "val.tar", tmp_path / "out", encoding="jpeg", size=32, report=None)
    assert (report.rows, len(report.class_names)) == (1000, 10)
    with tarfile.open(SHARED / "cifar10-jpeg" / "val.tar") as tar:
        data = DataSet(tmp_path / "out")
        for row in (0, 499, 999):
            assert bytes(data.read(row)) == tar.extractfile(data.name(row)).read()


@pytest.mark.skipif(not (SHARED / "odd-jpegs").is_dir(), reason="no shared/data/odd-jpegs")
@pytest.mark.parametrize("encoding, size", [("raw", 64), ("jpeg", 64), ("jpeg", 0)])
def test_pack__names_every_odd_file_that_it_leaves_out(tmp_path, encoding, size):
    odd = SHARED / "odd-jpegs"
    manifest = list(csv.DictReader((odd / "manifest.csv").read_text().splitlines()))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "odd").symlink_to(odd)
    report = pack(tmp_path / "tree", tmp_path / "out", encoding=encoding, size=size, max_bad=1.0, report=None)
    whole = {f"odd/{row['file']}" for row in manifest if row["pillow"].startswith("ok")}
    left_out = {name for name, _ in report.bad}
    assert whole == {name for name, _, _ in contents(tmp_path / "out")}
    assert left_out >= {f"odd/{row['file']}" for row in manifest} - whole
    assert len(whole) == 19 and all(reason for _, reason in report.bad)
    data = DataSet(tmp_path / "out")
    for row in range(len(data)):  # what is kept can be trained on
        assert data.image(row).ndim == 3


def test_pack__refuses_a_bomb_by_its_header(tree, tmp_path):
    def huge(width, height):
        out = io.BytesIO()
        Image.new("1", (1, 1)).save(out, "PNG")
        data = bytearray(out.getvalue())
        data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        return bytes(data)

    (tree / "class0" / "bomb.png").write_bytes(huge(30_000, 30_000))
    (tree / "class0" / "strip.png").write_bytes(huge(2**31 - 1, 1))
    report = pack(tree, tmp_path / "out", size=32, max_bad=2, report=None)
    assert sorted(name for name, _ in report.bad) == ["class0/bomb.png", "class0/strip.png"]


def test_pack__converts_large_pictures_one_at_a_time(tree, tmp_path, monkeypatch):
    now, most = [], []
    real = decode_module.decode

    def counted(data):
        now.append(1)
        most.append(len(now))
        try:
            return real(data)
        finally:
            now.pop()

    monkeypatch.setattr(decode_module, "LARGE_PIXELS", 100)
    monkeypatch.setattr(decode_module, "decode", counted)
    pack(tree, tmp_path / "out", size=32, threads=4, report=None)
    assert len(most) == 18 and max(most) == 1
