"""What is measured in a hundredth of the steps: seconds by op, seconds of every rank, trust ratios by tensor.

Each is a record of the log (docs/log.md). On all ranks, as the seconds of the ranks are gathered.
"""

import time

from ..layers import Observer
from ..run.observe import StepObserver

SAMPLES = 100  # of a run, about


class Gauge(StepObserver, Observer):
    """Measures every so many steps of a run of total_steps, and has the trainer record it; behind the journal."""

    def __init__(self, comm, total_steps: int):
        self.comm, self.every = comm, max(1, total_steps // SAMPLES)
        self.steps, self.spent = 0, dict.fromkeys(("compute_s", "data_wait_s", "exchange_exposed_s"), 0.0)
        self.waited = self.begun = 0.0  # for data, when the last step was done; when this step began
        self.seconds: dict[str, dict[str, float]] = {}  # of the ops of this step, by kind and kernel

    def begin_step(self, trainer):
        """The clock starts, in some steps also for each op."""
        self.seconds = {}
        if self.comm.rank == 0 and (trainer.done + 1) % self.every == 0 and trainer.model.observer is None:
            trainer.observe(self)
        self.begun = time.perf_counter()

    def end(self, op, seconds):
        """An op has run."""
        kernels = self.seconds.setdefault(op.kind, {})
        kernels[op.name] = kernels.get(op.name, 0.0) + seconds

    def end_step(self, trainer, step):
        """Add up where this rank's time went; in some steps, say it."""
        step_s = time.perf_counter() - self.begun
        waited = step.waits.get("data_wait_s", 0.0)
        data_s, exposed_s = waited - self.waited, step.waits["exchange_exposed_s"]
        self.waited, self.steps = waited, self.steps + 1
        for name, seconds in zip(self.spent, (step_s - data_s - exposed_s, data_s, exposed_s), strict=True):
            self.spent[name] += seconds
        if step.number % self.every == 0:
            self._record(trainer, {"step_s": step_s, "data_wait_s": data_s, "exchange_exposed_s": exposed_s})

    def _record(self, trainer, times: dict):
        if trainer.model.observer is self:
            trainer.observe(None)
            by_kernel = {kind: _short(kernels) for kind, kernels in self.seconds.items()}
            trainer.record("ops", {**_short(times), "seconds": by_kernel})
        optimizer = trainer.parts.optimizer
        if ratios := optimizer.trust_ratios:  # in the order of the network, whatever bucket came first
            names = [p.name for p in optimizer.parameters if p.name in ratios]
            trainer.record("trust", {"ratios": _short({name: ratios[name] for name in names})})
        if self.comm.size > 1:
            means = [float(f"{seconds / self.steps:.4g}") for seconds in self.spent.values()]
            by_rank = zip(*self.comm.gather(means), strict=True)
            trainer.record("ranks", {"steps": self.steps, **dict(zip(self.spent, map(list, by_rank), strict=True))})
        self.steps, self.spent = 0, dict.fromkeys(self.spent, 0.0)


def _short(numbers: dict) -> dict:
    """Four digits of each: what is seen."""
    return {name: float(f"{number:.4g}") for name, number in numbers.items()}
