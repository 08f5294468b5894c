"""Who was last into which exchange: an exchange begins when the last rank enters it, and all others wait."""

import statistics
from collections import Counter
from dataclasses import dataclass, field

from .reading import Rank


@dataclass
class Straggler:
    """A rank that was last. behind: by how many seconds, each time, behind the median of the others."""

    rank: Rank
    behind: list[float] = field(default_factory=list)
    where: Counter = field(default_factory=Counter)  # exchange → how often


def stragglers(ranks: list[Rank]) -> tuple[list[Straggler], int, int]:
    """The ranks that were last, most lost time first; the number of exchanges, and of those that nobody was late for.

    A rank enters an exchange when it asked for it and is through with the one before. The exchanges that all of `ranks`
    tell of count; one in which the last was later than the next by less than the clocks' error had no last.
    """
    found, count, together = {}, 0, 0
    error = 2 * max(rank.error for rank in ranks)
    for number in common_steps(ranks):
        steps = [rank.steps[number] for rank in ranks]
        for spans in zip(*(step.exchanges for step in steps), strict=False):
            if len({span.name for span in spans}) > 1:
                break  # what was left out has put them out of step
            count += 1
            entered = sorted((span.begin, i) for i, span in enumerate(spans))
            (last, who), others = entered[-1], [begin for begin, _ in entered[:-1]]
            if not others or last - others[-1] <= error:
                together += 1
                continue
            late = found.setdefault(who, Straggler(ranks[who]))
            late.behind.append(last - statistics.median(others))
            late.where[spans[who].name] += 1
    return sorted(found.values(), key=lambda late: -sum(late.behind)), count, together


def common_steps(ranks: list[Rank]) -> list[int]:
    """The steps that all ranks tell of."""
    return sorted(set.intersection(*(set(rank.steps) for rank in ranks)))
