"""When which rank entered which exchange: it begins when the last rank enters it."""

import numpy as np

from .reading import Rank


def entries(ranks: list[Rank]) -> tuple[np.ndarray, list[str]]:
    """(ranks, exchanges) seconds of the job's clock, and what the exchanges are called.

    A rank enters an exchange when it asked for it and is through with the one before. The exchanges that all of `ranks`
    tell of count.
    """
    begins, names = [], []
    for number in common_steps(ranks):
        for spans in zip(*(rank.steps[number].exchanges for rank in ranks), strict=False):
            if len({span.name for span in spans}) > 1:
                break  # what was left out has put them out of step
            begins.append([span.begin for span in spans])
            names.append(spans[0].name)
    return np.array(begins).reshape(-1, len(ranks)).T, names


def clock_error(ranks: list[Rank]) -> float:
    """Seconds by which the times of two ranks may be apart wrongly."""
    return 2 * max(rank.error for rank in ranks)


def common_steps(ranks: list[Rank]) -> list[int]:
    """The steps that all ranks tell of."""
    return sorted(set.intersection(*(set(rank.steps) for rank in ranks)))
