"""What a run keeps of itself: log.jsonl, one JSON object a line, in the run folder. Rank 0 only.

docs/log.md is the schema. Every record goes to the log and to the screen, which words it. Steps are counted as steps
done, 1 to total_steps. Numbers that are not finite are written as null.
"""

import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..claims.whole import write_whole
from ..run.observe import StepObserver
from .screen import Screen

LOG, RECIPE, MACHINE, PREDICTIONS = "log.jsonl", "recipe.toml", "machine.json", "predictions.json"
WINDOW_S = 20.0  # images/s is taken over the steps of so many last seconds, at least one step
ORDER = {kind: place for place, kind in enumerate(("begin", "step", "startup", "evaluation", "epoch"))}
FORWARD = 1 / 3  # of a training step's time; until an evaluation was timed


class Journal(StepObserver):
    """Records of one run; on ranks other than 0 every method does nothing.

    total_steps, epochs, every: the run's length, and after how many steps it evaluates and saves (0: at the
    end only), by "evaluation" and "checkpoint". The log is appended to, so a resumed run continues it.
    """

    def __init__(self, run_dir, rank: int, images_per_step: int, total_steps: int, epochs: float, every: dict,
                 screen: Screen, val_images: int = 0):  # fmt: skip
        self.quiet, self.screen, self.images_per_step = rank != 0, screen, images_per_step
        self.total_steps, self.epochs, self.every = total_steps, epochs, every
        self.val_images, self.costs = val_images, {"checkpoint": 0.0}  # seconds of the last one
        self.listeners: list[Callable[[dict], None]] = []  # are told every record as it is written
        self.run_dir, self.log, self.refused = Path(run_dir), None, False  # by the disk
        self.done, self.started = 0, False
        self.trained = 0.0  # seconds in steps; evaluations, checkpoints and waiting for them are pauses
        self.marks = deque()  # (trained, steps done) at the end of recent steps
        self.begun = self.paused = time.perf_counter()
        self.best = None  # (top1, epoch)
        self.epoch, self.ended = [], None  # (loss, accuracy) of its steps; its record, until the evaluation is there
        self.epoch_begun, self.epoch_trained = self.begun, 0.0

    def start(self, recipe_text: str, machine: dict, facts: dict):
        """The run begins: keep the resolved recipe and the machine's facts in the run folder, and tell what it is."""
        if not self.quiet:
            self.done, self.started = facts["step"], True
            write_whole(self.run_dir / RECIPE, recipe_text)
            write_whole(self.run_dir / MACHINE, json.dumps(machine, indent=2) + "\n")
            self.best = self._best_before() if self.done else None
            self.begun = self.paused = self.epoch_begun = time.perf_counter()
            self._write("begin", facts)
            self.screen.tell({"kind": "begin", **machine, **facts})

    def record(self, kind: str, facts: dict):
        """One more record of any kind, after the steps that are done."""
        if not self.quiet:
            record = {"step": self.done, **facts}
            if self.started or kind != "note":  # a run that has nothing to do leaves the log as it was
                self._write(kind, record)
            self.screen.tell({"kind": kind, **record})

    def note(self, message: str):
        """A line that stays, above the progress."""
        self.record("note", {"text": message})

    def begin_step(self, trainer):
        """What came between the steps is over."""
        self.begun = time.perf_counter()
        if self._due("checkpoint", self.done):
            self.costs["checkpoint"] = self.begun - self.paused

    def end_step(self, trainer, step):
        """A step of the trainer is done: log it, and show how far the run is."""
        if self.quiet:
            return
        self.done, self.paused, self.images_per_step = step.number, time.perf_counter(), trainer.parts.global_batch
        self.trained += self.paused - self.begun
        rate, one = self._rate(), (step.loss, step.accuracy)
        record = {"step": step.number, "epoch": step.epoch, "loss": step.loss, "lr": step.lr}
        record |= {"images_per_s": rate, "left_s": self._left(rate), "accuracy": step.accuracy, **step.waits}
        if step.loss_scale:
            record |= {"loss_scale": step.loss_scale, "skipped": step.skipped}
        self._write("step", record)
        if step.skipped:
            left = f"the next has {trainer.scaling.scale:g}" if trainer.scaling.dynamic else "which is fixed"
            found = f"a gradient is out of range at loss scale {step.loss_scale:g}"
            self.note(f"step {step.number} is skipped: {found}, {left}")
        self.epoch.append(one)
        self.screen.tell({"kind": "step", **record, "total_steps": self.total_steps})
        if step.epoch.is_integer() or step.number == self.total_steps:
            self._end_epoch(step)

    def evaluation(self, step: int, epoch: float, top1: float, top5: float, n: int):
        """Log and show the result on n images; top1 and top5 are shares, 0 to 1."""
        if self.quiet:
            return
        now = time.perf_counter()
        self.costs["evaluation"], self.paused = now - self.paused, now
        self.best = max(filter(None, (self.best, (top1, epoch))), key=lambda best: best[0])
        record = {"step": step, "epoch": epoch, "top1": top1, "top5": top5, "images": n}
        self._write("evaluation", record)
        if self.ended is None:
            self.screen.tell({"kind": "evaluation", **record})
        else:
            self._tell_epoch({"top1": top1, "top5": top5, "best_top1": self.best[0], "best_epoch": self.best[1]})

    def evaluation_left(self):
        """The evaluation was not done to its end, as the run is to stop: an epoch that has ended is told without it."""
        self.note("the evaluation was left, as a stop is asked for")
        if self.ended is not None:
            self._tell_epoch({})

    def keep(self, name: str, facts: Callable[[], dict]):
        """Write what `facts` returns to a file of the run folder, in place of what was there."""
        if not self.quiet:
            try:
                write_whole(self.run_dir / name, json.dumps(_jsonable(facts()), allow_nan=False) + "\n", durable=False)
            except OSError as error:
                self.note(f"warning: {self.run_dir / name}: cannot be written ({error.strerror}); training goes on")

    def close(self):
        """End the redrawn line and close the log; harmless when repeated."""
        if not self.quiet:
            self.screen.close()
            with contextlib.suppress(OSError):  # said before
                if self.log:
                    self.log.close()

    # ---- time ------------------------------------------------------------------------------------------------------

    def _rate(self) -> float | None:
        """Images per second over the window; None after the first step, which has nothing to be compared with."""
        self.marks.append((self.trained, self.done))
        while len(self.marks) > 2 and self.trained - self.marks[1][0] >= WINDOW_S:
            self.marks.popleft()
        then, before = self.marks[0]
        return self.images_per_step * (self.done - before) / (self.trained - then) if then < self.trained else None

    def _left(self, rate: float | None) -> float | None:
        """Seconds to the end: steps, evaluations and checkpoints."""
        if not rate:
            return None
        costs = {"evaluation": FORWARD * self.val_images / rate} | self.costs
        pauses = sum(costs[what] * self._still_due(what) for what in self.every)
        return (self.total_steps - self.done) * self.images_per_step / rate + pauses

    def _still_due(self, what) -> int:
        every, total = self.every[what] or self.total_steps, self.total_steps
        return total // every - self.done // every + (total % every != 0)

    def _due(self, what, step) -> bool:
        return step == self.total_steps or (self.every[what] > 0 and step > 0 and step % self.every[what] == 0)

    # ---- epochs ----------------------------------------------------------------------------------------------------

    def _end_epoch(self, step):
        (loss, accuracy), seconds = _means(self.epoch), self.trained - self.epoch_trained
        images = len(self.epoch) * self.images_per_step
        self.ended = {"step": step.number, "epoch": step.epoch, "epochs": self.epochs}
        self.ended |= {"loss": loss, "accuracy": accuracy, "images_per_s": images / seconds if seconds > 0 else None}
        self.ended |= dict.fromkeys(("top1", "top5", "best_top1", "best_epoch"))
        if not self._due("evaluation", step.number):
            self._tell_epoch({})

    def _tell_epoch(self, result: dict):
        now = time.perf_counter()
        self.record("epoch", self.ended | result | {"seconds": now - self.epoch_begun})
        self.epoch, self.ended, self.epoch_begun, self.epoch_trained = [], None, now, self.trained

    def _best_before(self):
        """(top1, epoch) of the best evaluation in the log up to where the run goes on."""
        with contextlib.suppress(FileNotFoundError):
            past = [r for r in read_log(self.run_dir) if r["kind"] == "evaluation" and r["step"] <= self.done]
            return max(((r["top1"], r["epoch"]) for r in past), key=lambda best: best[0], default=None)

    def _write(self, kind: str, record: dict):
        record = _jsonable({"kind": kind, **record, "time": time.time()})
        for told in self.listeners:
            told(record)
        try:
            self.log = self.log or _open_log(self.run_dir)
            self.log.write(json.dumps(record, allow_nan=False) + "\n")
            self.log.flush()
            self.refused = False
        except OSError as error:  # what could not be written stays in the buffer, for the next time
            if not self.refused:
                text = f"warning: {self.run_dir / LOG}: cannot be written ({error.strerror}); training goes on"
                self.screen.tell({"kind": "note", "text": text})
            self.refused = True


def _means(pairs) -> tuple[float, float]:
    return tuple(sum(column) / len(pairs) for column in zip(*pairs, strict=True))


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


def read_log(run_dir) -> list[dict]:
    """The records of a run by step; of steps that were done again after a resume only the last remains.

    Lines cut short by a kill are passed over. Raises FileNotFoundError when the run has no log.
    """
    return newest(read_all(run_dir))


def read_all(run_dir) -> list[dict]:
    """All records as they were written, also of steps that were done again. Raises as read_log."""
    records = []
    with open(Path(run_dir) / LOG, encoding="utf-8", errors="replace") as log:
        for line in log:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and type(record.get("kind")) is str and type(record.get("step")) is int:
                    records.append(record)
    return records


def newest(records: list[dict]) -> list[dict]:
    """The last of each kind and step, by step."""
    last = {(record["kind"], record["step"], str(record.get("text"))): record for record in records}
    return sorted(last.values(), key=lambda r: (r["step"], ORDER.get(r["kind"], len(ORDER))))
