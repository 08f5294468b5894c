"""The sums of gradients over the slots of this rank and over all ranks, bucket by bucket.

A rank runs neighbouring slots one after another. When one is done, its gradient absorbs the sums that the tree (see
`tree`) joins with it, and is kept until it is absorbed in turn, or as one of the partial sums that the rank brings to
the exchange. The exchange continues the same tree: 1, 3 or 512 ranks do the same additions.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from knltrain.kernels import INT8_BLOCK, NORM_CHUNK, accumulate, aligned_zeros

from ..arena import Parameter, Parameters
from .block import MessageBlock
from .buckets import Bucket, cut
from .choice import Choice, FullyConnected, choose, seconds_per_flop, split_as_asked
from .coded import block_edges
from .curve import LARGEST_TRIED, Curve, fit, measure
from .factors import Factors
from .split import Split
from .tree import kept_sums, turns
from .wire import Wire
from .worker import Job, Worker

RESIDUAL = "residual"  # state of the parameters
ALONE = 1 << 23  # bytes in a bucket where there is nobody to exchange with


class Reducer:
    """Sums the gradient block of `parameters` over the slots of this rank and over all ranks, bucket by bucket.

    block: `parameters.block`, or one in the same memory. For every slot: backward(reducer.ready), reducer.end_slot().
    After the last slot of a step `reduced` gives the parameters as their sums arrive; when it has ended, scalars and
    statistics are sums, too. bucket_bytes: 0 chooses by measuring. cut_before: instead, buckets begin at
    these tensors. overlap: exchange in a thread of its own, while backward goes on.
    shard: leave each rank with its part of a sum, for `ShardedUpdate`, which then takes the place of `reduced`.
    watch: is told of every exchange. fc: which layers may travel as factors, those that do are whole on every rank, or
    be split.
    """

    def __init__(
        self, parameters: Parameters, block: MessageBlock, bucket_bytes: int = 0, cut_before=(), overlap=True,
        shard=False, watch=None, fc: FullyConnected | None = None,
    ):  # fmt: skip
        self.gradient, self.block = block.mine, block
        self.head, self.watch, fc = parameters.head, watch, fc or FullyConnected()
        comm = block.links.comm
        self.worker = Worker(overlap and comm.size > 1 and comm.threads_may_call, watch)
        shares = block.links.shares
        asks = comm.size > 1 and bool(fc.candidates(shares.slots) or fc.groups(shares))
        self.curve = self._measure() if comm.size > 1 and (asks or not (bucket_bytes or cut_before)) else None
        if self.curve and not (bucket_bytes or cut_before):
            bucket_bytes = self.curve.bucket_bytes(4 * self.gradient.size)
        self.bucket_bytes = bucket_bytes or ALONE
        links = block.links  # its wire has buffers that the communication thread uses
        self.wire = Wire(links.wire.name) if links.every_sum else links.exact
        self.choice = self._choose(fc, asks)
        self.factors = {layer.name: Factors(layer, block, self.wire) for layer in self.choice.layers}
        self.splits = self._split()
        apart = self.factors | self.splits
        tensors = [
            (p.name, start, stop)
            for p in parameters.parameters
            for start, stop in pairwise(parameters.gradient_edges(p, p.name not in apart))
        ]
        shard = shard and comm.size > 1
        grain = NORM_CHUNK if shard else INT8_BLOCK if links.wire.feeds_back else 1
        self.buckets = cut(tensors, parameters.head, self.bucket_bytes, cut_before, grain, apart)
        self.shard = shard
        if shard:
            edges = sorted({edge for _, start, stop in tensors for edge in range(start, stop, grain)})
            block.cut_only_at(edges)
        self.residual = parameters.states.get(RESIDUAL)  # (workers + 1, floats of the weights)
        if links.wire.feeds_back:
            if self.residual is None:
                self.residual = parameters.keep(RESIDUAL, links.shares.workers + 1)
            block.code(block_edges(tensors), self.residual, self.head)
        last_bucket = {name: i for i, bucket in enumerate(self.buckets) for name in bucket.waits_for}
        self._by_bucket = [[] for _ in self.buckets]
        for p in reversed(parameters.parameters):
            self._by_bucket[last_bucket[p.name]].append(p)
        self.factor = np.float32(1)
        self.local = False  # whether gradients stay where they are, the sum of each worker in the block's rows
        self.exact = False  # whether the step that begins travels as float32, whatever the wire
        self.jobs: list[Job] = []
        self.at_once: list[Job] = []  # what was waited for where it was asked for
        self.finished: list[Job] = []  # those of the last step
        shares, own, parts = links.shares, links.shares.ranges[comm.rank], block.rows[:-1]
        self.turns = turns(own, shares.slots, shares.most)
        waiting = kept_sums(own, shares.slots, shares.most) - len(parts)
        self.kept = [*parts, *(aligned_zeros(self.gradient.size) for _ in range(waiting))]
        self.slot = 0
        self._begin_slot()

    def _measure(self) -> Curve:
        """Time against size of an exchange, the hand-over to the thread included."""

        def run(nbytes):
            job = Job("measure", partial(self.block.allreduce, 0, nbytes // 4))
            self.worker.submit(job)
            self.worker.wait(job)

        largest = min(LARGEST_TRIED, 4 * self.gradient.size)
        return fit(measure(run, [largest >> shift for shift in (8, 6, 4, 2, 0)], self.block.links.comm.gather))

    def _choose(self, fc: FullyConnected, asks: bool) -> Choice:
        """Which layers travel as factors. Collective."""
        comm = self.block.links.comm
        if fc.mode == "split":
            return split_as_asked(fc, self.block)
        if comm.size == 1 or not (asks or fc.mode == "factors"):
            return Choice()
        if fc.mode == "factors":
            return Choice(fc.layers, f"{', '.join(layer.name for layer in fc.layers)} travel as factors, as asked for")
        largest = max(fc.layers, key=lambda layer: layer.flops)
        per_flop = seconds_per_flop(largest, self.wire.add if self.wire.short else accumulate, comm.gather)
        return choose(fc, self.block, self.curve, self.bucket_bytes, bool(self.worker.thread), per_flop)

    def _split(self) -> dict[str, Split]:
        """The layers whose weights are from now on those of a rank's shards. Collective."""
        block, layers, now = self.block, self.choice.split, (self._do, lambda: self.slot)
        splits = {layer.name: Split(layer, block, self.choice.group, self.wire, *now) for layer in layers}
        for split in reversed(splits.values()):
            split.hand_over(layers)
        return splits

    def _do(self, name: str, work):
        """One more job among those of the communication thread, which the caller waits for."""
        self.at_once.append(Job(name, work))
        self.worker.submit(self.at_once[-1])
        self.worker.wait(self.at_once[-1])

    def split_of(self, bucket: Bucket) -> Split | None:
        """What splits the layer whose weights the bucket is, if anything does."""
        return self.splits.get(bucket.tensor)

    def is_whole(self, bucket: Bucket) -> bool:
        """Whether every rank gets all of the bucket's sum."""
        return bool(self.factors_of(bucket)) or not (self.shard or self.split_of(bucket))

    def factors_of(self, bucket: Bucket) -> Factors | None:
        """As what the bucket travels, if not as sums."""
        return self.factors.get(bucket.tensor)

    def _begin_slot(self):
        self.missing = [set(bucket.waits_for) for bucket in self.buckets]
        self.next = 0

    def unscale(self, scale: float) -> float:
        """The gradients of the step that begins are `scale` times themselves; returns what their sums will be times.

        fp16 has a factor of its own on the wire, and residuals outlive a scale: for these it is taken off before.
        """
        off = self.block.links.wire.name == "fp16" or self.block.links.wire.feeds_back
        self.factor = np.float32(1 / scale if off else 1)
        for one in (*self.factors.values(), *self.splits.values()):
            one.made.scale = self.factor
        return 1.0 if off else scale

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
        self.slot = (self.slot + 1) % len(self.turns)
        self._begin_slot()

    def reduced(self) -> Iterator[Parameter]:
        """After the last slot: every parameter, as soon as its sum over all slots and ranks stands in `gradient`.

        When the caller is through, nobody on the node reads sums any more, and backward may write again.
        """
        yield from self.arriving()
        self.end_step()

    def arriving(self) -> Iterator[Parameter]:
        """As `reduced`, for a caller who goes on reading sums, until `end_step`."""
        for number, parameters in enumerate(self._by_bucket):
            self.arrive(number)
            yield from parameters

    def arrive(self, number: int):
        """Wait until the sum of bucket `number` is there, or make it. Of all buckets, in their order."""
        self.worker.wait(self.jobs[number])
        if factors := self.factors_of(self.buckets[number]):
            factors.rebuild()

    def part(self, bucket: Bucket) -> slice:
        """What of the bucket's sum this rank has."""
        if self.is_whole(bucket):
            return slice(bucket.start, bucket.stop)
        if split := self.split_of(bucket):
            return slice(bucket.start + split.part.start, bucket.start + split.part.stop)
        return self.block.part(bucket.start, bucket.stop)

    def submit(self, name: str, work) -> Job:
        """One more job of this step for the communication thread."""
        self.jobs.append(Job(name, work))
        self.worker.submit(self.jobs[-1])
        return self.jobs[-1]

    def end_step(self):
        """Nobody on this rank wants to read more sums, but for scalars and statistics, which are in the block now."""
        if self.block.total is not self.block.mine:
            self.gradient[: self.head] = self.block.total[: self.head]
        self.block.release()
        self.finished = sorted([*self.jobs, *self.at_once], key=lambda job: job.begun)
        self.jobs, self.at_once = [], []

    def seconds(self) -> dict[str, float]:
        """Of the last step: exchange the backward pass or the update had to wait for, and exchange that was hidden."""
        exposed = sum(job.waited for job in self.finished)
        busy = sum(job.done - job.begun for job in self.finished)
        return {"exchange_exposed_s": exposed, "exchange_hidden_s": max(0.0, busy - exposed)}

    def collect(self):
        """Give every rank the residuals of all, as a checkpoint wants them. Collective."""
        comm = self.block.links.comm
        for number, row in enumerate(self.residual if self.residual is not None and comm.size > 1 else ()):
            whole = np.zeros_like(row)
            for bucket in self.buckets[:-1]:
                own = self.block.coded_here(number, bucket.start, bucket.stop)
                here = slice(own.start - self.head, own.stop - self.head)
                whole[here] = row[here]
            comm.sum(whole.view(np.int32))  # the bits of the one who has them
            row[:] = whole

    def facts(self) -> dict:
        """How gradients travel, and why the buckets are as large as they are: `curve` is what an exchange takes."""
        links, curve = self.block.links, self.curve
        facts = {"how": str(self.block), "wire": links.wire.name, "over": str(links)}
        facts |= {"buckets": len(self.buckets) - 1, "bucket_bytes": self.bucket_bytes}
        facts |= {"overlapped": bool(self.worker.thread), "shares": links.shares.facts()}
        facts["factors"] = {"layers": list(self.factors), "why": self.choice.why}
        facts["split"] = {"layers": list(self.splits), "group": self.choice.group}
        return facts | {"curve": {"alpha_s": curve.alpha, "bytes_per_s": curve.beta} if curve else None}

    def notes(self) -> list[str]:
        """What about the exchange is not as a user would expect it."""
        block, comm, lines = self.block, self.block.links.comm, []
        if not block.links.shares.even:
            lines.append(f"note: {block.links.shares}")
        if self.choice.why:
            lines.append(f"note: {self.choice.why}")
        if comm.size > 1 and not comm.threads_may_call:
            lines.append("note: this MPI gives no MPI_THREAD_MULTIPLE: gradients are exchanged between the layers")
        return lines + [note for note in (block.note, self.watch and self.watch.note) if note]

    def close(self):
        """End the communication thread; harmless when repeated."""
        self.worker.close()

    def _finish(self, bucket: Bucket):
        here = slice(bucket.start, bucket.stop)
        gradient = self.gradient[here]
        turn = self.turns[self.slot]
        if factors := self.factors_of(bucket):
            if turn.keep is None:
                self.submit(f"factors of {bucket}", factors.gather)
            return
        if split := self.split_of(bucket):
            if turn.keep is None:
                self.submit(f"shards of {bucket}", split.exchange)
            return
        add = self.wire.add if self.wire.short and bucket.waits_for else accumulate
        if self.factor != 1 and bucket.waits_for:
            gradient *= self.factor
        for number in turn.absorbs:
            add(gradient, self.kept[number][here])
        if turn.keep is not None:
            np.copyto(self.kept[turn.keep][here], gradient)
            return
        if self.local and bucket.waits_for:
            return
        if self.exact or not bucket.waits_for:  # the head: a loss summed over 32,768 images needs more than 16 bits
            work = partial(self.block.allreduce, exact=True)
        else:
            work = self.block.reduce_scatter if self.shard else self.block.allreduce
        self.submit(str(bucket), partial(work, bucket.start, bucket.stop))
