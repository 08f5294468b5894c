"""What there is to pack: pictures in class folders, in tars, in WebDataset tars, in parquet.

Layouts that give the same list for the same pictures: a folder of class folders; a tar of one; a folder or a tar of
class tars (`n01440764.tar` is class n01440764, as in ILSVRC2012_img_train.tar); and, with a ground truth, files without
any class folder (ILSVRC2012_img_val). Two have labels that are numbers (`samples`, `parquet`). Several files are a
folder of them, or a pattern such as `data/train-*.parquet`.
"""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from .entries import Entry
from .parquet import list_parquet
from .samples import has_labels, list_samples
from .tars import class_folders, count_link, counts, follow, list_tar

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # never names of classes


def list_source(src: Path, synsets: Path | None = None) -> tuple[list[str], list[Entry]]:
    """Class names and files of all layouts but that with a ground truth; the files sorted by their names.

    Names that begin with a dot are left out; so is a folder of a tar that holds all class folders (`train/…`). A class
    may be without files. Classes are sorted, or where labels are numbers in the order of these. synsets: names of such
    numbers, see `classes`.

    Raises: ValueError if there is no class or no file, or if a file cannot be read or goes beyond a bound.
    """
    found = _found(src)
    if parquet := [path for path in found if path.suffix == ".parquet"]:
        _refuse_splits(src, parquet)
        classes, entries = list_parquet(parquet, synsets)
    else:
        prefix = {path: () if path == src else (path.name.removesuffix(".tar"),) for path in found}
        tars = {path: list_tar(path, prefix[path]) for path in found if path == src or path.suffix == ".tar"}
        labelled = [path for path, (members, _) in tars.items() if has_labels(members)]
        if labelled:
            _refuse_splits(src, labelled)
            classes, entries = list_samples({path: tars[path][0] for path in labelled}, synsets)
        elif synsets is not None:
            raise ValueError(f"{src}: found class folders, expected --synsets only where labels are numbers")
        elif src in tars:
            classes, entries = class_folders(*tars[src])
            classes = sorted(classes)
        else:
            classes, entries = _list_folder(src, found, tars)
    if not classes:
        raise ValueError(f"{src}: found no class folders, expected one folder per class with its images inside")
    if not entries:
        raise ValueError(f"{src}: found no images in its {len(classes)} class folders, expected some in each")
    return classes, sorted(entries, key=lambda entry: entry.name)


def list_flat(src: Path) -> list[Entry]:
    """The files of a folder or tar without class folders, sorted by their names, folders left out of these."""
    if src.is_dir():
        entries = [_file(Path(found.path), found.name) for found in list(os.scandir(src)) if not found.is_dir()]
    else:
        members, _ = list_tar(src)
        entries = [replace(follow(members, parts), name=parts[-1]) for parts in members if counts(parts)]
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _found(src):
    """What a folder or a pattern holds at its top, sorted; of a file itself."""
    if src.is_dir():
        return sorted(path for path in src.iterdir() if not path.name.startswith("."))
    if src.exists() or not set("*?[") & set(src.name):
        return [src]
    found = sorted(src.parent.glob(src.name))
    if not found:
        raise ValueError(f"{src}: found no file of such a name, expected some")
    return found


def _refuse_splits(src, files):
    """Hubs keep all splits in one folder: packed together, the network would be tested on what it was trained on."""
    words = {word: path for path in files for word in SPLITS.intersection(re.findall("[a-z]+", path.stem.lower()))}
    if len(words) > 1:
        one = next(iter(sorted(words)))
        pattern = files[0].parent / f"*{one}*{words[one].suffix}"
        raise ValueError(
            f"{src}: found files of the splits {', '.join(sorted(words))}, expected those of one: pack each alone, "
            f"as '{pattern}' (in quotes)"
        )


def _list_folder(src, found, tars):
    classes, entries, linked = set(), [], Counter()
    for path in found:
        if path.is_dir():
            if path.is_symlink():
                count_link(src, linked, os.path.realpath(path))
            classes.add(path.name)
            entries += _walk(path)
        elif path in tars:
            classes.add(path.name.removesuffix(".tar"))
            members, _ = tars[path]
            entries += [follow(members, parts) for parts in members if counts(parts)]
    return sorted(classes), entries


def _walk(class_folder):
    for folder, below, files in os.walk(class_folder):
        links = [name for name in below if Path(folder, name).is_symlink()]
        below[:] = [name for name in below if not name.startswith(".") and name not in links]
        for name in files + links:
            if not name.startswith("."):
                path = Path(folder, name)
                yield _file(path, path.relative_to(class_folder.parent).as_posix())


def _file(path, name):
    try:
        regular, length = path.is_file(), path.stat().st_size
    except OSError:
        regular, length = False, 0
    return Entry(name, str(path), 0, length, fault=None if regular else "not a regular file")
