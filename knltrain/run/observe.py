"""What a training tells about its steps, and to whom: progress, a trace, the clock of the start, faults on order."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """A step that is done.

    number: steps done, from 1. loss: mean over the global batch. accuracy: share of it that was right, 0 to 1.
    images_per_s: global batch by the time since the step before. backward_s: seconds of the backward passes. finite:
    whether this rank's losses were. stop, save: asked of any rank. waits: seconds by what was waited for.
    loss_scale: of this step, 0 where there is none; skipped: it changed no weight, as a gradient was out of range.
    """

    number: int
    epoch: float
    lr: float
    loss: float
    accuracy: float
    images_per_s: float
    backward_s: float
    finite: bool
    stop: bool
    save: bool
    waits: dict = field(default_factory=dict)
    loss_scale: float = 0.0
    skipped: bool = False


class StepObserver:
    """Is told how a training goes on; what is not overridden does nothing."""

    def phase(self, name: str):
        """The part `name` of the start is over."""

    def begin_step(self, trainer):
        """Step number trainer.done + 1 begins."""

    def end_step(self, trainer, step: Step):
        """It is done."""

    def record(self, kind: str, facts: dict):
        """Facts of a kind for the log."""
