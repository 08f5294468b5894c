"""Names of classes whose labels are numbers."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

MOST_CLASSES = 1 << 16  # a label claims no more: each class has a name in every shard


def names_of(numbers: Iterable[int], where: Path, names: dict[int, str] | None) -> dict[int, str]:
    """number → class name, in order: the given ones, or the numbers themselves with zeros before them.

    A name becomes one that a folder can have; of a name that two classes have, each gets its number behind it.

    Raises: ValueError for a number without a name, or one that is no label.
    """
    numbers = set(numbers)
    lowest, highest = min(numbers, default=0), max(numbers, default=-1)
    if lowest < 0 or highest >= MOST_CLASSES:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{where}: found the label {wrong}, expected 0 to {MOST_CLASSES - 1}: is it a test set?")
    if names is None:
        return {number: f"{number:0{len(str(highest))}}" for number in range(highest + 1)}
    if unknown := numbers - set(names):
        raise ValueError(f"{where}: found the label {min(unknown)}, expected one of the {len(names)} that have a name")
    plain = {number: folder_name(name) for number, name in sorted(names.items())}
    often = Counter(plain.values())
    return {number: name if often[name] == 1 else f"{name}-{number}" for number, name in plain.items()}


def folder_name(text: str) -> str:
    """The text as the name of a class: no slash, no NUL, no dot before it."""
    return text.replace("/", "-").replace("\0", "-").lstrip(".") or "-"


def read_classes(synsets: Path, counted: bool) -> dict[int, str]:
    """number → class name, of a list of classes: lines `NUMBER CLASS`, or, where `counted`, `CLASS words …`: from 0."""
    lines = read_lines(synsets)
    if lines and all(len(line) == 2 and line[0].isdecimal() for line in lines):
        classes = {int(line[0]): line[1] for line in lines}
    elif counted:
        classes = {number: line[0] for number, line in enumerate(lines)}
    else:
        raise ValueError(
            f"{synsets}: found lines other than NUMBER CLASS, expected these beside a ground truth of bare numbers: "
            "their order is not that of the class names"
        )
    names = set(classes.values())
    if len(names) != len(lines) or any("/" in name or name.startswith(".") for name in names):
        raise ValueError(f"{synsets}: found a number or class twice, or no plain name, expected each class once")
    return classes


def read_lines(path: Path) -> list[list[str]]:
    """The words of each line that has some."""
    try:
        return [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: found no UTF-8 text, expected one line a picture or class") from None
