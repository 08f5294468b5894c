"""Damaged and hostile shards and checkpoints, for fuzz.py: bytes at random, foreign structures, hostile contents that
carry the right checksums.
"""

import functools
import io
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import tinyrun
from fuzz import Case, Kind, refused

from knltrain.data import DataSet, ShardError
from knltrain.data.shards import METADATA, Row, _metadata_checksum, checksum, finish_shard, write_shard
from knltrain.models.state import state as state_of
from knltrain.run import checkpoint

ROWS = 6
INTEGERS = [-1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63)]


def damage(whole: bytes, random) -> bytes:
    """Bytes flipped or inserted, stretches moved or zeroed, eight bytes replaced by a number, or the end cut off."""
    data, kind = bytearray(whole), random.integers(6)
    at, to = sorted(random.integers(0, len(data), 2).tolist())
    if kind == 0:
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:  # two stretches change places, as offsets might
        length = min(8, to - at, len(data) - to)
        data[at : at + length], data[to : to + length] = data[to : to + length], data[at : at + length]
    elif kind == 3:
        data[at : at + 32] = bytes(len(data[at : at + 32]))
    elif kind == 4:
        data[at:at] = random.bytes(random.integers(1, 64))
    else:
        numbers = [0, 1, 2**31, 2**62, 2**63 - 1, 2**64 - 1, len(data), int(random.integers(4096))]
        data[at : at + 8] = numbers[random.integers(len(numbers))].to_bytes(8, "little")[: len(data) - at]
    return bytes(data)


# ---- foreign structures: what HDF5 allows and our files never have ------------------------------------------------


def _fifo(path):
    fifo = str(Path(path).with_name("pipe"))
    if not os.path.exists(fifo):
        os.mkfifo(fifo)
    return fifo


def _replaced(make):
    """A change that puts `make(file, name, array)` in the place of a dataset and keeps its checksum."""

    def change(file, name):
        old = file[name]
        array, attrs = old[()], dict(old.attrs)
        del file[name]
        make(file, name, array)
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            file[name].attrs.update(attrs)

    return change


def _virtual(file, name, array):
    layout = h5py.VirtualLayout(array.shape or (1,), array.dtype)
    layout[...] = h5py.VirtualSource(_fifo(file.filename), name, array.shape or (1,))
    file.create_virtual_dataset(name, layout)


def _external(file, name, array):
    file.create_dataset(
        name, array.shape or (1,), array.dtype, external=[(_fifo(file.filename), 0, h5py.h5f.UNLIMITED)]
    )


def _copy_elsewhere(file, name, array):
    other = Path(file.filename).with_name("other.bin")
    with h5py.File(other, "w") as there:
        there[name] = array
    file[name] = h5py.ExternalLink(str(other), name)


def _linked_inside(file, name, array):
    file["elsewhere"] = array
    file[name] = h5py.SoftLink("/elsewhere")


def _as(dtype):
    return lambda file, name, array: file.create_dataset(name, array.shape, dtype)


STRUCTURES = {
    "pipe behind a link": lambda f, n, a: f.__setitem__(n, h5py.ExternalLink(_fifo(f.filename), n)),
    "another file": _copy_elsewhere,
    "itself": lambda f, n, a: f.__setitem__(n, h5py.SoftLink(f"/{n}")),
    "soft link": _linked_inside,
    "virtual": _virtual,
    "external": _external,
    "chunks": lambda f, n, a: f.create_dataset(n, data=np.atleast_1d(a), chunks=True),
    "gzip": lambda f, n, a: f.create_dataset(n, data=np.atleast_1d(a), compression="gzip"),
    "fletcher": lambda f, n, a: f.create_dataset(n, data=np.atleast_1d(a), fletcher32=True),
    "a group": lambda f, n, a: f.create_group(n),
    "a type": lambda f, n, a: f.__setitem__(n, np.dtype("f4")),
    "empty": lambda f, n, a: f.create_dataset(n, data=h5py.Empty("f4")),
    "huge": lambda f, n, a: f.create_dataset(n, (2**40,), a.dtype),
    "more dimensions": lambda f, n, a: f.create_dataset(n, data=a[None, None]),
    "texts": lambda f, n, a: f.create_dataset(n, data=["x"] * max(1, a.size)),
    "references": lambda f, n, a: f.create_dataset(n, a.shape, h5py.ref_dtype),
    **{kind: _as(kind) for kind in ("f2", "c8", "i4,f4", "V3", "S4", "i8", "?", ">u4")},
}


