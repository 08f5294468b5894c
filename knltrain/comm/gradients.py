"""The gradients of a step, bucket by bucket: which is ready to be sent on, and which has arrived as a sum.

How a bucket's sum is made is told by its way (see `sums`); which ways there are, by `travel`.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ..arena import Parameter, Parameters
from .buckets import Bucket
from .sums import Way
from .travel import Travel
from .worker import Job


class Reducer:
    """Sums the gradient block of `parameters` over the slots of this rank and over all ranks, as `travel` says.

    For every slot: backward(reducer.ready), reducer.end_slot(). After the last slot of a step `reduced` gives the
    parameters as their sums arrive; after `end_step` scalars and statistics are sums, too.
    """

    def __init__(self, parameters: Parameters, travel: Travel):
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

    def unscale(self, scale: float) -> float:
        """The loss of the step that begins is multiplied by `scale`; returns by what its sums will be multiplied.

        fp16 has a factor of its own on the wire, and residuals outlive a scale: for these it is taken off before.
        """
        wire = self.block.links.wire
        off = wire.name == "fp16" or wire.feeds_back
        for way in (self.sums, *self.travel.ways.values()):
            way.scale = np.float32(1 / scale if off else 1)
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
