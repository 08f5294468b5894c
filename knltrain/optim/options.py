"""The keys of a recipe's [optim], the published formulas they choose from, and which of them go together.

The standard library alone: recipes are read without loading a kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..claims.keys import key


@dataclass(frozen=True)
class Variant:
    """What distinguishes one published LARS from another."""

    skip: bool  # tensors with adapt=False (bias, batch norm) step at the plain learning rate and do not decay
    lr_in_buffer: bool  # momentum holds lr * ratio * gradient; else it holds gradients, and the step is scaled
    clip: bool = False  # the rate is min(lr, ratio), not lr * ratio
    larc: bool = False  # the ratio has (1 - momentum), and no decay below


VARIANTS = {
    "caffe2017": Variant(skip=False, lr_in_buffer=True),
    "mlperf": Variant(skip=True, lr_in_buffer=True),
    "larc_clip": Variant(skip=False, lr_in_buffer=True, clip=True, larc=True),
    "larc_scale": Variant(skip=False, lr_in_buffer=True, larc=True),
    "nus": Variant(skip=True, lr_in_buffer=False),
}
OTHERS = dict.fromkeys(("lamb", "rmsprop_warmup"), VARIANTS["nus"])  # no LARS: see `adaptive`
RULES = VARIANTS | OTHERS
ZERO_NORMS = ("raw", "trust")


@dataclass(frozen=True)
class Optim:
    """[optim] of a recipe; `lars` and `adaptive` have the formulas."""

    variant: str = key("caffe2017", "whose formula of LARS, or another optimizer", one_of=tuple(RULES))
    trust_coefficient: float = key(0.0, "LARS's eta, as 0.001; 0: plain SGD", most=10**6)
    momentum: float = key(0.9, "share of the past kept per step", below=1)
    nesterov: bool = key(False, "look ahead by one step of momentum")
    weight_decay: float = key(0.0005, "per step, times the weight, added to the gradient", most=1000)
    epsilon: float = key(0.0, "added below the trust ratio, in units of the gradient's norm", most=1000)
    momentum_correction: bool = key(False, "in warm-up, rescale the past to the rising rate (Goyal et al.)")
    decay_bias_and_norm: bool = key(False, "weight decay also for biases and batch norm")
    zero_norm: str = key("raw", "rate of a tensor without a norm: lr, or lr x trust_coefficient", one_of=ZERO_NORMS)
    end_momentum: float = key(0.0, "momentum at the run's end, evenly from momentum; 0: constant", below=1)
    beta2: float = key(0.999, "of lamb and rmsprop_warmup: share of the past second moment kept", below=1)
    blend_epochs: float = key(10.0, "of rmsprop_warmup: epochs until half of it is SGD", most=10**6)
    average: float = key(0.0, "share of the weights' running average kept, which is evaluated; 0: none", below=1)
    local_steps: int = key(1, "steps of each of comm.workers alone, before the mean of all", above=0, most=10**4)
    label_smoothing: float = key(0.0, "probability moved from the label to all classes alike", below=1)

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """(name, found, expected) of what does not go together."""
        rule = RULES[self.variant]
        if self.momentum_correction and (rule.clip or not rule.lr_in_buffer):
            expected = "false with this variant, whose buffer does not scale with the rate"
            yield "optim.momentum_correction", True, expected
        if self.local_steps > 1 and (self.variant in OTHERS or self.average):
            found, expected = (self.variant, self.average), f"a kind of SGD, and 0, with local_steps {self.local_steps}"
            yield "optim.variant, optim.average", found, expected
        if self.variant == "rmsprop_warmup" and not self.trust_coefficient:
            yield "optim.trust_coefficient", 0.0, "more than 0 with rmsprop_warmup: its rate relative to SGD's"
        if self.variant in OTHERS and (self.epsilon <= 0 or self.nesterov):
            expected = f"more than 0, and false, with {self.variant}"
            yield "optim.epsilon, optim.nesterov", (self.epsilon, self.nesterov), expected
