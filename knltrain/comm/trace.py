"""Where the time of exchanges went: a file a rank for chrome://tracing or ui.perfetto.dev, one row a phase."""

import json
from pathlib import Path

from ..observe import StepObserver

_ROWS = {"queue": 0, "reduce": 1, "wait": 2}


class Trace(StepObserver):
    """Collects the jobs of the first `steps` steps and writes them to `path`; steps = 0: nothing.

    queue: from the last gradient of a bucket to the begin of its exchange. reduce: the exchange. wait: somebody had
    nothing to do until its end.
    """

    def __init__(self, path: Path, rank: int, steps: int):
        self.path, self.rank, self.steps = Path(path), rank, steps
        self.events = [
            {"name": "thread_name", "ph": "M", "pid": rank, "tid": row, "args": {"name": name}}
            for name, row in _ROWS.items()
        ]

    def end_step(self, trainer, step):
        """A step of the trainer is done."""
        self.add(step.number, trainer.reducer.finished)

    def add(self, step: int, jobs):
        """The exchanges of a step that is over."""
        if self.steps <= 0:
            return
        for job in jobs:
            self._event("queue", job, job.queued, job.begun, step)
            self._event("reduce", job, job.begun, job.done, step)
            self._event("wait", job, job.done - job.waited, job.done, step)
        self.steps -= 1
        if self.steps == 0:
            self.path.write_text(json.dumps({"traceEvents": self.events, "displayTimeUnit": "ms"}), encoding="utf-8")

    def _event(self, phase, job, begin, end, step):
        if end > begin:
            times = {"ts": 1e6 * begin, "dur": 1e6 * (end - begin)}  # microseconds
            place = {"ph": "X", "pid": self.rank, "tid": _ROWS[phase]}
            self.events.append({"name": f"{phase} {job.name}", "cat": phase, **place, **times, "args": {"step": step}})
