"""Starting many ranks without storms: kernels compiled by one, read by one, handed to all; and where the time went.

With KNLTRAIN_NODE_CACHE set, to a folder on each node's own disk or in its memory, rank 0 reads the compiled kernels
from the usual cache (a cold one it fills first, by `knltrain warmup`), broadcasts them over MPI, and one rank a node
unpacks them there. 512 nodes that compile the same, or open the same thousand files at once, are minutes.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np

NODE_CACHE = "KNLTRAIN_NODE_CACHE"
LAUNCHER = ("PMI", "PMIX", "OMPI", "PRTE", "HYDI", "HYDRA", "SLURM", "MPI_LOCAL", "GFORTRAN")  # of variables


class Clock:
    """Seconds by phase, from the start of the process to the end of the first step."""

    def __init__(self):
        self.last = time.time() - _age()
        self.phases = []
        self.running = True

    def mark(self, phase: str):
        """`phase` ends now."""
        now = time.time()
        self.phases.append((phase, now - self.last))
        self.last = now

    def finish(self) -> str:
        """The line for the log."""
        self.mark("first step")
        self.running = False
        total = sum(seconds for _, seconds in self.phases)
        return f"start-up {total:.1f} s: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.phases)


def _age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        begun = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - begun / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def use_node_cache() -> str | None:
    """Look for compiled kernels on the node, if the environment names a place there; returns the usual NUMBA_CACHE_DIR.

    To be called before `kernels` is imported, which remembers its folder.
    """
    usual = os.environ.get("NUMBA_CACHE_DIR")
    if os.environ.get(NODE_CACHE):
        os.environ["NUMBA_CACHE_DIR"] = os.environ[NODE_CACHE]
    return usual


def share_kernels(comm, usual: str | None, recipe, overrides=()) -> None:
    """Give every node a copy of the compiled kernels, if the environment names a place; before any kernel is called.

    usual: what use_node_cache returned. recipe, overrides: of the run, compiled for where the cache is cold.
    """
    if not os.environ.get(NODE_CACHE):
        return
    from kernels import CACHE_DIR

    packed = np.zeros(0, np.uint8)
    if comm.rank == 0:
        source = _usual_folder(usual) / CACHE_DIR.name
        if not any(source.rglob("*.nbi")):
            _compile(recipe, overrides, usual)
        packed = np.frombuffer(_pack(source), np.uint8)
    size = comm.gather(packed.size)[0]
    packed = packed.copy() if comm.rank == 0 else np.empty(size, np.uint8)
    comm.broadcast(packed)
    hosts = comm.gather(socket.gethostname())
    if hosts.index(hosts[comm.rank]) == comm.rank and size:
        _unpack(packed.tobytes(), CACHE_DIR)
    comm.barrier()


def _usual_folder(usual) -> Path:
    return Path(usual) if usual else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knltrain"


def _compile(recipe, overrides, usual):
    """`knltrain warmup` in a process of its own that knows nothing of MPI; a failure leaves the cache cold."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
    env.pop("NUMBA_CACHE_DIR")
    env |= {"NUMBA_CACHE_DIR": usual} if usual else {}
    command = [sys.executable, "-m", "knltrain", "warmup", str(recipe)]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    print(f"knltrain: {(done.stdout or done.stderr).strip()}", file=sys.stderr)


def _pack(folder: Path) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        if folder.is_dir():
            tar.add(folder, ".", filter=lambda entry: None if entry.name.endswith(".tmp") else entry)
    return memory.getvalue()


def _unpack(data: bytes, folder: Path):
    """Unpack beside `folder` and move file by file into it: other jobs, and nodes that share it, do the same."""
    fresh = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(fresh, filter="data")
    files = [path for path in fresh.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".nbi"):  # an index after what it names
        place = folder / path.relative_to(fresh)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    shutil.rmtree(fresh)
