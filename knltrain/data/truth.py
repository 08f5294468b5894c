"""Classes of files that lie in no class folder: ILSVRC2012's validation set and whatever is laid out like it."""

from dataclasses import replace
from pathlib import Path

from .classes import read_classes, read_lines
from .entries import Entry
from .sources import list_flat


def list_with_truth(src: Path, ground_truth: Path, synsets: Path) -> tuple[list[str], list[Entry]]:
    """Class names and files, both sorted, of a flat folder or tar.

    ground_truth : one line a picture, in the order of the sorted file names: its number among the classes; or two
        words a line, `FILE NUMBER`, in any order
    synsets : one line a class. `NUMBER CLASS`: the numbers are those of the ground truth (the development kit's
        ILSVRC2012_ID, which is not the order of the names); or `CLASS words …`: numbered from 0, line by line (only
        with `FILE NUMBER` lines, as Caffe's val.txt and synset_words.txt have it)

    A file is named as it would be in class folders, `CLASS/FILE`: both ways give the same shards.

    Raises: ValueError, one line, where lists and files do not fit together.
    """
    entries, lines = list_flat(src), read_lines(ground_truth)
    named = bool(lines) and len(lines[0]) == 2
    classes = read_classes(synsets, named)
    if any(len(line) != 1 + named or not line[-1].isdecimal() for line in lines):
        raise ValueError(f"{ground_truth}: found other lines than its first, expected NUMBER or FILE NUMBER in each")
    if len(lines) != len(entries):
        raise ValueError(f"{ground_truth}: found {len(lines)} lines, expected {len(entries)}, one a file of {src}")
    numbers = {line[0]: int(line[1]) for line in lines} if named else {}
    found = []
    for entry, line in zip(entries, lines, strict=True):
        number = numbers.get(entry.name) if named else int(line[0])
        if number not in classes:
            raise ValueError(
                f"{ground_truth}: found number {number} for {entry.name}, expected one of the {len(classes)} "
                f"classes of {synsets}"
            )
        found.append(replace(entry, name=f"{classes[number]}/{entry.name}"))
    return sorted(set(classes.values())), sorted(found, key=lambda entry: entry.name)
