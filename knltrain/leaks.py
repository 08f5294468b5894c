"""What killed processes leave behind: shared memory of MPI and OpenMP in /dev/shm, a file of the launcher in /tmp.

A kill leaves about 3 MB. `sweep` removes those of this user that no process of his names or maps any more.
"""

import os
import time
from pathlib import Path

PATTERNS = (
    (Path("/dev/shm"), "mpich_shm_*"),
    (Path("/dev/shm"), "__KMP_REGISTERED_LIB_*"),
    (Path("/tmp"), "hydra_hwloc_xmlfile_*"),
)
YOUNG_S = 30.0  # what is younger may be on its way from its maker to whoever opens it


def sweep(now: float | None = None) -> list[Path]:
    """Remove what dead processes left; returns what was removed. Files of others, and young ones, stay."""
    limit, found = (time.time() if now is None else now) - YOUNG_S, []
    for folder, pattern in PATTERNS:
        for path in folder.glob(pattern):
            try:
                facts = path.lstat()
            except OSError:
                continue
            if facts.st_uid == os.getuid() and facts.st_mtime < limit:
                found.append(path)
    if not found:
        return []
    used = _in_use()
    removed = []
    for path in found:
        if not _lives(path, used):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _lives(path: Path, used: bytes) -> bool:
    if path.name.startswith("__KMP"):  # __KMP_REGISTERED_LIB_<process>_<user>
        number = path.name.removeprefix("__KMP_REGISTERED_LIB_").partition("_")[0]
        return not number.isdecimal() or Path(f"/proc/{number}").exists()
    return path.name.encode() in used


def _in_use() -> bytes:
    """What this user's processes map, and what their environment names."""
    texts = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("maps", "environ", "cmdline"):
            try:
                texts.append((process / name).read_bytes())
            except OSError:
                continue
    return b"\n".join(texts)
