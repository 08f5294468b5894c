"""`knltrain trace RUN`: one file for a viewer, and in words who was late and what a step's time hung on."""

import statistics
from collections import Counter
from pathlib import Path

from ..claims.text import printable
from ..tell.stragglers import HEAD, stragglers
from .chrome import write_chrome
from .critical import by_kind, critical_path
from .entries import clock_error, common_steps, entries
from .reading import Rank, read_trace

LISTED = 10  # rows of a table
MOST_SPANS = 2_000_000  # in the file for a viewer, which a browser must hold


def show(run_dir: Path, out: Path | None = None, step: int = 0) -> str:
    """Write the file, default RUN/trace.json, and return what is to be printed; step: whose path (0: the median's).

    Raises FileNotFoundError and ValueError where there is no trace, or not of that step.
    """
    ranks, out = read_trace(run_dir), out or Path(run_dir) / "trace.json"
    paths = {number: path for number in common_steps(ranks) if (path := critical_path(ranks, number))}
    if not paths or step and step not in paths:
        raise ValueError(
            f"{run_dir}: step {step or ''} is not in the trace of all ranks; found {list(paths) or 'none'}"
        )
    lengths = {number: path[0].end - path[-1].begin for number, path in paths.items()}
    step = step or sorted(lengths, key=lengths.get)[len(lengths) // 2]
    drawn = _fitting(ranks)
    write_chrome(out, drawn, paths if drawn == ranks else {})
    lines = [*_head(ranks, lengths, drawn, out), "", *_stragglers(ranks), "", *_path(ranks, step, paths[step])]
    return "\n".join(lines)


def _fitting(ranks: list[Rank]) -> list[Rank]:
    """As many ranks, from the first, as a viewer can show."""
    room, fitting = MOST_SPANS, []
    for rank in ranks:
        room -= sum(len(spans) for step in rank.steps.values() for spans in step.rows.values())
        if room < 0 and fitting:
            break
        fitting.append(rank)
    return fitting


def _head(ranks, lengths, drawn, out):
    """lengths: seconds of each step, from its first begin to its last end on any rank."""
    error, told = 1e6 * max(rank.error for rank in ranks), ranks[0].ranks
    steps, seconds = sorted(lengths), statistics.median(lengths.values())
    where = f"{len(ranks)} rank{'s' * (len(ranks) > 1)}, clocks within {error:.1f} us"
    yield f"steps {steps[0]}..{steps[-1]}, {seconds:.4g} s each (median), on {where}"
    if len(ranks) < told:
        yield f"note: {told - len(ranks)} of {told} ranks have left no whole step"
    left_out = sum(step.left_out for rank in ranks for step in rank.steps.values())
    if left_out:
        yield f"note: {left_out} events were too many and are left out"
    which = "" if len(drawn) == len(ranks) else f" (ranks {drawn[0].rank} to {drawn[-1].rank}: more do not fit)"
    yield printable(f"{out}{which}: open it at https://ui.perfetto.dev or chrome://tracing")


def _stragglers(ranks):
    entered, names = entries(ranks)
    if len(ranks) < 2 or not names:
        yield "no exchanges between ranks"
        return
    late = stragglers(entered, clock_error(ranks))
    yield f"last into an exchange, of {len(names)}; behind the median of the others"
    rows = [one.row(ranks[one.rank].host) + [_mostly(names[place] for place in one.when)] for one in late]
    for one, row in zip(late, rows, strict=True):
        row[0] = str(ranks[one.rank].rank)  # of a job of which not all ranks have left a trace
    for rank, host, *numbers, where in [[*HEAD, "mostly"], *rows[:LISTED]] if rows else []:
        yield f"{rank:>6}  {host:16}" + "".join(f"  {number:>10}" for number in numbers) + f"  {where}"
    if len(rows) > LISTED:
        yield f"and {len(rows) - LISTED} more ranks"
    together = len(names) - sum(len(one.when) for one in late)
    if together:
        yield f"  none  {together} times: within the clocks' error"


def _mostly(names) -> str:
    return Counter(names).most_common(1)[0][0]


def _path(ranks, step, path):
    total, kinds = path[0].end - path[-1].begin, by_kind(path)
    moves = sum(a.rank != b.rank for a, b in zip(path, path[1:], strict=False))
    yield f"critical path of step {step}: {1e3 * total:.2f} ms, {moves} changes of rank"
    for kind, seconds in kinds.items():
        yield f"  {kind.replace('_', ' '):16}  {1e3 * seconds:9.2f} ms  {seconds / total:5.1%}"
    sums = {}
    for link in path:
        key = (ranks[link.rank].rank, link.name)
        sums[key] = sums.get(key, 0.0) + link.end - link.begin
    yield "longest on it"
    for (rank, name), seconds in sorted(sums.items(), key=lambda item: -item[1])[:LISTED]:
        yield f"  {1e3 * seconds:9.2f} ms  rank {rank}  {name}"
