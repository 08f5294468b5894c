"""What the world outside asks of a run and what the run tells it: three small files in the run folder, and signals.

    stop      whoever makes it asks the run to save and leave; the run removes it when it does
    status    "running step 0" | "stopped step 120" | "done step 300" | "failed ValueError: why"
    DONE      stands in the folder of a run that went to its end

Batch systems signal and read exit codes of one process, and a run has many: a signal sent to 512 ranks kills those that
are not listening yet, and the first of 512 exit codes has the launcher kill the others while they still save. A file
has neither problem. "running" in the status of a run that is gone says that it died without a word: try again.
"failed" says that trying again would end alike.
"""

import os
import signal
import time
from pathlib import Path

STOP, STATUS, DONE = "stop", "status", "DONE"
LOOK_S = 0.5  # between two looks for the stop file, by one rank
TRANSIENT = (OSError, RuntimeError, KeyboardInterrupt)  # another attempt may end otherwise


class Lifecycle:
    """A context that holds from the first step to the last; rank 0 alone reads and writes the files."""

    def __init__(self, run_dir: Path, rank: int, warn):
        self.run_dir, self.rank, self.warn = Path(run_dir), rank, warn
        self.looked, self.seen = -LOOK_S, False
        self.caught = []  # numbers of the signals that came
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number, frame):
        """The first signal asks for a stop; a second one ends the process at once."""
        self.caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    def finished(self, total_steps: int) -> bool:
        """Whether an earlier run went to the end of these steps."""
        try:
            return int((self.run_dir / DONE).read_text().split()[1]) >= total_steps
        except (OSError, ValueError, IndexError):
            return False

    def stop_asked(self) -> bool:
        """Whether this rank knows of a reason to stop: a signal, or on rank 0 the stop file."""
        if self.rank == 0 and not self.seen and time.monotonic() - self.looked >= LOOK_S:
            self.looked, self.seen = time.monotonic(), (self.run_dir / STOP).exists()
        return bool(self.caught) or self.seen

    @property
    def exit_code(self) -> int:
        """0, or what a shell expects after the signal that this rank caught."""
        return 128 + self.caught[0] if self.caught else 0

    def begin(self, step: int):
        """The run is about to train."""
        self._say(f"running step {step}")

    def end(self, step: int, total_steps: int):
        """The state after `step` steps is safe on the disk, and the run leaves."""
        if step >= total_steps:
            self._put(DONE, f"step {step} of {total_steps}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self._say(f"{'done' if step >= total_steps else 'stopped'} step {step}")
        if self.rank == 0:
            (self.run_dir / STOP).unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and not isinstance(error, TRANSIENT) and (self.run_dir / STATUS).exists():
            self.rank = 0  # whoever fails says so: the others are about to be ended
            self._say(f"failed {kind.__name__}: {' '.join(str(error).split())}")

    def _say(self, text: str):
        self._put(STATUS, text)

    def _put(self, name: str, text: str):
        """Write a line whole or not at all; a disk that refuses it must not end the run."""
        if self.rank != 0:
            return
        temporary = self.run_dir / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, self.run_dir / name)
        except OSError as error:
            self.warn(f"warning: {self.run_dir / name}: cannot be written ({error.strerror})")