def _restructure(path, names, random):
    """Put a random structure in the place of a random dataset; another type must not be that of before."""
    with h5py.File(path, "r+") as file:
        while True:
            name, kind = (options[random.integers(len(options))] for options in (names(file), list(STRUCTURES)))
            dtype = file[name].dtype
            if kind not in (dtype.str[1:], dtype.str) and not (kind == "S4" and dtype.kind == "S"):
                break
        _replaced(STRUCTURES[kind])(file, name)


# ---- shards ----------------------------------------------------------------------------------------------------


def _picture(side, random):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


@functools.cache
def _shard(encoding) -> bytes:
    """A whole shard, as bytes: six pictures of 16 pixels in three classes."""
    random, path = np.random.default_rng(0), Path(f"/tmp/fuzz-{os.getpid()}.h5")
    raw = [random.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(ROWS)]
    rows = raw if encoding == "raw" else [_picture(16, random) for _ in range(ROWS)]
    rows = [Row(data, i % 3, f"class{i % 3}/{i}.jpg") for i, data in enumerate(rows)]
    names = [f"class{c}" for c in range(3)]
    write_shard(path, rows, encoding=encoding, size=16, class_names=names, plan="p", skipped=["class0/x.jpg: empty"])
    finish_shard(path, path, ROWS)
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def contents(folder):
    data = DataSet(folder)
    return [(data.class_names[data.labels[row]], data.name(row), bytes(data.read(row))) for row in range(len(data))]


def _new_shard(random, folder):
    encoding = ("raw", "jpeg")[random.integers(2)]
    path = folder / "shards" / "shard-00000.h5"
    path.parent.mkdir()
    path.write_bytes(_shard(encoding))
    return encoding, path


def _reading(random, folder):
    """A command that reads shards."""
    commands = [["verify", str(folder / "shards"), "--threads", "1"], ["shards", str(folder / "shards")]]
    return commands[random.integers(2)]


def shards_damaged(random, folder):
    _, path = _new_shard(random, folder)
    expected = contents(path.parent)
    path.write_bytes(damage(path.read_bytes(), random))

    def verdict(code, text):
        try:
            same = contents(path.parent) == expected
        except ShardError:
            return "verify found nothing" if code == 0 else ""
        return "" if same or code else "another picture was read"

    return Case(["verify", str(path.parent), "--threads", "1", "--decode"], verdict)


def shards_restructured(random, folder):
    encoding, path = _new_shard(random, folder)
    rows = "images" if encoding == "raw" else "bytes"
    _restructure(path, lambda file: [*METADATA[encoding], rows, "skipped"], random)
    return Case(_reading(random, folder), refused)


def shards_hostile(random, folder):
    """Attributes and arrays that no packing writes, under checksums that fit."""
    encoding, path = _new_shard(random, folder)
    with h5py.File(path, "r+") as file:
        choice = random.integers(4 if encoding == "jpeg" else 2)
        if choice == 0:
            _change_attribute(file, random)
        elif choice == 1:
            labels = file["labels"][:]
            labels[random.integers(ROWS)] = [-1, 3, 2**31 - 1, -(2**31)][random.integers(4)]
            file["labels"][:] = labels
        elif choice == 2:
            offsets = file["offsets"][:]
            at = random.integers(0, ROWS + 1)
            offsets[at : at + random.integers(1, 3)] = random.choice([*INTEGERS, int(offsets[-1]) + 1])
            file["offsets"][:] = offsets
        else:
            _change_row(file, random)
        if choice:
            names = [*METADATA[encoding], "skipped"]
            file.attrs["metadata_checksum"] = _metadata_checksum({name: file[name][:] for name in names})
    command = ["verify", str(path.parent), "--decode"] if choice == 3 else _reading(random, folder)
    return Case(command, refused)


def _change_attribute(file, random):
    name = ["format", "version", "encoding", "size", "rows", "first_row", "total_rows", "plan", "metadata_checksum"]
    name += ["fit"]  # which may be absent
    name = name[random.integers(len(name))]
    values = [
        *INTEGERS,
        2**64 - 1,
        0.5,
        1 + 2j,
        True,
        np.int32(-5),
        np.zeros(3, int),
        "ü",
        b"\xff\xfe",
        ["a", "b"],
        "x" * 9000,
    ]
    values += [h5py.Empty("f4"), np.zeros(1, "i4,f4")[0], file.ref]
    value = values[random.integers(len(values))]
    if name == "plan" and isinstance(value, str) and value == "ü":
        value = 7  # any text is a plan
    if name in file.attrs:
        del file.attrs[name]
    if name == "fit" or random.integers(10):
        file.attrs[name] = value


