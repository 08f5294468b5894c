"""Run by test_comm_exchange under mpiexec: every algorithm against sums that are known, on all ranks.

Arguments: a JSON list of [algorithm, wire, pretended nodes], and a JSON list of sizes in floats.
"""

import json
import sys
import time

import numpy as np

from knltrain.bench.rings import YARDSTICKS
from knltrain.comm import Links, make_block, world


def numbers(rank: int, size: int) -> np.ndarray:
    """Small whole numbers over 16: every order of sums, and every wire format, gives them exactly."""
    return ((np.arange(size) * 7 + rank * 13) % 16).astype(np.float32) / 16


def check(comm, algorithm, wire, nodes, sizes):
    block = make_block(Links(comm, algorithm, wire, nodes, others=YARDSTICKS), max(sizes))
    mine, same = block.mine, "allreduce"
    for size in sizes:
        expected = sum(numbers(rank, size) for rank in range(comm.size))
        mine[:size] = numbers(comm.rank, size)
        block.allreduce(0, size)
        if not np.array_equal(block.total[:size], expected):
            raise RuntimeError(f"{algorithm} {wire} {nodes} {size}: {same} is wrong on rank {comm.rank}")
        block.release()
        if algorithm in ("mpi", "doubling", "tree"):
            continue
        mine[:size] = numbers(comm.rank, size)
        part = block.part(0, size)
        block.reduce_scatter(0, size)
        if not np.array_equal(block.total[part], expected[part]):
            raise RuntimeError(f"{algorithm} {wire} {nodes} {size}: reduce_scatter is wrong on rank {comm.rank}")
        block.total[part] *= np.float32(1.1)  # as an update would, to numbers that do not fit into 16 bits
        block.allgather(0, size)
        if not np.array_equal(block.total[:size], expected * np.float32(1.1)):
            raise RuntimeError(f"{algorithm} {wire} {nodes} {size}: allgather is wrong on rank {comm.rank}")
        block.release()
        covered = sum(comm.gather(part.stop - part.start))
        if covered != size:
            raise RuntimeError(f"{algorithm} {wire} {nodes} {size}: parts cover {covered} floats")


def check_in_a_row(comm, algorithm, wire, nodes):
    """Slices of all sizes one after the other, as buckets are, by ranks that are late in turn."""
    sizes = [16, 48, 5000, 16, 40_000, 1, 30, 16] * 2
    block = make_block(Links(comm, algorithm, wire, nodes, others=YARDSTICKS), sum(sizes))
    mine = block.mine
    for round_ in range(2):
        mine[:] = numbers(comm.rank + round_, mine.size)
        start = 0
        for i, size in enumerate(sizes):
            time.sleep(1e-3 * (i % comm.size == comm.rank))
            block.allreduce(start, start + size)
            start += size
        expected = sum(numbers(rank + round_, mine.size) for rank in range(comm.size))
        if not np.array_equal(block.total, expected):
            raise RuntimeError(f"{algorithm} {wire} {nodes}: slices in a row are wrong on rank {comm.rank}")
        block.release()


if __name__ == "__main__":
    communicator = world()
    for case in json.loads(sys.argv[1]):
        check(communicator, *case, json.loads(sys.argv[2]))
        check_in_a_row(communicator, *case)
    communicator.barrier()
