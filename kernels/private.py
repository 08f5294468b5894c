"""A folder for this user alone, claimed before anything in it is believed.

What is read there is run: compiled kernels (Numba's index files are pickles) and packages. In a place where everybody
may write, a stranger could have made the folder first. Needs only the standard library; a job script runs this file by
itself on every node:  python3 -I kernels/private.py FOLDER
"""

import os
import stat
import sys
from pathlib import Path

_MOST_LINKS = 40  # followed on one way, as the system itself allows


def claim(folder: Path) -> Path:
    """`folder`, made with mode 0700 where it was not there, and found to be this user's alone.

    It must be a folder of this user, not a link; it and every folder on the way may be changed by this user and root
    only, but for folders with the sticky bit (/tmp), in which nobody can move what belongs to others. Links on the way
    must be made by one of the two, and what they lead to is held to the same.

    Raises ValueError where somebody else could change what is in the folder; OSError where it cannot be made.
    """
    folder = folder.absolute()
    trusted = {0, os.getuid(), os.stat("/").st_uid}  # in a container root may go by another number
    for step, last in _way(folder):
        if not os.path.lexists(step):
            step.mkdir(mode=0o700, exist_ok=True)
        own = step.lstat()
        is_folder, others = stat.S_ISDIR(own.st_mode), _others_write(own)
        if last and (not is_folder or own.st_uid != os.getuid() or others):
            kind = "folder" if is_folder else "link" if stat.S_ISLNK(own.st_mode) else "file"
            raise ValueError(
                f"{folder}: found a {kind} of user {own.st_uid} with mode {stat.S_IMODE(own.st_mode):o}; expected a "
                f"folder of user {os.getuid()} in which nobody else may write"
            )
        if own.st_uid not in trusted or (others and not (is_folder and own.st_mode & stat.S_ISVTX)):
            raise ValueError(f"{folder}: found that others may change {step}; expected that only you and root can")
    return folder


def _way(path: Path):
    """(every folder and link that leads to `path`, is it the last); links are followed one after the other."""
    here, left, links = Path("/"), list(path.parts[1:]), 0
    yield here, not left
    while left:
        name = left.pop(0)
        here = here.parent if name == ".." else here / name
        yield here, not left
        if here.is_symlink() and left and links < _MOST_LINKS:
            target = Path(os.readlink(here))
            links += 1
            left = [*target.parts[target.is_absolute() :], *left]
            here = Path("/") if target.is_absolute() else here.parent


def _others_write(found) -> bool:
    """Whether anybody but the owner may; a group with the name of its only member, as many systems make, is nobody."""
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        return False
    if found.st_mode & stat.S_IWOTH:
        return True
    import grp
    import pwd

    try:
        group, owner = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        return True
    return group.gr_name != owner or bool(set(group.gr_mem) - {owner})


if __name__ == "__main__":
    try:
        claim(Path(sys.argv[1]))
    except (OSError, ValueError) as problem:
        sys.exit(f"knltrain: error: {problem}")
