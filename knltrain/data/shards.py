"""The shard format, version 2: this file is its definition, docs/shards.md says the same in prose.

A data set is a folder of HDF5 files `shard-00000.h5`, … . Attributes of a file:

    format "knltrain-shard" · version 2 · encoding "raw" or "jpeg" · size · rows · first_row · total_rows
    fit                 raw: "crop", the centre square, or "warp", the whole picture; absent: crop
    plan                which packing this shard belongs to: the same text in all shards of a data set
    metadata_checksum   CRC-32C over METADATA and `skipped`, each as "name type shape" and its bytes

and its datasets, all of them contiguous, n = rows:

    class_names (classes,) and names (n,)   fixed-length UTF-8; names are paths relative to the packed folder
    labels    (n,) int32                    index into class_names
    checksums (n,) uint32                   CRC-32C of the label as 4 little-endian bytes, then the bytes of the row
    images    (n, size, size, 3) uint8      raw
    bytes     (b,) uint8 and offsets (n + 1,) int64    jpeg: row i is bytes[offsets[i]:offsets[i + 1]]
    skipped   (k,) fixed-length UTF-8       "name: reason" of the files left out, only where there are any

HDF5 gives structure and tools; rows are read with pread at the dataset's place in the file, because all HDF5 calls of a
process share one lock. Everything a file says about itself is checked against its length before it is used. The file
is of HDF5's format 1.8, in which the library's own structures carry checksums too.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from knltrain.kernels import crc32c

from ..claims.hdf5 import Untrusted, attributes, changed, opened, stored, text_of
from ..claims.keys import Rule, shown
from ..claims.whole import put

FORMAT, VERSION = "knltrain-shard", 2
METADATA = {"raw": ("class_names", "names", "labels", "checksums")}
METADATA["jpeg"] = (*METADATA["raw"], "offsets")
MOST_ROWS, LARGEST_ROW, LARGEST_METADATA = 2**40, 2**28, 2**30  # rows; bytes
FACTS = {
    "format": Rule("what the file is", str, one_of=(FORMAT,)),
    "version": Rule("of the format: data of another one must be packed again", int, one_of=(VERSION,)),
    "encoding": Rule("of the rows", str, one_of=tuple(METADATA)),
    "size": Rule("pixels", int, most=8192),
    "rows": Rule("in this file", int, most=MOST_ROWS),
    "first_row": Rule("of this file", int, most=MOST_ROWS),
    "total_rows": Rule("in all files; 0 until the packing is done", int, most=MOST_ROWS),
    "plan": Rule("of the packing", str),
    "metadata_checksum": Rule("CRC-32C", int, most=2**32 - 1),
}
FIT = {"fit": Rule("of raw pictures", str, one_of=("crop", "warp"))}
TYPES = {"class_names": "S", "names": "S", "skipped": "S", "labels": "<i4", "checksums": "<u4", "offsets": "<i8"}
WRITE_BYTES = 8 << 20  # at a time
HDF5 = "v108"  # of 2008


class ShardError(ValueError):
    """A shard is damaged, incomplete or of another version."""


class Packed(NamedTuple):
    """How pictures were packed: raw or jpeg; pixels, 0 as they were; what became of the aspect of raw ones."""

    encoding: str
    size: int
    fit: str = "crop"

    @classmethod
    def of(cls, facts: dict) -> "Packed":
        """As `data.encoding`, `data.size`, `data.fit` of the facts of a run say. Raises ValueError if they do not."""
        found = {name: facts.get(f"data.{name}", cls._field_defaults.get(name)) for name in cls._fields}
        for name, rule in (FACTS | FIT).items():
            if name in found and rule.expected(found[name]):
                raise ValueError(f"found data.{name} {shown(found[name])}, expected {rule.expected(found[name])}")
        return cls(**found)


class Row(NamedTuple):
    """One row to write: raw pixels (size, size, 3) uint8, or the bytes of a JPEG file."""

    data: np.ndarray | bytes
    label: int
    name: str


def checksum(label: int, data) -> int:
    """CRC-32C over label and bytes, so that neither can change unnoticed."""
    return crc32c(data, crc32c(int(label).to_bytes(4, "little")))


def _metadata_checksum(arrays: dict[str, np.ndarray]) -> int:
    """CRC-32C over what tells what the rows are, in the order of METADATA."""
    value = 0
    for name, array in arrays.items():
        value = crc32c(f"{name} {array.dtype.str} {array.shape}".encode(), value)
        value = crc32c(array.tobytes(), value)
    return value


# ---- writing -------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    rows: list[Row],
    *,
    encoding: str,
    size: int,
    class_names: list[str],
    first_row: int = 0,
    plan: str = "",
    skipped: list[str] | tuple = (),
    fit: str = "crop",
) -> None:
    """Write one shard. Its attribute total_rows is 0, hence unreadable, until finish_shard is called."""
    n = len(rows)
    metadata = {
        "class_names": _fixed_utf8(class_names),
        "names": _fixed_utf8([row.name for row in rows]),
        "labels": np.array([row.label for row in rows], np.int32),
        "checksums": np.array([checksum(row.label, row.data) for row in rows], np.uint32),
    }
    if encoding == "jpeg":
        metadata["offsets"] = np.cumsum([0] + [len(row.data) for row in rows], dtype=np.int64)
    if skipped:
        metadata["skipped"] = _fixed_utf8(skipped)
    with changed(path, "w", HDF5) as file:
        # numbers and texts of fixed length: they lie in the file's checksummed header
        texts = {"format": FORMAT, "encoding": encoding, "plan": plan} | ({"fit": fit} if encoding == "raw" else {})
        for name, value in ((name, np.bytes_(text)) for name, text in texts.items()):
            file.attrs.create(name, value, dtype=text_of(max(1, len(value))))
        numbers = {"version": VERSION, "size": size, "rows": n, "first_row": first_row, "total_rows": 0}
        for name, value in (numbers | {"metadata_checksum": _metadata_checksum(metadata)}).items():
            file.attrs[name] = value
        for name, array in metadata.items():
            file[name] = array
        if encoding == "raw":
            stored = file.create_dataset("images", (n, size, size, 3), np.uint8)
        else:
            stored = file.create_dataset("bytes", (int(metadata["offsets"][-1]),), np.uint8)
        at = 0
        for some in _chunks(rows):  # a call of HDF5 for every small row would take longer than decoding it
            chunk = np.stack(some) if encoding == "raw" else np.frombuffer(b"".join(some), np.uint8)
            stored[at : at + len(chunk)] = chunk
            at += len(chunk)


def _chunks(rows):
    """The data of the rows, in lists of about WRITE_BYTES."""
    some, nbytes = [], 0
    for row in rows:
        some.append(row.data)
        nbytes += memoryview(row.data).nbytes
        if nbytes >= WRITE_BYTES:
            yield some
            some, nbytes = [], 0
    if some:
        yield some


def finish_shard(temporary: Path, path: Path, total_rows: int, first_row: int | None = None) -> None:
    """Tell a shard its place in the whole data set, bring it safely to the disk, give it its name."""
    with changed(temporary, "r+", HDF5) as file:
        file.attrs.modify("total_rows", total_rows)  # in place: the bytes do not depend on how often this is done
        if first_row is not None:
            file.attrs.modify("first_row", first_row)
    put(temporary, path)


def _fixed_utf8(texts):
    # a file name that is not UTF-8 is kept readable: \udce9 for the byte e9
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    return np.array(encoded, text_of(max(map(len, encoded), default=1)))


# ---- reading -------------------------------------------------------------------------------------------------


class Shard:
    """What one file says about itself, checked. Holds no open file.

    Attributes: path, encoding, size, fit, rows, first_row, total_rows, plan; class_names, names, labels, checksums
    (arrays); skipped (list of str); data_at: where row 0 begins in the file; offsets (rows + 1,) int64 from there;
    data_bytes: of all rows.

    Raises: ShardError, one line. unfinished: also take a shard that finish_shard has not seen.
    """

    def __init__(self, path: Path, *, unfinished: bool = False):
        self.path, self.length = Path(path), os.stat(path).st_size
        try:
            with opened(path) as file:
                self._load(file, unfinished)
        except ShardError:
            raise
        except Untrusted as error:
            raise self.error(f"{error}: copy or pack it again") from None
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ... for a damaged file
            found = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self.error(f"found no whole HDF5 file ({found}), expected a shard: copy or pack it again") from None

    def _load(self, file, unfinished):
        facts = attributes(file.id, FACTS)
        self.encoding, self.plan, self.size = facts["encoding"], facts["plan"], facts["size"]
        self.fit = attributes(file.id, FIT)["fit"] if "fit" in file.attrs else "crop"
        self.rows, self.first_row, self.total_rows = facts["rows"], facts["first_row"], facts["total_rows"]
        if not (unfinished or (self.rows and self.total_rows)):
            raise self.error(
                f"found {self.rows} rows of {self.total_rows}: the packing was interrupted, pack the data again"
            )
        if self.encoding == "raw" and self.size == 0:
            raise self.error("found raw pictures of size 0, expected 1 to 8192: pack the data again")
        n = self.rows
        shapes = {"names": (n,), "labels": (n,), "checksums": (n,), "offsets": (n + 1,)}
        wanted = METADATA[self.encoding] + (("skipped",) if file.id.links.exists(b"skipped") else ())
        places = {name: self._place(file, name, TYPES[name], 1, shapes.get(name)) for name in wanted}
        metadata = {name: place.read() for name, place in places.items()}
        self.class_names, self.names = metadata["class_names"], metadata["names"]
        self.names_at, self.name_bytes = places["names"].offset, self.names.dtype.itemsize
        self.labels, self.checksums = metadata["labels"], metadata["checksums"]
        self.skipped = [text.decode("utf-8", "replace") for text in metadata.get("skipped", ())]
        if n and not (0 <= self.labels.min() and self.labels.max() < len(self.class_names)):
            raise self.error(f"found labels outside 0..{len(self.class_names) - 1}: pack the data again")
        if self.encoding == "raw":
            self.data_at = self._place(file, "images", "|u1", 4, (n, self.size, self.size, 3)).offset
            self.offsets = np.arange(n + 1) * (self.size * self.size * 3)
        else:
            rows = self._place(file, "bytes", "|u1", 1)
            self.data_at, self.offsets = rows.offset, metadata["offsets"]
            inside = self.offsets[0] == 0 and self.offsets.min() == 0 and self.offsets.max() == self.offsets[-1]
            lengths = np.diff(self.offsets) if inside and self.offsets[-1] == rows.nbytes else np.zeros(1)
            if n and not (0 < lengths.min() and lengths.max() <= LARGEST_ROW):
                raise self.error(f"found row offsets that do not ascend from 0 to {rows.nbytes}: pack it again")
        self.data_bytes = int(self.offsets[-1])
        found, expected = _metadata_checksum(metadata), facts["metadata_checksum"]
        if found != expected:
            raise self.error(
                f"found metadata with checksum {found}, expected {expected}: the file is damaged, copy or pack it again"
            )

    def _place(self, file, name, dtype, ndim, shape=None):
        """A dataset whose type and shape were checked."""
        place = stored(file, name)
        same_type = place.dtype.kind == "S" if dtype == "S" else place.dtype == np.dtype(dtype)
        if not same_type or len(place.shape) != ndim or (shape is not None and place.shape != shape):
            wanted = f"{'text' if dtype == 'S' else np.dtype(dtype)} {shape or f'of {ndim} dimensions'}"
            raise self.error(f"found {name} as {place.dtype} {place.shape}, expected {wanted}: pack the data again")
        if name in TYPES and place.nbytes > LARGEST_METADATA:  # a file with holes claims any length
            raise self.error(f"found {name} of {place.nbytes} bytes, more than {LARGEST_METADATA}: pack again")
        return place

    def lean(self, first: "Shard") -> "Shard":
        """Itself, without what is not wanted for reading rows: names, and what it has in common with the first one."""
        if np.array_equal(self.class_names, first.class_names):
            self.class_names = first.class_names
        self.names = None
        if self.encoding == "raw":
            self.offsets = None
        return self

    def error(self, text: str) -> ShardError:
        """A ShardError that names this file."""
        return ShardError(f"shard {self.path}: {text}")
