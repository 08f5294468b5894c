"""Faults on order, for drills: `knltrain train RECIPE --inject kill:rank=3@step=50`, as often as wanted.

    kill       the rank dies at once (SIGKILL)               slow     sleeps `ms` before every step from then on
    freeze     the rank stops without dying (SIGSTOP)        signal   receives SIGTERM
    raise      an exception on the rank                      stop     somebody makes the stop file
    nan        one weight of the rank becomes NaN            flip     one bit of one weight of the rank changes
    overflow   one element of a gradient of the rank is infinite, as where 16 bits do not hold it
    corrupt-shard   one byte of what the rank reads next from its shards is wrong, as from a bad disk
    truncate-checkpoint     the newest checkpoint loses its last third
    disk-full       for `seconds` no file can grow beyond 64 KiB on the rank

A fault strikes before step `step` is computed (default 1), on `rank` (default 0). Nothing of the user's is damaged but
the checkpoints of this run.
"""

import os
import resource
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..layers import Observer
from .checkpoint import FOLDER, checkpoints
from .lifecycle import STOP
from .observe import StepObserver

DEFAULTS = {"rank": 0, "step": 1, "ms": 200, "seconds": 5}
FULL_BYTES = 64 << 10


@dataclass(frozen=True)
class Fault:
    """One order: what, where and when."""

    kind: str
    rank: int
    step: int
    ms: int
    seconds: int


def parse(text: str) -> Fault:
    """`kind:key=value,key=value@step=N` → Fault. Raises ValueError, one line."""
    kind, _, rest = text.partition(":")
    kind, at, when = kind.partition("@")
    values = dict(DEFAULTS)
    for item in filter(None, (rest + at + when).replace("@", ",").split(",")):
        key, equals, value = item.partition("=")
        if key not in values or not value.isdecimal():
            raise ValueError(f"--inject {text}: found {item!r}, expected {', '.join(DEFAULTS)} = a whole number")
        values[key] = int(value)
    if kind not in KINDS:
        raise ValueError(f"--inject {text}: found {kind!r}, expected one of {', '.join(KINDS)}")
    return Fault(kind, **values)


class Faults(StepObserver):
    """The faults that are to strike this rank."""

    def __init__(self, orders, rank: int, run_dir: Path):
        faults = [parse(order) for order in orders]
        self.due = [fault for fault in faults if fault.rank == rank]
        self.run_dir = Path(run_dir)

    def begin_step(self, trainer):
        """What is due strikes before the step; they are counted from 1."""
        step, model = trainer.done + 1, trainer.model
        for fault in [fault for fault in self.due if fault.step <= step]:
            if fault.kind != "slow":
                self.due.remove(fault)
            KINDS[fault.kind](fault, model, self.run_dir)


# ---- the kinds: each takes the fault, the model and the run folder ---------------------------------------------


def _send(number):
    return lambda fault, model, run_dir: os.kill(os.getpid(), number)


def _raise(fault, model, run_dir):
    raise RuntimeError(f"injected on rank {fault.rank} before step {fault.step}")


def _stop(fault, model, run_dir):
    (run_dir / STOP).touch()


def _slow(fault, model, run_dir):
    time.sleep(fault.ms / 1000)


def _nan(fault, model, run_dir):
    model.parameters.value[0] = np.nan


def _flip(fault, model, run_dir):
    model.parameters.value[:1].view(np.uint32)[0] ^= 1 << 16  # a low bit might vanish in the rounding of the update


def _overflow(fault, model, run_dir):
    class Once(Observer):
        def end(self, op, seconds):
            if model.observer is self and op.completes() and op.kind != "memory":  # one that is made here
                op.completes()[0].dw.reshape(-1)[0] = np.inf
                model.observe(None)

    model.observe(Once())


def _corrupt_shard(fault, model, run_dir):
    honest = os.preadv

    def once(descriptor, buffers, *where):
        count = honest(descriptor, buffers, *where)
        if os.preadv is once:
            os.preadv = honest
            memoryview(buffers[0]).cast("B")[0] ^= 1
        return count

    os.preadv = once


def _truncate_checkpoint(fault, model, run_dir):
    for path in checkpoints(run_dir / FOLDER)[-1:]:
        os.truncate(path, path.stat().st_size * 2 // 3)


def _disk_full(fault, model, run_dir):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, limits[1]))
    timer = threading.Timer(fault.seconds, resource.setrlimit, (resource.RLIMIT_FSIZE, limits))
    timer.daemon = True
    timer.start()


KINDS = {
    "kill": _send(signal.SIGKILL),
    "freeze": _send(signal.SIGSTOP),
    "signal": _send(signal.SIGTERM),
    "raise": _raise,
    "stop": _stop,
    "slow": _slow,
    "nan": _nan,
    "flip": _flip,
    "overflow": _overflow,
    "corrupt-shard": _corrupt_shard,
    "truncate-checkpoint": _truncate_checkpoint,
    "disk-full": _disk_full,
}
