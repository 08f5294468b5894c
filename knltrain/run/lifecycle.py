"""What the world outside asks of a run and what the run tells it: small files in the run folder, and signals.

    lock      who owns the folder (see `lock`)
    stop      whoever makes it asks the run to save and leave; the run removes it. stop.LAUNCH asks that launch alone
    status    "starting" | "running step 0" | "stopped step 120" | "done step 300" | "failed ValueError: why" |
              "died OSError: why"; where KNLTRAIN_LAUNCH is set, a second line repeats it
    DONE      stands in the folder of a run that went to its end

Batch systems signal and read exit codes of one process, and a run has many: a signal sent to 512 ranks kills those that
are not listening yet, and the first of 512 exit codes has the launcher kill the others while they still save. A file
has neither problem. "running" or "died" in the status of a run that is gone says that another attempt may end
otherwise, "failed" that it would end alike. A script that starts runs gives each start a name of its own in
KNLTRAIN_LAUNCH, and believes only a status that repeats it.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from ..claims.whole import write_whole
from .lock import LOCK, Lock, OwnedError

STOP, STATUS, DONE = "stop", "status", "DONE"
LAUNCH = "KNLTRAIN_LAUNCH"
GRACE_S = 0.5
LOOK_S = 0.5  # between two looks for the stop file, by one rank
TRANSIENT = (OSError, RuntimeError, KeyboardInterrupt)  # another attempt may end otherwise


@contextlib.contextmanager
def could_not_begin(run_dir: Path):
    """What fails inside, before the ranks know of each other, is told to whoever launched us, if nobody runs there."""
    try:
        yield
    except ValueError as error:
        launch = os.environ.get(LAUNCH, "")
        if launch and run_dir.is_dir() and not (run_dir / LOCK).exists():
            text = f"failed ValueError: {' '.join(str(error).split())}\n{launch}\n"
            write_whole(run_dir / STATUS, text, durable=False)
        raise


class Lifecycle:
    """A context that holds from the reading of the recipe to the last word; rank 0 alone touches the files."""

    def __init__(self, run_dir: Path, comm, warn):
        self.run_dir, self.comm, self.rank, self.warn = Path(run_dir), comm, comm.rank, warn
        self.launch = os.environ.get(LAUNCH, "")
        self.looked, self.seen = -LOOK_S, False
        self.caught = []  # numbers of the signals that came
        self.began = self.finished_step = False
        self._lock, self._handlers, self._made = None, {}, False

    # ---- the folder --------------------------------------------------------------------------------------------

    def claim(self):
        """Make the run folder and become its owner, alone; what an earlier run was asked or told no longer counts.

        Collective. Raises OwnedError on all ranks where another run owns it, OSError where it cannot be made.
        """
        if self._lock:
            return
        refused, lock = None, Lock(self.run_dir, lambda line: self.warn(line))
        if self.rank == 0:
            try:
                self._made = not self.run_dir.exists()
                self.run_dir.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                self._forget()
            except FileExistsError:
                raise FileExistsError(
                    f"{self.run_dir}: found a file, expected a folder or a free name: choose another --run"
                ) from None
            except OwnedError as error:
                refused = str(error)
                if self.launch:
                    write_whole(self.run_dir / f"refused.{self.launch}", refused + "\n", durable=False)
        refused = self.comm.gather(refused)[0]
        if refused:
            raise OwnedError(refused)
        self._lock = lock
        self._say("starting")

    def _forget(self):
        """Remove the status and the wish to stop of an earlier run; whoever starts this one has his own."""
        (self.run_dir / STATUS).unlink(missing_ok=True)
        stop = self.run_dir / STOP
        if stop.exists():
            stop.unlink()
            self.warn(f"note: {stop} was left over and is removed; to stop this run, make it again")

    def finished(self, total_steps: int) -> bool:
        """Whether an earlier run went to the end of these steps."""
        try:
            return int((self.run_dir / DONE).read_text().split()[1]) >= total_steps
        except (OSError, ValueError, IndexError):
            return False

    # ---- stopping ----------------------------------------------------------------------------------------------

    def _note(self, number, frame):
        """The first signal asks for a stop. Ctrl-C again ends the process at once; SIGTERM again changes nothing, as
        SLURM sends it to the ranks, and to srun, which sends it to the ranks."""
        self.caught.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        if self.rank == 0:  # not by print, which the signal may have interrupted
            again = "; again: at once" * (number == signal.SIGINT)
            os.write(2, f"\nknltrain: {signal.Signals(number).name}: saving, then leaving{again}\n".encode())

    def stop_asked(self) -> bool:
        """Whether this rank knows of a reason to stop: a signal, or on rank 0 the stop file."""
        if self.rank == 0 and not self.seen and time.monotonic() - self.looked >= LOOK_S:
            names = (STOP, f"{STOP}.{self.launch}")  # the second is of whoever started us; others may start too
            self.looked, self.seen = time.monotonic(), any((self.run_dir / name).exists() for name in names)
        return bool(self.caught) or self.seen

    @property
    def exit_code(self) -> int:
        """0, also of a run that is done; else what a shell expects after the signal that this rank caught."""
        return 128 + self.caught[0] if self.caught and not self.finished_step else 0

    # ---- telling -----------------------------------------------------------------------------------------------

    def begin(self, step: int, warn):
        """The run is about to train: the first signal asks for a stop instead of ending it, and `warn` prints lines."""
        self.warn, self.began = warn, True
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._note)
        self._say(f"running step {step}")

    def end(self, step: int, total_steps: int):
        """The state after `step` steps is safe on the disk, and the run leaves."""
        self.finished_step = step >= total_steps
        if self.finished_step and self.rank == 0 and not self.finished(total_steps):
            write_whole(self.run_dir / DONE, f"step {step} of {total_steps}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self._say(f"{'done' if self.finished_step else 'stopped'} step {step}")
        if self.rank == 0:
            (self.run_dir / STOP).unlink(missing_ok=True)

    def __enter__(self):
        if self.comm.gather(self.run_dir.is_dir())[0]:  # else it is made when the recipe has been read
            self.claim()
        return self

    def __exit__(self, kind, error, trace):
        if self._lock and error is not None:
            if self.rank != 0:
                time.sleep(GRACE_S)  # what fails on all ranks is rank 0's to say, which ends this one
            self.rank = 0  # whoever fails says so: the others are about to be ended
            word = "died" if isinstance(error, TRANSIENT) else "failed"
            self._say(f"{word} {kind.__name__}: {' '.join(str(error).split())}")
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._lock:
            self._lock.release()
        if self._made and error is not None and not self.launch:
            self._leave_nothing()

    def _leave_nothing(self):
        """Remove the folder that we made, if all that stands in it is that we failed."""
        if [path.name for path in self.run_dir.glob("*")] == [STATUS]:
            with contextlib.suppress(OSError):
                (self.run_dir / STATUS).unlink()
                self.run_dir.rmdir()

    def _say(self, text: str):
        """Write the status; a disk that refuses it must not end the run."""
        if self.rank != 0:
            return
        try:
            write_whole(self.run_dir / STATUS, "\n".join(filter(None, [text, self.launch])) + "\n", durable=False)
        except OSError as error:
            self.warn(f"warning: {self.run_dir / STATUS}: cannot be written ({error.strerror})")
