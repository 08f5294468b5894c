"""`knltrain bench feed`: what feeding costs beside what it cannot avoid.

pack    packing on several ranks, against a bare loop that reads, decodes and resizes the same files and keeps nothing
step    a training step fed from shards, against the same step on a batch that lies in memory
index   how long 1,024 shards take to open, and what ImageNet's index takes in memory
"""

import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..data import Augment, Batches, DataSet, Loader, Order
from ..data.decode import to_stored
from ..data.shards import Row, checksum, finish_shard, write_shard
from ..data.sources import list_source
from ..node.launcher import find_mpiexec
from .ceiling import clock, machine_line
from .workload import Workload

COPIES_SECONDS = 20  # about; so much work is done by the bare loop, and by packing
STEPS, BLOCKS, SLOT_BATCH = 4, 7, 32
ROWS, SHARDS, CLASSES = 1_281_167, 1_024, 1_000  # ImageNet's


def packing(source: Path, *, ranks: int = 2) -> float:
    """Files per second of `mpiexec -n RANKS knltrain pack` and of the bare loop on as many threads; their ratio.

    Few files are linked several times, so that starting does not count.
    """
    with tempfile.TemporaryDirectory() as temporary:
        tree, files = _many(source, Path(temporary) / "files")
        bare = _bare(files, ranks)
        command = [str(find_mpiexec()), "-n", str(ranks), sys.executable, "-m", "knltrain", "pack", str(tree)]
        options = ["--shard-bytes", str(32 << 20), "--max-bad", "1.0"]
        done = subprocess.run([*command, str(Path(temporary) / "out"), *options], capture_output=True, text=True)
        if done.returncode:
            raise ChildProcessError(f"found exit code {done.returncode} of packing: {done.stderr.splitlines()[-1]}")
        line = next(text for text in done.stderr.splitlines() if text.startswith("packed"))
        packed = len(files) / float(line.partition(" MB, in ")[2].split()[0])
        again = _bare(files, ranks)
    print(machine_line())
    print(f"bare loop, {ranks} threads: {bare:,.0f} files/s before, {again:,.0f} after, of {len(files)} files")
    print(f"knltrain pack, {ranks} ranks: {packed:,.0f} files/s, {packed / statistics.mean([bare, again]):.1%} of it")
    print(line)
    return packed / statistics.mean([bare, again])


def _many(source, tree):
    """The files of a folder of class folders, linked so often that they are work for a while."""
    _, entries = list_source(source)
    rate = len(entries) / clock(lambda: [to_stored(entry.read(), "raw", 256) for entry in entries])
    copies = max(1, round(COPIES_SECONDS * rate / len(entries)))
    for entry in entries:
        for copy in range(copies):
            link = tree / entry.class_name / f"{copy:04d}-{Path(entry.name).name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(entry.path).resolve())
    return tree, list_source(tree)[1]


def _bare(entries, threads):
    def one(entry):
        to_stored(entry.read(), "raw", 256)

    with ThreadPoolExecutor(threads) as pool:
        return len(entries) / clock(lambda: list(pool.map(one, entries)))


def step(folder: Path, model: str) -> float:
    """Images per second of a training step on shards and on one batch in memory, in turn; median of their ratios."""
    work = Workload(model, SLOT_BATCH)
    data, crop, classes = DataSet(folder), work.batch.images.shape[1], work.model.logits.shape[1]
    order = Order(len(data), data.page_rows, 1, SLOT_BATCH, seed=0)
    augment = Augment("crop_flip", crop, (122.7, 116.7, 104.0), (256, 256, 256), short_side=0 if data.size else 256)
    ratios, rates = [], []
    with Loader(data, order, augment, slots=range(1)) as loader:
        synthetic = work.step
        fed = work.like(batches=Batches(batch._replace(labels=batch.labels % classes) for batch in loader)).step
        for warm in (fed, synthetic, fed):
            warm()
        stall = loader.stall_seconds
        for _ in range(BLOCKS):
            seconds = []
            for kind in (synthetic, fed, fed, synthetic):
                loader.pause()  # a synthetic step does not pay for reading
                seconds.append(clock(lambda kind=kind: [kind() for _ in range(STEPS)]))
            rates.append(4 * STEPS * SLOT_BATCH / sum(seconds))
            ratios.append((seconds[0] + seconds[3]) / (seconds[1] + seconds[2]))
        stall = (loader.stall_seconds - stall) / (2 * BLOCKS * STEPS)
    print(machine_line())
    print(f"{model}, {SLOT_BATCH} images of {crop} pixels from {folder} ({data.encoding}), 1 reader thread, in turn")
    print(f"fed / synthetic: {statistics.median(ratios):.1%} (of {', '.join(f'{ratio:.1%}' for ratio in ratios)})")
    print(f"{statistics.median(rates):,.1f} images/s, {1e3 * stall:.2f} ms of waiting for data a step")
    return statistics.median(ratios)


def index(folder: Path) -> None:
    """Make 1,024 shards of 1,281,167 rows of a few bytes in `folder`, where they are not yet, and open them."""
    if len(list(folder.glob("*.h5"))) != SHARDS:
        folder.mkdir(parents=True, exist_ok=True)
        names, bounds = [f"n{c:08d}" for c in range(CLASSES)], np.linspace(0, ROWS, SHARDS + 1).astype(int).tolist()
        for s in range(SHARDS):
            first, last = bounds[s], bounds[s + 1]
            rows = [Row(b"row", i % CLASSES, f"{names[i % CLASSES]}/{i:08d}.JPEG") for i in range(first, last)]
            temporary, path = folder / "shard.writing", folder / f"shard-{s:05d}.h5"
            write_shard(temporary, rows, encoding="jpeg", size=0, class_names=names, plan="index")
            finish_shard(temporary, path, ROWS, first)
    checksum(0, np.zeros(1, np.uint8))  # loads the compiler's runtime, which is no part of the index
    before, begin, begin_cpu = _resident(), time.perf_counter(), time.process_time()
    data = DataSet(folder)
    seconds, cpu, grown = time.perf_counter() - begin, time.process_time() - begin_cpu, _resident() - before
    arrays = sum(value.nbytes for value in vars(data).values() if isinstance(value, np.ndarray))
    print(machine_line())
    print(f"{len(data):,} rows in {SHARDS:,} shards opened in {seconds:.2f} s, {cpu:.2f} s of CPU")
    print(f"index {arrays / 1e6:.1f} MB in arrays; the process grew by {grown / 1e6:.1f} MB")


def _resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
