"""Which picture file is which row of which shard, decided from names and sizes before the first file is read."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .entries import Entry
from .index import find_shards
from .progress import Progress
from .ranks import from_first
from .sampler import permutation
from .shards import VERSION, Shard
from .sources import SPLITS, list_source
from .truth import list_with_truth

SHUFFLE_KEY = 0x5A4D  # of the fixed order of rows; a change of it changes every packed data set
SHOWN = 5  # classes that are named in a line
MAX_SHARD_BYTES = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How picture files are packed. Raises ValueError, one line, for what cannot be."""

    encoding: str = "raw"  # size x size pixels (short side scaled, centre cut out); jpeg: files, short side scaled
    size: int = 256  # pixels; 0 with jpeg keeps every picture as large as it is, and its bytes
    shard_bytes: int = 256 << 20  # about the size of a shard; a rank holds two in memory
    max_bad: int | float = 0.01  # files that may be unreadable: an int is a count, a float a share from 0.0 to 1.0
    ground_truth: Path | None = None  # for files without class folders, see `truth`
    synsets: Path | None = None  # names for it; alone: for labels that are numbers
    fit: str = "crop"  # of raw pictures; warp: the whole picture scaled to size x size, as Caffe's convert_imageset
    classes_of: Path | None = None  # shards whose classes, and so labels, these shall have; the source may lack some
    empty_classes: str = "drop"  # or keep: class folders without a readable image are classes too

    def __post_init__(self):
        encoding, size, fit, most = self.encoding, self.size, self.fit, self.max_bad
        if encoding not in ("raw", "jpeg"):
            raise ValueError(f"encoding {encoding!r}: expected raw or jpeg")
        if not 0 <= size <= 8192 or (encoding == "raw" and size == 0):
            wanted = "1 to 8192 pixels, or 0 with jpeg to keep the size of every picture"
            raise ValueError(f"size {size}: expected {wanted}")
        if fit not in ("crop", "warp") or (fit == "warp" and encoding != "raw"):
            raise ValueError(f"fit {fit!r} with {encoding}: expected crop, or with raw shards warp")
        if not 1 <= self.shard_bytes <= MAX_SHARD_BYTES:
            raise ValueError(f"shard bytes {self.shard_bytes}: expected 1 to {MAX_SHARD_BYTES}")
        if not 0 <= most <= (most if isinstance(most, int) else 1):
            raise ValueError(f"max bad {most}: expected a count of files, or a share from 0.0 to 1.0")
        if self.ground_truth is not None and self.synsets is None:
            raise ValueError("found a ground truth without synsets, expected both")


class Plan:
    """Which file is which row of which shard, the same on all ranks. `digest` tells this packing from others."""

    def __init__(self, listing, held, how: Packing):
        self.how, self.class_names = how, listing["class_names"]
        self._names = _split(listing["names"])
        self._paths, self._path_of = _split(listing["paths"]), listing["path_of"]
        self._offsets, self._lengths = listing["offsets"], listing["lengths"]
        self._faults, self._held = {int(i): text for i, text in listing["faults"]}, held
        self._labels = {name: label for label, name in enumerate(self.class_names)}
        self.labels_expected = {self._labels[name.partition("/")[0]] for name in self._names}
        self.order = permutation(len(self._names), SHUFFLE_KEY)
        if how.encoding == "raw":
            estimates = np.full(len(self.order), 3 * how.size**2)
        else:  # what a picture will take is not known before it is encoded: at most what it takes now
            lengths = self._lengths[self.order]
            estimates = np.minimum(lengths, how.size**2) if how.size else lengths
        self._estimates = estimates
        before = np.cumsum(estimates) - estimates
        shard_of = before // max(how.shard_bytes, int(estimates.max()))
        self._bounds = [*np.flatnonzero(np.diff(shard_of, prepend=-1)).tolist(), len(self.order)]
        self.shards = len(self._bounds) - 1
        fit = [how.fit] if how.fit != "crop" else []
        options = [VERSION, how.encoding, how.size, how.shard_bytes, *fit, self.class_names]
        facts = json.dumps(options).encode()
        whole = b"".join([facts, listing["names"].tobytes(), self._lengths.tobytes()])
        self.digest = hashlib.sha256(whole).hexdigest()[:32]

    def entries(self, shard: int) -> list[Entry]:
        """The files of a shard, in the order of its rows."""
        return [self._entry(i) for i in self.order[self._bounds[shard] : self._bounds[shard + 1]].tolist()]

    def _entry(self, i):
        place = self._paths[self._path_of[i]], int(self._offsets[i]), int(self._lengths[i])
        return Entry(self._names[i], *place, self._faults.get(i), self._held.get(place[0]))

    def files(self, shard: int) -> int:
        """How many files a shard is made of."""
        return self._bounds[shard + 1] - self._bounds[shard]

    def least_bytes(self, shard: int) -> int:
        """Of the pictures of a shard; of JPEG files that are encoded again nothing is known before."""
        known = self.how.encoding == "raw" or self.how.size == 0
        return int(self._estimates[self._bounds[shard] : self._bounds[shard + 1]].sum()) if known else 0

    def label(self, entry: Entry) -> int:
        return self._labels[entry.class_name]


