"""What there is to pack: the picture files of class folders, on disk or inside tars.

Known layouts, which give the same list for the same pictures: a folder of class folders; a tar of one; a folder or a
tar of class tars (`n01440764.tar` is class n01440764, as in ILSVRC2012_img_train.tar); and, with a ground truth, files
without any class folder (ILSVRC2012_img_val). A tar is read in place; its members are never written to the disk. A link
is read as what it leads to, which for a tar must be inside it; nothing else is read.
"""

import io
import lzma
import os
import tarfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from .decode import DecodeError

MAX_FILE_BYTES = 64 << 20  # larger than any picture that would be decoded
MAX_UNPACKED_BYTES = 4 << 30  # of a compressed tar, whose pictures are held in memory
MAX_LINKS = 40  # from a link to its file, as Linux has it
NO_LINK = "expected one to a regular file inside the tar"
TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


@dataclass(slots=True)
class Entry:
    """One picture file: a stretch of a file on disk, or bytes in memory, or a reason why it cannot be read."""

    name: str  # class/…/file, with slashes
    path: str = ""
    offset: int = 0
    length: int = 0
    data: bytes | None = None
    fault: str | None = None

    @property
    def class_name(self) -> str:
        return self.name.partition("/")[0]

    def read(self) -> bytes:
        """The bytes of the file. Raises: DecodeError with the reason if they cannot be had."""
        if self.fault:
            raise DecodeError(self.fault)
        if self.data is not None:
            return self.data
        if self.length > MAX_FILE_BYTES:
            raise DecodeError(f"{self.length} bytes, more than {MAX_FILE_BYTES} are refused")
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), self.length, self.offset)
        except OSError as error:
            raise DecodeError(error.strerror) from None
        if len(data) != self.length:
            raise DecodeError(f"{len(data)} bytes, expected {self.length}")
        return data


def list_source(src: Path) -> tuple[list[str], list[Entry]]:
    """Class names and files, both sorted, of class folders or class tars, in a folder or in a tar.

    Names that begin with a dot are left out; so is a folder of a tar that holds all class folders (`train/…`).

    Raises: ValueError if there is no class, or one without files; or if a tar cannot be read.
    """
    if src.is_dir():
        classes, entries = _list_folder(src)
    else:
        classes, entries = _class_folders(*_list_tar(src))
    if not classes:
        raise ValueError(f"{src}: found no class folders, expected one folder per class with its images inside")
    used = {entry.class_name for entry in entries}
    for class_name in classes:
        if class_name not in used:
            raise ValueError(f"{src}: found no images in class {class_name}, expected at least one: remove the folder")
    return sorted(classes), sorted(entries, key=lambda entry: entry.name)


def list_flat(src: Path) -> list[Entry]:
    """The files of a folder or tar without class folders, sorted by their names, folders left out of these."""
    if src.is_dir():
        entries = [_file(Path(found.path), found.name) for found in list(os.scandir(src)) if not found.is_dir()]
    else:
        members, _ = _list_tar(src)
        entries = [replace(_follow(members, parts), name=parts[-1]) for parts in members if _counts(parts)]
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


# ---- folders -------------------------------------------------------------------------------------------------


def _list_folder(src):
    classes, entries = set(), []
    for found in list(os.scandir(src)):
        if found.name.startswith("."):
            continue
        if found.is_dir():
            classes.add(found.name)
            entries += _walk(src, found.name)
        elif found.name.endswith(".tar"):
            classes.add(found.name.removesuffix(".tar"))
            members, _ = _list_tar(Path(found.path), (found.name.removesuffix(".tar"),))
            entries += [_follow(members, parts) for parts in members if _counts(parts)]
    return classes, entries


def _walk(src, class_name):
    for folder, below, files in os.walk(src / class_name):
        links = [name for name in below if Path(folder, name).is_symlink()]
        below[:] = [name for name in below if not name.startswith(".") and name not in links]
        for name in files + links:
            if not name.startswith("."):
                path = Path(folder, name)
                yield _file(path, path.relative_to(src).as_posix())


