"""LAMB (You et al. 2019, arXiv:1904.00962) and RMSprop's warm-up into SGD (Akiba et al. 2017, arXiv:1711.04325).

Both keep a second moment of the gradient, the state "second" of a parameter, beside the momentum. Nothing else: what
hangs on the number of the step is worked out from it, so a checkpoint has all there is.
"""

import math
from typing import ClassVar

from knltrain.kernels import Adaptive, Blended, adaptive_moments, adaptive_step, blended_update

from .lars import Lars


class Lamb(Lars):
    """Adam's step of each tensor at a rate in proportion to the tensor's norm.

    With m, s the moments, t the step from 1, b1 momentum, b2 beta2, e epsilon, each tensor in this order:

    1. moments       m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g²
    2. direction     u = (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + e) + weight_decay w
    3. trust ratio   r = |w| / |u|, and 1 where a norm is 0
    4. weights       w = w - lr r u

    Tensors with adapt=False (biases, batch norm) have r = 1 and no decay; decay_bias_and_norm lets them decay. Optax's
    `lamb` is this, with a mask. Gradients must not be scaled: the moments hold them.
    """

    states: ClassVar = ("second",)

    def check_start(self, *rates: float):
        """Nothing: a tensor of zeros has the rate of Adam."""

    def adapts(self, p) -> bool:
        """Always: the norms are those of line 2, whose moments every tensor has."""
        return True

    def _measure(self, p, piece: slice):
        """Lines 1 and 2 for the elements `piece`; returns the sums of squares of w and u, by chunk."""
        return self._run(p, adaptive_moments, "wgvs", "vs", piece, numbers=self._numbers(p))

    def update(self, p, norms: tuple[float, float] | None, part: slice = slice(None)):
        """Lines 3 and 4 for the elements `part`."""
        ww, uu = norms
        ratio = math.sqrt(ww / uu) if p.adapt and ww > 0 and uu > 0 else 1.0
        if p.adapt:
            self.trust_ratios[p.name] = ratio
        self._run(p, adaptive_step, "wvs", "w", part, numbers=self._numbers(p), rate=self._lr * p.rate * ratio)

    def _numbers(self, p) -> Adaptive:
        betas, t = (self.momentum, self.options.beta2), self.count + 1
        return Adaptive(*betas, *(1 / (1 - beta**t) for beta in betas), self.options.epsilon, self._decay(p))


class RmspropWarmup(Lars):
    """From RMSprop to SGD with momentum over the first epochs, so that a large batch needs no small rate at first.

    1. decay         d = g + weight_decay w
    2. moment        s = b2 s + (1 - b2) d²
    3. buffer        v = m v + (a + (1 - a) trust_coefficient / (sqrt(s) + e)) d
    4. weights       w = w - lr v

    a, the share of SGD, at epoch x, T the epochs that `blend_epochs` names (10 for Akiba et al.):
    exp(2 (x - T) / 5) / 2 up to x = T, then 1/2 + (x - T) / 5, and 1 from x = T + 5/2 on. trust_coefficient is the
    rate of RMSprop relative to SGD's.
    """

    states: ClassVar = ("second",)

    def check_start(self, *rates: float):
        """Nothing: no tensor has a ratio."""

    def adapts(self, p) -> bool:
        """Never: no norm is used."""
        return False

    def update(self, p, norms, part: slice = slice(None)):
        """Lines 1 to 4 for the elements `part`."""
        o, share = self.options, sgd_share(self.epoch, self.options.blend_epochs)
        shares = share, (1 - share) * o.trust_coefficient
        numbers = Blended(self._momentum, o.beta2, *shares, o.epsilon, self._decay(p), self._lr * p.rate)
        self._run(p, blended_update, "wgvs", "wvs", part, numbers=numbers)


def sgd_share(epoch: float, blend_epochs: float) -> float:
    """The share of SGD in `RmspropWarmup` at an epoch.

    >>> [round(sgd_share(epoch, 10), 3) for epoch in (0, 5, 10, 11, 12.5, 20)]
    [0.009, 0.068, 0.5, 0.7, 1.0, 1.0]
    """
    past = epoch - blend_epochs
    return 0.5 * math.exp(0.4 * past) if past < 0 else min(1.0, 0.5 + 0.2 * past)


OPTIMIZERS = {"lamb": Lamb, "rmsprop_warmup": RmspropWarmup}  # every other variant of a recipe is one of Lars
