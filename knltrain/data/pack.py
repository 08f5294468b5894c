"""From picture files to shards: `knltrain pack`, on one rank or many.

Which files a shard holds is planned before the first one is read, from names and sizes alone. So shards are independent
of each other: any rank may make any of them, the result is the same to the byte, and a run that was killed goes on with
the shards that are missing. Pictures are decoded once, here, by all cores; what cannot be decoded is named, left out,
and recorded in the shard.

A shard is `shard-00007.writing` while it is written, `.partial` when it is whole and on the disk, and `.h5` once all
are whole and it knows its place among them.
"""

import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ..claims.text import counted
from ..claims.whole import put
from .decode import DecodeError, require_decoder, to_stored
from .packing import Packing, make_plan
from .progress import Progress, on_first_rank
from .ranks import from_first
from .shards import Row, Shard, ShardError, finish_shard, write_shard

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class PackReport:
    """What was packed. `bad` holds (name, reason) of every file left out; seconds and resumed are of this call."""

    out: Path
    class_names: list[str]
    rows: int = 0
    shards: int = 0
    resumed: int = 0  # shards found whole, from a run before
    bytes: int = 0
    seconds: float = 0.0
    bad: list[tuple[str, str]] = field(default_factory=list)


def pack(src: Path, out: Path, *, threads: int | None = None, comm=None, report=sys.stderr, **how) -> PackReport:
    """Pack picture files into shards; all ranks of `comm` together.

    src: class folders, tars or parquet, see `sources`. out: folder of the shards; absent or
    empty, but for what an earlier run left: shards of this same packing that are whole are kept, unfinished ones of
    another are removed. how: see `Packing`. threads: of decoding on this rank; None takes the cores this process may
    use. report: text stream of progress (of rank 0's share) and of the names of bad files, or None.

    Raises: ValueError with one line for bad input. Whatever ends a run early, whole shards stay in `out` and the same
    call goes on with them. In the main thread SIGTERM stops as Ctrl-C does, with KeyboardInterrupt before the next
    picture.
    """
    src, out, how = Path(src), Path(out), Packing(**how)
    require_decoder()
    begin = time.perf_counter()
    rank, ranks = (comm.rank, comm.size) if comm is not None else (0, 1)
    plan = make_plan(src, how, comm, on_first_rank(comm, report))
    allowed = how.max_bad if isinstance(how.max_bad, int) else int(how.max_bad * len(plan.order))
    with _folder(out, comm):
        done = from_first(comm, lambda: _find_done(out, plan, on_first_rank(comm, report)))
        missing = [k for k in range(plan.shards) if k not in done["shards"]]
        from_first(comm, lambda: check_room(out, sum(map(plan.least_bytes, missing))))
        mine = missing[rank::ranks]
        counts = _pack_shards(mine, plan, out, allowed, threads or len(os.sched_getaffinity(0)), rank, report, src)
        counts = _gather(comm, counts)
        rows = dict(zip(done["shards"], done["rows"], strict=True)) | {int(k): n for k, n in counts["rows"]}
        bad = [tuple(pair) for pair in [*done["bad"], *counts["bad"]]]
        needed = plan.labels_expected if how.empty_classes == "drop" else ()
        _check_counts(src, plan, bad, allowed, {*done["labels"], *counts["labels"]}, needed)
        _finish(out, plan, rows, rank, ranks, comm)
    files = [out / f"shard-{k:05d}.h5" for k in range(plan.shards) if rows[k]]
    result = PackReport(out, plan.class_names, sum(rows.values()), len(files), len(done["shards"]), bad=bad)
    result.bytes = sum(file.stat().st_size for file in files) if rank == 0 else 0
    result.seconds = time.perf_counter() - begin
    Progress(on_first_rank(comm, report), 0).line(
        f"packed {result.rows} images of {len(plan.class_names)} classes into {counted(result.shards, 'shard')}"
        f"{f' ({result.resumed} of them before)' if result.resumed else ''}, {result.bytes / 1e6:.1f} MB, in "
        f"{result.seconds:.1f} s; "
        f"{counted(len(bad), 'unreadable file')} skipped"
    )
    return result


@contextmanager
def _check_for_signals():
    """A function that raises KeyboardInterrupt once SIGINT or SIGTERM has come; a second one ends the process at once.

    A handler that raised by itself would go unheard inside a callback of the interpreter, of which HDF5's objects have
    many. Only the main thread may set handlers; in others the function does nothing.
    """
    caught = []

    def note(number, frame):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    def check():
        if caught:
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if in_main}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the folder ----------------------------------------------------------------------------------------------


@contextmanager
def _folder(out, comm):
    """The folder of the shards, made where it is missing; if nothing came into it, it is removed again."""
    created = []

    def make():
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out}: found a file, expected a folder to make: name another")
        created.extend(folder for folder in (out, *out.parents) if not folder.exists())
        out.mkdir(parents=True, exist_ok=True)
        return {}

    from_first(comm, make)
    try:
        yield
    except BaseException:
        for path in out.glob("shard-*.writing") if comm is None or comm.size == 1 else ():
            path.unlink()
        for folder in created:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _find_done(out, plan, report):
    """The whole shards of this packing that are there; what else lies in the folder is removed or refused."""
    shards, rows, bad, labels = [], [], [], set()
    for path in sorted(out.iterdir()):
        ours = path.name.startswith("shard-") and path.suffix in (".writing", ".partial", ".h5")
        try:
            shard = Shard(path, unfinished=True) if ours and path.suffix != ".writing" else None
        except ShardError:
            shard = None
        number = path.stem.removeprefix("shard-")
        if shard is not None and shard.plan == plan.digest and number.isdecimal() and int(number) < plan.shards:
            shards.append(int(number))
            rows.append(shard.rows)
            bad += [text.partition(": ")[::2] for text in shard.skipped]
            labels |= set(shard.labels.tolist())
        elif ours and path.suffix != ".h5":  # of a run that was killed while it wrote, or of another packing
            path.unlink()
        else:
            raise ValueError(f"{out}: found a folder that is not empty ({path.name}), expected a new one: name another")
    if shards:
        Progress(report, 0).line(f"{out}: going on with {len(shards)} of {plan.shards} shards that are whole")
    return {"shards": shards, "rows": rows, "bad": bad, "labels": sorted(labels)}


