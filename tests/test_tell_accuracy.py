"""What an evaluation keeps: the confusion of classes and the pictures at both ends, on any number of ranks."""

import numpy as np
import pytest

from knltrain.comm.communicator import Serial
from knltrain.tell import accuracy
from knltrain.tell.accuracy import KEPT, Tally

CLASSES, IMAGES = 5, 60


class Parts(Serial):
    """Plays all ranks: what the first one sums and gathers is what all tallies hold."""

    def __init__(self, tallies):
        self.tallies = tallies

    def sum(self, array):
        name = "counts" if array is self.tallies[0].counts else "confusion"
        array[:] = sum(getattr(tally, name) for tally in self.tallies)

    def gather(self, value):
        return [[tally.best, tally.worst] for tally in self.tallies]


@pytest.fixture
def outcome():
    rng = np.random.default_rng(4)
    return rng.integers(0, CLASSES, IMAGES), rng.normal(0, 3, (IMAGES, CLASSES)).astype(np.float32)


def counted(labels, logits, ranks):
    tallies = []
    for rows in np.array_split(np.arange(IMAGES), ranks):
        tally = Tally(CLASSES)
        for batch in np.array_split(rows, 2):
            tally.add(batch, labels[batch], logits[batch])
        tallies.append(tally)
    return tallies[0].total(Parts(tallies))


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_tally__counts_which_class_is_taken_for_which_and_keeps_the_ends(outcome, ranks):
    labels, logits = outcome
    found = counted(labels, logits, ranks)
    predicted = logits.argmax(1)
    expected = np.zeros((CLASSES, CLASSES), int)
    for label, other in zip(labels, predicted, strict=True):
        expected[label, other] += 1
    assert (found.confusion == expected).all() and found.correct == np.trace(expected)
    shares = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    of_label = shares[np.arange(IMAGES), labels]
    order = np.argsort(of_label, kind="stable").tolist()
    assert [one.row for one in found.worst] == order[:KEPT]
    alike = -(-KEPT // CLASSES)
    of_classes = [[row for row in order[::-1] if labels[row] == label][:alike] for label in range(CLASSES)]
    best = sorted((row for rows in of_classes for row in rows), key=order[::-1].index)[:KEPT]
    assert [one.row for one in found.best] == best
    worst = found.worst[0]
    assert (worst.label, worst.predicted) == (labels[worst.row], predicted[worst.row])
    assert worst.of_label == pytest.approx(of_label.min()) and worst.of_predicted > worst.of_label


def test_tally__of_logits_that_are_no_numbers_is_no_error_and_none_is_right(outcome):
    labels, logits = outcome
    logits[:] = np.nan
    found = counted(labels, logits, 1)
    assert found.correct == 0 and found.confusion.sum() == IMAGES
    assert {one.of_label for one in found.worst} == {0.0}


def test_tally__of_very_many_classes_has_no_confusion(outcome, monkeypatch):
    monkeypatch.setattr(accuracy, "MOST_CLASSES", CLASSES - 1)
    found = counted(*outcome, 1)
    assert found.confusion is None and len(found.best) == KEPT
