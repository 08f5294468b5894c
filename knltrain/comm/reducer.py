"""The global gradient: the sum over slots in one fixed binary tree, over the slots of a rank and then over ranks.

A rank owns m = slots / ranks consecutive slots and runs them one after another. Write m = o * 2^b with o odd. Each
run of o slots is summed from left to right, then runs are summed pairwise as a binary counter carries: when slot
number i is done, its sum absorbs the finished sums of equal size to its left. Only b (+ 1 if o > 1) finished sums
ever wait, each a copy of the gradient block. Since rank counts are powers of two, o is the same for all of them,
and the tree over ranks (see `exchange`) continues this one: 1, 2 or 512 ranks do the same additions.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from knltrain.kernels import NORM_CHUNK, accumulate, aligned_zeros

from ..arena import Parameter, Parameters
from .buckets import Bucket, cut
from .curve import LARGEST_TRIED, Curve, fit, measure
from .exchange import Exchange
from .worker import Job, Worker

ALONE = 1 << 23  # bytes in a bucket where there is nobody to exchange with


class Reducer:
    """Sums the gradient block of `parameters` over the slots of this rank and over all ranks, bucket by bucket.

    The block must come from `exchange.allocate`. For every slot: backward(reducer.ready), then reducer.end_slot().
    After the last slot of a step `reduced` gives the parameters as their sums arrive; when it has ended, scalars and
    statistics are sums, too. bucket_bytes: 0 chooses by measuring. cut_before: instead, buckets begin at
    these tensors. overlap: exchange in a thread of its own, while backward goes on.
    shard: leave each rank with its part of a sum, for `update.ShardedUpdate`, which then takes the place of `reduced`.
    watch: is told of every exchange.
    """

    def __init__(
        self, parameters: Parameters, exchange: Exchange, slots: int, bucket_bytes: int = 0, cut_before=(),
        overlap=True, shard=False, watch=None,
    ):  # fmt: skip
        self.gradient, self.exchange, self.slots = parameters.gradient, exchange, slots
        self.head, self.watch = parameters.head, watch
        comm = exchange.comm
        self.worker = Worker(overlap and comm.size > 1 and comm.threads_may_call, watch)
        self.curve = self._measure() if comm.size > 1 and not (bucket_bytes or cut_before) else None
        if self.curve:
            bucket_bytes = self.curve.bucket_bytes(4 * self.gradient.size)
        self.bucket_bytes = bucket_bytes or ALONE
        tensors = [(p.name, *_bounds(parameters, p)) for p in parameters.parameters]
        shard = shard and comm.size > 1
        grain = NORM_CHUNK if shard else 1
        self.buckets = cut(tensors, parameters.head, self.bucket_bytes, cut_before, grain)
        self.shard = shard
        if shard:
            edges = sorted({edge for _, start, stop in tensors for edge in range(start, stop, grain)})
            exchange.cut_only_at(edges)
        self._last_bucket = {name: i for i, bucket in enumerate(self.buckets) for name in bucket.waits_for}
        self._by_bucket = [[] for _ in self.buckets]
        for p in reversed(parameters.parameters):
            self._by_bucket[self._last_bucket[p.name]].append(p)
            if exchange.total is not exchange.mine:
                here = parameters.gradient_slice(p)
                p.total = exchange.total[here][: p.size].reshape(p.shape)
        self.run = slots // (slots & -slots)  # the odd part
        copies = [aligned_zeros(self.gradient.size) for _ in range(waiting_sums(slots))]
        self.chain = copies.pop() if self.run > 1 else None
        self.waiting = copies
        self.slot = 0
        self.jobs: list[Job] = []
        self.finished: list[Job] = []  # those of the last step
        self._begin_slot()

    def _measure(self) -> Curve:
        """Time against size of this exchange, the hand-over to the thread included."""

        def run(nbytes):
            job = Job("measure", partial(self.exchange.allreduce, 0, nbytes // 4))
            self.worker.submit(job)
            self.worker.wait(job)

        largest = min(LARGEST_TRIED, 4 * self.gradient.size)
        return fit(measure(run, [largest >> shift for shift in (8, 6, 4, 2, 0)], self.exchange.comm.gather))

    def _begin_slot(self):
        self.missing = [set(bucket.waits_for) for bucket in self.buckets]
        self.next = 0

    def ready(self, parameter: Parameter):
        """The gradient of `parameter` in this slot is complete: send on every bucket, in order, that now is."""
        for missing in self.missing:
            missing.discard(parameter.name)
        while self.next < len(self.buckets) - 1 and not self.missing[self.next]:
            self._finish(self.buckets[self.next])
            self.next += 1

    def end_slot(self):
        """The slot is done: its last bucket, with scalars and statistics, follows."""
        if self.next != len(self.buckets) - 1:
            late = sorted(set().union(*self.missing))
            raise RuntimeError(f"the slot ended before the gradients of {', '.join(late)}; expected ready() for each")
        self._finish(self.buckets[-1])
        self.slot = (self.slot + 1) % self.slots
        self._begin_slot()

    def reduced(self) -> Iterator[Parameter]:
        """After the last slot: every parameter, as soon as its sum over all slots and ranks stands in `gradient`.

        When the caller is through, nobody on the node reads sums any more, and backward may write again.
        """
        for job, parameters in zip(self.jobs, self._by_bucket, strict=True):
            self.worker.wait(job)
            yield from parameters
        self.end_step()

    def submit(self, name: str, work) -> Job:
        """One more job of this step for the communication thread."""
        self.jobs.append(Job(name, work))
        self.worker.submit(self.jobs[-1])
        return self.jobs[-1]

    def end_step(self):
        """Nobody on this rank wants to read more sums, but for scalars and statistics, which are in the block now."""
        if self.exchange.total is not self.exchange.mine:
            self.gradient[: self.head] = self.exchange.total[: self.head]
        self.exchange.release()
        self.finished, self.jobs = self.jobs, []

    def seconds(self) -> dict[str, float]:
        """Of the last step: exchange the backward pass or the update had to wait for, and exchange that was hidden."""
        exposed = sum(job.waited for job in self.finished)
        busy = sum(job.done - job.begun for job in self.finished)
        return {"exchange_exposed_s": exposed, "exchange_hidden_s": max(0.0, busy - exposed)}

    def facts(self) -> dict:
        """How gradients travel, and why the buckets are as large as they are: `curve` is what an exchange takes."""
        exchange, curve = self.exchange, self.curve
        facts = {"how": str(exchange), "wire": exchange.wire.name, "over": str(exchange.topology)}
        facts |= {"buckets": len(self.buckets) - 1, "bucket_bytes": self.bucket_bytes}
        facts["overlapped"] = bool(self.worker.thread)
        return facts | {"curve": {"alpha_s": curve.alpha, "bytes_per_s": curve.beta} if curve else None}

    def notes(self) -> list[str]:
        """What about the exchange is not as a user would expect it."""
        exchange, lines = self.exchange, []
        if exchange.comm.size > 1 and not exchange.tree:
            lines.append(f"note: {exchange} does not keep the summation tree: the bits depend on the number of ranks")
        if exchange.comm.size > 1 and not exchange.comm.threads_may_call:
            lines.append("note: this MPI gives no MPI_THREAD_MULTIPLE: gradients are exchanged between the layers")
        return lines + [note for note in (exchange.note, self.watch and self.watch.note) if note]

    def close(self):
        """End the communication thread; harmless when repeated."""
        self.worker.close()

    def _finish(self, bucket: Bucket):
        here = slice(bucket.start, bucket.stop)
        gradient = self.gradient[here]
        last = self.slot == self.slots - 1
        group, position = divmod(self.slot, self.run)
        if position > 0:
            accumulate(gradient, self.chain[here])
        if position < self.run - 1:
            np.copyto(self.chain[here], gradient)
            return
        level = 0
        while group >> level & 1:
            accumulate(gradient, self.waiting[level][here])
            level += 1
        if not last:
            np.copyto(self.waiting[level][here], gradient)
            return
        if not bucket.waits_for:  # the head: a loss summed over 32,768 images is more than 16 bits can say
            work = partial(self.exchange.allreduce, exact=True)
        else:
            work = self.exchange.reduce_scatter if self.shard else self.exchange.allreduce
        self.submit(str(bucket), partial(work, bucket.start, bucket.stop))


def waiting_sums(slots: int) -> int:
    """Copies of the gradient block that a Reducer over so many slots holds: b, and one more where o > 1.

    >>> [waiting_sums(slots) for slots in (1, 2, 3, 8, 12)]
    [0, 1, 1, 3, 3]
    """
    power = slots & -slots
    return power.bit_length() - 1 + (slots > power)


def _bounds(parameters, parameter):
    here = parameters.gradient_slice(parameter)
    return here.start, here.stop
