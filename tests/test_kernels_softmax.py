"""The loss and the rank of the label against their twins, and the twin against central differences."""

import numpy as np
import pytest
from gradcheck import assert_close, assert_same_bits_with_threads, check_gradient, randn

from knltrain.kernels import rank_of_label, reference, softmax_cross_entropy


def labels_of(images, classes):
    return np.random.default_rng(0).integers(0, classes, images)


def run(logits, labels, smoothing, scale, *mixed):
    loss, dlogits = np.full(len(logits), np.nan, np.float32), np.full_like(logits, np.nan)
    softmax_cross_entropy(logits, labels, smoothing, scale, loss, dlogits, *mixed)
    return loss, dlogits


def mix_of(images, classes):
    """The labels of others, some of them the same, and the shares of the own ones, 0 and 1 among them."""
    shares = np.linspace(0, 1, images, dtype=np.float32)
    return np.random.default_rng(1).integers(0, classes, images), shares


@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (7, 103), (33, 1000)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax__equals_twin(shape, smoothing):
    logits, labels = 4 * randn(*shape), labels_of(*shape)
    loss, dlogits = run(logits, labels, smoothing, 1 / 64)
    expected = reference.softmax_cross_entropy(logits.astype(np.float64), labels, smoothing, 1 / 64)
    assert_close(loss, expected[0])
    assert_close(dlogits, expected[1], factor=4)  # the sum of exp is one float32 chain of K terms


@pytest.mark.parametrize("shape", [(7, 3), (33, 1000)])
def test_softmax__of_two_labels_equals_twin(shape):
    logits, labels, mixed = 4 * randn(*shape), labels_of(*shape), mix_of(*shape)
    loss, dlogits = run(logits, labels, 0.1, 1 / 64, *mixed)
    expected = reference.softmax_cross_entropy(logits.astype(np.float64), labels, 0.1, 1 / 64, *mixed)
    assert_close(loss, expected[0])
    assert_close(dlogits, expected[1], factor=4)
    assert np.array_equal(loss[-1], run(logits, labels, 0.1, 1 / 64)[0][-1])  # share 1: the label alone, to the bit
    alone = run(logits[:1], mixed[0][:1], 0.1, 1 / 64)
    assert loss[0] == alone[0] and np.array_equal(dlogits[:1], alone[1])  # share 0: the other


def test_softmax__bears_huge_logits_and_shows_nan():
    logits = np.array([[1e4, -1e4, 0], [-3e38, 0, 1], [np.nan, 0, 1]], np.float32)
    loss, dlogits = run(logits, np.array([0, 2, 1]), 0.0, 1.0)
    assert np.isfinite(dlogits[:2]).all() and loss[0] == 0 and np.isnan(loss[2])


def test_softmax__works_in_place():
    logits, labels = randn(5, 17), labels_of(5, 17)
    loss, dlogits = run(logits, labels, 0.1, 0.2)
    softmax_cross_entropy(logits, labels, 0.1, 0.2, loss, logits)
    assert np.array_equal(logits, dlogits)


def test_softmax__same_bits_for_any_thread_count():
    logits, labels = randn(16, 100), labels_of(16, 100)
    assert_same_bits_with_threads(lambda: run(logits, labels, 0.1, 1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [(), mix_of(4, 7)], ids=["one label", "two labels"])
def test_softmax_twin__has_the_right_gradient(smoothing, mixed):
    logits, labels = randn(4, 7).astype(np.float64), labels_of(4, 7)
    _, dlogits = reference.softmax_cross_entropy(logits, labels, smoothing, 0.25, *mixed)

    def mean_loss(z):
        return reference.softmax_cross_entropy(z, labels, smoothing, 1.0, *mixed)[0].mean()

    check_gradient(mean_loss, logits, dlogits, share=0.5)


def test_rank_of_label__equals_twin_with_ties():
    logits = np.round(2 * randn(50, 9))  # many equal values
    labels, ranks = labels_of(50, 9), np.empty(50, np.int64)
    rank_of_label(logits, labels, ranks)
    assert np.array_equal(ranks, reference.rank_of_label(logits, labels))
    assert len(np.unique(ranks)) > 3


def test_rank_of_label__never_rewards_nan():
    ranks = np.empty(2, np.int64)
    rank_of_label(np.full((2, 10), np.nan, np.float32), np.array([0, 9]), ranks)
    assert (ranks == 9).all()


def test_softmax__rejects_a_label_out_of_range():
    logits = randn(2, 3)
    with pytest.raises(ValueError, match="found label 3, expected 0 to 2"):
        run(logits, np.array([0, 3]), 0.0, 1.0)
    with pytest.raises(ValueError, match="found label -1"):
        run(logits, np.array([-1, 0]), 0.0, 1.0)
    with pytest.raises(ValueError, match="found label 3, expected 0 to 2"):
        run(logits, np.array([0, 1]), 0.0, 1.0, np.array([0, 3]), np.ones(2, np.float32))
    with pytest.raises(TypeError, match="int64"):
        run(logits, np.array([0, 1], np.int32), 0.0, 1.0)
    with pytest.raises(ValueError, match="found smoothing 1"):
        run(logits, np.array([0, 1]), 1.0, 1.0)
