"""The machine file of this machine: its ceilings, and what share of them the ops of three networks reach.

Ops run on one core and are timed by the CPU time of their thread, the best of some looks: a neighbour's work makes a
machine slower, never quicker. Only memory on all cores, starting threads and sums are timed by the clock. Several ranks
measure at the same time, so that each sees what the others leave of caches, memory and, with more ranks than cores, of
its core; and what a core spends on sums is measured too. Network and storage cannot be seen from one machine: what an
allreduce between nodes took may be given, the rest is `extends`.
"""

import json
import os
import statistics
import threading
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

from knltrain.kernels import fma_peak, set_threads, stream

from ..bench.ceiling import Ceiling
from ..bench.rings import predicted
from ..bench.workload import Workload
from ..claims.whole import write_whole
from ..comm import Curve, Links, make_block
from ..comm import measure as curve_points
from ..layers import Observer
from ..node.hardware import machine_facts
from ..node.machine import take_share
from .cost import op_cost
from .machine import KNOWN, Machine, load_machine

NETWORKS = (("resnet50", 8), ("alexnet", 32), ("resnet_cifar20", 32))  # and images
LOOKS = 8  # at an op; at a ceiling, which takes milliseconds, PEAKS
PEAKS = 100
STREAM_BYTES = 64 << 20
SMALL_S = 2e-6  # of roofline: a call of such an op is nothing but a call
CACHE_SIZES = [1 << k for k in range(17, 27)]  # bytes
SUM_BYTES, SUMS = 1 << 25, 8  # larger than caches, as the gradients of a step are
BUCKETS, ROUNDS = (1 << 18, 1 << 22), 20_000  # bytes; of products, about 100 us
BASE = "skx8160"  # for what is not measured


class Best(Observer):
    """The least CPU seconds of each op; inside: those of all ops since it was set to 0."""

    def __init__(self):
        self.ops, self.start, self.inside = {}, 0.0, 0.0

    def begin(self, op):
        self.start = time.thread_time()

    def end(self, op, seconds):
        taken = time.thread_time() - self.start
        self.inside += taken
        self.ops[op] = min(taken, self.ops.get(op, seconds))


def least(run, looks: int, clock=time.thread_time) -> float:
    """Seconds of the quickest of some calls."""
    times = []
    for _ in range(looks):
        begin = clock()
        run()
        times.append(clock() - begin)
    return min(times)


def measure(path: Path, comm, allreduce: Path | None = None) -> str:
    """Write the file of this machine to `path`, by rank 0; returns a line. allreduce: rows of `bench allreduce --json`.

    Collective. Raises ValueError for rows that are no such thing, or where there is no folder for the file.
    """
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: found no folder {path.absolute().parent}; expected one for the machine file")
    link = read_link(allreduce) if allreduce else {}
    numbers = ceilings(comm)
    rough = Machine("rough", numbers=dict.fromkeys(KNOWN, 1.0) | numbers | {"node.call_us": 0.0, "node.fork_us": 0.0})
    set_threads(1)
    looks = []
    for name, images in NETWORKS:
        comm.barrier()
        looks.append(best_ops(name, images))
    comm.barrier()
    seen = [(op_cost(op, rough, 1), seconds) for ops, _ in looks for op, seconds in ops.items()]
    numbers["node.call_us"] = call_us(seen, between=looks[-1][1])  # of many small ops: there it counts
    numbers |= shares(seen, numbers["node.call_us"]) | sums(comm, numbers["node.memory_gb_s"])
    if comm.rank == 0:
        write_whole(path, _toml(numbers | link))
        load_machine(path)
    return f"{path}: {numbers['node.core_gflops']:.0f} GFLOP/s and {numbers['node.core_memory_gb_s']:.0f} GB/s a core"


