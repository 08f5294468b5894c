"""Is a data set whole, and what is in it: `knltrain verify` and `knltrain shards`."""

import os
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from ..claims.text import between, counted, printable
from .decode import DecodeError, decode
from .files import OpenFile
from .index import check_complete, find_shards
from .progress import Progress
from .shards import Shard, ShardError, checksum

SHOWN = 20  # problems that are printed one by one


def verify(folder: str | os.PathLike, *, threads: int | None = None, decoding=False, report=sys.stderr) -> int:
    """Read every byte of every shard and compare all checksums; one line a problem on `report`.

    Checked are the structure of each file, its metadata, every row, and that the shards are all there and belong
    together. threads: readers; None takes the cores this process may use. decoding: also decode every JPEG.

    Returns the exit code: 0 if nothing is wrong, else 2. Raises: ShardError if there is no shard at all.
    """
    folder, problems, whole = Path(folder), [], []
    lock, counts = threading.Lock(), Counter()
    paths = find_shards(folder)
    for path in paths:
        try:
            whole.append(Shard(path))
        except ShardError as error:
            problems.append(str(error))
    progress = Progress(report, sum(shard.rows for shard in whole), "rows")

    def advance(rows, nbytes):
        with lock:
            counts.update(rows=rows, bytes=nbytes)
            progress.show(counts["rows"], f", {len(problems)} problems")

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), "verify") as pool:
        try:
            for future in as_completed([pool.submit(_check_rows, shard, advance, decoding) for shard in whole]):
                problems += future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the shards that are left
    unfinished = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".partial", ".writing")]
    if unfinished:
        problems.append(f"{folder}: found {len(unfinished)} unfinished shards, such as {unfinished[0]}: pack it again")
    if len(whole) == len(paths):
        try:
            check_complete(whole)
        except ShardError as error:
            problems.append(str(error))
    for problem in problems[:SHOWN]:
        progress.line(problem)
    if len(problems) > SHOWN:
        progress.line(f"… and {len(problems) - SHOWN} more")
    progress.line(
        f"{folder}: {counts['rows']} rows in {counted(len(paths), 'shard')}, {counts['bytes'] / 1e6:.1f} MB read: "
        + (counted(len(problems), "problem") if problems else "all checksums agree")
    )
    return 2 if problems else 0


def _check_rows(shard, advance, decoding):
    """The problems of one shard's rows."""
    file, problems = OpenFile(shard.path), []
    buffer = np.empty(int(np.diff(shard.offsets).max()), np.uint8)
    for i, (begin, end) in enumerate(zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True)):
        data = buffer[: end - begin]
        name = f"row {shard.first_row + i} ({shard.names[i].decode('utf-8', 'replace')})"
        try:
            count = file.read_into(data, shard.data_at + begin)
        except OSError as error:
            problems.append(str(shard.error(f"{name} cannot be read ({error.strerror}): check the file system")))
            continue
        found, expected = checksum(shard.labels[i], data), int(shard.checksums[i])
        if count != len(data) or found != expected:
            problems.append(
                str(shard.error(f"{name}: found checksum {found:08x}, expected {expected:08x}: copy or pack it again"))
            )
        elif decoding and shard.encoding == "jpeg":
            problems += [
                str(shard.error(f"{name}: {fault}: pack it again")) for fault in _picture_faults(data, shard.size)
            ]
        if i % 64 == 63:
            advance(64, int(shard.offsets[i + 1] - shard.offsets[i - 63]))
    rest = shard.rows % 64
    advance(rest, int(shard.offsets[-1] - shard.offsets[shard.rows - rest]))
    return problems


def _picture_faults(data, size):
    """What is wrong with a JPEG row that should have a short side of `size`, as it is if 0."""
    try:
        found = min(decode(data).shape[:2])
    except DecodeError as error:
        return [f"found no whole picture ({error})"]
    return [f"found a short side of {found}, expected {size}"] if size not in (0, found) else []


def summarize(folder: str | os.PathLike) -> str:
    """A few lines about a data set: pictures, classes, sizes, what was left out. Raises: ShardError if damaged."""
    shards = [Shard(path) for path in find_shards(Path(folder))]
    check_complete(shards)
    first = shards[0]
    rows = np.concatenate([np.diff(shard.offsets) for shard in shards])
    classes = np.bincount(np.concatenate([shard.labels for shard in shards]), minlength=len(first.class_names))
    skipped = [text for shard in shards for text in shard.skipped]
    names = [name.decode("utf-8", "replace") for name in (first.class_names[0], first.class_names[-1])]
    pictures = {
        "raw": f"raw, {first.size} x {first.size} RGB" + ", warped" * (first.fit == "warp"),
        "jpeg": f"jpeg, short side {first.size}" if first.size else "jpeg, as they were",
    }
    lines = [
        f"{folder}: {counted(first.total_rows, 'image')} in {counted(len(shards), 'shard')}, "
        f"{sum(shard.length for shard in shards) / 1e9:.3f} GB",
        f"encoding  {pictures[first.encoding]}",
        f"row       {rows.min():,} to {rows.max():,} bytes, {rows.mean():,.0f} on average",
        f"shard     {min(s.rows for s in shards):,} to {max(s.rows for s in shards):,} rows",
        f"classes   {len(classes):,}, {names[0]} to {names[1]}, {between(classes)} images each",
        f"plan      {first.plan}",
        f"left out  {len(skipped)} files",
    ]
    return "\n".join(map(printable, lines + [f"  {text}" for text in skipped[:SHOWN]]))
