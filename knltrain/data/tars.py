"""What a tar holds: its members are read in place, never written to the disk.

A link is read as what it leads to, which must be inside the tar; nothing else is read. What a tar says of itself is
held to the bounds below, so that reading it takes time and memory in proportion to its length.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from .entries import MAX_FILE_BYTES, MAX_RATIO, Entry
from .files import OpenFile

MAX_UNPACKED_BYTES = 4 << 30  # of a compressed tar, which is unpacked into a nameless temporary file
MAX_MEMBER_BYTES = 1 << 50
MAX_NESTED = 4  # tars in tars
MAX_HEADER_BYTES = 16 << 10  # of a member's long name, or of its PAX records
MAX_PAX_KEYS = 1000  # of records that are valid for all members
MAX_NAME, MAX_FOLDERS = 4096, 64  # characters of a path, and folders in it
MAX_LINKS = 40  # from a link to its file, as Linux has it
MAX_SAME_FOLDER = 16  # class folders that are links to one: the same pictures with another label
NO_LINK = "expected one to a regular file inside the tar"
TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, LookupError, ValueError, RecursionError)
HEADERS = {type.encode() for type in "LKxgX"}  # of a long name or link, and of PAX records
UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by a file's first bytes


def count_link(src: Path, linked: Counter, target: str) -> None:
    """Note one more class folder that is a link to `target`."""
    linked[target] += 1
    if linked[target] > MAX_SAME_FOLDER:
        raise ValueError(
            f"{src}: found more than {MAX_SAME_FOLDER} class folders that are links to {target}, expected different "
            "pictures in each: remove links"
        )


def list_tar(src: Path, prefix: tuple = ()) -> tuple[dict, set]:
    """(members, folders) of a tar: members by the parts of their names, an Entry each or where a link leads.

    prefix: parts of a folder that is thought around all. Raises: ValueError if it is no whole tar, or beyond a bound.
    """
    if not src.is_file():
        raise ValueError(f"{src}: found no such file or folder, expected class folders or a tar of them")
    members, folders = {}, set()
    try:
        with open(src, "rb") as file, tempfile.TemporaryFile() as unpacked:
            packed = _unpack(src, file, unpacked)
            held = OpenFile(f"/proc/self/fd/{unpacked.fileno()}") if packed else None  # outlives its name
            _read_members(unpacked if packed else file, Entry("", str(src), held=held), prefix, members, folders)
    except TAR_ERRORS as error:
        raise ValueError(f"{src}: found no whole tar file ({error}), expected a tar of class folders") from None
    return _follow_folders(src, members, folders), folders


def _unpack(src, file, unpacked):
    """Write what a compressed tar holds to a file; returns whether it is one."""
    begin = file.read(8)
    file.seek(0)
    opener = next((opener for magic, opener in UNPACKERS.items() if begin.startswith(magic)), None)
    if opener is None:
        return False
    length, total = src.stat().st_size, 0
    with opener(file) as packed:
        while some := packed.read(1 << 20):
            total += len(some)
            if total > max(MAX_FILE_BYTES, min(MAX_UNPACKED_BYTES, MAX_RATIO * length)):
                raise ValueError(f"more than {total >> 20} MiB packed into {length} bytes: make it a plain .tar first")
            unpacked.write(some)
    unpacked.seek(0)
    return True


class _Member(tarfile.TarInfo):
    """A header of a tar, refused before what it announces is read."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if not 0 <= member.size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        if member.type in HEADERS and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or PAX header of {member.size} bytes")
        return member


def _read_members(file, place, prefix, members, folders, nested=0):
    """Add what a tar holds, which is the stretch `place` of the open file, under the folder `prefix`."""
    if nested > MAX_NESTED:
        raise tarfile.ReadError(f"tars in tars, more than {MAX_NESTED} deep")
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
        end = 0
        while (member := tar.next()) is not None:
            tar.members.clear()  # a million of them would take gigabytes
            if tar.offset <= end or not 0 <= member.size <= MAX_MEMBER_BYTES or len(tar.pax_headers) > MAX_PAX_KEYS:
                raise tarfile.ReadError("a member of impossible size, or too many PAX records")
            end = tar.offset
            parts = (*prefix, *_parts(member.name))
            if member.isdir():
                folders.add(parts)
                continue
            stretch = {"offset": place.offset + member.offset_data, "length": member.size}
            entry = replace(place, name="/".join(parts), **stretch)
            if member.issym():
                entry = PurePosixPath(os.path.normpath(os.path.join(*parts[:-1], member.linkname)))
            elif member.islnk():  # to an earlier member
                entry = members.get((*prefix, *_parts(member.linkname))) or _dangling(entry, member.linkname)
            elif not member.isreg() or member.sparse is not None:
                entry.fault = "not a regular file"
            elif member.name.endswith(".tar") and counts(parts):
                inner = (*parts[:-1], parts[-1].removesuffix(".tar"))
                folders.add(inner)
                section = _Section(file, member.offset_data, member.size)
                _read_members(section, entry, inner, members, folders, nested + 1)
                continue
            members[parts] = entry  # as in tar, the last of two members of one name counts


