"""What an evaluation found: how many pictures were right, which class was taken for which, the surest and the worst.

`Tally` counts on each rank and adds up over all of them; a picture's place in the order of rows decides where two are
alike, so the result does not depend on the number of ranks.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from knltrain.kernels import rank_of_label

KEPT = 12  # pictures at either end
ALIKE = 2  # of the best, of one class, where there are enough classes: all others would be as the first
MOST_CLASSES = 1024  # of a confusion matrix: 4 MB a rank, summed once an evaluation


class Outcome(NamedTuple):
    """A picture: its row, its class and the one that was most probable, and how probable these were, 0 to 1."""

    row: int
    label: int
    predicted: int
    of_label: float
    of_predicted: float


@dataclass(frozen=True)
class Accuracy:
    """Counts over `images` images: the label had the largest logit, or one of the five largest.

    by_class: the three counts of each class. confusion: (classes, classes), how often the class of a row was taken for
    that of a column; None with more than 1,024 classes. best, worst: the pictures whose label was most (two of
    a class), least probable.
    """

    images: int
    correct: int
    correct_of_five: int
    by_class: tuple[tuple[int, int, int], ...]
    confusion: np.ndarray | None = field(default=None, compare=False, repr=False)
    best: tuple[Outcome, ...] = field(default=(), compare=False, repr=False)
    worst: tuple[Outcome, ...] = field(default=(), compare=False, repr=False)

    @property
    def top1(self) -> float:
        return self.correct / self.images

    @property
    def top5(self) -> float:
        return self.correct_of_five / self.images

    def facts(self, data, augment) -> dict:
        """What a report shows of it, JSON-able; data: the shards that were evaluated, augment: how they were seen."""
        counted = [] if self.confusion is None else np.argwhere(self.confusion)
        facts = {"data": str(data.folder), "digest": data.digest, "class_names": data.class_names}
        facts |= {"crop": augment.crop, "short_side": augment.short_side}
        facts["confusion"] = [[int(row), int(column), int(self.confusion[row, column])] for row, column in counted]
        for end in ("best", "worst"):
            facts[end] = [{**one._asdict(), "name": data.name(one.row)} for one in getattr(self, end)]
        return facts


class Tally:
    """Counts the pictures of one rank: `add` batch after batch, then `total` with all ranks."""

    def __init__(self, classes: int):
        self.counts = np.zeros((classes, 3), np.int64)
        self.confusion = np.zeros((classes, classes), np.int32) if classes <= MOST_CLASSES else None
        self.best: list[Outcome] = []
        self.worst: list[Outcome] = []

    def add(self, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray):
        """Pictures by their rows (N,) int64, labels (N,) int64 and logits (N, classes) float32."""
        ranks, one = np.zeros(len(labels), np.int64), np.arange(len(labels))
        rank_of_label(logits, labels, ranks)
        for column, counted in enumerate((ranks >= 0, ranks < 1, ranks < 5)):
            np.add.at(self.counts[:, column], labels[counted], 1)
        predicted = logits.argmax(1)  # of equal logits the lower class, as in `ranks`
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, predicted), 1)
        with np.errstate(all="ignore"):  # logits that are not finite
            shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
            shares = np.nan_to_num(shares / shares.sum(1, keepdims=True))
        columns = rows, labels, predicted, shares[one, labels], shares[one, predicted]
        found = [*map(Outcome, *(column.tolist() for column in columns))]
        self._keep(found, found)

    def _keep(self, best, worst):
        alike, best = max(ALIKE, -(-KEPT // len(self.counts))), [*self.best, *best]
        by_class: dict[int, list[Outcome]] = {}
        for one in sorted(best, key=lambda one: (-one.of_label, one.row)):
            by_class.setdefault(one.label, []).append(one)
        some = [one for of_class in by_class.values() for one in of_class[:alike]]
        self.best = sorted(some, key=lambda one: (-one.of_label, one.row))[:KEPT]
        self.worst = sorted([*self.worst, *worst], key=lambda one: (one.of_label, one.row))[:KEPT]

    def total(self, comm) -> Accuracy:
        """The result of all ranks, on each. Collective."""
        comm.sum(self.counts)
        if self.confusion is not None:
            comm.sum(self.confusion)
        ends, self.best, self.worst = comm.gather([self.best, self.worst]), [], []
        for best, worst in ends:
            self._keep([Outcome(*one) for one in best], [Outcome(*one) for one in worst])
        by_class = tuple(map(tuple, self.counts.tolist()))
        return Accuracy(*self.counts.sum(0).tolist(), by_class, self.confusion, tuple(self.best), tuple(self.worst))
