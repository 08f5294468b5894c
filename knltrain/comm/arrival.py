"""Who has not come, while a start hangs: until MPI is through, ranks see each other only in the run folder.

Where a launcher could not start a process, or a node hangs as it loads Python, the others wait in MPI_Init for ever. A
rank that has waited LATE_S there leaves a file in the run folder, and writes it again and again; the lowest of those
who wait names the ranks of whom there is none, and ends the job after END_S. A start that is through before leaves no
file and asks the file system for nothing. A process of its own does this: MPI_Init lets no other thread of Python run.
"""

import contextlib
import os
import select
import signal
import socket
import time
from pathlib import Path

from .communicator import launched

FOLDER = "waiting"
LATE_S, END_S, PERIOD_S = 60.0, 600.0, 5.0
SHOWN = 16  # ranks


class Arrival:
    """A context around the start of MPI; say: prints a line to stderr."""

    def __init__(self, run_dir: Path, say):
        self.rank, self.size = launched()
        self.folder, self.say = Path(run_dir) / FOLDER, say
        self.process = 0

    def __enter__(self):
        if self.size == 1 or self.rank is None:
            return
        self._end, self._open = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(self._open)
                self._wait()
            finally:
                os._exit(0)
        os.close(self._end)

    def __exit__(self, *error):
        if self.process:
            os.close(self._open)
            os.waitpid(self.process, 0)

    def _through(self, seconds: float) -> bool:
        """Wait so long at most; whether MPI has started, or the rank is dead."""
        return bool(select.select([self._end], [], [], seconds)[0])

    def _wait(self):
        begin, said = time.monotonic(), None
        if self._through(LATE_S):
            return
        mine = self.folder / f"{self.rank}"
        try:
            while not self._through(PERIOD_S):
                self.folder.mkdir(parents=True, exist_ok=True)
                mine.write_text(f"{socket.gethostname()} process {os.getpid()}\n")
                waited = time.monotonic() - begin
                if waited > LATE_S + 3 * PERIOD_S:  # whoever is there has said so
                    said = self._look(waited, said)
        except OSError as error:
            self.say(f"MPI has not started after {LATE_S:.0f} s, and who is missing cannot be told: {error}")
        finally:
            with contextlib.suppress(OSError):
                mine.unlink()
                self.folder.rmdir()  # the last one

    def _look(self, waited: float, said: str | None) -> str:
        """Where this is the lowest rank that waits: say who is missing, if that has changed, and in the end end."""
        touched = {int(file.name): file.stat().st_mtime for file in self.folder.iterdir() if file.name.isdecimal()}
        newest = max(touched.values())
        here = {rank for rank, when in touched.items() if when > newest - 3 * PERIOD_S}  # others are of another start
        if self.rank != min(here):
            return said
        missing = [rank for rank in range(self.size) if rank not in here]
        names = ", ".join(map(str, missing[:SHOWN])) + f" and {len(missing) - SHOWN} more" * (len(missing) > SHOWN)
        what = f"of {self.size} ranks {names} did not come" if missing else "all ranks are there"
        if what != said:
            self.say(
                f"MPI has not started after {waited:.0f} s: {what}, as the launcher numbers them; the job ends after "
                f"{END_S:.0f} s"
            )
        if waited > END_S:
            self.say(f"error: MPI has not started after {waited:.0f} s: {what}: ending all ranks")
            os.kill(os.getppid(), signal.SIGTERM)
        return what
