"""`knltrain bench allreduce`: our sums over ranks beside MPI's own, checked first, then timed in turn.

Seconds are the median over rounds of the slowest rank. In every round MPI's blocking and non-blocking allreduce run
beside ours, so a noisy machine disturbs all alike; the ratio is to the better of the two.
"""

import time

import numpy as np

from ..comm import ALGORITHMS, WIRES, Links, make_block
from .rings import YARDSTICKS

SIZES = tuple(1 << k for k in range(10, 29, 2))  # bytes
ROUNDS = 5
ROUND_S = 0.01  # small exchanges are repeated until a round takes about so long
BASES = ("mpi", "mpi nonblocking")


def run(comm, sizes=None, algorithms=None, wires=None, pretended_nodes=0) -> tuple[list, str] | None:
    """What all ranks check and measure, for rank 0. ValueError: unknown names; RuntimeError: wrong sums."""
    if comm.size == 1:
        raise ValueError("found one rank; expected several: mpiexec -n 2 knltrain bench allreduce")
    sizes = sorted(sizes or SIZES)
    if sizes[0] < 4 or any(size % 4 for size in sizes):
        raise ValueError(f"--sizes {' '.join(map(str, sizes))}: expected multiples of 4 bytes, a float32")
    blocks = _blocks(comm, sizes[-1] // 4, algorithms, wires, pretended_nodes)
    for block in blocks.values():
        for size in sizes:
            _check(comm, block, size // 4)
    rows = [row for size in sizes for row in _measure(comm, blocks, size)]
    copy = _copy_bandwidth(comm)
    if comm.rank:
        return None
    links = next(iter(blocks.values())).links
    for row in rows:
        if len(links.nodes) == 1 and row["algorithm"] in ("auto", "hierarchical"):
            row["share_of_copy_limit"] = (comm.size + 1) * row["bytes"] / copy / row["seconds"]
    head = f"{comm.library}, {links}; copying moves {copy / 1e9:.1f} GB/s (read + written, all ranks at once)"
    return rows, f"{head}\n{_table(rows)}"


def _blocks(comm, floats, algorithms, wires, nodes) -> dict:
    """(algorithm, wire) → a block, all in the same memory. Left out is what cannot work here, unless asked for."""
    chosen = {}
    first = make_block(Links(comm, "hierarchical", pretended_nodes=nodes), floats)
    for algorithm in algorithms or (*ALGORITHMS, *YARDSTICKS):
        for wire in wires or WIRES:
            try:
                block = make_block(Links(comm, algorithm, wire, nodes, others=YARDSTICKS), floats, of=first)
            except ValueError:
                if algorithms and wires:
                    raise
                continue
            inside_only = block.blocks is not None and len(block.links.nodes) == 1
            if algorithm != "mpi" and not (inside_only and wire != "fp32"):  # nothing travels there
                chosen[algorithm, wire] = block
    return chosen


def _check(comm, block, floats):
    """Zeros and 2^-5: their sum over up to 256 ranks is exact in every format and every order."""
    here, one = np.arange(floats), np.float32(2.0**-5)
    expected = sum(((here + rank) % 3 == 0) * one for rank in range(comm.size))
    block.mine[:floats] = ((here + comm.rank) % 3 == 0) * one
    comm.barrier()
    block.allreduce(0, floats)
    right = bool(np.array_equal(block.total[:floats], expected))
    comm.barrier()
    if not all(comm.gather(right)):
        raise RuntimeError(f"{block} in {block.links.wire.name} gave a wrong sum of {4 * floats} bytes")


def _measure(comm, blocks, size) -> list[dict]:
    """One row for MPI's two ways and each block."""
    floats = size // 4
    vector = np.zeros(floats, np.float32)
    calls = {
        ("mpi", "fp32"): lambda: comm.sum(vector),
        ("mpi nonblocking", "fp32"): lambda: comm.sum(vector, blocking=False),
    }
    for key, block in blocks.items():
        block.mine[:floats] = 0  # sums of zeros stay zeros, however often
        calls[key] = lambda block=block: block.allreduce(0, floats)
    repeats = {key: _repeats(comm, call) for key, call in calls.items()}
    times = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            comm.barrier()
            begin = time.perf_counter()
            for _ in range(repeats[key]):
                call()
            times[key].append((time.perf_counter() - begin) / repeats[key])
    slowest = np.max(comm.gather([times[key] for key in calls]), axis=0)
    seconds = dict(zip(calls, np.median(slowest, axis=1).tolist(), strict=True))
    own = min(seconds[name, "fp32"] for name in BASES)
    return [
        {
            "ranks": comm.size,
            "bytes": size,
            "algorithm": algorithm,
            "wire": wire,
            "seconds": t,
            "ratio_to_mpi": own / t,
            "algorithm_bandwidth": size / t,
            "bus_bandwidth": 2 * (comm.size - 1) / comm.size * size / t,
        }
        for (algorithm, wire), t in seconds.items()
    ]


def _repeats(comm, call) -> int:
    call()
    begin = time.perf_counter()
    call()
    return max(comm.gather(int(max(1, min(200, ROUND_S / (time.perf_counter() - begin))))))


def _copy_bandwidth(comm) -> float:
    """Bytes per second, read and written, of all ranks copying 64 MB at once: the limit of sums in memory."""
    a, b = np.ones(1 << 24, np.float32), np.zeros(1 << 24, np.float32)
    times = []
    for _ in range(ROUNDS):
        comm.barrier()
        begin = time.perf_counter()
        np.copyto(b, a)
        times.append(time.perf_counter() - begin)
    slowest = np.max(comm.gather(times), axis=0)
    return comm.size * 2 * a.nbytes / float(np.median(slowest))


def _table(rows) -> str:
    lines = [f"{'bytes':>11}  {'algorithm':16} {'wire':4} {'time':>10}  {'alg':>7}  {'bus GB/s':>8}  x MPI  copy limit"]
    for row in rows:
        share = f"{row['share_of_copy_limit']:.0%}" if "share_of_copy_limit" in row else ""
        lines.append(
            f"{row['bytes']:11,}  {row['algorithm']:16} {row['wire']:4} {row['seconds'] * 1e6:7,.0f} us  "
            f"{row['algorithm_bandwidth'] / 1e9:7.2f}  {row['bus_bandwidth'] / 1e9:8.2f}  "
            f"{row['ratio_to_mpi']:5.2f}  {share:>6}"
        )
    return "\n".join(lines)
