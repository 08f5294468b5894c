"""The trace of a job as one file for https://ui.perfetto.dev or chrome://tracing: a process a rank, a row a thread.

In the JSON of the Trace Event Format, as Perfetto reads it: it takes whole nanoseconds, drops a slice that begins
before 0 or reaches over the end of one that it began in, and keeps process and thread 0 for the system's own.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..claims.whole import write_whole
from .critical import Link
from .reading import Rank, Span
from .tracer import COMPUTE, EXCHANGE

CRITICAL = "critical path"


def write_chrome(path: Path, ranks: list[Rank], paths: dict[int, list[Link]]):
    """Write `ranks` to `path`, and in a process of its own, above them, the critical path of each step in `paths`.

    Where that path goes from one rank to another an arrow does too, from the last rank that entered an exchange.
    """

    def write(temporary):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            for i, event in enumerate(_events(ranks, paths)):
                file.write(",\n" * (i > 0) + json.dumps(event, separators=(",", ":")))
            file.write("\n]}\n")

    write_whole(path, write, durable=False)


def _events(ranks, paths) -> Iterator[dict]:
    spans = (span for rank in ranks for step in rank.steps.values() for row in step.rows.values() for span in row)
    steps = (step for rank in ranks for step in rank.steps.values())
    zero = min(one.begin for some in (spans, steps) for one in some)  # a read may begin before the first step
    if paths:
        # a rank may begin a step before another has ended the last one
        rows: dict[str, list] = {"of even steps": [], "of odd steps": []}
        for number, links in paths.items():
            for link in links:
                where = ranks[link.rank]
                span = Span(link.begin, link.end, f"{link.name} ({where})", link.kind, 0, {})
                [*rows.values()][number % 2].append((span, {"step": number, "rank": where.rank}))
        yield from _process(max(rank.rank for rank in ranks) + 1, CRITICAL, -1, rows, zero)
    for rank in ranks:
        rows = {COMPUTE: [], EXCHANGE: []}
        for number, step in rank.steps.items():
            rows[COMPUTE].append((Span(step.begin, step.end, f"step {number}", "step", 0, {}), {"step": number}))
            for row, inside in step.rows.items():
                rows.setdefault(row, []).extend((span, _told(span, number)) for span in inside)
        yield from _process(rank.rank, str(rank), rank.rank, dict(sorted(rows.items(), key=_place)), zero)
    yield from _arrows(ranks, paths, zero)


def _place(row):
    return row[0] not in (COMPUTE, EXCHANGE), row[0] == EXCHANGE, row[0]


def _process(number: int, name: str, place: int, rows: dict[str, list], zero: float) -> Iterator[dict]:
    """The names of a process and its rows, and the slices of these: (span, what is told of it)."""
    facts = {"ph": "M", "pid": number + 1, "tid": 1}
    yield {"name": "process_name", **facts, "args": {"name": name}}
    yield {"name": "process_sort_index", **facts, "args": {"sort_index": place}}
    for row, (title, spans) in enumerate(rows.items(), start=1):
        yield {"name": "thread_name", **facts, "tid": row, "args": {"name": title}}
        yield {"name": "thread_sort_index", **facts, "tid": row, "args": {"sort_index": row}}
        yield from _slices({"pid": number + 1, "tid": row}, spans, zero)


def _slices(place: dict, spans: Iterable[tuple[Span, dict]], zero: float) -> Iterator[dict]:
    """Of one row, cut where they would reach over the end of the one around them."""
    timed = ((_ns(span.begin - zero), _ns(span.end - zero), span, told) for span, told in spans)
    around: list[int] = []  # ends of the slices that are open
    for begin, end, span, told in sorted(timed, key=lambda one: (one[0], -one[1])):
        while around and around[-1] <= begin:
            around.pop()
        around.append(min([end, *around[-1:]]))
        time = {"ts": _us(begin), "dur": _us(around[-1] - begin)}
        yield {"name": span.name, "cat": span.kind, "ph": "X", **place, **time, "args": told}


def _arrows(ranks, paths, zero) -> Iterator[dict]:
    """A pair of events for each change of rank on a path; both ranks are in the exchange then."""
    moves = [(b, a) for path in paths.values() for a, b in zip(path, path[1:], strict=False) if a.rank != b.rank]
    for number, ends in enumerate(moves, start=1):
        at = _us(_ns(ends[1].begin - zero))
        for link, phase in zip(ends, ({"ph": "s"}, {"ph": "f", "bp": "e"}), strict=True):
            where = {"pid": ranks[link.rank].rank + 1, "tid": 2}
            yield {"name": CRITICAL, "cat": CRITICAL, **phase, "id": number, **where, "ts": at}


def _ns(seconds: float) -> int:
    return round(1e9 * seconds)


def _us(ns: int) -> float:
    """Microseconds that become these nanoseconds again where a reader cuts off what is behind them."""
    us = ns / 1000
    return us if int(us * 1000.0) == ns else math.nextafter(us, math.inf)


def _told(span: Span, step: int) -> dict:
    facts = {"step": step}
    if span.flops and span.end > span.begin:
        facts["GFLOP/s"] = round(span.flops / (span.end - span.begin) / 1e9, 1)
    if "queued" in span.facts:
        return facts | {"queued_ms": round(1e3 * (span.begin - span.facts["queued"]), 3)}
    return facts | {key: round(value, 6) for key, value in span.facts.items() if isinstance(value, (int, float))}
