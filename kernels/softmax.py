"""The loss: softmax cross-entropy of smoothed and mixed labels, its gradient in one pass, and the true class's rank.

A task owns an image.
"""

import numba
import numpy as np

from ._jit import inlined, kernel
from ._shapes import check_array, check_input, check_tensor
from .element import narrow


@inlined
def _image(logits, label, other, share, smoothing, scale, dlogits):
    """Loss of one image, logits (K,); writes its row of dlogits. A share of 1 leaves the bits of `label` alone."""
    classes = logits.size
    largest = logits[0]
    for k in range(classes):
        largest = logits[k] if logits[k] > largest else largest
    rest = np.float32(1) - share
    own = share * (logits[label] - largest) + rest * (logits[other] - largest)
    # shifted by the largest, so that no exp overflows
    powers = np.empty(classes, np.float32)
    total, shifted_total = np.float32(0), np.float32(0)
    for k in range(classes):
        shifted = logits[k] - largest
        shifted_total += shifted
        powers[k] = np.exp(shifted)
        total += powers[k]
    # -sum_k target_k * (shifted_k - log total), target = (1 - smoothing) * (share, rest of two onehots) + uniform
    uniform = smoothing / np.float32(classes)
    loss = np.log(total) - (np.float32(1) - smoothing) * own - uniform * shifted_total
    factor, offset = scale / total, uniform * scale
    for k in range(classes):
        powers[k] = powers[k] * factor - offset
    certain = (np.float32(1) - smoothing) * scale
    powers[label] -= share * certain
    powers[other] -= rest * certain
    for k in range(classes):
        dlogits[k] = narrow(dlogits.dtype, powers[k])
    return loss


@kernel(parallel=True)
def _softmax_cross_entropy(logits, labels, others, shares, smoothing, scale, loss, dlogits):
    for n in numba.prange(logits.shape[0]):
        loss[n] = _image(logits[n], labels[n], others[n], shares[n], smoothing, scale, dlogits[n])


def _check(logits, labels):
    check_input("softmax: logits", logits, 2)
    check_array("softmax: logits", logits, logits.shape)  # float32
    images, classes = logits.shape
    check_array("softmax: labels", labels, (images,), np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        found = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"softmax: found label {found}, expected 0 to {classes - 1}: compare the data with the model")


def softmax_cross_entropy(logits, labels, smoothing, scale, loss, dlogits, others=None, shares=None):
    """loss[n] = -sum_k target[n,k] * log softmax(logits[n])[k]; dlogits = (softmax - target) * scale.

    Parameters
    ----------
    logits : (N, K) float32
    labels : (N,) int64
    smoothing : 0 <= smoothing < 1; target = (1 - smoothing) * onehot(label) + smoothing / K
    others : (N,) int64, shares : (N,) float32, of mixed pictures: share * onehot(label) + (1 - share) * onehot(other)
        in place of onehot(label); None: the label alone
    scale : 1 / global_batch, the only place where the gradient is divided; it does not touch the loss
    loss : (N,) float32, overwritten
    dlogits : (N, K) of a Number, overwritten; may be logits

    Cost: 6 flops and an exp an element; reads logits, writes dlogits, loss.
    Raises: TypeError, ValueError. Twin: reference.softmax_cross_entropy.
    """
    _check(logits, labels)
    if not 0 <= smoothing < 1:
        raise ValueError(f"softmax: found smoothing {smoothing}, expected 0 <= smoothing < 1: correct the recipe")
    check_array("softmax: loss", loss, labels.shape)
    check_tensor("softmax: dlogits", dlogits, logits.shape)
    if others is None:
        others, shares = labels, np.ones(len(labels), np.float32)
    _check(logits, others)
    check_array("softmax: shares", shares, labels.shape)
    numbers = np.float32(smoothing), np.float32(scale)
    _softmax_cross_entropy(logits, labels, others, shares, *numbers, loss, dlogits)


@inlined
def _rank(logits, label):
    """Every comparison with a NaN is False: written so that a NaN before or at the label counts against it."""
    rank, own = 0, logits[label]
    for k in range(logits.size):
        if k != label and not (logits[k] < own) and (logits[k] != own or k < label):
            rank += 1
    return rank


@kernel(parallel=True)
def _rank_of_label(logits, labels, ranks):
    for n in numba.prange(logits.shape[0]):
        ranks[n] = _rank(logits[n], labels[n])


def rank_of_label(logits, labels, ranks):
    """ranks[n] = classes with a larger logit than the label's, or an equal one and a lower index.

    An image counts for top-1 where the rank is 0, for top-5 where it is < 5.
    logits : (N, K) float32; labels, ranks : (N,) int64, ranks overwritten
    Cost: 1 to 2 comparisons an element; reads logits, writes ranks.
    Raises: TypeError, ValueError. Twin: reference.rank_of_label.
    """
    _check(logits, labels)
    check_array("softmax: ranks", ranks, labels.shape, np.int64)
    _rank_of_label(logits, labels, ranks)
