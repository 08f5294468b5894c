"""What killed processes leave behind: shared memory of MPI and OpenMP in /dev/shm, files of the launcher in /tmp.

A kill leaves about 3 MB. `sweep` removes those of this user that no process of his names or maps any more.
"""

import os
import re
import shutil
import time
from pathlib import Path

PATTERNS = (
    (Path("/dev/shm"), "mpich_shm_*"),
    (Path("/dev/shm"), "sm_segment.*"),
    (Path("/dev/shm"), "__KMP_REGISTERED_LIB_*"),
    (Path("/tmp"), "hydra_hwloc_xmlfile_*"),
    (Path("/tmp"), "ompi.[0-9]*"),
)
MAKER = re.compile(r"(?:__KMP_REGISTERED_LIB_|ompi\.)(\d+)(?:_\d+)?")  # names that hold the number of a process
YOUNG_S = 5.0  # what is younger may be on its way from its maker, who does not map it yet, to whoever opens it


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
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _lives(path: Path, used: bytes) -> bool:
    if maker := MAKER.fullmatch(path.name):
        return Path(f"/proc/{maker[1]}").exists()
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
