"""WebDataset: tars in which `KEY.jpg` and `KEY.cls` are a picture and the number of its class.

As in the format's own reader, the key ends at the first dot of the file name. Other members, such as `KEY.json`, are
left out.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from .classes import names_of, read_classes
from .decode import DecodeError
from .entries import Entry
from .tars import counts, follow

LABEL, PICTURES = "cls", ("jpg", "jpeg", "png", "webp", "bmp", "gif")
LONGEST = 20  # bytes of a number


def has_labels(members: dict) -> bool:
    """Does a tar hold numbers of classes?"""
    return any(_split(parts)[1] == LABEL for parts in members if counts(parts))


def list_samples(tars: dict[Path, dict], synsets: Path | None) -> tuple[list[str], list[Entry]]:
    """Class names by number, and pictures, of tars; these by path, with members as `tars.list_tar` gives them.

    Raises: ValueError for a label that is no number, or has no name in `synsets`.
    """
    found, numbers = [], set()
    for path, members in tars.items():
        labels, pictures = {}, {}
        for parts in filter(counts, members):
            key, kind = _split(parts)
            if kind == LABEL:
                labels[key] = _number(path, follow(members, parts))
            elif kind in PICTURES:
                pictures[key] = follow(members, parts)
        if lone := sorted(pictures.keys() ^ labels.keys()):
            what = "picture" if lone[0] in labels else LABEL
            raise ValueError(f"{path}: found no {what} of {'/'.join(lone[0])}, expected one of each sample")
        found += [(labels[key], path.stem, entry) for key, entry in pictures.items()]
        numbers.update(labels.values())
    names = names_of(numbers, next(iter(tars)), synsets and read_classes(synsets, True))
    return list(names.values()), [replace(entry, name=f"{names[i]}/{_file(tar, entry)}") for i, tar, entry in found]


def _split(parts):
    """(key, kind) of a member: `a/b.seg.png` is of sample a/b and of kind seg.png."""
    key, _, kind = parts[-1].partition(".")
    return (*parts[:-1], key), kind.lower()


def _file(tar, entry):
    """A file's name below its class: keys are unique in their tar alone."""
    parts = PurePosixPath(entry.name).parts
    return "-".join(parts if parts[0] == tar else (tar, *parts))


def _number(path, entry):
    try:
        text = entry.read() if entry.length <= LONGEST else b""
    except DecodeError as error:
        raise ValueError(f"{path}: {entry.name}: {error}, expected the number of a class") from None
    if not text.strip().isdigit():
        raise ValueError(f"{path}: found {text!r} in {entry.name}, expected the number of a class")
    return int(text)