def _finish(out, plan, rows, rank, ranks, comm):
    """Give all shards their place and their name. What was finished before a kill is finished again."""
    first_rows = np.cumsum([0] + [rows[k] for k in range(plan.shards)]).tolist()
    for k in range(rank, plan.shards, ranks):
        temporary, final = out / f"shard-{k:05d}.partial", out / f"shard-{k:05d}.h5"
        if final.exists():
            continue
        if rows[k]:
            finish_shard(temporary, final, first_rows[-1], first_rows[k])
        else:  # all its files were bad
            temporary.unlink()
    if comm is not None:
        comm.barrier()


# ---- one rank's shards ---------------------------------------------------------------------------------------


def _pack_shards(mine, plan, out, allowed, threads, rank, report, src):
    """Make the shards `mine`; returns rows [[shard, count], …], bad files and the labels seen."""
    counts = {"rows": [], "bad": [], "labels": set()}
    progress = Progress(report if rank == 0 else None, sum(map(plan.files, mine)))
    loud, done = Progress(report, 0), 0
    how = plan.how.encoding, plan.how.size, plan.how.fit
    converted = _convert((entry for k in mine for entry in plan.entries(k)), how, threads)
    with _check_for_signals() as check, ThreadPoolExecutor(1, "writer") as writer:
        writing = None
        for k in mine:
            rows, skipped = [], []
            for entry, data in islice(converted, plan.files(k)):
                check()
                done += 1
                if isinstance(data, DecodeError):
                    skipped.append(f"{entry.name}: {data}")
                    counts["bad"].append((entry.name, str(data)))
                    loud.line(f"skipped {entry.name}: {data}")
                    _check_bad(src, plan, counts["bad"], allowed)
                else:
                    rows.append(Row(data, plan.label(entry), entry.name))
                progress.show(done, f", {len(counts['bad'])} unreadable")
            counts["labels"] |= {row.label for row in rows}
            counts["rows"].append([k, len(rows)])
            if writing is not None:
                writing.result()  # one shard is written while the next one grows
            writing = writer.submit(_write, out / f"shard-{k:05d}", rows, skipped, plan)
        if writing is not None:
            writing.result()
        check()
    return counts | {"labels": sorted(counts["labels"])}


def _write(path, rows, skipped, plan):
    temporary = path.with_suffix(".writing")
    facts = {key: getattr(plan.how, key) for key in ("encoding", "size", "fit")}
    facts |= {"class_names": plan.class_names, "plan": plan.digest}
    wanted = sum(memoryview(row.data).nbytes for row in rows)
    check_room(path.parent, wanted)
    try:
        write_shard(temporary, rows, skipped=skipped, **facts)
        put(temporary, path.with_suffix(".partial"))
    except (OSError, RuntimeError) as error:  # HDF5 says it in many lines, and on closing in other types
        full = [number for number in FULL if os.strerror(number) in str(error) or getattr(error, "errno", 0) == number]
        if not full:
            raise
        written = temporary.stat().st_blocks * 512
        raise OSError(_no_room(path.parent, wanted, written, os.strerror(full[0]))) from None


def check_room(folder: Path, wanted: int) -> dict:
    """Raise OSError with one line if fewer than `wanted` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(_no_room(folder, wanted, free, os.strerror(errno.ENOSPC)))
    return {}


def _no_room(folder, wanted, free, reason):
    return (
        f"{folder}: {reason}: found room for {free / 1e6:,.1f} MB, expected {wanted / 1e6:,.1f} MB at least, "
        f"{(wanted - free) / 1e6:,.1f} MB are missing: make room and go on with the same command"
    )


def _convert(entries, how, threads):
    """(entry, row data or DecodeError) for each entry, in the given order, a few per thread ahead."""

    def convert(entry):
        try:
            return entry, to_stored(entry.read(), *how)
        except DecodeError as error:
            return entry, error

    with ThreadPoolExecutor(threads, "decoder") as pool:
        pending = deque()
        try:
            for entry in entries:
                pending.append(pool.submit(convert, entry))
                if len(pending) > 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _gather(comm, counts):
    """The counts of all ranks in one."""
    parts = comm.gather(counts) if comm is not None else [counts]
    return {key: [item for part in parts for item in part[key]] for key in counts}


def _check_bad(src, plan, bad, allowed):
    if len(bad) > allowed:
        name, reason = bad[-1]
        raise ValueError(
            f"{src}: found {len(bad)} unreadable files (last: {name}: {reason}), expected at most {allowed} of "
            f"{len(plan.order)}: remove them, or allow more with --max-bad and go on"
        )


def _check_counts(src, plan, bad, allowed, labels, needed):
    if bad:
        _check_bad(src, plan, bad, allowed)
    for label, name in enumerate(plan.class_names):
        if label in needed and label not in labels:
            cure = "remove the folder, or --empty-classes keep"
            raise ValueError(f"class {name}: found no readable image, expected at least one: {cure}")
