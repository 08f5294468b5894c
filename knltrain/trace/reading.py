"""The trace of a job as rank files tell it, on the clock of rank 0.

What a file says is checked: a line that was cut short, or is no such thing, is passed over.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..claims.text import printable
from .tracer import COMPUTE, EXCHANGE, FOLDER, VERSION

MOST_NAMES, LATEST = 100_000, 1e12  # seconds of a clock


class Span(NamedTuple):
    """Something that took from begin to end, in seconds of the job's clock. facts: what else its kind has."""

    begin: float
    end: float
    name: str
    kind: str
    flops: int
    facts: dict


@dataclass
class RankStep:
    """A step on one rank: its spans by row, in the order of their begins."""

    begin: float
    end: float
    rows: dict[str, list[Span]]
    left_out: int

    @property
    def compute(self) -> list[Span]:
        """Ops and waits of the thread that computes."""
        return self.rows.get(COMPUTE, [])

    @property
    def exchanges(self) -> list[Span]:
        """In their order, which is the same on all ranks; facts: queued, wanted (seconds of the job's clock)."""
        return self.rows.get(EXCHANGE, [])


@dataclass
class Rank:
    """What one rank's file says. clocks: (at, offset, error) of the comparisons with rank 0's clock, in seconds."""

    rank: int
    ranks: int
    host: str
    process: int
    session: float
    clocks: list[tuple] = field(default_factory=list)
    steps: dict[int, RankStep] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Seconds by which its times may be off."""
        return max((error for _, _, error in self.clocks), default=0.0)

    def __str__(self):
        return f"rank {self.rank} ({self.host} process {self.process})"


def read_trace(run_dir: Path) -> list[Rank]:
    """The ranks of the newest trace in a run folder, by number; times count from its first step's begin.

    Raises FileNotFoundError where there is none, ValueError where no file has a whole step.
    """
    folder = Path(run_dir) / FOLDER
    if not folder.is_dir():
        known = "" if Path(run_dir).is_dir() else "there is no such folder; "
        raise FileNotFoundError(
            f"{folder}: {known}expected the trace of a run, as `--set run.trace='steps 100..104'` makes it"
        )
    found = [rank for path in sorted(folder.glob("*.jsonl")) if (rank := _read(path)) and rank.steps]
    if not found:
        raise ValueError(f"{folder}: found no whole step; expected the files of a run that came to its traced steps")
    newest = max(rank.session for rank in found)
    ranks = sorted((rank for rank in found if rank.session == newest), key=lambda rank: rank.rank)
    _from_zero(ranks)
    return ranks


def _read(path: Path) -> Rank | None:
    """A rank's file; None where it is none."""
    rank, names = None, []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                if "knltrain_trace" in record:
                    rank = _header(record)
                elif rank and "offset_s" in record:
                    clock = tuple(float(record[key]) for key in ("at", "offset_s", "error_s"))
                    rank.clocks += [clock] if all(map(math.isfinite, clock)) else []
                elif rank:
                    names += [(printable(str(name)), str(kind), int(flops)) for name, kind, flops in record["names"]]
                    rank.steps[int(record["step"])] = _step(record, names[:MOST_NAMES])
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
                continue
    if rank:
        _align(rank)
    return rank


def _header(record) -> Rank:
    if record["knltrain_trace"] != VERSION:
        raise ValueError("another version")
    numbers = (int(record[key]) for key in ("rank", "ranks"))
    return Rank(*numbers, printable(str(record["host"])), int(record["process"]), float(record["session"]))


def _step(record, names) -> RankStep:
    """Times are seconds of the rank's own clock."""
    start, rows = float(record["begin"]), {}
    if not abs(start) < LATEST:
        raise ValueError("no time of a clock")
    for row, spans in record["rows"].items():
        rows[printable(row)] = here = []
        for number, begin, ns, *facts in spans:
            begin, ns, facts = start + 1e-9 * int(begin), int(ns), dict(facts[0]) if facts else {}
            for key in ("queued", "wanted") if "queued" in facts else ():
                facts[key] = start + 1e-9 * int(facts[key])
            here.append(Span(begin, begin + 1e-9 * max(ns, 0), *names[number], facts))
        here.sort(key=lambda span: span.begin)
    return RankStep(start, start + 1e-9 * int(record["ns"]), rows, int(record["left_out"]))


def _align(rank):
    """From its own clock to rank 0's; between two comparisons the offset moves in a straight line."""
    (first, offset, _), (last, later, _) = (rank.clocks or [(0.0, 0.0, 0.0)])[0], (rank.clocks or [(0.0,) * 3])[-1]
    drift = (later - offset) / (last - first) if last > first else 0.0
    _move(rank, lambda t: t - offset - drift * (t - first))


def _from_zero(ranks):
    zero = min(step.begin for rank in ranks for step in rank.steps.values())
    for rank in ranks:
        _move(rank, lambda t: t - zero)


def _move(rank, to):
    for step in rank.steps.values():
        step.begin, step.end = to(step.begin), to(step.end)
        for row, spans in step.rows.items():
            step.rows[row] = [
                span._replace(begin=to(span.begin), end=to(span.end), facts=_moved(span.facts, to)) for span in spans
            ]


def _moved(facts, to):
    return facts | {key: to(facts[key]) for key in ("queued", "wanted") if key in facts} if facts else facts
