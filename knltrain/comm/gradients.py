"""The gradients of a step: which bucket is ready to be summed, and how its sum over all slots is made.

A rank runs neighbouring slots one after another. When one is done, its gradient absorbs the sums that the tree (see
`tree`) joins with it, and is kept until it is absorbed in turn, or as one of the partial sums that the rank brings to
the exchange. The exchange continues the same tree: 1, 3 or 512 ranks do the same additions. Other ways to make a sum
are `factors` and `split`; which buckets there are, and which way each is, is settled by `travel`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from knltrain.kernels import accumulate, aligned_zeros

from ..arena import Parameter, Parameters
from .block import MessageBlock
from .buckets import Bucket
from .tree import kept_sums, turns
from .wire import Wire
from .worker import Job


class Way(ABC):
    """How the sum of one bucket or several is made, slot by slot."""

    what = ""  # it sends, for the names of jobs
    scattered = False  # whether each rank has a part of a sum, which an update gathers
    counts = False  # whether this rank adds the squares of its part to norms: one of those that have the same part does
    stops = False  # whether backward waits for exchanges of its own before the bucket's gradient is there
    scale = np.float32(1)  # by which gradients are multiplied

    def begin_step(self, exact: bool, scale: float):
        """A step begins, whose gradients are multiplied by `scale`, and travel as float32 if `exact`."""
        self.scale = np.float32(scale)

    @abstractmethod
    def end_slot(self, bucket: Bucket, number: int) -> Callable[[], None] | None:
        """The gradient of this rank's slot `number` is there; after the last one returns the exchange that is due."""

    def arrive(self):
        """The exchange is done: make what is still to be made of the sum."""
        return  # nothing, where the exchange leaves it whole

    def part(self, bucket: Bucket) -> slice:
        """What of the bucket's sum this rank has, in floats of the gradient block."""
        return slice(bucket.start, bucket.stop)


class Sums(Way):
    """Sums of gradients in `block`. scattered: an exchange leaves each rank its part.

    exact: the step travels as float32, whatever the wire.
    """

    def __init__(self, block: MessageBlock, wire: Wire, scattered: bool):
        self.block, self.wire, self.scattered = block, wire, scattered
        self.exact = self.apart = False
        shares, rank, rows = block.links.shares, block.links.comm.rank, block.rows[:-1]
        own = shares.ranges[rank]
        self.counts, self.turns = scattered or rank == 0, turns(own, shares.slots, shares.most)
        waiting = kept_sums(own, shares.slots, shares.most) - len(rows)
        self.kept = [*rows, *(aligned_zeros(block.mine.size) for _ in range(waiting))]

    def begin_step(self, exact, scale):
        super().begin_step(exact, scale)
        self.exact = exact

    def leave_apart(self):
        """From now on gradients are not exchanged: the sums of workers stay in the rows of the block."""
        self.apart = True

    def end_slot(self, bucket, number):
        here, turn, weights = slice(bucket.start, bucket.stop), self.turns[number], bool(bucket.waits_for)
        gradient, add = self.block.mine[here], self.wire.add if weights and self.wire.short else accumulate
        if weights and self.scale != 1:
            gradient *= self.scale
        for kept in turn.absorbs:
            add(gradient, self.kept[kept][here])
        if turn.keep is not None:
            np.copyto(self.kept[turn.keep][here], gradient)
            return None
        if weights and self.apart:
            return None
        if self.exact or not weights:  # the head: a loss summed over 32,768 images needs more than 16 bits
            return partial(self.block.allreduce, bucket.start, bucket.stop, exact=True)
        return partial(self.block.reduce_scatter if self.scattered else self.block.allreduce, bucket.start, bucket.stop)

    def part(self, bucket):
        return self.block.part(bucket.start, bucket.stop) if self.scattered else super().part(bucket)


