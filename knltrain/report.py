"""What a run says: progress on the screen, and log.jsonl, one JSON object a line, in the run folder. Rank 0 only.

Records: {"kind": "step", "step", "epoch", "loss", "lr", "images_per_s", "accuracy", "time", …}
         {"kind": "evaluation", "step", "epoch", "top1", "top5", "images", "time"}
Steps are counted as steps done, 1 to total_steps. Numbers that are not finite are written as null.
"""

import contextlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections import deque
from importlib import metadata
from pathlib import Path

from .observe import StepObserver
from .text import printable
from .whole import write_whole

LOG, RECIPE = "log.jsonl", "recipe.toml"
WINDOW_S = 20.0  # images/s is taken over the steps of so many last seconds, at least one step
REDRAW_S = 0.1  # on a terminal


class Report(StepObserver):
    """Progress of one run; on ranks other than 0 every method does nothing.

    On a terminal one line is redrawn; elsewhere a plain line appears every `log_every_seconds`, and always for the
    first and the last step. The log is appended to, so a resumed run continues it.
    """

    def __init__(
        self,
        run_dir,
        rank: int,
        total_steps: int,
        images_per_step: int,
        log_every_seconds: float = 5.0,
        stream=None,
    ):
        self.quiet = rank != 0
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.every = REDRAW_S if self.terminal else log_every_seconds
        self.marks = deque()  # (time, steps done) at the end of recent steps
        self.shown = -math.inf  # when the progress line was last written
        self.line = ""  # what stands on the terminal's last line
        self.refused = False  # by the disk
        if not self.quiet:
            self.run_dir, self.log = Path(run_dir), None

    def start(self, recipe_text: str, facts: dict, lines: list[str]):
        """Store the resolved recipe and the machine's facts in the run folder, and print lines: the derived numbers."""
        if not self.quiet:
            write_whole(self.run_dir / RECIPE, recipe_text)
            write_whole(self.run_dir / "machine.json", json.dumps(facts, indent=2) + "\n")
            for line in lines:
                self._print(line)

    def note(self, message: str):
        """Print one line above the progress."""
        if not self.quiet:
            self._print(message)

    def step(self, step: int, epoch: float, loss: float, lr: float, accuracy=None, extra: dict | None = None):
        """After `step` steps: log the record and show progress when it is due.

        loss : mean over the global batch; accuracy : share of it that was right, 0 to 1, or None
        extra : more keys for the log
        """
        if self.quiet:
            return
        now = time.perf_counter()
        rate = self._rate(now, step)
        record = {"step": step, "epoch": epoch, "loss": loss, "lr": lr, "images_per_s": rate, "accuracy": accuracy}
        self._write("step", record | (extra or {}))
        first_or_last = step >= self.total_steps or self.shown == -math.inf
        if now - self.shown >= self.every or first_or_last:
            self.shown = now
            self._show(self._progress(step, epoch, loss, lr, accuracy, rate))

    def end_step(self, trainer, step):
        """A step of the trainer is done."""
        self.step(step.number, step.epoch, step.loss, step.lr, step.accuracy, step.waits)
    def evaluation(self, step: int, epoch: float, top1: float, top5: float, n: int):
        """Log and print the result on n images; top1 and top5 are shares, 0 to 1."""
        if self.quiet:
            return
        self._write("evaluation", {"step": step, "epoch": epoch, "top1": top1, "top5": top5, "images": n})
        self._print(f"evaluation after epoch {epoch:.2f}: top-1 {top1:.2%}, top-5 {top5:.2%} of {n} images")
        self.marks.clear()  # the time that evaluation took is not training time
        self.marks.append((time.perf_counter(), step))

    def close(self):
        """End the redrawn line and close the log; harmless when repeated."""
        if not self.quiet:
            if self.line:
                self.stream.write("\n")
                self.line = ""
            self.stream.flush()
            with contextlib.suppress(OSError):  # said before
                if self.log:
                    self.log.close()

    def _rate(self, now: float, step: int) -> float | None:
        """Images per second over the window; None after the first step, which has nothing to be compared with."""
        self.marks.append((now, step))
        while len(self.marks) > 2 and now - self.marks[1][0] >= WINDOW_S:
            self.marks.popleft()
        (then, before), elapsed = self.marks[0], now - self.marks[0][0]
        return self.images_per_step * (step - before) / elapsed if elapsed > 0 and then < now else None

    def _progress(self, step, epoch, loss, lr, accuracy, rate) -> str:
        parts = [f"step {step}/{self.total_steps}", f"epoch {epoch:.2f}", f"loss {loss:.4f}"]
        if accuracy is not None:
            parts.append(f"top-1 {accuracy:.1%}")
        parts.append(f"lr {lr:.4g}")
        if rate:
            parts.append(f"{rate:.4g} images/s" if rate < 1000 else f"{rate:.0f} images/s")
            parts.append(f"{_duration((self.total_steps - step) * self.images_per_step / rate)} left")
        return "  ".join(parts)

    def _show(self, line: str):
        if self.terminal:
            self.line = line[: shutil.get_terminal_size().columns - 1]
            self.stream.write(f"\r{self.line}\x1b[K")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _print(self, line: str):
        """A line that stays; on a terminal the progress line moves below it."""
        line = printable(line)
        if self.line:
            self.stream.write(f"\r{line}\x1b[K\n{self.line}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _write(self, kind: str, record: dict):
        record = {"kind": kind, **record, "time": time.time()}
        try:
            self.log = self.log or _open_log(self.run_dir)
            self.log.write(json.dumps(_jsonable(record), allow_nan=False) + "\n")
            self.log.flush()
            self.refused = False
        except OSError as error:  # what could not be written stays in the buffer, for the next time
            if not self.refused:
                self._print(f"warning: {self.run_dir / LOG}: cannot be written ({error.strerror}); training goes on")
            self.refused = True


def _open_log(run_dir: Path):
    """The log, opened to append; a line that a killed run left unfinished is ended first."""
    run_dir.mkdir(parents=True, exist_ok=True)
    log = open(run_dir / LOG, "a+", encoding="utf-8")
    if log.tell() > 0:
        with open(run_dir / LOG, "rb") as bytes_of_log:
            bytes_of_log.seek(-1, os.SEEK_END)
            if bytes_of_log.read() != b"\n":
                log.write("\n")
    return log


def _jsonable(value):
    """Plain Python numbers for NumPy's, null for what is not finite, the same inside dicts and lists."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def read_log(run_dir) -> list[dict]:
    """The records of a run by step; of steps that were done again after a resume only the last remains.

    Lines cut short by a kill are passed over. Raises FileNotFoundError when the run has no log.
    """
    records = {}
    with open(Path(run_dir) / LOG, encoding="utf-8", errors="replace") as log:
        for line in log:
            try:
                record = json.loads(line)
                records[record["kind"], record["step"]] = record
            except (ValueError, TypeError, KeyError):
                continue
    return sorted(records.values(), key=lambda r: (r["step"], r["kind"] == "evaluation"))


def machine_facts(**more) -> dict:
    """What a number must be read with: processor, cores this process may use, versions; `more` is added as it is."""
    facts = {
        "host": platform.node(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in ("knltrain", "numpy", "numba", "mpi4py", "h5py")} | more


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
