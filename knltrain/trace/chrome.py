"""The trace of a job as one file for https://ui.perfetto.dev or chrome://tracing: a process a rank, a row a thread."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..whole import write_whole
from .critical import Link
from .reading import Rank, Span
from .tracer import COMPUTE, EXCHANGE


def write_chrome(path: Path, ranks: list[Rank], paths: dict[int, list[Link]]):
    """Write `ranks` to `path`, and in a process of its own, above them, the critical path of each step in `paths`."""

    def write(temporary):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            for i, event in enumerate(_events(ranks, paths)):
                file.write(",\n" * (i > 0) + json.dumps(event, separators=(",", ":")))
            file.write("\n]}\n")

    write_whole(path, write, durable=False)


def _events(ranks, paths) -> Iterator[dict]:
    top = max(rank.rank for rank in ranks) + 1
    if paths:
        yield from _process(top, "critical path", -1, ["of even steps", "of odd steps"])
    for number, links in paths.items():
        for link in reversed(links):
            where = ranks[link.rank]
            span = Span(link.begin, link.end, f"{link.name} ({where})", link.kind, 0, {})
            # a rank may begin a step before another has ended the last one
            yield _slice(top, number % 2, span, {"step": number, "rank": where.rank})
    for rank in ranks:
        rows = sorted({row for step in rank.steps.values() for row in step.rows} - {COMPUTE, EXCHANGE})
        rows = [COMPUTE, EXCHANGE, *rows]
        yield from _process(rank.rank, str(rank), rank.rank, rows)
        for number, step in rank.steps.items():
            yield _slice(rank.rank, 0, Span(step.begin, step.end, f"step {number}", "step", 0, {}), {"step": number})
            for row, spans in step.rows.items():
                for span in spans:
                    yield _slice(rank.rank, rows.index(row), span, _told(span, number))


def _process(number: int, name: str, place: int, rows: Iterable[str]) -> Iterator[dict]:
    """The names of a process and its rows."""
    facts = {"ph": "M", "pid": number, "tid": 0}
    yield {"name": "process_name", **facts, "args": {"name": name}}
    yield {"name": "process_sort_index", **facts, "args": {"sort_index": place}}
    for row, title in enumerate(rows):
        yield {"name": "thread_name", **facts, "tid": row, "args": {"name": title}}
        yield {"name": "thread_sort_index", **facts, "tid": row, "args": {"sort_index": row}}


def _slice(process: int, row: int, span: Span, facts: dict) -> dict:
    """Microseconds; both ends are rounded, so that what is nested stays so."""
    begin, end = (round(1e6 * t, 3) for t in (span.begin, span.end))
    place = {"ph": "X", "pid": process, "tid": row, "ts": begin, "dur": round(end - begin, 3)}
    return {"name": span.name, "cat": span.kind, **place, "args": facts}


def _told(span: Span, step: int) -> dict:
    facts = {"step": step}
    if span.flops and span.end > span.begin:
        facts["GFLOP/s"] = round(span.flops / (span.end - span.begin) / 1e9, 1)
    if "queued" in span.facts:
        return facts | {"queued_ms": round(1e3 * (span.begin - span.facts["queued"]), 3)}
    return facts | {key: round(value, 6) for key, value in span.facts.items() if isinstance(value, (int, float))}
