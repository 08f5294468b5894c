"""Workers that train apart: each does some steps alone, then all go on from the mean of their weights (local SGD).

A worker is a group of slots that the recipe fixes (see `Shares`), with weights and momentum of its own; a rank that
runs several changes between them. The mean is a sum along the tree of sums. So no bit depends on ranks. Lin et al. 2018
(arXiv:1808.07217), who do so in the later phases of a run: post-local SGD. Loss and statistics of batch norm are summed
over all workers in each step. What follows a phase begins with the means of weights and momentum.
"""

from functools import partial

import numpy as np

from .coded import spread
from .shares import Shares
from .update import Update

LOCAL = ("local", "local_momentum")  # states of the parameters: (workers, floats)


def check_whole(shares: Shares):
    """Raise ValueError where a worker lies on several ranks."""
    for rank, own in enumerate(shares.ranges):
        if own.start % shares.most or own.stop % shares.most:
            raise ValueError(
                f"rank {rank} of {len(shares.ranges)} runs slots {own.start} to {own.stop - 1}; expected whole workers "
                f"of {shares.most} slots for optim.local_steps: at most {shares.workers} ranks"
            )


class LocalUpdate(Update):
    """Each worker is updated by the gradient of its own slots; in steps that say so, all then are as their mean."""

    single = ("residual", "value", "momentum", *LOCAL)

    def __init__(self, parameters, optimizer, reducer):
        super().__init__(parameters, optimizer, reducer)
        shares, rank = reducer.block.links.shares, reducer.block.links.comm.rank
        check_whole(shares)
        self.size, own = shares.most, shares.ranges[rank]
        self.own = range(own.start // self.size, own.stop // self.size)
        self.weights, self.momenta = (parameters.states[name] for name in LOCAL)
        self.meets = False
        reducer.sums.leave_apart()
        for p in parameters.parameters:
            p.sum_alone()  # gradients are of one worker

    def begin(self, first: bool, meets: bool):
        self.meets = meets
        if first:
            self.weights[...], self.momenta[...] = self.parameters.value, self.parameters.momentum

    def enter(self, slot: int):
        if slot % self.size == 0:
            np.copyto(self.parameters.value, self.weights[self.own[slot // self.size]])

    def step(self, lr, scale=0.0):
        parameters, optimizer, reducer = self.parameters, self.optimizer, self.reducer
        states = (self.weights, parameters.value), (self.momenta, parameters.momentum)
        before, last = optimizer.state(), self.own[-1]
        reducer.arrive(reducer.buckets[-1])  # the head
        for worker, row in reversed(list(zip(self.own, reducer.block.rows, strict=True))):
            for rows, block in states:
                np.copyto(block, rows[worker])
            if worker != last:  # whose gradient stands there
                np.copyto(reducer.gradient[reducer.head :], row[reducer.head :])
            optimizer.restore(before)
            optimizer.begin(lr, 1 / len(self.weights))  # what gradients are divided by beyond the worker's batch
            for p in parameters.parameters:
                optimizer.update(p, optimizer.norms(p) if optimizer.adapts(p) else None)
            for rows, block in states:
                np.copyto(rows[worker], block)
        if self.meets:
            self._mean(self.weights, parameters.value)
            self.weights[self.own.start : self.own.stop] = parameters.value
        reducer.end_step()
        return True

    def gather_weights(self):
        """Weights are the means of the workers."""
        self._mean(self.weights, self.parameters.value)
        self.reducer.end_step()

    def complete(self, everywhere=True):
        """As of any update; weights and momentum are the means of the workers."""
        super().complete()
        comm = self.reducer.block.links.comm
        for rows, block in ((self.weights, self.parameters.value), (self.momenta, self.parameters.momentum)):
            for worker, row in enumerate(rows):
                spread(comm, row, [slice(None)] if worker in self.own else [])
            self._mean(rows, block)
            self.reducer.end_step()

    def _mean(self, rows: np.ndarray, out: np.ndarray):
        """out = the mean of all workers' rows, summed in the memory of the gradients, which is free by now."""
        reducer, block = self.reducer, self.reducer.block
        for worker, row in zip(self.own, block.rows, strict=True):
            np.copyto(row[reducer.head :], rows[worker])
        work = partial(block.allreduce, reducer.head, reducer.gradient.size, exact=True)
        reducer.worker.do("mean of the workers", work)
        np.multiply(block.total[reducer.head :], np.float32(1 / len(rows)), out=out)
