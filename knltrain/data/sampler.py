"""Which rows make up which batch: a pure function of (seed, epoch, step, slot), on any number of ranks.

Three kinds of order, all of which use every row at most once an epoch, and leave out the same number of rows at its end
(less than one global batch), but other rows every epoch:

quasi       The rows of the data set are cut into pages; the pages are put into a random order and written one behind
            another, which gives a sequence of all rows. Slot m owns the m-th stretch of it, of steps_per_epoch *
            slot_batch rows, and reads it window by window; the rows of a window are shuffled. So the disk sees a few
            whole pages at a time.
full        The sequence is a random permutation of all rows, which no page or window limits.
sequential  Batch after batch as the rows are stored; each epoch begins where the one before ended.

Any step of any epoch is reached without replaying the steps before it.
"""

from functools import lru_cache

import numpy as np

KINDS = ("quasi", "full", "sequential")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x):
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014), on an array of uint64; overflow is meant."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0..n-1, (n,) int64, that depends on n and the integers of the key only.

    It sorts a counter-based hash, so it is the same with every NumPy version, as random.Generator is not.
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state + np.array([part % 2**64], np.uint64) + _GOLDEN)
    return np.argsort(_mix(state + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64)), kind="stable")


class Order:
    """The order of training: rows(epoch, step, slot).

    Parameters
    ----------
    n_rows : rows of the data set
    page_rows : rows of a page, the unit of shuffling and reading
    slots : M, the slots of a global batch; a global batch is slots * slot_batch rows
    slot_batch : rows of a slot
    seed : of the whole run
    window_pages : pages that are open in a slot at a time, between which rows are mixed
    kind : quasi, full or sequential

    Raises: ValueError for an unknown kind, if a count is not positive, or the data set is smaller than a global batch.
    """

    def __init__(
        self,
        n_rows: int,
        page_rows: int,
        slots: int,
        slot_batch: int,
        seed: int,
        window_pages: int = 16,
        kind: str = "quasi",
    ):
        if kind not in KINDS:
            raise ValueError(f"order {kind!r}: expected one of {', '.join(KINDS)}")
        if min(page_rows, slots, slot_batch, window_pages) < 1:
            raise ValueError(
                f"page_rows {page_rows}, slots {slots}, slot_batch {slot_batch}, window_pages {window_pages}: "
                "expected positive counts"
            )
        if n_rows < slots * slot_batch:
            raise ValueError(
                f"the data set has {n_rows} rows, one global batch needs {slots} slots x {slot_batch} = "
                f"{slots * slot_batch}: lower the global batch or add images"
            )
        self.n_rows, self.page_rows, self.seed, self.kind = n_rows, page_rows, seed, kind
        self.slots, self.slot_batch = slots, slot_batch
        self.steps_per_epoch = n_rows // (slots * slot_batch)
        self.window_rows = max(window_pages * page_rows, slot_batch)
        self._stretch = self.steps_per_epoch * slot_batch  # rows a slot uses in an epoch
        # an epoch's sequence is shared by all slots; two epochs are alive where one ends
        self._pages = lru_cache(maxsize=2)(self._pages)
        self._permutation = lru_cache(maxsize=2)(self._permutation)
        # the reader of each slot is in one window, a batch may reach into the next, which is also read ahead
        self._shuffled = lru_cache(maxsize=3 * slots)(self._shuffled)

    def rows(self, epoch: int, step: int, slot: int) -> np.ndarray:
        """Rows of one slot at a step of an epoch, (slot_batch,) int64.

        Raises: ValueError if step or slot is out of range.
        """
        if not (epoch >= 0 and 0 <= step < self.steps_per_epoch and 0 <= slot < self.slots):
            raise ValueError(
                f"epoch {epoch}, step {step}, slot {slot}: expected a step below {self.steps_per_epoch} "
                f"and a slot below {self.slots}"
            )
        start, stop = step * self.slot_batch, (step + 1) * self.slot_batch
        if self.kind != "quasi":
            return self._sequence(epoch, slot, start, stop)
        parts = []
        while start < stop:
            window, offset = divmod(start, self.window_rows)
            parts.append(self._shuffled(epoch, slot, window)[offset : offset + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def windows(self, epoch: int, step: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(epoch, number) of the window in which this step of a slot begins, and of the one that comes after it."""
        window = step * self.slot_batch // self.window_rows
        is_last = (window + 1) * self.window_rows >= self._stretch
        return (epoch, window), (epoch + 1, 0) if is_last else (epoch, window + 1)

    def window(self, epoch: int, window: int, slot: int) -> np.ndarray:
        """Sorted rows of a window of a slot's stretch: what is worth reading ahead."""
        start = window * self.window_rows
        return np.sort(self._sequence(epoch, slot, start, min(start + self.window_rows, self._stretch)))

    def _sequence(self, epoch, slot, start, stop):
        """Rows start..stop of the stretch of a slot, before windows are shuffled."""
        places = np.arange(start, stop)
        if self.kind == "sequential":
            step, i = np.divmod(places, self.slot_batch)
            batch = self.slots * self.slot_batch
            left_out = self.n_rows - self.steps_per_epoch * batch
            return (step * batch + slot * self.slot_batch + i - epoch * left_out) % self.n_rows
        places += slot * self._stretch
        if self.kind == "full":
            return self._permutation(epoch)[places].astype(np.int64)
        pages, begins = self._pages(epoch)
        at = np.searchsorted(begins, places, side="right") - 1
        return pages[at] * self.page_rows + places - begins[at]

    def _pages(self, epoch):
        """Page order of an epoch (pages,) and the place in the sequence where each page begins (pages + 1,)."""
        pages = permutation(-(-self.n_rows // self.page_rows), self.seed, epoch)
        sizes = np.minimum(self.page_rows, self.n_rows - pages * self.page_rows)  # the last page may be short
        return pages, np.concatenate([[0], np.cumsum(sizes)])

    def _permutation(self, epoch):
        return permutation(self.n_rows, self.seed, epoch).astype(np.uint32)

    def _shuffled(self, epoch, slot, window):
        """Rows of one window of a slot's stretch, shuffled."""
        start = window * self.window_rows
        rows = self._sequence(epoch, slot, start, min(start + self.window_rows, self._stretch))
        return rows[permutation(len(rows), self.seed, epoch, slot, window)]


def eval_rows(n_rows: int, rank: int, size: int, batch: int) -> list[np.ndarray]:
    """Batches of rows for an exact evaluation: over all ranks every row occurs once, and only the last batch is short.

    Raises: ValueError if the rank is not below size or the batch is not positive.
    """
    if not 0 <= rank < size or batch < 1:
        raise ValueError(f"rank {rank} of {size}, batch {batch}: expected a rank below size and a positive batch")
    rows = np.arange(n_rows * rank // size, n_rows * (rank + 1) // size, dtype=np.int64)
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]