class _Section(io.RawIOBase):
    """A stretch of an open file as a file of its own: a tar inside a tar."""

    def __init__(self, file, begin, length):
        self.file, self.begin, self.length, self.at = file, begin, length, 0

    def seekable(self):
        return True

    def readable(self):
        return True

    def tell(self):
        return self.at

    def seek(self, offset, whence=io.SEEK_SET):
        self.at = offset + (0, self.at, self.length)[whence]
        return self.at

    def readinto(self, buffer):
        self.file.seek(self.begin + self.at)
        data = self.file.read(max(0, min(len(buffer), self.length - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _parts(name):
    parts = tuple(part for part in PurePosixPath(name).parts if part not in (".", "/"))
    if "\0" in name or len(name) > MAX_NAME or len(parts) > MAX_FOLDERS:
        raise tarfile.ReadError(f"a name of {len(name)} characters in {len(parts)} folders, or with a NUL")
    return parts


def counts(parts: tuple) -> bool:
    """A hidden member is not packed itself, but a link may lead to it."""
    return bool(parts) and not any(part.startswith(".") for part in parts)


def _follow_folders(src, members, folders):
    """Members, with the files of a linked folder also under the link's name, where that is a class folder's.

    Deeper links to folders stay links, and are then reported, as on the disk: a tree may lead back to itself.
    """
    links = {parts: target.parts for parts, target in members.items() if isinstance(target, PurePosixPath)}
    known = folders | {parts[:depth] for parts in members for depth in range(1, len(parts))}
    seen = [parts for parts in folders | set(members) if counts(parts)]
    depth = _common_depth(set(seen), {parts for parts in seen if isinstance(members.get(parts), Entry)})
    linked, aliases = Counter(), {}
    for parts, target in links.items():
        for _ in range(MAX_LINKS):
            target = links.get(target, target)
        if target in known and len(parts) == depth + 1 and parts[: len(target)] != target:
            count_link(src, linked, "/".join(target))
            aliases.setdefault(target, []).append(parts)
            del members[parts]
            folders.add(parts)
    copies = {}
    for found in members:
        for length in range(1, len(found)):
            for parts in aliases.get(found[:length], ()):
                copies[(*parts, *found[length:])] = follow(members, found)
    return members | copies


def follow(members: dict, parts: tuple) -> Entry:
    """The entry at the end of a chain of symbolic links, under the link's name; a faulty one if there is none."""
    found, target, name = members[parts], None, "/".join(parts)
    for _ in range(MAX_LINKS):
        if isinstance(found, PurePosixPath):
            target, found = found, members.get(found.parts)
    return replace(found, name=name) if isinstance(found, Entry) else _dangling(Entry(name), target)


def _dangling(entry, target):
    return replace(entry, fault=f"a link to {target}, {NO_LINK}")


def class_folders(members: dict, folders: set) -> tuple[set[str], list[Entry]]:
    """Classes and entries of the members of a tar of class folders."""
    folders = {parts for parts in folders if counts(parts)}
    entries = {parts: follow(members, parts) for parts in members if counts(parts)}
    depth = _common_depth(folders | set(entries), set(entries))
    classes = {parts[depth] for parts in folders if len(parts) > depth}
    classes |= {parts[depth] for parts in entries if len(parts) > depth + 1}
    inside = [(parts, entry) for parts, entry in entries.items() if len(parts) > depth + 1]
    return classes, [replace(entry, name="/".join(parts[depth:])) for parts, entry in inside]


def _common_depth(members, files):
    """How many folders lead to the class folders: 1 if there is one only, with more folders than files in it; or 0."""
    tops = {parts[0] for parts in members if parts}
    directly = sum(len(parts) == 2 for parts in files)
    folders = {parts[1] for parts in members if len(parts) > 1} - {parts[1] for parts in files if len(parts) == 2}
    return int(len(tops) == 1 and len(folders) > directly)
