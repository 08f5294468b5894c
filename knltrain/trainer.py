"""One definition of a training step, for the command, a script or notebook, warm-up and the benchmarks.

A step: for each slot of this rank the next batch, forward, loss, backward, while the reducer sums every bucket of
gradients as soon as it is whole; then the update of each tensor as its sum arrives, and the running statistics.
Whoever wants to know, or to interfere, is an observer.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np

from knltrain.kernels import sample_key

from .arena import Parameters
from .comm import LOCAL, Reducer, Shares, Update, check_whole, kept_sums, make_block
from .data import Loader
from .layers import Observer
from .models import Among, Model
from .optim.average import Average
from .optim.lars import Lars
from .optim.scaling import LossScale
from .recipe.config import Recipe
from .recipe.experiment import (
    begin_with,
    check_sizes,
    copies_of,
    make_links,
    make_loader,
    make_loss_scale,
    make_model,
    make_optimizer,
    make_reducer,
    make_update,
    rank_speeds,
)
from .recipe.phases import Leg, leg_of, legs
from .run.observe import Step, StepObserver

DROPOUT = 2  # purpose of the random numbers that are not augmentation's


@dataclass(eq=False)
class Trainer:
    """Trains `model` on `batches`: `for step in trainer`, or step by step."""

    model: Model
    optimizer: Lars
    reducer: Reducer
    update: Update
    batches: Iterable  # an iterator of slots
    _: KW_ONLY
    rate: Callable[[int], float]  # the learning rate of a step
    slots: int = 1  # that this rank runs in a step
    total_slots: int = 1  # of all ranks together
    workers: int = 0  # see `Shares`
    total: int = 0  # steps, where iteration ends
    steps_per_epoch: int = 1
    seed: int = 0
    scaling: LossScale | None = None  # of the loss
    average: Average | None = None  # of the weights
    observers: Sequence[StepObserver] = ()
    wishes: Callable[[], tuple] = lambda: (False, False)  # asked of this rank in every slot, (stop, save); told to all
    note: Callable[[str], None] = lambda line: None  # where an observer may print a line,
    record: Callable[[str, dict], None] = lambda kind, facts: None  # or leave facts for the log

    def __post_init__(self):
        self.global_batch = self.total_slots * self.model.slot_batch
        self.done, self.stopped = 0, False  # done: steps done
        self.begun_with: list[str] = []  # lines about weights that were not drawn at random
        self.epochs = max(self.total / self.steps_per_epoch, 1e-9)  # of the run, also where it is cut short
        self.offset = 0  # steps that the epochs before would have had in batches of this size, less those they had
        self.speeds: list[float] = []  # of the ranks, in any unit
        self.legs: list[Leg] = []
        self.leg: Leg | None = None
        self._last = time.perf_counter()

    @classmethod
    def of(cls, recipe: Recipe, data, comm, placement, watch=None, layers=None, observers=()) -> "Trainer":
        """The trainer of a recipe on `data`, for this rank. layers: a network and its input shape, not the recipe's."""
        found = legs(recipe, len(data))
        speeds = rank_speeds(recipe, comm)
        workers, apart = recipe.comm.workers, [leg for leg in found if leg.recipe.optim.local_steps > 1]
        for leg in found:
            shares = Shares.of(leg.derived.slots, speeds, workers)
            if leg in apart:
                check_whole(shares)
        check_sizes([leg.recipe for leg in found], len(data.class_names))

        def build(leg: Leg, speeds: list[float], parameters: Parameters | None = None) -> dict:
            """What changes from leg to leg, or with the speeds of the ranks; parameters: of before."""
            shares = Shares.of(leg.derived.slots, speeds, workers)
            slots = shares.ranges[comm.rank]
            old = parameters and parameters.block
            block = partial(make_block, make_links(recipe, comm, shares)) if old is None else lambda _: old
            if old is not None:
                old.arrange(shares)
            copies = kept_sums(slots, shares.slots, shares.most) + copies_of(recipe, bool(apart))
            among = Among(placement.ranks_on_node, copies, block)
            model = make_model(leg.recipe, len(data.class_names), among, layers=layers)
            if parameters is not None:
                model.parameters.take(parameters)
            elif apart:
                for name in LOCAL:
                    model.parameters.keep(name, workers)
            optimizer = make_optimizer(leg.recipe, model)
            average = Average(model.parameters, recipe.optim.average) if recipe.optim.average else None
            with placement.on("communication"):
                reducer = make_reducer(leg.recipe, model, watch)
            with placement.on("readers"):
                loader = make_loader(leg.recipe, leg.derived, data, slots)
            parts = {"model": model, "optimizer": optimizer, "reducer": reducer, "batches": loader, "rate": leg.rate}
            update = make_update(leg.recipe, model, optimizer, reducer)
            parts |= {"update": update, "slots": len(slots), "average": average}
            return parts | {"total_slots": leg.derived.slots, "steps_per_epoch": leg.derived.steps_per_epoch}

        parts, rates = build(found[0], speeds), [found[0].rate(early) for early in (0, 1)]
        parts |= {"workers": workers, "scaling": make_loss_scale(recipe)}
        made = cls(**parts, total=found[-1].stop, seed=recipe.run.seed, observers=observers)
        made.epochs = recipe.run.epochs
        made.legs, made.leg, made._build, parameters = found, found[0], build, made.model.parameters
        made.speeds = speeds
        if recipe.model.weights:
            fresh = begin_with(recipe.model.weights, parameters, comm)
            if made.average:
                made.average.begin()
            made.begun_with = [f"beginning with the weights of {recipe.model.weights}"]
            made.begun_with += [f"fresh, for other classes: {', '.join(fresh)}"] if fresh else []
        made.optimizer.check_start(*rates)
        return made

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
        previous_lr, told = self.optimizer.previous_lr, getattr(self.batches, "told", None)
        self.update.complete()
        self.reducer.collect()
        self.close()
        self.reducer.block.links.comm.barrier()  # nobody reads sums any more: the gradient block is used again
        self.model = self.update = self.optimizer = None  # their memory first
        for name, part in self._build(leg, self.speeds, before).items():
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
        reducer.exact = bool(self.leg and self.leg.warming(self.done))
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
        waits = self.reducer.seconds()
        if isinstance(self.batches, Loader):
            waits = {"data_wait_s": self.batches.stall_seconds} | waits
        loss, accuracy, epoch = loss / self.global_batch, correct / self.global_batch, self.own / self.steps_per_epoch
        asked = (stop > 0, save > 0)
        return Step(self.done, epoch, lr, loss, accuracy, rate, backward, finite, *asked, waits, scale, skipped)

    def observe(self, observer: Observer | None, reading: Callable | None = None):
        """Let `observer` be told of every op of the steps that follow, `reading` of every batch; None: nobody."""
        self.model.observer = self.optimizer.observer = observer
        if isinstance(self.batches, Loader):
            self.batches.told = reading

    def seek(self, done: int):
        """Go on after `done` steps."""
        self.done = done
        if self.leg and leg_of(self.legs, done) is not self.leg:
            self._enter(leg_of(self.legs, done))
        self.batches.seek(self.own)

    @property
    def own(self) -> int:
        """Steps done, had all been of the size of this leg's: an epoch is steps_per_epoch of them."""
        return self.done + self.offset

    def close(self):
        """Stop reading and exchanging; harmless when repeated."""
        self.reducer.close()
        if isinstance(self.batches, Loader):
            self.batches.close()