def _file(path, name):
    try:
        regular, length = path.is_file(), path.stat().st_size
    except OSError:
        regular, length = False, 0
    return Entry(name, str(path), 0, length, fault=None if regular else "not a regular file")


# ---- tars ----------------------------------------------------------------------------------------------------


def _list_tar(src, prefix=()):
    """(members, folders) of a tar: members by the parts of their names, an Entry each or where a link leads."""
    if not src.is_file():
        raise ValueError(f"{src}: found no such file or folder, expected class folders or a tar of them")
    members, folders = {}, set()
    try:
        with tarfile.open(src) as tar:
            _read_members(tar, src, 0, prefix, members, folders)
    except TAR_ERRORS as error:
        raise ValueError(f"{src}: found no whole tar file ({error}), expected a tar of class folders") from None
    return _follow_folders(members, folders), folders


def _read_members(tar, src, base, prefix, members, folders):
    """Add what a tar holds, which begins at byte `base` of the file `src`, under the folder `prefix`."""
    packed = not isinstance(tar.fileobj, (io.BufferedReader, _Section))  # read through a decompressor
    total = 0
    for member in tar:
        parts = (*prefix, *_parts(member.name))
        if member.isdir():
            folders.add(parts)
            continue
        entry = Entry("/".join(parts), str(src), base + member.offset_data, member.size)
        if member.issym():
            entry = PurePosixPath(os.path.normpath(os.path.join(*parts[:-1], member.linkname)))
        elif member.islnk():  # to an earlier member
            entry = members.get((*prefix, *_parts(member.linkname))) or _dangling(entry, member.linkname)
        elif not member.isreg() or member.sparse is not None:
            entry.fault = "not a regular file"
        elif member.name.endswith(".tar") and _counts(parts) and not packed:
            inner = (*parts[:-1], parts[-1].removesuffix(".tar"))
            folders.add(inner)
            section = _Section(tar.fileobj, member.offset_data, member.size)
            with tarfile.open(fileobj=section, mode="r:") as below:
                _read_members(below, src, entry.offset, inner, members, folders)
            continue
        elif packed:
            total += member.size
            if total > MAX_UNPACKED_BYTES:
                raise ValueError(f"{src}: found more than 4 GiB in a compressed tar: make it a plain .tar first")
            entry.data = tar.extractfile(member).read()
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
    return tuple(part for part in PurePosixPath(name).parts if part not in (".", "/"))


def _counts(parts):
    """A hidden member is not packed itself, but a link may lead to it."""
    return bool(parts) and not any(part.startswith(".") for part in parts)


def _follow_folders(members, folders):
    """Members, with the files of a linked folder also under the link's name, where that is a class folder's.

    Deeper links to folders stay links, and are then reported, as on the disk: a tree may lead back to itself.
    """
    links = {parts: target.parts for parts, target in members.items() if isinstance(target, PurePosixPath)}
    known = folders | {parts[:depth] for parts in members for depth in range(1, len(parts))}
    seen = [parts for parts in folders | set(members) if _counts(parts)]
    depth = _common_depth(set(seen), {parts for parts in seen if isinstance(members.get(parts), Entry)})
    for parts, target in links.items():
        for _ in range(MAX_LINKS):
            target = links.get(target, target)
        if target in known and len(parts) == depth + 1 and parts[: len(target)] != target:
            del members[parts]
            folders.add(parts)
            below = [found for found in members if found[: len(target)] == target]
            members |= {(*parts, *found[len(target) :]): _follow(members, found) for found in below}
    return members


def _follow(members, parts):
    """The entry at the end of a chain of symbolic links, under the link's name; a faulty one if there is none."""
    found, target, name = members[parts], None, "/".join(parts)
    for _ in range(MAX_LINKS):
        if isinstance(found, PurePosixPath):
            target, found = found, members.get(found.parts)
    return replace(found, name=name) if isinstance(found, Entry) else _dangling(Entry(name), target)


def _dangling(entry, target):
    return replace(entry, fault=f"a link to {target}, {NO_LINK}")


def _class_folders(members, folders):
    """Classes and entries of a tar's members."""
    folders = {parts for parts in folders if _counts(parts)}
    entries = {parts: _follow(members, parts) for parts in members if _counts(parts)}
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
