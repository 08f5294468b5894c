"""What one rank knows of its node and itself: a flat dict of JSON-able values. No judgement here."""

import fcntl
import os
import re
import socket
import tempfile
from pathlib import Path

from knltrain.kernels import ARCH, THREADING_LAYER, cache_folder

from ..node.hardware import machine_facts, memory_free, read_text, read_topology

PROC, SYS = Path("/proc"), Path("/sys")
FMA_UNITS = 2  # of a core, as nearly all CPUs have
OPENMP = ("libiomp5", "libgomp", "libomp")


def gather_facts(comm, placement, environment=os.environ, proc: Path = PROC, system: Path = SYS) -> dict:
    """The facts of this rank; `proc` and `system` are where /proc and /sys are read."""
    mask = sorted(os.sched_getaffinity(0))
    return {
        "host": socket.gethostname(),
        "library": comm.library,
        "threads_may_call": comm.threads_may_call,
        "versions": {k: v for k, v in machine_facts().items() if k in ("python", "knltrain", "numpy", "numba", "h5py")},
        "slurm_tasks": _number(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")),
        "layer": THREADING_LAYER,
        "openmp": loaded_openmp(proc),
        "kmp": sorted(name for name in environment if name.startswith("KMP_")),
        "mask": mask,
        "node_cpus": os.cpu_count(),
        "threads": placement.threads,
        "cores": len(placement.compute) + len(placement.communication) + len(placement.readers),
        "spans": placement.spans,
        "memory_preferred": placement.memory,
        "memory_only": read_topology(mask, system / "devices/system").memory_only,
        "processor": machine_facts()["processor"],
        "flags": cpu_flags(proc),
        "kernels": ARCH.name,
        "flops_per_cycle": 2 * FMA_UNITS * ARCH.tile().width,
        "clock": clock(proc, system),
        "huge_pages": huge_pages(system),
        "memory_free": memory_free(proc, system),
        "shm_free": disk_free("/dev/shm"),
        "compiled": sum(1 for _ in cache_folder().rglob("*.nbc")),
        "cache": str(cache_folder()),
        "interfaces": interfaces(system),
        "hdf5_locking": environment.get("HDF5_USE_FILE_LOCKING", ""),
    }


def _number(text):
    return int(text) if text and text.isdigit() else None


def interfaces(system: Path = SYS) -> dict[str, float]:
    """Gb/s of the network interfaces that are up, by name, as the system says; those that say nothing are left out."""
    found = {}
    for place in sorted((system / "class/net").glob("*")):
        speed = read_text(place / "speed").strip()  # Mb/s, -1 where it is unknown
        if speed.isdigit() and read_text(place / "operstate").strip() == "up":
            found[place.name] = int(speed) / 1000
    for place in sorted((system / "class/infiniband").glob("*/ports/*")):
        rate = re.match(r"([0-9.]+) Gb/sec", read_text(place / "rate"))
        if rate and "ACTIVE" in read_text(place / "state"):
            found[place.parents[1].name] = float(rate[1])
    return found


def loaded_openmp(proc: Path = PROC) -> list[str]:
    """OpenMP runtimes mapped into this process."""
    text = read_text(proc / "self/maps")
    return [name for name in OPENMP if re.search(rf"/{name}\b[^/\n]*\.so", text)]


def cpu_flags(proc: Path = PROC) -> list[str]:
    """Of those that matter to the kernels, what this CPU has."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", read_text(proc / "cpuinfo"), re.MULTILINE)
    words = set(found.group(1).split()) if found else set()
    return [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if flag in words]


def clock(proc: Path = PROC, system: Path = SYS) -> float:
    """Hz of a core without boost, or what it runs at where the system does not say; 0 where it says neither."""
    base = read_text(system / "devices/system/cpu/cpu0/cpufreq/base_frequency").strip()
    if base.isdigit():
        return int(base) * 1e3
    now = re.findall(r"^cpu MHz\s*: *([\d.]+)$", read_text(proc / "cpuinfo"), re.MULTILINE)
    return 1e6 * max(map(float, now), default=0)


def huge_pages(system: Path = SYS) -> str:
    """always, madvise or never; "" where the system does not say."""
    found = re.search(r"\[(\w+)\]", read_text(system / "kernel/mm/transparent_hugepage/enabled"))
    return found.group(1) if found else ""


def disk_free(folder: str) -> int | None:
    """Bytes free in a file system, None where there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def locking(folder) -> str:
    """Whether files of `folder` can be locked: "yes", what the system says, or "read-only" where none can be made."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "yes"
    except PermissionError:
        return "read-only"
    except OSError as error:
        return "read-only" if error.errno == 30 else str(error.strerror)
