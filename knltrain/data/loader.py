"""Batches, made ahead of time by reader threads in a ring of buffers, delivered in order.

Each thread fills one whole slot at a time: HDF5 is not called, and reading, decoding and pixel kernels run without the
interpreter's lock, so threads do overlap. What a batch holds does not depend on their number.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from knltrain.kernels import aligned_zeros

from .augment import Augment
from .decode import DecodeError
from .sampler import Order

WORK = ("read", "decode", "augment")  # what reader threads do, in this order
SCRATCH_BYTES = 1 << 20  # of a thread, for the bytes of a row; a larger row gets memory of its own


class Batch(NamedTuple):
    """Valid until the next batch is asked for. rows are indices in the data set."""

    images: np.ndarray  # (batch, crop, crop, 3) float32
    labels: np.ndarray  # (batch,) int64
    rows: np.ndarray  # (batch,) int64
    epoch: int
    mixed: tuple[np.ndarray, np.ndarray] | None = None  # labels of the others, own shares: see Augment.mix


class Batches:
    """What a trainer reads, slot by slot. These come from any iterable; `Loader` makes them of shards."""

    stall_seconds = 0.0  # time in which a batch was wanted and not ready
    told: Callable[[str, float, float, dict], None] | None = None

    def __init__(self, slots: Iterable[Batch] = ()):
        self._slots = iter(slots)

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        return next(self._slots)

    def tell(self, told: Callable[[str, float, float, dict], None] | None) -> None:
        """From now on `told` hears of every batch (see `_Reader._tell`); None: nobody."""
        self.told = told

    def seek(self, step: int) -> None:
        """Continue with the first slot of a global step (counted over all epochs), where there is an order."""

    def close(self) -> None:
        """Make no more of them."""


class _Thread(threading.local):
    """What each reader thread has for itself."""

    def __init__(self):
        self.scratch = np.empty(SCRATCH_BYTES, np.uint8)


class _Reader(Batches):
    """The ring: `_plan(i)` names the i-th batch as (epoch, rows), or None behind the end."""

    def __init__(self, dataset, augment: Augment, batch: int, threads: int, prefetch: int):
        if threads < 1 or prefetch < 1:
            raise ValueError(f"threads {threads}, prefetch {prefetch}: expected at least 1 of each")
        super().__init__()
        self.dataset, self.augment = dataset, augment
        self.work_seconds = dict.fromkeys(WORK, 0.0)  # of all threads together, for the batches handed out
        self.bytes = 0  # stored bytes of the rows handed out
        self._thread = _Thread()
        self.prefetch = prefetch = max(prefetch, threads)
        # one buffer more than are being filled: the one the caller holds
        shape = (batch, augment.crop, augment.crop, 3)
        self._images = [aligned_zeros(math.prod(shape)).reshape(shape) for _ in range(prefetch + 1)]
        self._pool = ThreadPoolExecutor(threads, "reader")
        self._pending = deque()
        self._next = 0  # index of the next batch to begin
        self._closed = False

    def __next__(self) -> Batch:
        """The next batch. An error of a reader thread is raised here, and ends the reader.

        Raises: ShardError for damaged data; RuntimeError after close.
        """
        if self._closed:
            raise RuntimeError("found a closed loader, expected an open one: make a new one")
        self._fill_ring()  # the batch handed out last is free again
        if not self._pending:
            raise StopIteration
        begin = time.perf_counter()
        try:
            batch, seconds, nbytes = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        self.stall_seconds += self._tell("", begin)
        self.bytes += nbytes
        for name, spent in zip(WORK, seconds, strict=True):
            self.work_seconds[name] += spent
        return batch

    def _tell(self, thread: str, begin: float, **facts) -> float:
        """Seconds since `begin`, which `told` hears: a thread has made a batch; "": the caller has waited for one."""
        seconds = time.perf_counter() - begin
        if self.told:
            self.told(thread, begin, seconds, facts)
        return seconds

    def pause(self) -> None:
        """Wait until the batches that were begun are ready: no thread works any more until the next is asked for."""
        for future in self._pending:
            future.exception()

    def _fill_ring(self):
        while len(self._pending) < len(self._images):
            plan = self._plan(self._next)
            if plan is None:
                break
            buffer = self._images[self._next % len(self._images)]
            self._pending.append(self._pool.submit(self._fill, buffer, *plan))
            self._next += 1

    def close(self) -> None:
        """Stop the threads; batches begun are dropped."""
        self._closed = True
        self._drain()
        self._pool.shutdown(wait=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _drain(self):
        """Forget all batches begun, and wait until no thread writes to a buffer any more."""
        for future in self._pending:
            future.cancel()
        for future in self._pending:
            if not future.cancelled():
                future.exception()
        self._pending.clear()

    def _fill(self, buffer, epoch, rows):
        """The batch, seconds by WORK, and how many bytes were read."""
        augment, clock = self.augment, time.perf_counter
        images, seconds, nbytes, start = buffer[: len(rows)], [0.0, 0.0, 0.0], 0, clock()
        for row, out in zip(rows.tolist(), images, strict=True):
            begin = clock()
            data = self.dataset.read(row, self._thread.scratch)
            read = clock()
            if data.ndim == 1:
                try:
                    image, window = augment.decode(data, epoch, row)
                except DecodeError as error:
                    raise self.dataset.no_picture(row, error) from None
            else:
                image, window = data, augment.window(*data.shape[:2], epoch, row)
            decoded = clock()
            augment.cut(image, window, epoch, row, out)
            for i, spent in enumerate((read - begin, decoded - read, clock() - decoded)):
                seconds[i] += spent
            nbytes += data.nbytes
        self._tell(threading.current_thread().name, start, bytes=nbytes, **dict(zip(WORK, seconds, strict=True)))
        labels, begin = self.dataset.labels[rows].astype(np.int64), clock()
        mixed = (np.roll(labels, -1), augment.mix(images, epoch, rows)) if augment.mixup else None
        seconds[2] += clock() - begin
        return Batch(images, labels, rows, epoch, mixed), seconds, nbytes


class Loader(_Reader):
    """Training batches of one rank, one slot at a time, in (step, slot) order, without end.

    Parameters
    ----------
    dataset : DataSet or Synthetic
    order : Order; gives rows and epochs
    augment : Augment
    slots : the slots of this rank, ascending
    threads : reader threads
    prefetch : batches made ahead, at least one per thread

    Attributes, all since the start: stall_seconds: how long the caller has waited; work_seconds: what the threads did
    with their time, by WORK; bytes: how much they read.

    While the rows of one window of a slot are used, the system is asked to fetch those of its next one, at the end of
    an epoch the next epoch's first: so pages come from the disk in large pieces, and before they are needed.
    """

    def __init__(self, dataset, order: Order, augment: Augment, *, slots: range, threads: int = 1, prefetch: int = 2):
        super().__init__(dataset, augment, order.slot_batch, threads, prefetch)
        self.order, self.slots = order, slots
        self._advised = {}

    def seek(self, step: int) -> None:
        """Continue with the first slot of a global step (counted over all epochs); reading begins at once."""
        self._drain()
        self._next = step * len(self.slots)
        self._fill_ring()

    def _plan(self, i):
        step, slot = divmod(i, len(self.slots))
        epoch, step = divmod(step, self.order.steps_per_epoch)
        slot = self.slots[slot]
        windows = self.order.windows(epoch, step)  # this one and the next
        for window in windows:
            if window not in self._advised.get(slot, ()):
                self.dataset.advise(self.order.window(*window, slot))
        self._advised[slot] = windows
        return epoch, self.order.rows(epoch, step, slot)


class EvalLoader(_Reader):
    """The batches of an evaluation, once: `batches` is a list of rows (see eval_rows). The last one may be short."""

    def __init__(self, dataset, batches: list[np.ndarray], augment: Augment, *, threads: int = 1, prefetch: int = 2):
        super().__init__(dataset, augment, max(map(len, batches), default=0), threads, prefetch)
        self.batches = batches

    def _plan(self, i):
        return (0, self.batches[i]) if i < len(self.batches) else None
