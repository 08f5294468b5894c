"""The critical path of a step: the chain of work that nothing could have shortened but itself.

Walked from the step's end backwards. Where a thread computed, that op is on the path. Where it waited for an exchange,
the path goes through the exchange to the rank that entered it last, and there to the work that made it late, or to the
exchange before, if its communication thread was still busy. What is between ops is the interpreter's. Where the path
ends on a rank that began the step later than others, what it did before (a checkpoint, a loss of its core) is on it.
"""

import bisect
from dataclasses import dataclass

from .reading import Rank
from .tracer import EXCHANGE, WAIT_DATA, WAIT_EXCHANGE

BETWEEN, BEFORE = "between ops", "before the step"
_TINY = 1e-7  # seconds


@dataclass
class Link:
    """A piece of the path, on the rank of that place in the list; seconds of the job's clock."""

    rank: int
    name: str
    kind: str
    begin: float
    end: float


def critical_path(ranks: list[Rank], number: int) -> list[Link]:
    """The path of step `number`, which all of `ranks` have, from its end to its first begin on any rank: gapless."""
    steps = [rank.steps[number] for rank in ranks]
    begins = [[span.begin for span in step.compute] for step in steps]
    here = max(range(len(steps)), key=lambda i: steps[i].end)
    now, path = steps[here].end, []

    def add(name, kind, begin):
        nonlocal now
        begin = min(begin, now)
        if now - begin > 0:
            path.append(Link(here, name, kind, begin, now))
        now = begin

    while now > steps[here].begin + _TINY:
        place = bisect.bisect_left(begins[here], now) - 1
        span = steps[here].compute[place] if place >= 0 else None
        if span is None or span.begin < steps[here].begin:
            add(BETWEEN, BETWEEN, steps[here].begin)
        elif span.end < now - _TINY:
            add(BETWEEN, BETWEEN, span.end)
        elif span.kind != WAIT_EXCHANGE:
            add(span.name, span.kind, span.begin)
        else:
            before = now
            for late, entered, name in _chain(steps, here, span):
                add(name, EXCHANGE, entered)
                here = late
            if now >= before:  # clocks, or a file, that contradict themselves
                add(span.name, WAIT_EXCHANGE, span.begin)
    add(BEFORE, BEFORE, min(step.begin for step in steps))
    return path


def _chain(steps, here, wait):
    """The exchanges behind a wait, the last first: (who was last into it, when what kept it began, its name)."""
    place = next((i for i, span in enumerate(steps[here].exchanges) if wait.name == f"wait for {span.name}"), None)
    while place is not None and all(place < len(step.exchanges) for step in steps):
        late = max(range(len(steps)), key=lambda i: steps[i].exchanges[place].begin)
        span = steps[late].exchanges[place]
        yield late, span.begin, span.name
        previous = steps[late].exchanges[place - 1] if place else None
        if not previous or previous.end <= span.facts["queued"]:
            yield late, span.facts["queued"], span.name  # the thread woke up so late
            return
        place -= 1


def by_kind(path: list[Link]) -> dict[str, float]:
    """Seconds on the path by kind, most first."""
    sums = {}
    for link in path:
        kind = link.kind if link.kind != WAIT_DATA else "data"
        sums[kind] = sums.get(kind, 0.0) + link.end - link.begin
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
