"""How the sum of a bucket over all slots is made: what every way can be asked, and the plain one, sums of gradients.

A rank runs neighbouring slots one after another. When one is done, its gradient absorbs the sums that the tree (see
`tree`) joins with it, and is kept until it is absorbed in turn, or as one of the partial sums that the rank brings to
the exchange. The exchange continues the same tree: 1, 3 or 512 ranks do the same additions.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from knltrain.kernels import accumulate, aligned_zeros

from .block import MessageBlock
from .buckets import Bucket
from .tree import kept_sums, turns
from .wire import Wire


class Way:
    """How the sum of one bucket or several is made, slot by slot."""

    what = ""  # it sends, for the names of jobs
    scattered = False  # whether each rank has a part of a sum, which an update gathers
    counts = False  # whether this rank adds the squares of its part to norms: one of those that have the same part does
    stops = False  # whether backward waits for exchanges of its own before the bucket's gradient is there
    scale = np.float32(1)  # by which gradients are multiplied

    def end_slot(self, bucket: Bucket, number: int) -> Callable[[], None] | None:
        """The gradient of this rank's slot `number` is there; after the last one returns the exchange that is due."""
        raise NotImplementedError

    def arrive(self):
        """The exchange is done: make what is still to be made of the sum."""

    def part(self, bucket: Bucket) -> slice:
        """What of the bucket's sum this rank has, in floats of the gradient block."""
        return slice(bucket.start, bucket.stop)


class Sums(Way):
    """Sums of gradients in `block`. scattered: an exchange leaves each rank its part.

    exact: the step that begins travels as float32, whatever the wire. stay: gradients are not exchanged, the sums of
    workers stay in the rows of the block.
    """

    def __init__(self, block: MessageBlock, wire: Wire, scattered: bool):
        self.block, self.wire, self.scattered = block, wire, scattered
        self.exact = self.stay = False
        shares, rank, rows = block.links.shares, block.links.comm.rank, block.rows[:-1]
        own = shares.ranges[rank]
        self.counts, self.turns = scattered or rank == 0, turns(own, shares.slots, shares.most)
        waiting = kept_sums(own, shares.slots, shares.most) - len(rows)
        self.kept = [*rows, *(aligned_zeros(block.mine.size) for _ in range(waiting))]

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
        if weights and self.stay:
            return None
        if self.exact or not weights:  # the head: a loss summed over 32,768 images needs more than 16 bits
            return partial(self.block.allreduce, bucket.start, bucket.stop, exact=True)
        return partial(self.block.reduce_scatter if self.scattered else self.block.allreduce, bucket.start, bucket.stop)

    def part(self, bucket):
        return self.block.part(bucket.start, bucket.stop) if self.scattered else super().part(bucket)
