"""What killed processes leave behind: shared memory of MPI and OpenMP in /dev/shm, files of the launcher in /tmp.

A kill leaves about 3 MB. `sweep` removes those of this user that no process of his names or maps any more.
"""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

PATTERNS = (  # where, what, and for how many seconds no process need show that it uses it
    (Path("/dev/shm"), "mpich_shm_*", 0.0),  # whoever makes one has it open, then maps it
    (Path("/dev/shm"), "sm_segment.*", 0.0),
    (Path("/dev/shm"), "__KMP_REGISTERED_LIB_*", 0.0),
    (Path("/tmp"), "hydra_hwloc_xmlfile_*", 5.0),  # written, and only then named to the processes that read it
    (Path("/tmp"), "ompi.[0-9]*", 0.0),
)
MAKER = re.compile(r"(?:__KMP_REGISTERED_LIB_|ompi\.)(\d+)(?:_\d+)?")  # names that hold the number of a process


def sweep(now: float | None = None) -> list[Path]:
    """Remove what dead processes left; returns what was removed. Files of others, and young ones, stay."""
    now, found = time.time() if now is None else now, []
    for folder, pattern, young_s in PATTERNS:
        for path in folder.glob(pattern):
            try:
                facts = path.lstat()
            except OSError:
                continue
            if facts.st_uid == os.getuid() and facts.st_mtime <= now - young_s:
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
    """What this user's processes have open or map, and what their environment names."""
    texts = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(process / "fd"):  # before the maps: what is closed by now is mapped
                with contextlib.suppress(OSError):
                    texts.append(os.fsencode(os.readlink(process / "fd" / descriptor)))
        for name in ("maps", "environ", "cmdline"):
            with contextlib.suppress(OSError):
                texts.append((process / name).read_bytes())
    return b"\n".join(texts)
