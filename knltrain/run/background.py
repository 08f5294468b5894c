"""One thread that writes the newest state while training goes on, and tries again when the disk refuses."""

import threading
import time
from collections.abc import Callable

PAUSE_S = 5.0  # between attempts


class Writer:
    """Writes one job at a time in the background: `write(job)`, which raises ValueError or OSError where it failed.

    A job that failed is tried again every PAUSE_S, until it succeeds or a newer one takes its place. warn: told, on the
    writer's thread, when attempts begin to fail and when one succeeds again.

    The interpreter does not end before the attempt under way: a thread that Python freezes inside HDF5 keeps HDF5's
    lock, and whoever frees an HDF5 object after that hangs or crashes.
    """

    def __init__(self, write: Callable, warn: Callable[[str], None]):
        self._write, self._warn = write, warn
        self._change = threading.Condition()
        self._job = None  # what is to be written, until it is
        self._writing = False  # the thread is reading the job: nobody may change it
        self._begun = 0.0
        self._closed = False
        self._error = None
        self._thread = None

    def busy(self, patience_s: float) -> float:
        """Wait up to patience_s for the attempt under way; returns the seconds it has taken so far, 0 if it is over."""
        with self._change:
            self._change.wait_for(lambda: not self._writing, patience_s)
            return time.monotonic() - self._begun if self._writing else 0.0

    def submit(self, make_job: Callable):
        """Write what `make_job()` returns, in place of a job that waits for its next attempt. Not while `busy`."""
        with self._change:
            if self._writing:
                raise RuntimeError("a job was submitted during a write; expected busy() to be asked first")
            self._job = make_job()
            self._change.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoint")
            self._thread.start()

    def finish(self, limit_s: float):
        """Wait until nothing is left to write. Raises the last error or TimeoutError if limit_s does not suffice."""
        with self._change:
            if not self._change.wait_for(lambda: self._job is None, limit_s):
                raise self._error or TimeoutError(f"a write has not ended after {limit_s:.0f} s: the file system hangs")

    def close(self, limit_s: float):
        """Begin no further attempt, and wait up to limit_s for the one under way; harmless when repeated."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._writing, limit_s)

    def _run(self):
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._job is not None)
                if self._closed:
                    return
                job, self._writing, self._begun = self._job, True, time.monotonic()
            try:
                self._write(job)
                error = None
            except (ValueError, OSError) as caught:
                error = caught
            if error is None and self._error is not None:
                self._warn("a checkpoint could be written again")
            elif error is not None and self._error is None:
                self._warn(f"{error}; training goes on, next attempt every {PAUSE_S:.0f} s")
            with self._change:
                self._writing, self._error = False, error
                if error is None:
                    self._job = None
                self._change.notify_all()
                if error is not None:
                    self._change.wait_for(lambda failed=job: self._closed or self._job is not failed, PAUSE_S)
