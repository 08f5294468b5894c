"""Weights in a file: safetensors, NumPy's .npz, PyTorch's state dict. What is read says its sizes before it is read.

A pickle (.pth, .pt, .bin) is a program, and reading one runs it: we never do. PyTorch itself writes and converts them.
"""

import importlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..claims.keys import shown
from ..claims.whole import write_whole

ABOUT = "about"  # the array of a .npz that holds what the file says beside its weights: JSON, a text to a name
MOST_ABOUT = 1 << 24  # bytes of it
MOST_TENSORS = 10**5  # of a file: ResNet-152 has 932
DTYPES = {"F32": "float32", "F16": "float16", "F64": "float64", "BF16": "bfloat16", "I64": "int64"}
PICKLE = (
    "found a PyTorch pickle, which is a program and is not run here: expected .safetensors. In Python, with PyTorch: "
    'import torch, safetensors.torch; weights = torch.load({0!r}, weights_only=True); '
    "safetensors.torch.save_file({{name: w.contiguous() for name, w in weights.items()}}, {1!r})"
)


class Stored(NamedTuple):
    """A tensor of a file: what it claims to be, and how to read it."""

    shape: tuple
    dtype: str
    read: Callable[[], np.ndarray]


def extra(module: str):
    """An optional package. Raises ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise ImportError(f"{package} is not installed, expected it for this format: pip install {package}") from None


# ---- reading -------------------------------------------------------------------------------------------------


def look(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """(tensors by name, what the file says besides) of a .safetensors or .npz file, known by its first bytes.

    Nothing but headers is read yet. Raises ValueError for anything else, OSError.
    """
    path = Path(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("found a folder, pipe or device, expected a file")
    with path.open("rb") as file:
        head = file.read(9)
    with _damage_told():
        archived = head[:4] == b"PK\x03\x04"
        if head[:1] == b"\x80" and head[8:] != b"{" or archived and _is_pickle(path):  # { : safetensors' header
            raise ValueError(PICKLE.format(str(path), str(path.with_suffix(".safetensors"))))
        return (_npz if archived else _safetensors)(path)


@contextmanager
def _damage_told():
    """On a damaged file the libraries raise what they like: here it becomes a ValueError."""
    try:
        yield
    except (OSError, ImportError, MemoryError, ValueError):
        raise
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ValueError(f"found no whole .safetensors or .npz file, expected one ({what})") from None


def _is_pickle(path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())


def _safetensors(path):
    open_file = extra("safetensors").safe_open

    def read(name):
        with _damage_told(), open_file(path, framework="numpy") as file:
            return file.get_tensor(name)

    stored = {}
    with open_file(path, framework="numpy") as file:
        for name in _few(file.keys()):
            part = file.get_slice(name)
            kind = DTYPES.get(part.get_dtype(), part.get_dtype())
            stored[name] = Stored(tuple(part.get_shape()), kind, partial(read, name))
        return stored, file.metadata() or {}


def _few(tensors):
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"found {len(tensors)} tensors, expected at most {MOST_TENSORS}")
    return tensors


def _npz(path):
    with zipfile.ZipFile(path) as archive:
        members = _few(archive.infolist())
        stored = {member.filename.removesuffix(".npy"): _array(path, archive, member) for member in members}
    if len(stored) < len(members):
        raise ValueError("found an array twice, expected each once")
    return stored, _told(stored.pop(ABOUT, None))


def _array(path, archive, member) -> Stored:
    """A .npy inside a .npz by its header, whose claim must fit the size of the member."""
    with archive.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        start = file.tell()
    if dtype.hasobject or member.file_size != start + math.prod(shape) * dtype.itemsize:
        claim = f"{shape} of {dtype} in {member.file_size} bytes"
        raise ValueError(f"found {shown(member.filename)} {claim}, expected numbers that fill it")

    def read():
        with _damage_told(), zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return np.load(io.BytesIO(file.read(member.file_size)), allow_pickle=False)

    return Stored(shape, dtype.name, read)


def _told(stored) -> dict[str, str]:
    if stored is None:
        return {}
    if stored.shape != () or not stored.dtype.startswith("str") or int(stored.dtype[3:] or 0) // 8 > MOST_ABOUT:
        raise ValueError(f"found {ABOUT} {stored.shape} of {stored.dtype}, expected a text")
    about = json.loads(str(stored.read()))
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError(f"found {ABOUT} {shown(about)}, expected a table of texts")
    return about


# ---- writing -------------------------------------------------------------------------------------------------


def _write_safetensors(path, weights, about):
    path.write_bytes(extra("safetensors.numpy").save(weights, {"format": "pt"} | about))  # its save_file: mode 0600


def _write_npz(path, weights, about):
    with path.open("wb") as file:
        np.savez(file, **weights, **{ABOUT: np.array(json.dumps(about))})


def _write_torch(path, weights, about):
    """A state dict that torch.load(weights_only=True) reads; a state dict has no place for `about`."""
    torch = extra("torch")
    torch.save({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, path)


WRITERS = {"safetensors": _write_safetensors, "npz": _write_npz, "torch": _write_torch}
FORMATS = {"safetensors": ".safetensors", "npz": ".npz", "torch": ".pth", "onnx": ".onnx"}  # and their endings


def write(path: Path, to: str, weights: dict[str, np.ndarray], about: dict[str, str]) -> None:
    """Write tensors and texts as one file, whole or not at all. Raises ImportError for an extra, OSError."""
    write_whole(path, lambda temporary: WRITERS[to](temporary, weights, about))