def make_plan(src, how: Packing, comm, report) -> Plan:
    """The plan of packing `src`, listed by rank 0 for all."""
    held = {}  # what compressed tars and parquet hold, by their paths; only the rank that unpacked them has it

    def listing():
        if how.ground_truth is None:
            class_names, entries = list_source(src, how.synsets and Path(how.synsets))
        else:
            class_names, entries = list_with_truth(src, Path(how.ground_truth), Path(how.synsets))
        held.update((entry.path, entry.held) for entry in entries if entry.held is not None)
        if held and comm is not None and comm.size > 1:
            raise ValueError(f"{src}: found a compressed tar or parquet, which ranks cannot share: use one rank")
        class_names = _choose_classes(src, class_names, entries, how, Progress(report, 0).line)
        paths = {path: i for i, path in enumerate(dict.fromkeys(entry.path for entry in entries))}
        return {
            "class_names": class_names,
            "names": _join(entry.name for entry in entries),
            "paths": _join(paths),
            "path_of": np.array([paths[entry.path] for entry in entries], np.int32),
            "offsets": np.array([entry.offset for entry in entries], np.int64),
            "lengths": np.array([entry.length for entry in entries], np.int64),
            "faults": [(i, entry.fault) for i, entry in enumerate(entries) if entry.fault],
        }

    return Plan(from_first(comm, listing), held, how)


def _choose_classes(src, found, entries, how, say):
    """The classes whose numbers become labels; `say` is told what looks like a mistake, and the first of them."""
    counts, direct = Counter(), 0
    for entry in entries:
        counts[entry.class_name] += 1
        direct += entry.name.count("/") == 1
    if SPLITS.issuperset(found) or not direct:
        cure = f"if these are splits, pack each alone, as {Path(src, min(found))}"
        say(f"warning: {src}: found classes {_some(found)}, with folders inside or named like splits: {cure}")
    if how.classes_of is not None:
        known = [name.decode("utf-8", "replace") for name in Shard(find_shards(Path(how.classes_of))[0]).class_names]
        if others := set(found) - set(known):
            raise ValueError(f"{src}: found classes {_some(others)}, expected only those of {how.classes_of}")
        found = known
    elif none := set(found) - set(counts):
        drop = how.empty_classes == "drop"
        cure = "left out (--empty-classes keep numbers them too)" if drop else "kept as classes"
        say(f"warning: {src}: found no images in {len(none)} of {len(found)} classes ({_some(none)}): {cure}")
        found = [name for name in found if not drop or name in counts]
    say(f"{len(entries)} files in {len(found)} classes: " + _some(found, lambda name: f"{name} ({counts[name]})"))
    return found


def _some(names, text=str):
    """The first of the names, sorted."""
    names = sorted(names)
    return ", ".join(map(text, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")


def _join(texts):
    """Texts as one array of bytes; no file name holds a NUL."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)


def _split(array):
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0")
