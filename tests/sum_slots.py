"""Run by test_comm_reducer under mpiexec: sum known slot gradients over all ranks, write rank 0's bits to a file."""

import json
import sys
from functools import partial

import numpy as np

from knltrain.arena import Parameter, Parameters, Statistic
from knltrain.comm import Links, Reducer, Shares, Travel, make_block, world


def slot_gradient(slot: int, size: int) -> np.ndarray:
    """Numbers of very different size, so that another order of additions gives other bits."""
    rng = np.random.default_rng(slot)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-6, 6, size)).astype(np.float32)


def sum_slots(comm, slots: int, bucket_bytes: int, steps: int = 2, **options) -> np.ndarray:
    """The sums after `steps` steps over `slots` slots, of which this rank runs its share; options: of Links."""
    parameters = Parameters()
    for name, shape in (("a", (3, 5)), ("b", (700,)), ("c", (1,)), ("d", (33, 7))):
        parameters.add(Parameter(name, shape, lambda rng, shape=shape: np.zeros(shape, np.float32)))
    parameters.add(Statistic("mean", (17,), 0.0, 0.9))
    overlap, warming = options.pop("overlap", True), options.pop("warming", False)
    shares = Shares.of(slots, options.pop("speeds", [1.0] * comm.size), options.pop("workers", 0))
    parameters.allocate(0, partial(make_block, Links(comm, shares=shares, **options)))
    reducer = Reducer(parameters, Travel(parameters, parameters.block, bucket_bytes, overlap=overlap))
    for _ in range(steps):
        reducer.begin_step(warming, 0.0)
        for slot in shares.ranges[comm.rank]:
            parameters.gradient[:] = slot_gradient(slot, parameters.gradient.size)
            for parameter in reversed(parameters.parameters):
                reducer.ready(parameter)
            reducer.end_slot()
        total = np.zeros(parameters.gradient.size, np.float32)  # filled by name: the padding in between stays zero
        for parameter in reducer.reduced():
            here = parameters.gradient_slice(parameter)
            total[here] = parameters.block.total[here]
        reducer.end_step()
        total[: parameters.head] = parameters.gradient[: parameters.head]
    reducer.close()
    return total


if __name__ == "__main__":
    communicator = world()
    total = sum_slots(communicator, int(sys.argv[1]), int(sys.argv[2]), **json.loads(sys.argv[4]))
    same = communicator.gather(total.tobytes().hex())
    if len(set(same)) != 1:
        raise RuntimeError("ranks disagree")
    if communicator.rank == 0:
        np.save(sys.argv[3], total)
