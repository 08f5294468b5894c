"""One definition of a training step, for the command, a script or notebook, warm-up and the benchmarks.

A step: for each slot of this rank the next batch, forward, loss, backward, while the reducer sums every bucket of
gradients as soon as it is whole; then the update of each tensor as its sum arrives, and the running statistics.
Whoever wants to know, or to interfere, is an observer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from knltrain.kernels import sample_key

from .arena import Parameters
from .comm import Reducer, Update
from .data import Batches
from .layers import Observer
from .models import Model
from .optim.average import Average
from .optim.lars import Lars
from .optim.scaling import LossScale
from .recipe.phases import Leg, leg_of
from .run.observe import Step, StepObserver

DROPOUT = 2  # purpose of the random numbers that are not augmentation's


@dataclass(eq=False)
class Trainer:
    """Trains `model` on `batches`: `for step in trainer`, or step by step."""

    model: Model
    optimizer: Lars
    reducer: Reducer
    update: Update
    batches: Batches
    _: KW_ONLY
    rate: Callable[[int], float]  # the learning rate of a step
    slots: int = 1  # that this rank runs in a step
    total_slots: int = 1  # of all ranks together
    workers: int = 0  # see `Shares`
    total: int = 0  # steps, where iteration ends
    steps_per_epoch: int = 1
    seed: int = 0
    epochs: float = 0  # of the run, also where it is cut short; 0: what total has
    scaling: LossScale | None = None  # of the loss
    average: Average | None = None  # of the weights
    legs: Sequence[Leg] = ()  # stretches of the run that have parts of their own
    speeds: Sequence[float] = ()  # of the ranks, in any unit
    remake: Callable[[Leg, Sequence[float], Parameters], dict] | None = None  # those parts, around what is learned
    begun_with: Sequence[str] = ()  # lines about weights that were not drawn at random
    observers: Sequence[StepObserver] = ()
    wishes: Callable[[], tuple] = lambda: (False, False)  # asked of this rank in every slot, (stop, save); told to all
    note: Callable[[str], None] = lambda line: None  # where an observer may print a line,
    record: Callable[[str, dict], None] = lambda kind, facts: None  # or leave facts for the log

    def __post_init__(self):
        self.global_batch = self.total_slots * self.model.slot_batch
        self.done, self.stopped = 0, False  # done: steps done
        self.epochs = self.epochs or max(self.total / self.steps_per_epoch, 1e-9)
        self.offset = 0  # see `own`
        self.leg = self.legs[0] if self.legs else None
        self._last = time.perf_counter()

    def _enter(self, leg: Leg):
        """Go on with the parts of another leg."""
        self._rebuild(leg)
        self.note(leg.says)
        self.record("phase", self.facts())

    def facts(self) -> dict:
        """What of a run may change from phase to phase; flops of training one image."""
        batch = self.model.slot_batch
        facts = {"global_batch": self.global_batch, "slots": self.total_slots, "slot_batch": batch}
        flops = sum(op.flops for op in self.model.training.ops) // batch
        return facts | {"steps_per_epoch": self.steps_per_epoch, "flops": flops}

    def share(self, speeds: list[float]):
        """From the next step on the ranks run slots as their speeds are: no bit changes. Collective."""
        self.speeds = speeds
        self._rebuild(self.leg)

    def _rebuild(self, leg: Leg):
        """Make the parts anew, in which the state is that of now."""
        before, observer = self.model.parameters, self.model.observer
        previous_lr, told = self.optimizer.previous_lr, self.batches.told
        self.update.complete()
        self.close()
        self.reducer.settle()  # the gradient block is used again
        self.model = self.update = self.optimizer = None  # their memory first
        for name, part in self.remake(leg, self.speeds, before).items():
            setattr(self, name, part)
        self.leg, self.offset, self.global_batch = leg, leg.first - leg.start, self.total_slots * self.model.slot_batch
        self.optimizer.previous_lr = previous_lr
        self.observe(observer, told)
        self.batches.seek(leg.own(self.done))

    def __iter__(self) -> Iterator[Step]:
        while self.done < self.total and not self.stopped:
            yield self.step()

    def step(self) -> Step:
        """Do one step. Collective."""
        if self.leg and self.done >= self.leg.stop:
            self._enter(leg_of(self.legs, self.done))
        for observer in self.observers:
            observer.begin_step(self)
        model, reducer, lr, finite, backward = self.model, self.reducer, self.rate(self.done), True, 0.0
        scale, remaining = self._scale()
        reducer.sums.exact = bool(self.leg and self.leg.warming(self.done))
        if self.leg:
            self.update.begin(self.done == self.leg.start, self.leg.meets(self.done))
        for slot in range(self.slots):
            self.update.enter(slot)
            self._feed(next(self.batches))
            model.forward()
            begin = time.perf_counter()
            model.backward(reducer.ready)  # a bucket is summed as soon as its last gradient is there
            backward += time.perf_counter() - begin
            losses = model.loss.losses
            finite &= bool(np.isfinite(losses).all())
            model.parameters.scalars[:] = losses.sum(), np.count_nonzero(model.loss.ranks == 0), *self.wishes()
            reducer.end_slot()
        epoch = self.own / self.steps_per_epoch
        self.optimizer.at(self.done, epoch, epoch / self.epochs)
        fits = self.update.step(lr, remaining)  # without a scale a tensor is updated as soon as its sum is there
        model.parameters.update_statistics(self.total_slots)
        if self.average:
            self.average.step()
        self.done += 1
        if self.scaling:
            self.scaling.count(fits)
        step = self._record(lr, finite, backward, scale, not fits)
        for observer in self.observers:
            observer.end_step(self, step)
        return step

    def _scale(self) -> tuple[float, float]:
        """Let the gradients of this step carry the loss's scale; returns it and that of their sums, 0 without."""
        if not self.scaling:
            return 0.0, 0.0
        self.scaling.apply(self.model.training, self.model.loss)
        return self.scaling.scale, self.reducer.unscale(self.scaling.scale)

    def _feed(self, batch):
        keys = [sample_key(self.seed, batch.epoch, row, DROPOUT) for row in batch.rows]
        self.model.feed(batch.images, batch.labels, keys, batch.mixed)

    def _record(self, lr, finite, backward, scale, skipped) -> Step:
        loss, correct, stop, save = (float(total) for total in self.model.parameters.scalars)
        self.stopped = stop > 0
        now = time.perf_counter()
        rate, self._last = self.global_batch / (now - self._last), now
        waits = {"data_wait_s": self.batches.stall_seconds} | self.reducer.waits()
        loss, accuracy, epoch = loss / self.global_batch, correct / self.global_batch, self.own / self.steps_per_epoch
        asked = (stop > 0, save > 0)
        return Step(self.done, epoch, lr, loss, accuracy, rate, backward, finite, *asked, waits, scale, skipped)

    def observe(self, observer: Observer | None, reading: Callable | None = None):
        """Let `observer` be told of every op of the steps that follow, `reading` of every batch; None: nobody."""
        self.model.observer = self.optimizer.observer = observer
        self.batches.told = reading

    def seek(self, done: int):
        """Go on after `done` steps."""
        self.done = done
        if self.leg and leg_of(self.legs, done) is not self.leg:
            self._enter(leg_of(self.legs, done))
        self.batches.seek(self.own)

    @property
    def own(self) -> int:
        """Steps done, counted in batches of this leg's size: an epoch is steps_per_epoch of them.

        Where batches were half as large before, two steps of then are one here.
        """
        return self.done + self.offset

    def close(self):
        """Stop reading and exchanging; harmless when repeated."""
        self.reducer.close()
        self.batches.close()
