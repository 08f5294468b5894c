"""From the gradients of slots to new weights: buckets, one tree of sums, and the update of what has arrived.

A rank owns m = slots / ranks consecutive slots and runs them one after another. Write m = o * 2^b with o odd. Each
run of o slots is summed from left to right, then runs are summed pairwise as a binary counter carries: when slot
number i is done, its sum absorbs the finished sums of equal size to its left. Only b (+ 1 if o > 1) finished sums
ever wait, each a copy of the gradient block. Since rank counts are powers of two, o is the same for all of them,
and the tree over ranks (see `links`) continues this one: 1, 2 or 512 ranks do the same additions.

Every rank updates everything, or each its part. With the sharded update a bucket is only reduce-scattered; each rank
updates the part of the weights whose gradient sums it holds, and the weights, not the gradients, are gathered (Xu et
al. 2020, arXiv:2004.13336): the same bytes travel, and the update costs each rank 1/P. The norms that LARS needs are
sums over chunks of a tensor that were always taken one by one; here the ranks share them out and add zeros for the
others', which is exact. So the weights have the same bits either way.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from knltrain.kernels import NORM_CHUNK, accumulate, aligned_zeros, combine_norms, squared_norm_chunks

from ..arena import Parameter, Parameters
from .block import MessageBlock
from .curve import LARGEST_TRIED, Curve, fit, measure
from .wire import Wire
from .worker import Job, Worker

ALONE = 1 << 23  # bytes in a bucket where there is nobody to exchange with

# ---- buckets: which slices travel together; arithmetic, fixed at start, equal on all ranks ---------------------


@dataclass(frozen=True)
class Bucket:
    """A slice of the gradient block, complete when all the tensors in `waits_for` are."""

    start: int  # floats
    stop: int
    waits_for: frozenset
    number: int = 0

    def __str__(self):
        names = sorted(self.waits_for)
        inside = f"{names[0]} … {names[-1]}" if len(names) > 1 else "".join(names) or "loss and statistics"
        return f"bucket {self.number} ({inside})"


def cut(
    tensors: list[tuple[str, int, int]], head: int, bucket_bytes: int, cut_before: Iterable[str] = (), grain: int = 1
) -> list[Bucket]:
    """Buckets of at most `bucket_bytes`, last tensor first; small tensors are fused, huge ones split.

    tensors: (name, start, stop) in floats, ascending and gapless from `head`. The last bucket of the list is
    [0, head): the numbers that belong to the whole pass; it waits for no tensor and is sent at the end.
    cut_before: if not empty, buckets begin at these tensors, and `bucket_bytes` counts no more: ("fc6.w",) gives the
    two buckets of Jia et al. 2018 for an AlexNet, convolutions and fully connected layers.
    grain: a tensor is split only at multiples of so many floats from its start. Raises ValueError for bad numbers.
    """
    if cut_before:
        return _cut_before(tensors, head, cut_before)
    if bucket_bytes < 4:
        raise ValueError(f"bucket_bytes is {bucket_bytes}, expected at least 4")
    limit = max(bucket_bytes // 4, grain)
    slices = []
    stop, names = None, set()
    for name, start, end in reversed(tensors):
        if stop is not None and stop - start > limit:
            slices.append((end, stop, names))
            stop, names = None, set()
        if stop is None:
            stop = end
        while stop - start > limit:  # the tensor alone is too large
            edge = start + -(-(stop - limit - start) // grain) * grain
            slices.append((edge, stop, {name}))
            stop = edge
        names.add(name)
    if stop is not None:
        slices.append((head, stop, names))
    return _numbered([*slices, (0, head, ())])


def _cut_before(tensors, head, names):
    known = [name for name, _, _ in tensors]
    for name in names:
        if name not in known:
            raise ValueError(f"comm.cut_before names {name!r}; expected tensors of this network: {', '.join(known)}")
    edges = sorted({0, len(tensors), *map(known.index, names)})
    slices = []
    for first, last in reversed(list(itertools.pairwise(edges))):
        slices.append((tensors[first][1], tensors[last - 1][2], set(known[first:last])))
    return _numbered([*slices, (0, head, ())])


def _numbered(slices) -> list[Bucket]:
    return [Bucket(start, stop, frozenset(names), number) for number, (start, stop, names) in enumerate(slices)]


# ---- the tree --------------------------------------------------------------------------------------------------


class Reducer:
    """Sums the gradient block of `parameters` over the slots of this rank and over all ranks, bucket by bucket.

    block: `parameters.block`, or one in the same memory. For every slot: backward(reducer.ready), reducer.end_slot().
    After the last slot of a step `reduced` gives the parameters as their sums arrive; when it has ended, scalars and
    statistics are sums, too. bucket_bytes: 0 chooses by measuring. cut_before: instead, buckets begin at
    these tensors. overlap: exchange in a thread of its own, while backward goes on.
    shard: leave each rank with its part of a sum, for `ShardedUpdate`, which then takes the place of `reduced`.
    watch: is told of every exchange.
    """

    def __init__(
        self, parameters: Parameters, block: MessageBlock, slots: int, bucket_bytes: int = 0, cut_before=(),
        overlap=True, shard=False, watch=None,
    ):  # fmt: skip
        self.gradient, self.block, self.slots = block.mine, block, slots
        self.head, self.watch = parameters.head, watch
        comm = block.links.comm
        self.worker = Worker(overlap and comm.size > 1 and comm.threads_may_call, watch)
        self.curve = self._measure() if comm.size > 1 and not (bucket_bytes or cut_before) else None
        if self.curve:
            bucket_bytes = self.curve.bucket_bytes(4 * self.gradient.size)
        self.bucket_bytes = bucket_bytes or ALONE
        places = ((p.name, parameters.gradient_slice(p)) for p in parameters.parameters)
        tensors = [(name, here.start, here.stop) for name, here in places]
        shard = shard and comm.size > 1
        grain = NORM_CHUNK if shard else 1
        self.buckets = cut(tensors, parameters.head, self.bucket_bytes, cut_before, grain)
        self.shard = shard
        if shard:
            edges = sorted({edge for _, start, stop in tensors for edge in range(start, stop, grain)})
            block.cut_only_at(edges)
        last_bucket = {name: i for i, bucket in enumerate(self.buckets) for name in bucket.waits_for}
        self._by_bucket = [[] for _ in self.buckets]
        for p in reversed(parameters.parameters):
            self._by_bucket[last_bucket[p.name]].append(p)
        links = block.links  # its wire has buffers that the communication thread uses
        self.wire = Wire(links.wire.name) if links.every_sum else links.exact
        self.factor = np.float32(1)
        self.run = slots // (slots & -slots)  # the odd part
        copies = [aligned_zeros(self.gradient.size) for _ in range(waiting_sums(slots))]
        self.chain = copies.pop() if self.run > 1 else None
        self.waiting = copies
        self.slot = 0
        self.jobs: list[Job] = []
        self.finished: list[Job] = []  # those of the last step
        self._begin_slot()

    def _measure(self) -> Curve:
        """Time against size of an exchange, the hand-over to the thread included."""

        def run(nbytes):
            job = Job("measure", partial(self.block.allreduce, 0, nbytes // 4))
            self.worker.submit(job)
            self.worker.wait(job)

        largest = min(LARGEST_TRIED, 4 * self.gradient.size)
        return fit(measure(run, [largest >> shift for shift in (8, 6, 4, 2, 0)], self.block.links.comm.gather))

    def _begin_slot(self):
        self.missing = [set(bucket.waits_for) for bucket in self.buckets]
        self.next = 0

    def unscale(self, scale: float) -> float:
        """The gradients of the step that begins are `scale` times themselves; returns what their sums will be times.

        fp16 has a factor of its own on the wire: for it the scale is taken off before.
        """
        fp16 = self.block.links.wire.name == "fp16"
        self.factor = np.float32(1 / scale if fp16 else 1)
        return 1.0 if fp16 else scale

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
        yield from self.arriving()
        self.end_step()

    def arriving(self) -> Iterator[Parameter]:
        """As `reduced`, for a caller who goes on reading sums, until `end_step`."""
        for job, parameters in zip(self.jobs, self._by_bucket, strict=True):
            self.worker.wait(job)
            yield from parameters

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
        self.finished, self.jobs = self.jobs, []

    def seconds(self) -> dict[str, float]:
        """Of the last step: exchange the backward pass or the update had to wait for, and exchange that was hidden."""
        exposed = sum(job.waited for job in self.finished)
        busy = sum(job.done - job.begun for job in self.finished)
        return {"exchange_exposed_s": exposed, "exchange_hidden_s": max(0.0, busy - exposed)}

    def facts(self) -> dict:
        """How gradients travel, and why the buckets are as large as they are: `curve` is what an exchange takes."""
        links, curve = self.block.links, self.curve
        facts = {"how": str(self.block), "wire": links.wire.name, "over": str(links)}
        facts |= {"buckets": len(self.buckets) - 1, "bucket_bytes": self.bucket_bytes}
        facts["overlapped"] = bool(self.worker.thread)
        return facts | {"curve": {"alpha_s": curve.alpha, "bytes_per_s": curve.beta} if curve else None}

    def notes(self) -> list[str]:
        """What about the exchange is not as a user would expect it."""
        block, comm, lines = self.block, self.block.links.comm, []
        if comm.size > 1 and not block.tree:
            lines.append(f"note: {block} does not keep the summation tree: the bits depend on the number of ranks")
        if comm.size > 1 and not comm.threads_may_call:
            lines.append("note: this MPI gives no MPI_THREAD_MULTIPLE: gradients are exchanged between the layers")
        return lines + [note for note in (block.note, self.watch and self.watch.note) if note]

    def close(self):
        """End the communication thread; harmless when repeated."""
        self.worker.close()

    def _finish(self, bucket: Bucket):
        here = slice(bucket.start, bucket.stop)
        gradient = self.gradient[here]
        last = self.slot == self.slots - 1
        add = self.wire.add if self.wire.short and bucket.waits_for else accumulate
        if self.factor != 1 and bucket.waits_for:
            gradient *= self.factor
        group, position = divmod(self.slot, self.run)
        if position > 0:
            add(gradient, self.chain[here])
        if position < self.run - 1:
            np.copyto(self.chain[here], gradient)
            return
        level = 0
        while group >> level & 1:
            add(gradient, self.waiting[level][here])
            level += 1
        if not last:
            np.copyto(self.waiting[level][here], gradient)
            return
        if not bucket.waits_for:  # the head: a loss summed over 32,768 images is more than 16 bits can say
            work = partial(self.block.allreduce, exact=True)
        else:
            work = self.block.reduce_scatter if self.shard else self.block.allreduce
        self.submit(str(bucket), partial(work, bucket.start, bucket.stop))


def waiting_sums(slots: int) -> int:
    """Copies of the gradient block that a Reducer over so many slots holds: b, and one more where o > 1.

    >>> [waiting_sums(slots) for slots in (1, 2, 3, 8, 12)]
    [0, 1, 1, 3, 3]
    """
    power = slots & -slots
    return power.bit_length() - 1 + (slots > power)


# ---- the update ------------------------------------------------------------------------------------------------


class Update:
    """Every rank updates every parameter, as its sum arrives."""

    def __init__(self, parameters: Parameters, optimizer, reducer):
        self.parameters, self.optimizer, self.reducer = parameters, optimizer, reducer

    def step(self, lr: float, scale: float = 0.0) -> bool:
        """One step of the optimizer after the last slot; whether it was done. Collective.

        scale: of the gradients, a power of two. Where it is given, every norm is taken before the first update: if one
        is not finite, which all ranks see in the same sums, no weight is changed. 0: there is none, and no such look.
        """
        optimizer, reducer = self.optimizer, self.reducer
        if not scale:
            optimizer.step(lr, reducer.reduced())
            return True
        arrived = [(p, optimizer.norms(p)) for p in reducer.arriving()]
        fits = all(math.isfinite(gg) for _, (_, gg) in arrived)
        if fits:
            optimizer.begin(lr, scale)
            for p, norms in arrived:
                optimizer.update(p, norms)
        reducer.end_step()
        return fits

    def complete(self):
        """Give every rank the whole state, momentum included, as a checkpoint wants it. Collective."""


class ShardedUpdate(Update):
    """Each rank updates its part of every bucket."""

    def __init__(self, parameters: Parameters, optimizer, reducer):
        super().__init__(parameters, optimizer, reducer)
        self.rows, count = {}, 0  # of the table of norms: those of a parameter's chunks
        for p in parameters.parameters:
            chunks = -(-p.size // NORM_CHUNK)
            self.rows[p.name] = slice(count, count + chunks)
            count += chunks
        self.norms = np.zeros((count, 2))
        self.pieces = [self._pieces(bucket) for bucket in reducer.buckets]

    def _pieces(self, bucket) -> list[tuple]:
        """(parameter, slice of its elements) for everything in this rank's part of the bucket."""
        part, pieces = self.reducer.block.part(bucket.start, bucket.stop), []
        for p in self.parameters.parameters:
            here = self.parameters.gradient_slice(p)
            first, last = max(part.start, here.start), min(part.stop, here.start + p.size)
            if p.name in bucket.waits_for and first < last:
                pieces.append((p, slice(first - here.start, last - here.start)))
        return pieces

    def step(self, lr: float, scale: float = 0.0) -> bool:
        optimizer, reducer, comm = self.optimizer, self.reducer, self.reducer.block.links.comm
        self.norms[...] = 0
        for job, pieces in zip(list(reducer.jobs), self.pieces, strict=True):
            reducer.worker.wait(job)
            for p, part in pieces:
                if scale or optimizer.adapts(p):
                    sums = squared_norm_chunks(p.w.reshape(-1)[part], p.gradient.reshape(-1)[part])
                    row = self.rows[p.name].start + part.start // NORM_CHUNK
                    self.norms[row : row + len(sums)] = sums
        comm.sum(self.norms)
        fits = not scale or bool(np.isfinite(self.norms[:, 1]).all())
        if fits:
            self._update(lr, scale or 1.0)
        reducer.end_step()
        return fits

    def _update(self, lr, scale):
        optimizer = self.optimizer
        optimizer.begin(lr, scale)
        norms = {name: combine_norms(self.norms[rows]) for name, rows in self.rows.items()}
        for pieces in self.pieces:
            for p, part in pieces:
                optimizer.update(p, norms[p.name], part)
        self._gather("w", self.parameters.value)

    def complete(self):
        self._gather("v", self.parameters.momentum)
        self.reducer.end_step()

    def _gather(self, name: str, block: np.ndarray):
        """Fill `block` from the parts of all ranks; they travel in the gradient's memory, which is free by now."""
        reducer, gathered, head = self.reducer, self.reducer.block, self.reducer.head
        sent = []
        for bucket, pieces in zip(reducer.buckets[:-1], self.pieces, strict=False):
            for p, part in pieces:
                p.gradient.reshape(-1)[part] = getattr(p, name).reshape(-1)[part]
            work = partial(gathered.allgather, bucket.start, bucket.stop)
            sent.append((bucket, reducer.submit(f"weights of {bucket}", work)))
        for bucket, job in sent:
            reducer.worker.wait(job)
            block[bucket.start - head : bucket.stop - head] = gathered.total[bucket.start : bucket.stop]
