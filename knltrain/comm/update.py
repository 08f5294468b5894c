"""From sums of gradients to new weights: every rank updates everything, or each its part.

With the sharded update a bucket is only reduce-scattered; each rank updates the part of the weights whose gradient sums
it holds, and the weights, not the gradients, are gathered (Xu et al. 2020, arXiv:2004.13336): the same bytes travel,
and the update costs each rank 1/P. The norms that LARS needs are sums over chunks of a tensor that were always taken
one by one; here the ranks share them out and add zeros for the others', which is exact. So the weights have the same
bits either way.
"""

import math
from functools import partial

import numpy as np

from knltrain.kernels import NORM_CHUNK, combine_norms

from ..arena import Parameters


class Update:
    """Every rank updates every parameter, as its sum arrives."""

    single: tuple[str, ...] = ("residual",)  # kinds of the state of which a rank has what no other has

    def __init__(self, parameters: Parameters, optimizer, reducer):
        self.parameters, self.optimizer, self.reducer = parameters, optimizer, reducer

    def begin(self, first: bool, meets: bool):
        """A step begins. first: in a phase; meets: workers that train apart meet after it."""

    def enter(self, slot: int):
        """Slot number `slot` of this rank begins."""

    def step(self, lr: float, scale: float = 0.0) -> bool:
        """One step of the optimizer after the last slot; whether it was done. Collective.

        scale: of the gradients, a power of two. Where it is given, every norm is taken before the first update: if one
        is not finite, which all ranks see in the same sums, no weight is changed. 0: there is none, and no such look.
        """
        optimizer, reducer = self.optimizer, self.reducer
        if not scale:
            optimizer.step(lr, reducer.reduced())
            reducer.end_step()
            return True
        arrived = [(p, optimizer.norms(p)) for p in reducer.reduced()]
        fits = all(math.isfinite(gg) for _, (_, gg) in arrived)
        if fits:
            optimizer.begin(lr, scale)
            for p, norms in arrived:
                optimizer.update(p, norms)
        reducer.end_step()
        return fits

    def gather_weights(self):
        """Give every rank all weights, as an evaluation wants them. Collective."""

    def complete(self, everywhere: bool = True):
        """Give every rank the whole state, or the first alone, as a checkpoint wants it. Collective."""
        if residual := self.reducer.travel.residual:
            residual.complete(self.reducer.buckets)


class ShardedUpdate(Update):
    """Each rank updates its part of every bucket that is not whole on every rank."""

    def __init__(self, parameters: Parameters, optimizer, reducer):
        super().__init__(parameters, optimizer, reducer)
        self.rows, count = {}, 0  # of the table of norms: those of a parameter's chunks
        for p in parameters.parameters:
            chunks = _chunks(p, p.size)
            self.rows[p.name] = slice(count, count + chunks)
            count += chunks
        self.norms = np.zeros((count, 2))
        blocks = {"value": parameters.value, "momentum": parameters.momentum, **parameters.states}
        self.blocks = {kind: block for kind, block in blocks.items() if block.ndim == 1}  # of which layers split theirs
        self.whole = True
        if reducer.sums.scattered:
            self.single = ("residual", "momentum", *optimizer.states)
        self.pieces = [self._pieces(bucket) for bucket in reducer.buckets]

    def _pieces(self, bucket) -> list[tuple]:
        """(parameter, slice of its elements) for everything in this rank's part of the bucket."""
        part, pieces = self.reducer.way(bucket).part(bucket), []
        for p in self.parameters.parameters:
            here = self.parameters.gradient_slice(p)
            first, last = max(part.start, here.start), min(part.stop, here.start + p.size)
            if p.name in bucket.waits_for and first < last:
                pieces.append((p, slice(first - here.start, last - here.start)))
        return pieces

    def step(self, lr: float, scale: float = 0.0) -> bool:
        optimizer, reducer, comm = self.optimizer, self.reducer, self.reducer.block.links.comm
        self.norms[...] = 0
        for bucket, pieces in zip(reducer.buckets, self.pieces, strict=True):
            reducer.arrive(bucket)
            counts = reducer.way(bucket).counts
            for p, part in pieces:
                if scale or optimizer.adapts(p):
                    sums = optimizer.measure(p, part)  # Lamb's moves the moments, everywhere
                    row = self.rows[p.name].start + _chunks(p, part.start)
                    self.norms[row : row + len(sums)] = sums if counts else 0
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
        self._gather(lambda p: p.w, self.parameters.value)

    def begin(self, first, meets):
        if self.whole:  # what is other ranks' of split layers takes memory
            self.parameters.forget(*self.blocks.values())
            self.whole = False

    def gather_weights(self):
        self._join(self.blocks.keys() & {"value", "average"}, True)

    def _join(self, kinds, everywhere: bool):
        """Make blocks of these kinds whole where layers are split."""
        self.whole = True
        for split in self.reducer.travel.splits:
            split.complete(sorted(kinds), everywhere)

    def complete(self, everywhere=True):
        super().complete()
        self._join(self.blocks, everywhere)
        self._gather(lambda p: p.v, self.parameters.momentum)
        self.reducer.end_step()
        for name in self.optimizer.states:
            self._gather(lambda p, name=name: p.states[name], self.parameters.states[name])
            self.reducer.end_step()  # all have read the block before, where a node shares one

    def _gather(self, of, block: np.ndarray):
        """Fill `block` from the parts of all ranks; they travel in the gradient's memory, which is free by now."""
        reducer, gathered, head = self.reducer, self.reducer.block, self.reducer.head
        sent = []
        for bucket, pieces in zip(reducer.buckets[:-1], self.pieces, strict=False):
            if not reducer.way(bucket).scattered:
                continue
            for p, part in pieces:
                p.gradient.reshape(-1)[part] = of(p).reshape(-1)[part]
            work = partial(gathered.allgather, bucket.start, bucket.stop)
            sent.append((bucket, reducer.worker.submit(f"weights of {bucket}", work)))
        for bucket, job in sent:
            reducer.worker.wait(job)
            block[bucket.start - head : bucket.stop - head] = gathered.total[bucket.start : bucket.stop]


def _chunks(p, start: int) -> int:
    """Of the parameter's elements before `start`, which is where a chunk, or the parameter, ends."""
    return sum(-(-(piece.stop - piece.start) // NORM_CHUNK) for piece in p.pieces(slice(start)))
