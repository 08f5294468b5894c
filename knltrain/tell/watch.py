"""`knltrain watch RUN`: what a run shows, from another shell, while it goes on or after; read from its folder alone."""

import contextlib
import json
import math
import time
from pathlib import Path

from ..claims.text import printable
from ..run.lifecycle import STATUS
from ..run.lock import is_held
from .journal import LOG, MACHINE
from .screen import Screen

LOOK_S, QUIET_S = 0.5, 60.0  # between looks; without a record until that is said
DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)  # what a wrong record leads to


class Follower:
    """The records of a growing log, from its begin."""

    def __init__(self, path: Path):
        self.path, self.place, self.rest = path, 0, b""

    def news(self) -> list[dict]:
        """Those that were added; lines that are no records, as one cut short by a kill, are passed over."""
        with open(self.path, "rb") as log:
            if log.seek(0, 2) < self.place:  # another log
                self.place, self.rest = 0, b""
            log.seek(self.place)
            data = log.read()
        self.place += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [record for line in lines if (record := _record(line))]


def _record(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


class Viewer:
    """Shows the run in `run_dir` on `screen`, look by look."""

    def __init__(self, run_dir: Path, screen: Screen):
        self.run_dir, self.screen, self.log = run_dir, screen, Follower(run_dir / LOG)
        self.show = screen.learn  # what was shown before is not repeated: the first look shows where the run stands
        self.total = math.nan  # steps
        self.end = None  # its record, until the run begins anew
        self.quiet = False  # whether it was said that nothing comes

    def look(self) -> bool:
        """Show what is new; whether there may be more to come."""
        alive = is_held(self.run_dir)  # asked first: what it said last is then read
        for record in self.log.news() if self.log.path.exists() else []:
            try:
                self._tell(record)
            except DAMAGED:
                continue
        first, self.show = self.show == self.screen.learn, self.screen.tell
        if first:
            self.screen.show()
            if self.end:
                self.screen.close()
                with contextlib.suppress(*DAMAGED):
                    self.screen.tell(self.end)
        if alive or self.end:
            self._say_quiet()
            return not self.end
        self.screen.close()
        self.screen.say(f"{self.run_dir}: nothing runs here any more{_status(self.run_dir)}")
        return False

    def _say_quiet(self):
        """Say once that no record comes any more, as in an evaluation, or where ranks wait for each other."""
        silent = time.time() - self.log.path.stat().st_mtime if self.log.path.exists() else 0.0
        if silent >= QUIET_S and not self.quiet and not self.end:
            self.screen.say(f"no record for {silent:.0f} s")
        self.quiet = silent >= QUIET_S

    def _tell(self, record):
        if record["kind"] == "begin":
            record = _machine(self.run_dir) | record
            self.total = record["total_steps"] + 0
        elif record["kind"] == "step":
            record = {"images_per_s": None, "left_s": None} | record | {"total_steps": self.total}
        elif record["kind"] == "evaluation" and (record["epoch"] % 1 == 0 or record["step"] == self.total):
            return  # the epoch's record has it too
        self.end = record if record["kind"] == "end" else None if record["kind"] == "begin" else self.end
        self.show(record)


def watch(run_dir: Path, screen: Screen):
    """Show the run until it ends, or is found to go on no longer, or Ctrl-C.

    Raises FileNotFoundError for a folder that is no run's.
    """
    if not (run_dir / LOG).exists() and not is_held(run_dir):
        raise FileNotFoundError(f"{run_dir}: no {LOG} in it; expected the folder of a run")
    viewer = Viewer(run_dir, screen)
    try:
        while viewer.look():
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        pass  # the run does not mind
    screen.close()


def _machine(run_dir: Path) -> dict:
    """What machine.json says; nothing where it cannot be read."""
    try:
        facts = json.loads((run_dir / MACHINE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _status(run_dir: Path) -> str:
    try:
        status = (run_dir / STATUS).read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return "; it was killed" if status.startswith("running") else f"; its status: {printable(status)}"
