"""`knltrain bench records`: what it costs a step that the run is logged, that its ops are timed, and that it is traced.

One step of each kind after the other, turn by turn, so that whatever else the machine does hits all alike. A price is
the median over the turns of a step's excess over the bare step of its turn, as a share of the median bare step; in
seconds of the thread that computes and observes, so that it does not count when others have its core.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from ..comm import Serial
from ..tell.gauge import SAMPLES, Gauge
from ..tell.journal import Journal
from ..tell.screen import Screen
from ..trace import Tracer
from ..trainer import Trainer
from .ceiling import machine_line
from .workload import Workload

RUN = 4000  # steps of the run whose log is priced: the ops of every hundredth of it are timed


def run(model, slot_batch, threads=0, options=None, turns=100) -> tuple[dict, str]:
    """What it costs. Raises ValueError for an unknown model or option."""
    work = Workload(model, slot_batch, options, threads=threads)
    with tempfile.TemporaryDirectory(prefix="bench-records-") as temporary:
        record = _measure(work, Path(temporary), turns) | {"model": model, "slot_batch": slot_batch, "turns": turns}
    return record, _table(record)


def _measure(work, folder, turns) -> dict:
    comm, screen = Serial(), Screen("none")
    journal = Journal(folder, 0, work.parts.global_batch, RUN, RUN, {"evaluation": 0, "checkpoint": 0}, screen)
    tracer = Tracer(folder, comm, range(1, 10**9))
    kinds = {
        "bare": [],
        "logged": [journal, Gauge(comm, 100 * SAMPLES * RUN)],  # its turn does not come
        "timed": [journal, Gauge(comm, 0)],  # in each step
        "traced": [tracer, journal, Gauge(comm, 100 * SAMPLES * RUN)],
    }
    observers = []  # of the step that follows
    trainer = Trainer(work.parts, observers=observers)
    seconds = {kind: [] for kind in kinds}
    with contextlib.closing(journal):
        for _ in range(turns + 1):
            for kind, own in kinds.items():
                observers[:], begin = own, time.thread_time()
                trainer.step()
                seconds[kind].append(time.thread_time() - begin)
        tracer.close(trainer)
    bare = seconds.pop("bare")[1:]  # the first turn opens files, and compiles
    step = statistics.median(bare)
    found = {kind: [one - other for one, other in zip(taken[1:], bare, strict=True)] for kind, taken in seconds.items()}
    prices = {kind: _price(excess, step) for kind, excess in found.items()}
    every = RUN // SAMPLES
    log = prices["logged"][0] + (prices["timed"][0] - prices["logged"][0]) / every
    return {"step_seconds": step, "share": prices, "log_of_a_run": log, "trace_bytes": tracer.written}


def _price(excess: list[float], step: float) -> tuple[float, float]:
    """(median, its standard error) of seconds, as shares of a step."""
    middle = statistics.median(excess)
    spread = 1.4826 * statistics.median(abs(one - middle) for one in excess)
    return middle / step, 1.2533 * spread / len(excess) ** 0.5 / step


def _table(record) -> str:
    words = {"logged": "logged", "timed": "logged, its ops timed", "traced": "logged and traced"}
    lines = [
        machine_line(),
        f"{record['model']}, slot batch {record['slot_batch']}: a step takes {1e3 * record['step_seconds']:,.1f} ms",
    ]
    for kind, text in words.items():
        price, error = record["share"][kind]
        lines.append(f"{text:22}  {price:+7.2%}  give or take {error:.2%}")
    every = RUN // SAMPLES
    lines.append(f"the log of {RUN:,} steps, the ops of every {every}th of them timed: {record['log_of_a_run']:+.2%}")
    lines.append(f"(medians of {record['turns']} turns of a step of each kind; time of the main thread)")
    return "\n".join(lines)
