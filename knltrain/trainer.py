"""One definition of a training step, for the command, a script or notebook, warm-up and the benchmarks.

A step: for each slot of this rank the next batch, forward, loss, backward, while the reducer sums every bucket of
gradients as soon as it is whole; then the update of each tensor as its sum arrives, and the running statistics.
Whoever wants to know, or to interfere, is an observer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from knltrain.kernels import sample_key

from .arena import Parameters
from .comm import Reducer, Shares, Update
from .data import Batches
from .layers import Observer
from .models import Model
from .optim.average import Average
from .optim.lars import Lars
from .optim.scaling import LossScale
from .recipe.phases import Leg, leg_of
from .run.observe import Step, StepObserver

DROPOUT = 2  # purpose of the random numbers that are not augmentation's


@dataclass(frozen=True, eq=False)
class Parts:
    """What a trainer works with in a leg of its run; for the next one, and for other shares, there are others."""

    leg: Leg
    model: Model
    optimizer: Lars
    reducer: Reducer
    update: Update
    batches: Batches
    average: Average | None = None  # of the weights

    @property
    def shares(self) -> Shares:
        return self.reducer.block.links.shares

    @property
    def global_batch(self) -> int:
        return self.shares.slots * self.model.slot_batch

    def facts(self) -> dict:
        """What of a run may change from phase to phase; flops of training one image."""
        batch, steps = self.model.slot_batch, self.leg.derived.steps_per_epoch
        facts = {"global_batch": self.global_batch, "slots": self.shares.slots, "slot_batch": batch}
        return facts | {"steps_per_epoch": steps, "flops": sum(op.flops for op in self.model.training.ops) // batch}


@dataclass(eq=False)
class Trainer:
    """Trains the model of `parts`: `for step in trainer.steps()`, or `step` by `step`."""

    parts: Parts
    _: KW_ONLY
    scaling: LossScale | None = None  # of the loss
    observers: Sequence[StepObserver] = ()
    legs: Sequence[Leg] = ()  # of the run; () are one, that of `parts`
    speeds: Sequence[float] = ()  # of the ranks, in any unit
    remake: Callable[[Leg, Sequence[float], Parameters], Parts] | None = None  # for another leg, around what is learned
    begun_with: Sequence[str] = ()  # lines about weights that were not drawn at random
    done: int = field(default=0, init=False)  # steps

    def __post_init__(self):
        self.legs = self.legs or [self.parts.leg]
        self.total = self.legs[-1].stop  # steps, where iteration ends
        self._last = time.perf_counter()

    @property
    def model(self) -> Model:
        return self.parts.model

    def steps(self, wishes: Callable[[], tuple] | None = None) -> Iterator[Step]:
        """Step by step, until the last one is done or a stop is asked for. wishes: see `step`."""
        while self.done < self.total:
            step = self.step(wishes)
            yield step
            if step.stop:
                return

    def step(self, wishes: Callable[[], tuple] | None = None) -> Step:
        """Do one step. wishes: asked of this rank in every slot, (stop, save); told to all. Collective."""
        self._enter_leg()
        for observer in self.observers:
            observer.begin_step(self)
        step = self._step(wishes)
        for observer in self.observers:
            observer.end_step(self, step)
        return step

    def _step(self, wishes) -> Step:
        parts, leg = self.parts, self.parts.leg
        scale = self.scaling.apply(parts.model.training, parts.model.loss) if self.scaling else 0.0
        remaining = parts.reducer.begin_step(leg.warming(self.done), scale)
        parts.update.begin(self.done == leg.start, leg.meets(self.done))
        finite, backward_s = self._run_slots(wishes)
        lr, epoch = leg.rate(self.done), leg.epoch(self.done)
        parts.optimizer.at(self.done, epoch, epoch / leg.recipe.run.epochs)
        fits = parts.update.step(lr, remaining)  # without a scale a tensor is updated as soon as its sum is there
        parts.model.parameters.update_statistics(parts.shares.slots)
        if parts.average:
            parts.average.step()
        if self.scaling:
            self.scaling.count(fits)
        self.done += 1
        return self._record(lr, finite, backward_s, scale, not fits)

    def _run_slots(self, wishes) -> tuple[bool, float]:
        """Sum the gradients of this rank's slots; whether the losses are finite, seconds of the backward passes."""
        parts, finite, backward_s = self.parts, True, 0.0
        model, reducer, seed = parts.model, parts.reducer, parts.leg.recipe.run.seed
        for slot in range(reducer.slots):
            parts.update.enter(slot)
            batch = next(parts.batches)
            keys = [sample_key(seed, batch.epoch, row, DROPOUT) for row in batch.rows]
            model.feed(batch.images, batch.labels, keys, batch.mixed)
            model.forward()
            begin = time.perf_counter()
            model.backward(reducer.ready)  # a bucket is summed as soon as its last gradient is there
            backward_s += time.perf_counter() - begin
            losses, asked = model.loss.losses, wishes() if wishes else (False, False)
            finite &= bool(np.isfinite(losses).all())
            model.parameters.scalars[:] = losses.sum(), np.count_nonzero(model.loss.ranks == 0), *asked
            reducer.end_slot()
        return finite, backward_s

    def _record(self, lr, finite, backward_s, scale, skipped) -> Step:
        parts, now = self.parts, time.perf_counter()
        images, (loss, correct, stop, save) = parts.global_batch, map(float, parts.model.parameters.scalars)
        rate, self._last = images / (now - self._last), now
        waits = {"data_wait_s": parts.batches.stall_seconds} | parts.reducer.waits()
        told = (parts.leg.epoch(self.done), lr, loss / images, correct / images, rate, backward_s, finite)
        return Step(self.done, *told, stop > 0, save > 0, waits, scale, skipped)

    def observe(self, observer: Observer | None, reading: Callable | None = None):
        """Let `observer` be told of every op of the steps that follow, `reading` of every batch; None: nobody."""
        for part in (self.model, self.parts.optimizer):
            part.observe(observer)
        self.parts.batches.tell(reading)

    def record(self, kind: str, facts: dict):
        """Facts for the log, which all observers are told: one may keep it."""
        for observer in self.observers:
            observer.record(kind, facts)

    def note(self, line: str):
        """A line for whoever reads it, a record too."""
        self.record("note", {"text": line})

    def share(self, speeds: Sequence[float]):
        """From the next step on the ranks run slots as their speeds are: no bit changes. Collective."""
        self.speeds = speeds
        self._rebuild(self.parts.leg)

    def state(self) -> dict:
        """What `restore` wants to know beside the model's state."""
        return self.parts.optimizer.state() | ({"loss_scale": self.scaling.state()} if self.scaling else {})

    def restore(self, done: int, state: dict):
        """This was the state after so many steps; `seek` goes on from there."""
        self.done = done
        self.parts.optimizer.restore(state)
        if self.scaling and "loss_scale" in state:
            self.scaling.restore(state["loss_scale"])

    def seek(self, done: int):
        """Go on after `done` steps."""
        self.done = done
        self._enter_leg()
        self.parts.batches.seek(self.parts.leg.own(done))

    def _enter_leg(self):
        """Where another leg begins, go on with its parts."""
        if (leg := leg_of(self.legs, self.done)) is not self.parts.leg:
            self._rebuild(leg)
            self.note(leg.says)
            self.record("phase", self.parts.facts())

    def _rebuild(self, leg: Leg):
        """Exchange the parts for others, in which the state is that of now."""
        old, state = self.parts, self.state()
        learned, observer, reading = old.model.parameters, old.model.observer, old.batches.told
        old.update.complete()
        self.close()
        old.reducer.settle()  # the gradient block is used again
        self.parts = old = None  # their memory first
        self.parts = self.remake(leg, self.speeds, learned)
        self.restore(self.done, state)
        self.observe(observer, reading)
        self.parts.batches.seek(leg.own(self.done))

    def close(self):
        """Stop reading and exchanging; harmless when repeated."""
        if self.parts:  # there are none where others could not be made
            self.parts.reducer.close()
            self.parts.batches.close()
