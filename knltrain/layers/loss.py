"""Softmax cross-entropy of smoothed, mixed labels: the only place where the gradient is divided by the global batch."""

import numpy as np

from knltrain.kernels import rank_of_label, softmax_cross_entropy

from .program import MEMORY, Op, Program, Tensor


class SoftmaxCrossEntropy:
    """loss[n] = -sum_k t[k] log softmax(x[n])[k], t = (1 - smoothing) * onehot + smoothing / classes.

    The gradient is scaled by 1/global_batch, so that its SUM over slots and ranks is the gradient of the mean loss:
    nothing is rescaled later (Goyal et al. 2017, remark 3).

    Of the last slot: labels (N,) int64, which the caller fills; others (N,) int64 and shares (N,) float32 of mixed
    pictures, whose onehot is share * onehot(label) + (1 - share) * onehot(other), else shares are 1; losses (N,)
    float32; ranks (N,) int64, 0 where the label has the largest logit.
    """

    name = "loss"

    def __init__(self, slot_batch: int, global_batch: int, smoothing: float = 0.0):
        if not 0 <= smoothing < 1:
            raise ValueError(f"label smoothing {smoothing}, expected 0 <= smoothing < 1")
        self.smoothing, self.scale = smoothing, 1.0 / global_batch
        self.labels, self.ranks = np.zeros(slot_batch, np.int64), np.zeros(slot_batch, np.int64)
        self.others, self.shares = np.zeros(slot_batch, np.int64), np.ones(slot_batch, np.float32)
        self.losses = np.zeros(slot_batch, np.float32)

    def forward(self, program: Program, logits: Tensor) -> Tensor:
        """Declare the losses, the ranks, and the gradient of the logits, which is returned."""
        rows = logits.view(logits.shape[0], logits.shape[-1])
        dlogits = Tensor("loss.dlogits", logits.shape, dtype=program.number.dtype)
        others = {"labels": self.labels, "loss": self.losses, "smoothing": self.smoothing, "scale": self.scale}
        others |= {"others": self.others, "shares": self.shares}
        writes = {"dlogits": dlogits.view(*rows.shape)}
        program.forward.append(Op(self, MEMORY, softmax_cross_entropy, {"logits": rows}, writes, others))
        others = {"labels": self.labels}
        program.forward.append(Op(self, MEMORY, rank_of_label, {"logits": rows}, {"ranks": self.ranks}, others))
        return dlogits
