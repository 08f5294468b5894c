"""Shards brought near: copied once to a node's own disk or memory, by its ranks together, and read there.

`memory` is the node's shared memory (/dev/shm): one copy serves all ranks of the node, as every rank reads the same
files. `local` is the folder that KNLTRAIN_STAGE names, else TMPDIR, else /tmp. Rank i of n on a node copies every n-th
shard. The copies are removed when the run ends; those of a job that was killed are found again by its next start under
the same job number.
"""

import atexit
import hashlib
import os
import shutil
import socket
from pathlib import Path

from knltrain.kernels import claim

from ..claims.whole import put

STAGES = ("none", "local", "memory")
MEMORY = Path("/dev/shm")
MEMORY_SHARE = 0.8  # of the free memory that staged shards may take: the training needs some too


def stage_files(kind: str, paths: list[str], identity: str, comm=None) -> list[str]:
    """Copies of the files `paths` on this node, complete on all nodes when this returns; `paths` itself for none.

    identity: what tells this data set from others, the same on all ranks.

    Raises: ValueError for an unknown kind, or where the shards do not fit; OSError if they cannot be copied.
    """
    if kind not in STAGES:
        raise ValueError(f"stage {kind!r}: expected one of {', '.join(STAGES)}")
    if kind == "none":
        return paths
    place = socket.gethostname()
    everyone = comm.gather([place, os.getpid()]) if comm is not None else [[place, os.getpid()]]
    rank = comm.rank if comm is not None else 0
    neighbours = [other for other, (host, _) in enumerate(everyone) if host == place]
    share = neighbours.index(rank)
    run = os.environ.get("SLURM_JOB_ID") or f"{everyone[0][0]}-{everyone[0][1]}"
    digest = hashlib.sha256(f"{run} {identity}".encode()).hexdigest()[:16]
    base = MEMORY if kind == "memory" else Path(os.environ.get("KNLTRAIN_STAGE") or os.environ.get("TMPDIR") or "/tmp")
    folder = base / f"knltrain-{os.getuid()}-{digest}"
    try:
        folder = claim(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"no place to stage shards ({error}): set KNLTRAIN_STAGE") from None
    copies = [folder / Path(path).name for path in paths]
    if share == 0:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _check_room(kind, base, paths, copies)
    if comm is not None:
        comm.barrier()  # the room was counted before anybody filled it
    for path, copy in list(zip(paths, copies, strict=True))[share :: len(neighbours)]:
        if not _is_copied(path, copy):
            shutil.copyfile(path, copy.with_suffix(".partial"))
            put(copy.with_suffix(".partial"), copy, durable=False)
    if comm is not None:
        comm.barrier()
    return [str(copy) for copy in copies]


def _is_copied(path, copy):
    return copy.exists() and copy.stat().st_size == os.stat(path).st_size


def _check_room(kind, base, paths, copies):
    pairs = zip(paths, copies, strict=True)
    needed = sum(os.stat(path).st_size for path, copy in pairs if not _is_copied(path, copy))
    free = shutil.disk_usage(base).free
    if kind == "memory":
        free = min(free, int(MEMORY_SHARE * _free_memory()))
    if needed > free:
        raise ValueError(
            f"{base}: found room for {free / 2**30:.1f} GiB, but the shards take {needed / 2**30:.1f} GiB: "
            'use data.stage = "none", or smaller shards (jpeg, a smaller --size)'
        )


def _free_memory():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
