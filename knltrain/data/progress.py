"""How far a long command has come."""

import sys
import time

from ..claims.text import printable


class Progress:
    """A redrawn line on a terminal, a plain line every few seconds elsewhere, nothing if there is no stream.

    done and total are counted in `unit`; a rank of several shows its own share.
    """

    def __init__(self, stream, total: int, unit: str = "files"):
        self.stream, self.total, self.unit = stream, total, unit
        self.redraw = stream is not None and stream.isatty()
        self.begin = self.last = time.perf_counter()

    def show(self, done: int, note: str = "") -> None:
        """After `done` of the total: write, if it is time for it."""
        now = time.perf_counter()
        due = now - self.last >= (0.1 if self.redraw else 5) or (self.redraw and done == self.total)
        if self.stream is None or not due:
            return
        self.last = now
        rate = done / max(now - self.begin, 1e-9)
        left_s = (self.total - done) / max(rate, 1e-9)
        text = f"{done}/{self.total} {self.unit}, {rate:.0f} {self.unit}/s, {left_s:.0f} s left{note}"
        if self.redraw:
            filled = 30 * done // max(self.total, 1)
            self.stream.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}\x1b[K")
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def line(self, text: str) -> None:
        """One line above the progress."""
        if self.stream is not None:
            self.stream.write(("\r\x1b[K" if self.redraw else "") + printable(text) + "\n")
            self.stream.flush()


def on_first_rank(comm, stream=sys.stderr):
    """The stream on rank 0, None on the others."""
    return stream if comm is None or comm.rank == 0 else None
