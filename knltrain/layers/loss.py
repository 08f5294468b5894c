"""Softmax cross-entropy with label smoothing: the only place where the gradient is divided by the global batch."""

import numpy as np

from kernels import rank_of_label, softmax_cross_entropy

from ..arena import Arena, Buffer


class SoftmaxCrossEntropy:
    """loss[n] = -sum_k t[k] log softmax(x[n])[k], t = (1 - smoothing) * onehot + smoothing / classes.

    The gradient is scaled by 1/global_batch, so that its SUM over slots and ranks is the gradient of the mean loss:
    nothing is rescaled later (Goyal et al. 2017, remark 3).
    """

    def __init__(self, smoothing: float = 0.0):
        if not 0 <= smoothing < 1:
            raise ValueError(f"label smoothing {smoothing}, expected 0 <= smoothing < 1")
        self.smoothing = smoothing

    def plan(self, logits: Buffer, arena: Arena) -> Buffer:
        n, classes = logits.shape[0], logits.shape[-1]
        self.logits, self.dlogits = logits, arena.take(logits.shape)
        self.shape = (n, classes)
        self.losses = np.zeros(n, np.float32)
        self.ranks = np.zeros(n, np.int64)
        return self.dlogits

    def run(self, labels: np.ndarray, scale: float):
        """Fill `losses`, `ranks` (0: the label has the largest logit) and the gradient of the logits times `scale`."""
        logits = self.logits.array.reshape(self.shape)
        dlogits = self.dlogits.array.reshape(self.shape)
        softmax_cross_entropy(logits, labels, self.smoothing, scale, self.losses, dlogits)
        rank_of_label(logits, labels, self.ranks)
