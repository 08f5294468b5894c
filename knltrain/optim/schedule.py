"""The learning rate as a pure function of the step: a warm-up, then one of four policies. Steps count from 0.

Nothing here has state, so a resumed run needs only its step. Sources: Goyal et al. 2017 (linear warm-up, steps), You et
al. 2017 and Intel Caffe (poly from zero), NVIDIA Caffe (quadratic warm-up), MLPerf (poly after warm-up). The standard
library alone: recipes are read without loading a kernel.
"""

import bisect
import math
from dataclasses import dataclass

from ..claims.keys import key

LONGEST = 10**6  # epochs


@dataclass(frozen=True)
class Schedule:
    """[schedule] of a recipe: how the rate goes, in epochs."""

    policy: str = key("poly", "how the rate falls after warm-up", one_of=("poly", "step", "cosine", "constant"))
    base_lr: float = key(0.1, "learning rate at the end of warm-up, for the whole global batch", above=0, most=10**6)
    warmup_epochs: float = key(0.0, "epochs until the rate is base_lr", most=LONGEST)
    warmup: str = key("linear", "how the rate rises", one_of=("linear", "quadratic"))
    start_lr: float = key(-1.0, "learning rate of step 0; negative: base_lr / warm-up steps", least=-1, most=10**6)
    power: float = key(2.0, "exponent of poly", above=0, most=100)
    end_lr: float = key(0.0, "where poly and cosine end", most=10**6)
    origin: str = key("zero", "decay counts from step 0 (Caffe) or warm-up's end (MLPerf)", one_of=("zero", "warmup"))
    milestones: tuple[float, ...] = key((), "epochs at which step multiplies by factor", most=LONGEST)
    factor: float = key(0.1, "of policy step", above=0, most=1000)


@dataclass(frozen=True)
class LearningRate:
    """The rate of update number `step` of `total_steps`, of which an epoch has `steps_per_epoch`.

    step < warmup_steps    start_lr + (base_lr - start_lr) * t, t = step / warmup_steps, "quadratic": its square
    poly                   (base_lr - end_lr) * (1 - progress)^power + end_lr
    cosine                 (base_lr - end_lr) * (1 + cos(pi * progress)) / 2 + end_lr
    step                   base_lr * factor^(milestones passed)
    constant               base_lr

    A negative start_lr stands for base_lr / warmup_steps, so that step 0 is not lost; 0 is taken at its word.

    >>> alexnet = Schedule(base_lr=32, warmup_epochs=10, start_lr=1)
    >>> LearningRate(alexnet, total_steps=4000, steps_per_epoch=40)(400)
    25.92
    """

    schedule: Schedule
    total_steps: int
    steps_per_epoch: int

    def steps(self, epochs: float) -> int:
        """The nearest number of steps."""
        return round(epochs * self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Those before the rate is base_lr."""
        return self.steps(self.schedule.warmup_epochs)

    def __call__(self, step: int) -> float:
        plan, warmup = self.schedule, self.warmup_steps
        if step < warmup:
            start, t = plan.base_lr / warmup if plan.start_lr < 0 else plan.start_lr, step / warmup
            return start + (plan.base_lr - start) * (t if plan.warmup == "linear" else t * t)
        if plan.policy == "step":
            return plan.base_lr * plan.factor ** bisect.bisect_right(plan.milestones, step, key=self.steps)
        if plan.policy == "constant":
            return float(plan.base_lr)
        left = 1 - self.progress(step)
        share = left**plan.power if plan.policy == "poly" else (1 - math.cos(math.pi * left)) / 2
        return (plan.base_lr - plan.end_lr) * share + plan.end_lr

    def progress(self, step: int) -> float:
        """How much of the decay has passed, 0 to 1.

        "zero" (Caffe): step / total_steps, as if there had been no warm-up; the rate drops where warm-up ends.
        "warmup" (MLPerf): (step - warmup_steps) / (total_steps - warmup_steps + 1), continuous there.
        """
        total = self.total_steps
        if self.schedule.origin == "warmup":
            step, total = step - self.warmup_steps, total - self.warmup_steps + 1
        return min(step / total, 1.0)
