"""HDF5 files, written, and read without trust: of what another program put into a file, only our own kind is opened.

HDF5 can send a reader elsewhere: by links to other files, by datasets whose bytes lie in other files (external and
virtual storage), by filters, which load plugins. A FIFO behind one of them hangs whoever opens it. So every name is
looked at before it is opened, and what is not one contiguous stretch of this very file is refused.
"""

import io
import math
import os
import stat
from contextlib import contextmanager
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5s, h5t

from .keys import KINDS, LONGEST, Rule, shown


class Untrusted(ValueError):
    """A file is not as we write it: what was found, what was expected."""


class Stored(NamedTuple):
    """A dataset: `nbytes` bytes at `offset` of its file."""

    dataset: h5d.DatasetID
    offset: int
    shape: tuple
    dtype: np.dtype
    nbytes: int

    def read(self) -> np.ndarray:
        array = np.zeros(self.shape, self.dtype)
        if self.nbytes:
            self.dataset.read(h5s.ALL, h5s.ALL, array)
        return array


@contextmanager
def opened(path):
    """The open h5py.File of a regular file. Raises Untrusted, OSError, and what h5py raises on a damaged file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Untrusted("found a folder, pipe or device, expected a file")
    with h5py.File(path, "r", locking=False) as file:
        yield file


def changed(path, mode: str, version: str) -> h5py.File:
    """A file to be filled, "w", or changed, "r+", that this version of HDF5 and later read."""
    return h5py.File(path, mode, locking=False, libver=(version, version))


@contextmanager
def written(path):
    """A new h5py.File to be filled. Raises OSError where the disk did not take all of it."""
    with _KeepsError(path, "w+") as raw:
        with h5py.File(raw, "w") as file:
            yield file
        if raw.error:
            raise raw.error


def text_of(length: int) -> np.dtype:
    """UTF-8 of so many bytes at most."""
    return h5py.string_dtype("utf-8", length)


class _KeepsError(io.FileIO):
    """A file that accepts every write and remembers the first that failed.

    HDF5 cannot close a file on a full disk: it floods stderr and then crashes the process (seen with h5py 3.16).
    """

    error = None

    def write(self, data):
        rest = memoryview(data).cast("B")
        self._attempt(lambda: self._write_all(rest))
        return len(rest)

    def truncate(self, size=None):
        self._attempt(lambda: super(_KeepsError, self).truncate(size))
        return size

    def _write_all(self, rest):
        while rest:
            rest = rest[super().write(rest) :]

    def _attempt(self, action):
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error


def attributes(identifier, rules: dict[str, Rule]) -> dict:
    """The attributes of a file or dataset that `rules` names, each as its rule has it; whole numbers and texts."""
    return {name: _attribute(identifier, name, rule) for name, rule in rules.items()}


def _attribute(identifier, name, rule):
    if not h5a.exists(identifier, name.encode()):
        raise Untrusted(f"found no {name}, expected {rule.expected(None)}")
    attribute = h5a.open(identifier, name.encode())
    kind, scalar = attribute.get_type(), attribute.get_space().get_simple_extent_type() == h5s.SCALAR
    if not scalar or kind.get_class() != {str: h5t.STRING, int: h5t.INTEGER}[rule.kind] or kind.get_size() > LONGEST:
        raise Untrusted(f"found {name} of another type, expected {KINDS[rule.kind]}")
    value = np.empty((), kind.dtype)
    attribute.read(value)
    value = value[()]
    value = int(value) if rule.kind is int else value.decode() if isinstance(value, bytes) else value
    if rule.expected(value):
        raise Untrusted(f"found {name} {shown(value)}, expected {rule.expected(value)}")
    return value


def stored(file: h5py.File, name: str) -> Stored:
    """The dataset of a name, `group/name` in a group; its bytes are inside the file. Raises Untrusted if not."""
    found = file.id
    for part in name.split("/"):
        if found.links.get_info(part.encode()).type != h5l.TYPE_HARD:
            raise Untrusted(f"found {shown(name)} behind a link, expected it in the file itself")
        found = h5o.open(found, part.encode())
    if not isinstance(found, h5d.DatasetID):
        raise Untrusted(f"found {shown(name)} as no dataset, expected one")
    how = found.get_create_plist()
    if how.get_layout() != h5d.CONTIGUOUS or how.get_external_count() or how.get_nfilters():
        raise Untrusted(f"found {shown(name)} in chunks, filtered or in other files, expected one stretch of this file")
    if found.get_space().get_simple_extent_type() == h5s.NULL:
        raise Untrusted(f"found {shown(name)} without a shape, expected numbers")
    shape, dtype, offset = found.shape, found.dtype, found.get_offset()
    nbytes, length = math.prod(shape) * dtype.itemsize, file.id.get_filesize()
    if nbytes and (offset is None or offset + nbytes > length):
        raise Untrusted(f"found {length} bytes, but {shown(name)} needs {nbytes} at {offset}: it is cut short")
    return Stored(found, offset or 0, shape, dtype, nbytes)
