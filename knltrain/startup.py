"""Starting many ranks without storms: kernels compiled by one, read by one, handed to all; and where the time went.

Before several ranks begin a recipe that this kind of CPU has not run yet, rank 0 has its kernels compiled, by
`knltrain warmup`, and the others sleep. A file in the cache folder remembers that it was done.

With KNLTRAIN_NODE_CACHE set, to a folder on each node's own disk or in its memory, rank 0 then reads the compiled
kernels from the usual cache, broadcasts them over MPI, and one rank a node unpacks them there. 512 nodes that compile
the same, or open the same thousand files at once, are minutes.
"""

import contextlib
import hashlib
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

from .run.observe import StepObserver

NODE_CACHE = "KNLTRAIN_NODE_CACHE"
COMPILES = ("model.", "data.", "compute.", "optim.")  # keys that may need other kernels; of the data not
PLACES = ("data.train", "data.val")  # where they lie
LAUNCHER = ("PMI", "PMIX", "OMPI", "PRTE", "HYDI", "HYDRA", "SLURM", "MPI_LOCAL", "GFORTRAN")  # of variables


class Clock(StepObserver):
    """Seconds by phase, from the start of the process to the end of the first step."""

    def __init__(self):
        self.last = time.time() - _age()
        self.seconds = {}
        self.running, self.mark = True, None

    def end_step(self, trainer, step):
        """After the first step: tell where the time went."""
        if self.running:
            self.phase("first step")
            self.running = False
            trainer.record("startup", {"seconds": self.seconds})
            if self.mark:
                with contextlib.suppress(OSError):
                    self.mark.touch()

    def leave(self, mark: Path | None):
        """After the first step, make the file `mark`: it says that this recipe has run alone."""
        self.mark = mark

    def phase(self, phase: str):
        """`phase` ends now."""
        now = time.time()
        self.seconds[phase] = now - self.last
        self.last = now


def _age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        begun = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - begun / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def share_kernels(comm, recipe: Path, overrides=()) -> Path | None:
    """Have the kernels of a recipe compiled once, and give every node a copy if the environment names a place for it.

    To be called before any kernel is. recipe, overrides: of the run. Returns a file that a process alone makes when its
    first step is done, or None where it is there: the next start has nothing to compile, and says nothing.
    """
    from knltrain.kernels import cache_folder

    place = os.environ.get(NODE_CACHE)
    if comm.rank == 0:
        usual = cache_folder()
        if not any(usual.rglob("*.nbc")):
            text = "compiling the kernels: a minute or two, once on this kind of CPU"
            print(f"knltrain: {text}", file=sys.stderr, flush=True)
    if comm.size == 1 and not place:
        return _alone(usual, recipe, overrides)
    if comm.rank == 0:
        _compile_once(usual, recipe, overrides)
    comm.sleep_until_all()
    if not place:
        return None
    packed = np.frombuffer(_pack(usual), np.uint8) if comm.rank == 0 else np.zeros(0, np.uint8)
    size = comm.gather(packed.size)[0]
    packed = packed.copy() if comm.rank == 0 else np.empty(size, np.uint8)
    comm.broadcast(packed)
    os.environ["NUMBA_CACHE_DIR"] = place
    hosts = comm.gather(socket.gethostname())
    if hosts.index(hosts[comm.rank]) == comm.rank and size:
        _unpack(packed.tobytes(), cache_folder())
    comm.barrier()


def warm_mark(folder: Path, recipe: Path, overrides=()) -> Path:
    """The file in the cache `folder` that says: the kernels of such a recipe are compiled for this kind of CPU.

    `knltrain warmup` leaves it. Raises OSError or ValueError where the recipe cannot be read.
    """
    import knltrain.kernels as kernels

    from .recipe.inherit import parts_of_file

    parts = parts_of_file(recipe)
    keys = {"model.folder": parts[-1].folder} if ".py:" in repr(parts) else {}  # where a network of one's own lies
    for part in parts:
        tables = ((section, table) for section, table in part.table.items() if isinstance(table, dict))
        keys |= {f"{section}.{key}": value for section, table in tables for key, value in table.items()}
    keys |= dict(one.partition("=")[::2] for one in overrides)
    kinds = sorted(f"{key}={keys[key]}" for key in keys if key.startswith(COMPILES) and key not in PLACES)
    facts = [kernels.CPU, kernels.__file__, *kinds]
    return folder / f"warm-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}"


def _alone(folder, recipe, overrides) -> Path | None:
    try:
        mark = warm_mark(folder, recipe, overrides).with_suffix(".alone")
    except (OSError, ValueError):
        return None  # the run says what is wrong
    if mark.exists() or mark.with_suffix("").exists():
        return None
    _say_what_waits(folder, "in the first step")
    return mark


def _say_what_waits(folder, when: str):
    """Unless all kernels are missing, which was said."""
    if any(folder.rglob("*.nbc")):
        text = f"what this recipe needs and no other did is compiled {when}: up to a minute or two, once"
        print(f"knltrain: {text}", file=sys.stderr, flush=True)


def _compile_once(folder, recipe, overrides):
    """`knltrain warmup` in a process of its own that knows nothing of MPI, unless `folder` says that it was done.

    A failure leaves the cache cold, and the run says itself what is wrong.
    """
    try:
        if warm_mark(folder, recipe, overrides).exists():
            return
    except (OSError, ValueError):
        return
    _say_what_waits(folder, "first")
    env = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
    command = [sys.executable, "-m", "knltrain", "warmup", str(recipe)]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0 and not done.stdout.startswith("0 "):
        print(f"knltrain: {done.stdout.strip()}", file=sys.stderr)


def _pack(folder: Path) -> bytes:
    """The files of a folder into which others may be writing: indexes first, so that what they name is there, too."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        for index in (True, False):
            for path in sorted(path for path in folder.rglob("*") if (path.suffix == ".nbi") == index):
                if path.suffix == ".lock" or ".tmp" in path.name:
                    continue
                with contextlib.suppress(FileNotFoundError, IsADirectoryError), open(path, "rb") as file:
                    tar.addfile(tar.gettarinfo(arcname=str(path.relative_to(folder)), fileobj=file), file)
    return memory.getvalue()


def _unpack(data: bytes, folder: Path):
    """Unpack beside `folder` and move file by file into it: other jobs, and nodes that share it, do the same."""
    fresh = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}")
    fresh.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(fresh, filter="data")
    files = [path for path in fresh.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".nbi"):  # an index after what it names
        place = folder / path.relative_to(fresh)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    shutil.rmtree(fresh)
