"""The learning rate as a pure function of the step: a warm-up, then one of four policies. Steps count from 0.

Nothing here has state, so a resumed run needs only its step. Sources: Goyal et al. 2017 (linear warm-up, steps), You et
al. 2017 and Intel Caffe (poly from zero), NVIDIA Caffe (quadratic warm-up), MLPerf (poly after warm-up).
"""

import bisect
import math

POLICIES = ("poly", "step", "cosine", "constant")
WARMUPS = ("linear", "quadratic")
ORIGINS = ("zero", "warmup")


def learning_rate(
    step: int,
    *,
    policy: str,
    base_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup: str = "linear",
    start_lr: float = -1.0,
    power: float = 2.0,
    end_lr: float = 0.0,
    origin: str = "zero",
    milestones: tuple = (),
    factor: float = 0.1,
) -> float:
    """The learning rate of update number `step` of `total_steps`.

    step < warmup_steps    warm_up(step), from start_lr up to base_lr
    poly                   (base_lr - end_lr) * (1 - progress)^power + end_lr
    cosine                 (base_lr - end_lr) * (1 + cos(pi * progress)) / 2 + end_lr
    step                   base_lr * factor^(milestones passed); milestones are steps, in rising order
    constant               base_lr

    >>> learning_rate(400, policy="poly", base_lr=32, total_steps=4000, warmup_steps=400, start_lr=1)
    25.92
    >>> learning_rate(400, policy="poly", base_lr=32, total_steps=4000, warmup_steps=400, origin="warmup")
    32.0

    Raises ValueError for an unknown policy, warm-up or origin.
    """
    for found, known in ((policy, POLICIES), (warmup, WARMUPS), (origin, ORIGINS)):
        if found not in known:
            raise ValueError(f"schedule names {found!r}; expected one of {', '.join(known)}")
    if step < warmup_steps:
        return warm_up(step, base_lr, start_lr, warmup_steps, warmup)
    if policy == "step":
        return base_lr * factor ** bisect.bisect_right(milestones, step)
    if policy == "constant":
        return float(base_lr)
    left = 1 - progress(step, total_steps, warmup_steps, origin)
    share = left**power if policy == "poly" else (1 - math.cos(math.pi * left)) / 2
    return (base_lr - end_lr) * share + end_lr


def warm_up(step: int, base_lr: float, start_lr: float, warmup_steps: int, shape: str) -> float:
    """start_lr + (base_lr - start_lr) * t, t = step / warmup_steps for "linear" and its square for "quadratic".

    A negative start_lr stands for base_lr / warmup_steps, so that step 0 is not lost; 0 is taken at its word.
    """
    if start_lr < 0:
        start_lr = base_lr / warmup_steps
    t = step / warmup_steps
    return start_lr + (base_lr - start_lr) * (t if shape == "linear" else t * t)


def progress(step: int, total_steps: int, warmup_steps: int, origin: str) -> float:
    """How much of the decay has passed, 0 to 1.

    "zero" (Caffe): step / total_steps, as if there had been no warm-up; the rate drops where warm-up ends.
    "warmup" (MLPerf): (step - warmup_steps) / (total_steps - warmup_steps + 1), continuous there.
    """
    if origin == "warmup":
        step, total_steps = step - warmup_steps, total_steps - warmup_steps + 1
    return min(step / total_steps, 1.0)