def ceilings(comm) -> dict[str, float]:
    """Arithmetic and memory of one core, memory and forks of all."""
    threads = take_share(comm).threads
    ceiling = Ceiling(STREAM_BYTES)
    comm.barrier()
    memory = sum(comm.gather(copy_rate(ceiling, STREAM_BYTES, time.perf_counter)))
    forked = least(lambda: fma_peak(1), 20 * PEAKS, time.perf_counter)
    set_threads(1)
    alone = least(lambda: fma_peak(1), 20 * PEAKS, time.perf_counter)
    rounds = 5 * ROUNDS
    peak = fma_peak(rounds) / least(lambda: fma_peak(rounds), PEAKS)
    core = copy_rate(ceiling, STREAM_BYTES)
    rates = {size: copy_rate(ceiling, size) for size in CACHE_SIZES}
    set_threads(threads)
    most = max((size for size, rate in rates.items() if rate > 1.5 * core), default=0)
    return {
        "node.cores": float(min(threads * comm.size, os.cpu_count())),
        "node.core_gflops": peak / 1e9,
        "node.memory_gb_s": max(memory, core) / 1e9,
        "node.core_memory_gb_s": core / 1e9,
        "node.cache_mb": 2 * most / 1e6,  # both sides of a copy
        "node.core_cache_gb_s": rates[max(most // 4, CACHE_SIZES[0])] / 1e9,
    } | ({"node.fork_us": 1e6 * max(0.0, forked - alone)} if threads > 1 else {})


def sums(comm, memory_gb_s: float) -> dict[str, float]:
    """What a sum over these ranks costs: in shared memory, and a core that computes, by messages as between nodes."""
    if comm.size == 1:
        return {}
    block = make_block(Links(comm, "hierarchical"), SUM_BYTES // 4)
    ((_, taken),) = curve_points(partial(block.allreduce, 0, SUM_BYTES // 4), [SUM_BYTES], comm.gather, SUMS)
    found = {"program.node_sum": min((comm.size + 1) * SUM_BYTES / (1e9 * memory_gb_s) / taken, 2.0)}
    if not comm.threads_may_call:
        return found
    block = make_block(Links(comm, pretended_nodes=comm.size), BUCKETS[1] // 4)
    small, large = (beside_computing(comm, block, nbytes) for nbytes in BUCKETS)
    rate = max(0.0, large - small) / (BUCKETS[1] - BUCKETS[0])
    name = "halving" if comm.size & (comm.size - 1) == 0 else "direct"
    cycle = predicted(name, comm.size, 1, Curve(0.0, 1e9 * load_machine(BASE).core_ghz))
    cycles, once = rate / cycle, max(0.0, small - rate * BUCKETS[0])
    return found | {"program.exchange_cycles": cycles, "program.exchange_us": 1e6 * once}


def beside_computing(comm, block, nbytes: int) -> float:
    """CPU seconds of the slowest rank that a sum of so many bytes adds to what a core computes meanwhile."""
    alone = least(lambda: fma_peak(ROUNDS), PEAKS)

    def exchange():
        for _ in range(SUMS):
            block.allreduce(0, nbytes // 4)

    added = []
    for _ in range(SUMS):
        thread, calls = threading.Thread(target=exchange), 0
        comm.barrier()
        begin = time.process_time()
        thread.start()
        while thread.is_alive():
            fma_peak(ROUNDS)
            calls += 1
        added.append((time.process_time() - begin - calls * alone) / SUMS)
    return max(comm.gather(min(added)))


def copy_rate(ceiling: Ceiling, nbytes: int, clock=time.thread_time) -> float:
    """bytes/s of a copy of so many bytes, read and written, by the quicker way."""
    source, target = (array[: nbytes // 4] for array in (ceiling.source, ceiling.target))
    repeats = max(1, (1 << 22) // nbytes)

    def copy(name):
        for _ in range(repeats):
            stream(name, source, target)

    seconds = (least(lambda name=name: copy(name), 6 * LOOKS, clock) for name in ("copy", "copy past the caches"))
    return 2 * nbytes * repeats / min(seconds)


def best_ops(name: str, images: int) -> tuple[dict, float]:
    """Least CPU seconds of every op of a step, and of what is between two.

    The latter is what a step took besides its own ops: against the least of each op, which a busy machine grants now
    and then, every disturbance of a step would count as time between.
    """
    workload, best, outside = Workload(name, images), Best(), []
    workload.step()
    workload.observe(best)
    for _ in range(LOOKS):
        best.inside, begin = 0.0, time.thread_time()
        workload.step()
        outside.append(time.thread_time() - begin - best.inside)
    workload.observe(None)
    return best.ops, max(0.0, min(outside)) / len(best.ops)


def call_us(seen, between: float) -> float:
    """us of a call, with the seconds between two ops, from ops that do hardly anything."""
    small = [seconds for cost, seconds in seen if cost.roofline < SMALL_S]
    return 1e6 * (statistics.median(small or [0.0]) + between)


def shares(seen, call: float) -> dict[str, float]:
    """Of the roofline, by what an op does: all its ideal seconds over all it took, calls of `call` us not counted."""
    ideal, taken = defaultdict(float), defaultdict(float)
    for cost, seconds in seen:
        if cost.roofline >= SMALL_S:
            ideal[cost.share] += cost.roofline
            taken[cost.share] += max(seconds - 1e-6 * call, seconds / 10)
    return {f"shares.{name}": min(ideal[name] / taken[name], 2.0) for name in ideal}


def read_link(path: Path) -> dict[str, float]:
    """Latency and bytes/s between nodes, from rows of one algorithm between ranks on different nodes."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in rows if row["algorithm"] in ("halving", "ring") and row["wire"] == "fp32"]
        points = sorted((row["bytes"], float(row["seconds"]), row["algorithm"], int(row["ranks"])) for row in rows)
        (small, least, name, ranks), (large, most, _, _) = points[0], points[-1]
        one = Curve(0.0, 1.0)
        share = predicted(name, ranks, 1, one)  # bytes that are sent for each
        beta = share * (large - small) / (most - least)
        messages = predicted(name, ranks, 0, Curve(1.0, 1.0))
        alpha = max((least - share * small / beta) / messages, 1e-7)
    except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        expected = "expected what `bench allreduce --algorithms halving --wires fp32 --json` prints, of two sizes"
        raise ValueError(f"{path}: {expected} ({type(error).__name__})") from None
    return {"network.gb_s": beta / 1e9, "network.latency_us": 1e6 * alpha}


def _toml(numbers: dict) -> str:
    lines = [f'extends = "{BASE}"', ""]
    for section in ("node", "network", "program", "shares"):
        own = {name.partition(".")[2]: value for name, value in numbers.items() if name.startswith(f"{section}.")}
        if own:
            lines.append(f"[{section}]")
            lines += [f"processor = {json.dumps(machine_facts()['processor'])}"] if section == "node" else []
            lines += [f'{key} = [{value:.4g}, "measured here"]' for key, value in own.items()] + [""]
    return "\n".join(lines)