def _change_row(file, random):
    """A JPEG row that is cut short, or claims more pixels than it has."""
    row, offsets = random.integers(ROWS), file["offsets"][:]
    data = bytearray(file["bytes"][offsets[row] : offsets[row + 1]].tobytes())
    if random.integers(2):
        cut = random.integers(2, len(data) // 2)
        data[-cut:] = bytes(cut)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = int(random.choice([0, 17, 20_000, 65_535])).to_bytes(2, "big") * 2
    file["bytes"][offsets[row] : offsets[row + 1]] = np.frombuffer(data, np.uint8)
    file["checksums"][row] = checksum(int(file["labels"][row]), bytes(data))


# ---- checkpoints -------------------------------------------------------------------------------------------------


@functools.cache
def _run(place: Path) -> Path:
    """A run folder as training leaves it, made without training."""
    from knltrain.recipe.config import load_recipe
    from knltrain.recipe.experiment import identity, make_model, open_data

    folder = place / "base"
    tinyrun.write_recipe(folder)
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "tiny.toml", run / "recipe.toml")
    recipe = load_recipe(folder / "tiny.toml")
    data, _ = open_data(recipe)
    state = state_of(make_model(recipe, 3, train=False).parameters)
    meta = {"step": 12, "previous_lr": 0.1, "experiment": identity(recipe, data)}
    checkpoint.save(run / "checkpoints", 12, state, meta, keep=1)
    return run


def _evaluation(folder, path):
    return ["evaluate", str(path), "--data", str(folder.parent / "base" / "shards")]


@functools.cache
def _expected(place: Path):
    """What the undamaged checkpoint holds."""
    return checkpoint.load(_run(place) / "checkpoints" / "checkpoint-0000012.h5")


def _new_checkpoint(folder):
    shutil.copytree(_run(folder.parent), folder / "run")
    return folder / "run" / "checkpoints" / "checkpoint-0000012.h5"


def warm(place):
    from knltrain.cli import main

    main(["evaluate", str(_run(place)), "--data", str(place / "base" / "shards")])


def checkpoints_damaged(random, folder):
    path = _new_checkpoint(folder)
    path.write_bytes(damage(path.read_bytes(), random))

    def verdict(code, text):
        if code:
            return ""
        (arrays, meta), (expected, about) = checkpoint.load(path), _expected(folder.parent)
        same = arrays.keys() == expected.keys() and all(np.array_equal(arrays[n], expected[n]) for n in arrays)
        return "" if same and meta == about else "other numbers were read"

    return Case(_evaluation(folder, path), verdict)


def _tensors(file):
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def checkpoints_restructured(random, folder):
    path = _new_checkpoint(folder)
    _restructure(path, _tensors, random)
    return Case(_evaluation(folder, path), refused)


VALUES = [
    None,
    True,
    "12",
    [],
    {},
    -1,
    1e308,
    float("nan"),
    float("inf"),
    10**40,
    10**400,
    0.5,
    [[[[]]]] * 3,
    "\x1b[2A\n",
]


def checkpoints_hostile(random, folder):
    """Contents and tensors that training does not write, under checksums that fit."""
    path = _new_checkpoint(folder)
    arrays, meta = checkpoint.load(path)
    contents = {"step": 12, "meta": json.loads(json.dumps(meta)), "names": list(arrays)}
    choice = random.integers(4)
    if choice == 0:
        name, at = ["step", "previous_lr", "experiment"][random.integers(3)], contents["meta"]
        wrong = [
            v for v in VALUES if not (name == "experiment" and v == {}) and not (name == "previous_lr" and v == 0.5)
        ]
        at[name] = wrong[random.integers(len(wrong))]
        if not random.integers(5):
            del at[name]
    elif choice == 1:
        name = list(contents)[random.integers(3)]
        contents[name] = VALUES[random.integers(len(VALUES))]
        contents = [contents, [], "x", None][random.integers(4) if not random.integers(4) else 0]
    elif choice == 2:
        name = contents["names"][random.integers(len(arrays))]
        kind = [bool, np.int32, np.float16, np.float64, np.uint8, "S4", ">f4", np.complex64][random.integers(8)]
        arrays[name] = arrays[name].astype(kind)
        if random.integers(2):
            arrays[name] = arrays[name].reshape(-1)[:1]
    else:
        path = path.rename(path.with_name(f"checkpoint-{random.choice([0, 11, 13, 10**9]):07}.h5"))
    path.unlink() if choice < 3 else None
    if choice < 3:
        checkpoint._write(path, json.dumps(contents), arrays)
    return Case(_evaluation(folder, path), refused)


KINDS = {
    "shards_damaged": Kind(600, shards_damaged),
    "shards_restructured": Kind(450, shards_restructured),
    "shards_hostile": Kind(450, shards_hostile),
    "checkpoints_damaged": Kind(400, checkpoints_damaged, warm),
    "checkpoints_restructured": Kind(300, checkpoints_restructured, warm),
    "checkpoints_hostile": Kind(300, checkpoints_hostile, warm),
}
