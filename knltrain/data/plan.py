"""Which picture file is which row of which shard, decided from names and sizes before the first file is read."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from .dataset import find_shards
from .entries import Entry
from .progress import Progress
from .ranks import from_first
from .sampler import permutation
from .shards import VERSION, Shard
from .sources import SPLITS, list_source
from .truth import list_with_truth

SHUFFLE_KEY = 0x5A4D  # of the fixed order of rows; a change of it changes every packed data set
SHOWN = 5  # classes that are named in a line


class Plan:
    """Which file is which row of which shard, the same on all ranks. `digest` tells this packing from others."""

    def __init__(self, listing, held, encoding, size, shard_bytes, fit):
        self.encoding, self.size, self.fit, self.class_names = encoding, size, fit, listing["class_names"]
        self._names = _split(listing["names"])
        self._paths, self._path_of = _split(listing["paths"]), listing["path_of"]
        self._offsets, self._lengths = listing["offsets"], listing["lengths"]
        self._faults, self._held = {int(i): text for i, text in listing["faults"]}, held
        self._labels = {name: label for label, name in enumerate(self.class_names)}
        self.labels_expected = {self._labels[name.partition("/")[0]] for name in self._names}
        self.order = permutation(len(self._names), SHUFFLE_KEY)
        if encoding == "raw":
            estimates = np.full(len(self.order), 3 * size * size)
        else:  # what a picture will take is not known before it is encoded: at most what it takes now
            lengths = self._lengths[self.order]
            estimates = np.minimum(lengths, size * size) if size else lengths
        self._estimates = estimates
        before = np.cumsum(estimates) - estimates
        shard_of = before // max(shard_bytes, int(estimates.max()))
        self._bounds = [*np.flatnonzero(np.diff(shard_of, prepend=-1)).tolist(), len(self.order)]
        self.shards = len(self._bounds) - 1
        options = [VERSION, encoding, size, shard_bytes, *([fit] if fit != "crop" else []), self.class_names]
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
        known = self.encoding == "raw" or self.size == 0
        return int(self._estimates[self._bounds[shard] : self._bounds[shard + 1]].sum()) if known else 0

    def label(self, entry: Entry) -> int:
        return self._labels[entry.class_name]


def make_plan(src, comm, report, *, ground_truth, synsets, classes_of, empty, **how) -> Plan:
    """The plan of packing `src`, listed by rank 0 for all; how: encoding, size, shard_bytes and fit, see `pack`."""
    held = {}  # what compressed tars and parquet hold, by their paths; only the rank that unpacked them has it

    def listing():
        if ground_truth is None:
            class_names, entries = list_source(src, synsets and Path(synsets))
        else:
            class_names, entries = list_with_truth(src, Path(ground_truth), Path(synsets))
        held.update((entry.path, entry.held) for entry in entries if entry.held is not None)
        if held and comm is not None and comm.size > 1:
            raise ValueError(f"{src}: found a compressed tar or parquet, which ranks cannot share: use one rank")
        class_names = _choose_classes(src, class_names, entries, classes_of, empty, Progress(report, 0).line)
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

    return Plan(from_first(comm, listing), held, **how)


def _choose_classes(src, found, entries, classes_of, empty, say):
    """The classes whose numbers become labels; `say` is told what looks like a mistake, and the first of them."""
    counts, direct = Counter(), 0
    for entry in entries:
        counts[entry.class_name] += 1
        direct += entry.name.count("/") == 1
    if SPLITS.issuperset(found) or not direct:
        cure = f"if these are splits, pack each alone, as {Path(src, min(found))}"
        say(f"warning: {src}: found classes {_some(found)}, with folders inside or named like splits: {cure}")
    if classes_of is not None:
        known = [name.decode("utf-8", "replace") for name in Shard(find_shards(Path(classes_of))[0]).class_names]
        if others := set(found) - set(known):
            raise ValueError(f"{src}: found classes {_some(others)}, expected only those of {classes_of}")
        found = known
    elif none := set(found) - set(counts):
        cure = "left out (--empty-classes keep numbers them too)" if empty == "drop" else "kept as classes"
        say(f"warning: {src}: found no images in {len(none)} of {len(found)} classes ({_some(none)}): {cure}")
        found = [name for name in found if empty == "keep" or name in counts]
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
