"""How even the ranks are: shares of slots that follow their speeds, and a word about a rank that is always slow.

The speed of a rank is slots by the time in which it computes, that is neither waits for data nor for an exchange:
medians over some steps. With `run.shares = "measured"` the first of them decide, once, who runs how many slots.
"""

import math
import socket
import statistics
import time
from pathlib import Path

from ..comm import Shares
from .observe import StepObserver

SKIPPED, FIRST, STEPS = 2, 8, 50  # steps: left out at the start, that decide shares, that a slow rank is slow
GAIN, SLOW = 0.03, 0.05  # of a step: for which shares change, from which on a rank is named


class Balance(StepObserver):
    """Watches the ranks of `comm`; measured: it may have the trainer share the slots anew. Collective."""

    def __init__(self, comm, measured: bool):
        self.comm, self.measured, self.named = comm, measured, comm.size == 1
        self.skip, self.seconds, self.waited, self.begun = SKIPPED, [], 0.0, 0.0  # seconds: of a slot, by step

    def begin_step(self, trainer):
        """The clock starts."""
        self.begun = time.perf_counter()

    def end_step(self, trainer, step):
        """Note what this rank computed; after some steps compare."""
        if self.named and not self.measured:
            return
        spent, waited = time.perf_counter() - self.begun, step.waits.get("data_wait_s", 0.0)
        data, self.waited = waited - self.waited, waited
        if self.skip:
            self.skip -= 1
            return
        self.seconds.append((spent - data - step.waits["exchange_exposed_s"]) / trainer.parts.reducer.slots)
        if len(self.seconds) < (FIRST if self.measured else STEPS):
            return
        everything = self.comm.gather([statistics.median(self.seconds), socket.gethostname()])
        self.seconds.clear()
        seconds, hosts = ([facts[i] for facts in everything] for i in (0, 1))
        if self.measured:
            self.measured, self.skip = False, SKIPPED
            self._share(trainer, seconds)
        else:
            self._name(trainer, seconds, hosts)

    def _share(self, trainer, seconds):
        speeds = [1 / s for s in seconds]
        old = trainer.parts.shares
        new = Shares.of(old.slots, speeds, old.workers)
        before, after = (max(_whole(shares, seconds)) for shares in (old, new))
        changed = after < (1 - GAIN) * before
        trainer.record("shares", {"changed": changed, "slot_s": [float(f"{s:.4g}") for s in seconds], **new.facts()})
        if changed:
            trainer.share(speeds)
            trainer.note(f"shares as measured: {new}; a step computes {1e3 * after:.0f} ms, not {1e3 * before:.0f}")
        else:
            trainer.note(f"shares stay: others would save {max(0.0, 1 - after / before):.1%} of a step's computing")

    def _name(self, trainer, seconds, hosts):
        """Name the slowest rank, once, where it holds up every step."""
        whole = _whole(trainer.parts.shares, seconds)
        slowest, usual = max(range(len(whole)), key=whole.__getitem__), statistics.median(whole)
        slower = seconds[slowest] / statistics.median(seconds) - 1
        if whole[slowest] < (1 + SLOW) * usual or slower < SLOW:
            return
        self.named, lost = True, whole[slowest] - usual
        trainer.note(
            f"warning: rank {slowest} ({hosts[slowest]}) took {slower:.0%} longer for a slot than the median of all "
            f"in the last {STEPS} steps: every step waits {1e3 * lost:.0f} ms for it; leave that node out, or continue "
            'with run.shares = "measured"'
        )


def _whole(shares: Shares, seconds: list[float]) -> list[float]:
    """What each rank computes in a step, from its seconds for a slot."""
    return [len(own) * s for own, s in zip(shares.ranges, seconds, strict=True)]


def read_speeds(path: Path) -> dict[str, float]:
    """{host: speed} of a file with a line HOST SPEED for each; # begins a comment. Raises ValueError, OSError."""
    speeds = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            host, speed = words[0], float(words[1])
        except (IndexError, ValueError):
            host, speed = "", 0.0
        if len(words) != 2 or not 0.01 <= speed <= 100 or not math.isfinite(speed):
            expected = "HOST SPEED, 0.01 to 100, as node07 0.8"
            raise ValueError(f"{path}:{number}: found {line.strip()[:80]!r}; expected {expected}")
        speeds[host] = speed
    return speeds
