"""Run by test_comm_wire under mpiexec: sums of random numbers in every wire format; rank 0 writes what it found.

Arguments: algorithm, pretended nodes, file for {wire: [bytes sent, largest error, mean error, digest of the sum]}.
Errors are relative to the sum of magnitudes, element by element.
"""

import json
import sys

import numpy as np

from knltrain.comm import WIRES, Links, make_block, world
from knltrain.kernels import digest

SIZE = 100_000

if __name__ == "__main__":
    comm, algorithm, nodes = world(), sys.argv[1], int(sys.argv[2])
    numbers = [np.random.default_rng(rank).standard_normal(SIZE).astype(np.float32) for rank in range(comm.size)]
    exact = np.sum(numbers, axis=0, dtype=np.float64)
    size = np.sum(np.abs(numbers), axis=0)
    result = {}
    for wire in WIRES:
        block = make_block(Links(comm, algorithm, wire, nodes), SIZE)
        block.mine[:] = numbers[comm.rank]
        before = comm.sent_bytes
        block.allreduce(0, SIZE)
        sent = comm.sent_bytes - before
        error = np.abs(block.total - exact) / size
        whole = digest(block.total)
        if len(set(comm.gather(whole))) != 1:
            raise RuntimeError(f"{wire}: ranks disagree")
        block.mine[:] = numbers[comm.rank]
        block.release()
        for start in range(0, SIZE, 30_000):  # in other buckets
            block.allreduce(start, min(SIZE, start + 30_000))
        in_buckets = digest(block.total)
        result[wire] = [sent, float(error.max()), float(error.mean()), whole == in_buckets]
        comm.barrier()
    if comm.rank == 0:
        with open(sys.argv[3], "w") as file:
            json.dump(result, file)