class Reducer:
    """Sums the gradient block of `parameters` over the slots of this rank and over all ranks, as `travel` says.

    `begin_step`; for every slot: backward(reducer.ready), `end_slot`. After the last slot of a step `reduced` gives the
    parameters as their sums arrive; after `end_step` scalars and statistics are sums, too.
    """

    def __init__(self, parameters: Parameters, travel):
        self.travel, self.block, self.worker = travel, travel.block, travel.worker
        self.buckets, self.sums, self.head = travel.buckets, travel.sums, parameters.head
        self.gradient = self.block.mine
        last_bucket = {name: bucket.number for bucket in self.buckets for name in bucket.waits_for}
        self._by_bucket = [[] for _ in self.buckets]
        for p in reversed(parameters.parameters):
            self._by_bucket[last_bucket[p.name]].append(p)
        self.slots, self.slot = len(self.sums.turns), 0
        self.jobs: dict[int, Job] = {}  # of this step, by the number of the bucket
        # what backward waits for must not stand behind sums that can hide later: up to this bucket they are held
        self.last_stop = max((bucket.number for bucket in self.buckets if self.way(bucket).stops), default=0)
        self.held: list[tuple[int, str, Callable]] = []
        self._begin_slot()

    def way(self, bucket: Bucket) -> Way:
        """In which the bucket's sum is made."""
        return self.travel.ways.get(bucket.tensor, self.sums)

    def begin_step(self, warming: bool, scale: float) -> float:
        """A step begins. warming: the rate still rises. scale: of its loss, or 0; returns that of its sums.

        While the rate rises, one byte a number is too little, and float32 travels. Two bytes stay: they are rounded in
        every sum, also where nothing travels, and must be on any number of ranks. fp16 has a factor of its own on the
        wire, and residuals outlive a scale: for these it is taken off before.
        """
        wire = self.block.links.wire
        off = bool(scale) and (wire.name == "fp16" or wire.feeds_back)
        for way in (self.sums, *self.travel.ways.values()):
            way.begin_step(warming and wire.feeds_back, 1 / scale if off else 1)
        return 1.0 if off else scale

    # ---- slots -------------------------------------------------------------------------------------------------

    def _begin_slot(self):
        self.missing = [set(bucket.waits_for) for bucket in self.buckets]
        self.next = 0

    def ready(self, parameter: Parameter):
        """The gradient of `parameter` in this slot is complete: send on every bucket, in order, that now is."""
        for missing in self.missing:
            missing.discard(parameter.name)
        while self.next < len(self.buckets) - 1 and not self.missing[self.next]:
            self._send(self.buckets[self.next])
            self.next += 1

    def end_slot(self):
        """The slot is done: its last bucket, with scalars and statistics, follows."""
        if self.next != len(self.buckets) - 1:
            late = sorted(set().union(*self.missing))
            raise RuntimeError(f"the slot ended before the gradients of {', '.join(late)}; expected ready() for each")
        self._send(self.buckets[-1])
        self.slot = (self.slot + 1) % self.slots
        self._begin_slot()

    def _send(self, bucket: Bucket):
        way = self.way(bucket)
        if work := way.end_slot(bucket, self.slot):
            self.held.append((bucket.number, f"{way.what}{bucket}", work))
        if bucket.number >= self.last_stop:
            self.jobs |= {number: self.worker.submit(name, due) for number, name, due in self.held}
            self.held = []

    # ---- sums --------------------------------------------------------------------------------------------------

    def reduced(self) -> Iterator[Parameter]:
        """After the last slot: every parameter, as soon as its sum over all slots and ranks stands in `gradient`."""
        for bucket, parameters in zip(self.buckets, self._by_bucket, strict=True):
            self.arrive(bucket)
            yield from parameters

    def arrive(self, bucket: Bucket):
        """Wait until the bucket's sum is there, or make it. Of all buckets, in their order."""
        self.worker.wait(self.jobs[bucket.number])
        self.way(bucket).arrive()

    def end_step(self):
        """Nobody on this rank wants to read more sums, but for scalars and statistics, which are in the block now.

        Returns when that is so on the whole node: backward may write again.
        """
        if self.block.total is not self.block.mine:
            self.gradient[: self.head] = self.block.total[: self.head]
        self.block.release()
        self.worker.end_step()
        self.jobs = {}

    def settle(self):
        """Return when no rank reads sums any more. Collective."""
        self.block.links.comm.barrier()

    def waits(self) -> dict[str, float]:
        """Seconds of this step that were waited for sums, by name."""
        return self.worker.seconds()

    def close(self):
        """End the communication thread; harmless when repeated."""
        self.worker.close()
