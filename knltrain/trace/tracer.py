"""What one rank did in the steps of `run.trace`: ops, exchanges, reads and waits, in a file a rank.

RUN/trace/STEP-RANK.jsonl, STEP the first step in it: a line that says whose it is, one with the clock's offset, and a
line a step, written when the step is done: a kill loses the step it hits. Times are nanoseconds since the step's begin,
by this rank's clock; names are numbers, each told in the line of the step that used it first.
"""

import json
import os
import socket
import time
from pathlib import Path

from ..layers import Observer
from ..run.observe import StepObserver
from .clocks import clock_offset

FOLDER, VERSION = "trace", 1
MOST_SPANS, MOST_BYTES = 500_000, 64 << 20  # of a rank, in a step and in all; what is beyond is left out, and said
COMPUTE, EXCHANGE = "compute", "exchange"  # rows; the others are threads that read
WAIT_EXCHANGE, WAIT_DATA, READ = "wait for exchange", "wait for data", "read"  # kinds beside those of ops


class Tracer(StepObserver, Observer):
    """Traces the steps `steps` of a run to run_dir, on all ranks: the clocks are compared before the first and after
    the last one. steps: may be empty."""

    def __init__(self, run_dir: Path, comm, steps: range):
        self.folder, self.comm, self.steps = Path(run_dir) / FOLDER, comm, steps
        self.file, self.first, self.last, self.written, self.full, self.left_out = None, 0, 0, 0, False, 0
        self.names: dict[tuple, int] = {}  # (name, kind, flops) → its number
        self.spans: list[tuple] = []  # (row, name, kind, flops, begin, seconds, facts), by several threads
        self.begun = self.op_begun = 0.0

    # ---- what happens ------------------------------------------------------------------------------------------

    def begin_step(self, trainer):
        """A step that is to be traced begins."""
        if trainer.done + 1 in self.steps:
            if self.file is None:
                self._open(trainer)
            if not self.full:
                trainer.observe(self, self.read)
            self.begun = time.perf_counter()

    def begin(self, op):
        """An op begins."""
        self.op_begun = time.perf_counter()

    def end(self, op, seconds: float):
        """It is done."""
        self._span(COMPUTE, f"{op.owner.name} {op.name}", op.kind, op.flops, self.op_begun, seconds)

    def read(self, thread: str, begin: float, seconds: float, facts: dict):
        """A thread has made a batch; without its name: the step waited for one."""
        row, kind = (thread, READ) if thread else (COMPUTE, WAIT_DATA)
        self._span(row, kind, kind, 0, begin, seconds, facts)

    def end_step(self, trainer, step):
        """A step is done: write it, if it was traced."""
        if step.number not in self.steps:
            return
        if not self.full:
            self._write_step(trainer, step.number)
        if step.number == min(self.steps[-1], trainer.total) or step.stop:
            self.close(trainer)

    def _span(self, row, name, kind, flops, begin, seconds, facts=None):
        if len(self.spans) < MOST_SPANS:
            self.spans.append((row, (name, kind, flops), begin, seconds, facts))
        else:
            self.left_out += 1

    # ---- the file ----------------------------------------------------------------------------------------------

    def _open(self, trainer):
        self.first, now = trainer.done + 1, self.comm.gather(time.time())[0]
        facts = {"knltrain_trace": VERSION, "session": now, "rank": self.comm.rank, "ranks": self.comm.size}
        facts |= {"host": socket.gethostname(), "process": os.getpid()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.first:08}-{self.comm.rank:05}.jsonl"
            self.file = open(path, "w", encoding="utf-8", buffering=1 << 20)
        except OSError as error:  # it is only a trace
            trainer.note(f"warning: {self.folder}: cannot be written ({error.strerror}); no trace")
            self.file = open(os.devnull, "w", encoding="utf-8")
        self._line(json.dumps(facts))
        self._line(json.dumps(clock_offset(self.comm)))

    def _ns(self, instant: float) -> int:
        return round(1e9 * (instant - self.begun))

    def _write_step(self, trainer, number: int):
        ended = time.perf_counter()
        trainer.observe(None)
        for job in trainer.parts.reducer.worker.finished:
            facts = {"queued": self._ns(job.queued), "wanted": self._ns(job.wanted)}
            self._span(EXCHANGE, job.name, EXCHANGE, 0, job.begun, job.done - job.begun, facts)
            self._span(COMPUTE, f"wait for {job.name}", WAIT_EXCHANGE, 0, job.wanted, job.waited)
        spans, self.spans = self.spans, []
        new, rows = [], {}
        for row, name, begin, seconds, facts in spans:
            if name not in self.names:
                self.names[name] = len(self.names)
                new.append(name)
            span = [self.names[name], self._ns(begin), round(1e9 * seconds)]
            rows.setdefault(row, []).append([*span, facts] if facts else span)
        record = {"step": number, "begin": self.begun, "ns": self._ns(ended), "left_out": self.left_out}
        text = json.dumps(record | {"names": new, "rows": rows}, separators=(",", ":"))
        self.full, self.left_out = self.written + len(text) > MOST_BYTES, 0
        if not self.full:
            self._line(text)
            self.last = number

    def _line(self, text: str):
        self.written += len(text)
        try:
            self.file.write(text + "\n")
            self.file.flush()
        except OSError:
            self.full = True  # a full disk: what is there is a trace of fewer steps

    def close(self, trainer):
        """The last step is traced: compare the clocks once more, and say where the trace lies."""
        self._line(json.dumps(clock_offset(self.comm)))
        self.file.close()
        told = " (more do not fit)" * self.full
        trainer.note(f"steps {self.first}..{self.last} are traced{told}: knltrain trace {self.folder.parent}")
        self.steps = range(0)
