"""Who was last, of ranks that do something together: it begins when the last is ready, and all others wait for it."""

from dataclasses import dataclass

import numpy as np

HEAD = ("rank", "host", "times last", "mean ms", "most ms")


@dataclass(frozen=True)
class Straggler:
    """A rank that was last. when: in which columns; behind: by how many seconds, each time, behind the median of the
    others."""

    rank: int
    when: np.ndarray
    behind: np.ndarray

    def row(self, host: str) -> list[str]:
        """What HEAD names."""
        mean, most = (f"{1e3 * seconds:.2f}" for seconds in (self.behind.mean(), self.behind.max()))
        return [str(self.rank), host, str(len(self.when)), mean, most]


def stragglers(ready: np.ndarray, error: float = 0.0) -> list[Straggler]:
    """The ranks that were last, most lost time first.

    ready: (ranks, times), seconds at which, or after which, a rank was. error: seconds by which two of them may be
    wrong; where the last is later than the next by no more, there was no last.
    """
    if len(ready) < 2:
        return []
    last, ordered = ready.argmax(0), np.sort(ready, axis=0)
    late, behind = ordered[-1] - ordered[-2] > error, ordered[-1] - np.median(ordered[:-1], axis=0)
    when = {int(rank): np.flatnonzero(late & (last == rank)) for rank in np.unique(last[late])}
    found = [Straggler(rank, times, behind[times]) for rank, times in when.items()]
    return sorted(found, key=lambda one: -one.behind.sum())
