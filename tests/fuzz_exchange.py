"""Damaged and hostile files of weights, for fuzz.py: bytes at random, and headers that claim what is not so.

safetensors has no checksums: damage that only changes a number is another number, which has to be finite.
"""

import functools
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from fuzz import Case, Kind, refused
from fuzz_files import INTEGERS, damage

import knltrain as kt
from knltrain.models.state import state

CLASSES = ["cat", "dog", "bird"]
MODEL = "resnet_cifar8"


@functools.cache
def _whole(place: Path, ending: str) -> bytes:
    net = kt.network(MODEL, CLASSES, 16, width=4, seed=1)
    path = place / f"whole{ending}"
    kt.export(net, path)
    return path.read_bytes()


@functools.cache
def _expected(place: Path) -> dict:
    net = kt.import_weights(place / "whole.npz")
    return {name: array.copy() for name, array in state(net._model().parameters, momentum=False).items()}


def warm(place):
    for ending in (".safetensors", ".npz"):
        _whole(place, ending)
    _expected(place)


def _import(path):
    return ["import", str(path), "--out", str(path.parent / "out.h5")]


def weights_damaged(random, folder):
    ending = (".safetensors", ".npz")[random.integers(2)]
    path = folder / f"net{ending}"
    path.write_bytes(damage(_whole(folder.parent, ending), random))

    def verdict(code, text):
        if code:
            return ""
        net, expected = kt.load(folder / "out.h5"), _expected(folder.parent)
        found = state(net._model().parameters, momentum=False)
        if ending == ".npz":  # every member has a checksum
            same = found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in found)
            return "" if same else "other numbers were read"
        whole = all(np.isfinite(array).all() for array in found.values())
        return "" if whole and len(net.class_names) == len(CLASSES) else "what is no number was read"

    return Case(_import(path), verdict)


def safetensors_claims(random, folder):
    """A header whose tensors are not where, what or as large as it says, in a file that is otherwise whole."""
    path, whole = folder / "net.safetensors", _whole(folder.parent, ".safetensors")
    length = int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = sorted(header.keys() - {"__metadata__"})
    name, other = (names[k] for k in random.choice(len(names), 2, replace=False))
    one, values = header[name], [*INTEGERS, 2**64, 1.5, None, "a", [], {}]
    value = values[random.integers(len(values))]
    choice = random.integers(7)
    if choice == 0:
        one["shape"][random.integers(len(one["shape"]))] = value
    elif choice == 1:
        one["data_offsets"][random.integers(2)] = value
    elif choice == 2:
        one["dtype"] = ["F64", "I32", "BF16", "U8", "BOOL", "F99", "", 7][random.integers(8)]
    elif choice == 3:
        one["shape"] = one["shape"] + [1]
    elif choice == 4:
        header[name + "\n\x1b[2A"] = header.pop(name)
    elif choice == 5:
        header[name] = header[other] | {"data_offsets": header[other]["data_offsets"]}
    else:
        header["__metadata__"] = [value, {"knltrain": value}, {"classes": json.dumps(value)}][random.integers(3)]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    fine = choice == 6 and isinstance(header["__metadata__"], dict) or choice == 6 and value is None
    return Case(_import(path), (lambda code, text: "") if fine else refused)


def npz_claims(random, folder):
    """Members whose headers claim other types and sizes, under checksums that fit; and members that are no arrays."""
    path, whole = folder / "net.npz", _whole(folder.parent, ".npz")
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(members)
    name = names[random.integers(len(names))]
    header = members[name][10 : 10 + int.from_bytes(members[name][8:10], "little")].decode("latin1")
    shape = header[header.index("'shape': ") + 9 : header.index(", }")]
    changes = {
        shape: [f"({value},)" for value in INTEGERS] + ["(1, 1, 1, 1, 1, 1)", "()", "0", "None", "(1.5,)", "((1,),)"],
        "<f4": ["|O", "<f8", "<i4", "<M8", "|V4", ">c8", "f4,f4", "x"],
        "{": ["{{", "", "__import__('os').abort() or {"],
        "descr": ["dtype", "\x00\x00"],
    }
    old = list(changes)[random.integers(len(changes))]
    new = header.replace(old, changes[old][random.integers(len(changes[old]))], 1)
    if new == header:  # the texts of `about` are no floats
        new = header.replace("'", "", 1)
    new = new.encode("latin1")
    members[name] = members[name][:8] + len(new).to_bytes(2, "little") + new + members[name][10 + len(header) :]
    if random.integers(8) == 0:
        members[name] = random.bytes(64)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if random.integers(2) else zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Case(_import(path), refused)


KINDS = {}
if importlib.util.find_spec("safetensors"):
    KINDS = {
        "weights damaged": Kind(600, weights_damaged, warm),
        "safetensors claims": Kind(400, safetensors_claims, warm),
        "npz claims": Kind(400, npz_claims, warm),
    }
