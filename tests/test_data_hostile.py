"""knltrain/data/sources.py and decode.py on tars and pictures made to hang, to swell or to deceive `pack`."""

import gzip
import io
import resource
import tarfile

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from knltrain.data import Augment, pack  # noqa: E402
from knltrain.data.decode import DecodeError, decode  # noqa: E402
from knltrain.data.sources import list_source  # noqa: E402
from knltrain.data.tars import MAX_SAME_FOLDER  # noqa: E402


def member(name, length=0, kind=tarfile.REGTYPE, link="", **more):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = length, kind, link
    info.pax_headers = more
    return info.tobuf(tarfile.PAX_FORMAT if more else tarfile.GNU_FORMAT)


def blocks(data):
    return data + bytes(-len(data) % 512)


def packed_in(depth):
    """A tar in a tar in …"""
    inside = b""
    for _ in range(depth):
        inside = member("a.tar", len(inside)) + blocks(inside) + bytes(1024)
    return inside


def negative(kind=tarfile.REGTYPE):
    header = bytearray(member("a/b.jpg", kind=kind))
    header[124:136] = (256**12 - 512).to_bytes(12, "big")  # base 256, as GNU tar has it
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


HOSTILE = {
    "negative size": (negative(), "a member of -512 bytes"),
    "negative name": (negative(tarfile.GNUTYPE_LONGNAME), "of -512 bytes"),
    "negative PAX size": (member("a/b", size="-1024") + bytes(1024), "a member of impossible size"),
    "NUL in a PAX name": (member("a", path="a/b\0c.jpg") + bytes(1024), "with a NUL"),
    "long name": (member("././@LongLink", 3 << 30, tarfile.GNUTYPE_LONGNAME), "header of 3221225472 bytes"),
    "long PAX header": (member("x", 1 << 40, tarfile.XHDTYPE), "header of 1099511627776 bytes"),
    "headers of headers": (member("x", 0, tarfile.XGLTYPE) * 5000, "found no whole tar file"),
    "many folders": (member("a", path="a/" * 1000 + "b") + bytes(1024), "in 1001 folders"),
    "tars in tars": (packed_in(20), "more than 4 deep"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_list__refuses_a_hostile_tar(tmp_path, name):
    data, message = HOSTILE[name]
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    with pytest.raises(ValueError, match=message):
        list_source(tmp_path / "a.tar")


def test_list__refuses_a_bomb_soon_and_in_little_memory(tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(member("a/b.jpg", 300 << 20))
        for _ in range(300):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="MiB packed into .* bytes: make it a plain .tar first"):
        list_source(tmp_path / "a.tar.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_list__refuses_many_class_links_to_one_folder(tmp_path, kind):
    src = tmp_path / "tree"
    (src / "a").mkdir(parents=True)
    (src / "a" / "1.jpg").touch()
    for i in range(MAX_SAME_FOLDER + 1):
        if i == MAX_SAME_FOLDER:
            assert len(list_source(src)[0]) == i + 1
        (src / f"link{i}").symlink_to("a")
    if kind == "tar":
        with tarfile.open(tmp_path / "tree.tar", "w") as tar:
            tar.add(src, arcname=".")
        src = tmp_path / "tree.tar"
    with pytest.raises(ValueError, match="more than 16 class folders that are links to .*a"):
        list_source(src)


def test_list__takes_many_linked_folders_in_time(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(2000):
            tar.addfile(tarfile.TarInfo(f"real{i}/a/1.jpg"))
            link = tarfile.TarInfo(f"link{i}")
            link.type, link.linkname = tarfile.SYMTYPE, f"real{i}"
            tar.addfile(link)
    classes, entries = list_source(tmp_path / "a.tar")
    assert (len(classes), len(entries)) == (4000, 4000)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_list__finds_class_tars_in_a_compressed_tar(tmp_path, kind):
    inner = member("1.jpg", 3) + blocks(b"abc") + bytes(1024)
    with tarfile.open(tmp_path / "a", f"w:{kind}") as tar:
        for name in "xy":
            info = tarfile.TarInfo(f"{name}.tar")
            info.size = len(inner)
            tar.addfile(info, io.BytesIO(inner))
    classes, entries = list_source(tmp_path / "a")
    assert classes == ["x", "y"] and [entry.read() for entry in entries] == [b"abc", b"abc"]


def test_decode__refuses_scans_without_end():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        out, "JPEG", progressive=True
    )
    data = out.getvalue()
    assert decode(data).shape == (64, 64, 3)
    last = data.rindex(b"\xff\xda")
    data = data[:-2] + data[last:-2] * 1500 + data[-2:]
    with pytest.raises(DecodeError, match="scans over the picture"):
        decode(data)
    row = np.frombuffer(data, np.uint8).copy()  # of a shard that somebody else made
    with pytest.raises(DecodeError, match="scans over the picture"):
        Augment("none", 32, (0, 0, 0), (1, 1, 1)).decode(row, 0, 0)


# ---- what looks like a mistake -------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """tree/train with classes a, b, c and tree/val with a, c; gray pictures of two widths."""
    for split, classes in (("train", "abc"), ("val", "ac")):
        for name in classes:
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                stripes = np.repeat(np.array([[0, 250]], np.uint8), 20, 0).repeat(20, 1)
                Image.fromarray(stripes).save(folder / f"{i}.png")
    return tmp_path / "tree"


def test_pack__warns_of_splits_and_names_the_first_classes(tree, tmp_path):
    said = io.StringIO()
    pack(tree, tmp_path / "out", size=8, report=said)
    assert f"if these are splits, pack each alone, as {tree}/train" in said.getvalue()
    said = io.StringIO()
    pack(tree / "train", tmp_path / "out2", size=8, report=said)
    assert "6 files in 3 classes: a (2), b (2), c (2)\n" in said.getvalue() and "warning" not in said.getvalue()


def test_pack__takes_the_classes_of_other_shards(tree, tmp_path):
    pack(tree / "train", tmp_path / "train", size=8, report=None)
    report = pack(tree / "val", tmp_path / "val", size=8, classes_of=tmp_path / "train", report=None)
    assert report.class_names == ["a", "b", "c"] and report.rows == 4
    pack(tree / "val", tmp_path / "alone", size=8, report=None)
    with pytest.raises(ValueError, match=r"found classes b, expected only those of .*alone"):
        pack(tree / "train", tmp_path / "more", size=8, classes_of=tmp_path / "alone", report=None)


def test_pack__leaves_the_choice_about_empty_classes(tree, tmp_path):
    (tree / "val" / "b").mkdir()
    said = io.StringIO()
    assert pack(tree / "val", tmp_path / "out", size=8, report=said).class_names == ["a", "c"]
    assert "found no images in 1 of 3 classes (b): left out (--empty-classes keep" in said.getvalue()
    kept = pack(tree / "val", tmp_path / "kept", size=8, empty_classes="keep", report=None)
    assert kept.class_names == ["a", "b", "c"]
    (tree / "val" / "b" / "bad.png").touch()
    kept = pack(tree / "val", tmp_path / "bad", size=8, empty_classes="keep", max_bad=1, report=None)
    assert kept.class_names == ["a", "b", "c"]


def test_pack__warps(tree, tmp_path):
    from knltrain.data import DataSet
    from knltrain.data.verify import summarize

    pack(tree / "val", tmp_path / "crop", size=8, report=None)
    pack(tree / "val", tmp_path / "warp", size=8, fit="warp", report=None)
    crop, warp = (DataSet(tmp_path / name).image(0)[4, :, 0] for name in ("crop", "warp"))
    assert warp[0] < 10 and warp[-1] > 240 and len(warp) == 8
    assert crop[0] < 10 and crop[-1] > 240 and DataSet(tmp_path / "crop").digest != DataSet(tmp_path / "warp").digest
    assert DataSet(tmp_path / "warp").fit == "warp" and ", warped" in summarize(tmp_path / "warp")
    with pytest.raises(ValueError, match="fit 'warp' with jpeg"):
        pack(tree / "val", tmp_path / "no", fit="warp", encoding="jpeg", report=None)


@pytest.mark.parametrize("when", ["before", "between", "while writing"])
def test_pack__says_how_much_room_is_missing(tree, tmp_path, monkeypatch, when):
    class Usage:
        free = 100

    class Later(Usage):
        calls = 0

        @property
        def free(self):
            Later.calls += 1
            return 1 << 40 if Later.calls == 1 else 100

    def full(*args, **options):
        args[0].touch()
        raise RuntimeError("Can't decrement id ref count (errno = 28, error message = 'No space left on device')")

    if when == "while writing":
        monkeypatch.setitem(pack.__globals__, "write_shard", full)
    else:
        usage = Usage() if when == "before" else Later()
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No space left on device: found room for .* MB are missing") as info:
        pack(tree / "val", tmp_path / "out", size=8, report=None)
    assert "\n" not in str(info.value) and not (tmp_path / "out").exists()
