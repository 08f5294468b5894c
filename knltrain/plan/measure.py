"""The machine file of this machine: its ceilings, and what share of them the ops of three networks reach.

Ops run on one core and are timed by the CPU time of their thread, of some looks at each the lower quartile. Only memory
on all cores, starting threads and sums are timed by the clock. Several ranks measure at the same time, so that each
sees what the others leave of caches, memory and, with more ranks than cores, of its core; and what a core spends on
sums is measured too. Ranks on different nodes, one on each, measure the network between them. Storage, and what else
one rank cannot see, is that of `extends`.
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
from ..bench.workload import Workload
from ..claims.whole import write_whole
from ..comm import Curve, Links, make_block
from ..comm import measure as curve_points
from ..layers import Observer
from ..node.hardware import machine_facts
from ..node.machine import take_share
from .cost import op_cost
from .exchange import between
from .machine import KNOWN, Machine, load_machine

NETWORKS = (("resnet50", 8), ("alexnet", 32), ("resnet_cifar20", 32))  # and images
LOOKS = 8  # at an op; at a ceiling, which takes milliseconds, PEAKS
PEAKS = 100
STREAM_BYTES = 64 << 20
SMALL_S = 2e-6  # of roofline: a call of such an op is nothing but a call
CACHE_SIZES = [1 << k for k in range(17, 27)]  # bytes
SUM_BYTES, SUMS = 1 << 25, 8  # larger than caches, as the gradients of a step are
BUCKETS, LINKS = (1 << 18, 1 << 22), (1 << 14, 1 << 24)  # bytes of a sum: beside computing, and alone
BESIDE = "resnet_cifar20", 16  # and images, computed while sums travel
ROUNDS = 100_000  # of products, half a millisecond
BASE = "skx8160"  # for what is not measured


class Times(Observer):
    """CPU seconds of each op; inside: those of all ops since it was set to 0."""

    def __init__(self):
        self.ops, self.start, self.inside = defaultdict(list), 0.0, 0.0

    def begin(self, op):
        self.start = time.thread_time()

    def end(self, op, seconds):
        taken = time.thread_time() - self.start
        self.inside += taken
        self.ops[op].append(taken)


def usual(times: list[float]) -> float:
    """The lower quartile: neighbours make a machine slower, and nothing is always as quick as at its best."""
    return sorted(times)[len(times) // 4]


def seconds_of(run, looks: int, clock=time.thread_time, of=min) -> float:
    """Seconds of the quickest of some calls, or what else `of` makes of their times."""
    times = []
    for _ in range(looks):
        begin = clock()
        run()
        times.append(clock() - begin)
    return of(times)


def measure(path: Path, comm) -> str:
    """Write the file of this machine to `path`, by rank 0; returns a line.

    Collective. Raises ValueError where there is no folder for the file, or several nodes have several ranks.
    """
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: found no folder {path.absolute().parent}; expected one for the machine file")
    near = comm.node()  # the ranks of this node
    if set(found := comm.gather(near.size)) - {1, comm.size}:  # all ranks see it, also one that is alone on its node
        raise ValueError(f"found {max(found)} of {comm.size} ranks on a node, expected all, or one: start it so")
    numbers = ceilings(near)
    rough = Machine("rough", numbers=dict.fromkeys(KNOWN, 1.0) | numbers | {"node.call_us": 0.0, "node.fork_us": 0.0})
    set_threads(1)
    looks = []
    for name, images in NETWORKS:
        comm.barrier()
        looks.append(usual_ops(name, images))
    comm.barrier()
    seen = [(op_cost(op, rough, 1), seconds) for ops, _ in looks for op, seconds in ops.items()]
    numbers["node.call_us"] = call_us(seen, between=looks[-1][1])  # of many small ops: there it counts
    numbers |= shares(seen, numbers["node.call_us"]) | sums(near, numbers["node.memory_gb_s"]) | exchanges(comm, near)
    if comm.rank == 0:
        write_whole(path, _toml(numbers))
        load_machine(path)
    return f"{path}: {numbers['node.core_gflops']:.0f} GFLOP/s and {numbers['node.core_memory_gb_s']:.0f} GB/s a core"


def ceilings(comm) -> dict[str, float]:
    """Arithmetic and memory of one core, memory and forks of all."""
    threads = take_share(comm).threads
    ceiling = Ceiling(STREAM_BYTES)
    comm.barrier()
    memory = sum(comm.gather(copy_rate(ceiling, STREAM_BYTES, time.perf_counter)))
    forked = seconds_of(lambda: fma_peak(1), 20 * PEAKS, time.perf_counter, usual)
    set_threads(1)
    alone = seconds_of(lambda: fma_peak(1), 20 * PEAKS, time.perf_counter, usual)
    peak = fma_peak(ROUNDS) / seconds_of(lambda: fma_peak(ROUNDS), PEAKS)
    core = copy_rate(ceiling, STREAM_BYTES)
    rates = {size: copy_rate(ceiling, size) for size in CACHE_SIZES}
    set_threads(threads)
    most = max((size for size, rate in rates.items() if rate > 1.5 * core), default=0)
    return {
        "node.cores": float(min(threads * comm.size, os.cpu_count())),
        "node.core_gflops": peak / 1e9,
        "node.memory_gb_s": max(min(memory, os.cpu_count() * core), core) / 1e9,  # ranks in turns look at other times
        "node.core_memory_gb_s": core / 1e9,
        "node.cache_mb": 2 * most / 1e6,  # both sides of a copy
        "node.core_cache_gb_s": rates[max(most // 4, CACHE_SIZES[0])] / 1e9,
    } | ({"node.fork_us": 1e6 * max(0.0, forked - alone)} if threads > 1 else {})


def sums(near, memory_gb_s: float) -> dict[str, float]:
    """What a sum over the ranks of a node costs in shared memory."""
    if near.size == 1:
        return {}
    block = make_block(Links(near, "hierarchical"), SUM_BYTES // 4)
    ((_, taken),) = curve_points(partial(block.allreduce, 0, SUM_BYTES // 4), [SUM_BYTES], near.gather, SUMS)
    return {"program.node_sum": min((near.size + 1) * SUM_BYTES / (1e9 * memory_gb_s) / taken, 2.0)}


def exchanges(comm, near) -> dict[str, float]:
    """What a sum by messages costs a core that computes; and the network, where the ranks are on nodes of their own."""
    if comm.size == 1 or not comm.threads_may_call:
        return {}
    nodes = comm.size if near.size > 1 else 0  # that are pretended
    block = make_block(Links(comm, pretended_nodes=nodes), LINKS[1] // 4)
    even = comm.size & (comm.size - 1) == 0
    sent = between(comm.size, LINKS[1], Curve(0.0, LINKS[1]), even)  # bytes for each of a sum
    found = {}
    if near.size == 1:

        def run(nbytes):  # as in a step, in buckets
            for start in range(0, nbytes, BUCKETS[1]):
                block.allreduce(start // 4, min(start + BUCKETS[1], nbytes) // 4)

        (small, small_s), (large, large_s) = curve_points(run, LINKS, comm.gather)
        beta = sent * large / large_s  # where a latency is nothing; what a switch lets pass at once, little
        late = max(small_s - between(comm.size, small, Curve(0.0, beta), even), 1e-7)
        alpha = late / between(comm.size, 0, Curve(1.0, 1.0), even)  # by its messages
        found = {"network.gb_s": beta / 1e9, "network.latency_us": 1e6 * alpha}
    small, large = beside_computing(comm, block)
    rate = max(0.0, large - small) / (BUCKETS[1] - BUCKETS[0])
    cycles, once = rate / sent * 1e9 * load_machine(BASE).core_ghz, max(0.0, small - rate * BUCKETS[0])
    return found | {"program.exchange_cycles": cycles, "program.exchange_us": 1e6 * once}


def beside_computing(comm, block) -> list[float]:
    """CPU seconds of the slowest rank that a sum of so many bytes adds to steps which it computes meanwhile.

    Steps, not a loop: what the exchange throws out of the caches is part of its cost.
    """
    workload, found = Workload(*BESIDE), []

    def exchange(nbytes):
        for _ in range(SUMS):
            block.allreduce(0, nbytes // 4)

    def steps(thread):
        """CPU seconds of a step until the thread ends, and their number."""
        begin, count = time.process_time(), 0
        thread.start()
        while thread.is_alive() or not count:
            workload.step()
            count += 1
        return time.process_time() - begin, count

    workload.step()
    for nbytes in BUCKETS:
        added = []
        for _ in range(SUMS):
            alone, _ = steps(threading.Thread())
            comm.barrier()
            both, count = steps(threading.Thread(target=exchange, args=(nbytes,)))
            added.append((both - count * alone) / SUMS)
        found.append(max(comm.gather(max(0.0, statistics.median(added)))))
    return found


def copy_rate(ceiling: Ceiling, nbytes: int, clock=time.thread_time) -> float:
    """bytes/s of a copy of so many bytes, read and written, by the quicker way."""
    source, target = (array[: nbytes // 4] for array in (ceiling.source, ceiling.target))
    repeats = max(1, (1 << 22) // nbytes)

    def copy(name):
        for _ in range(repeats):
            stream(name, source, target)

    seconds = (seconds_of(lambda name=name: copy(name), 6 * LOOKS, clock) for name in ("copy", "copy past the caches"))
    return 2 * nbytes * repeats / min(seconds)


def usual_ops(name: str, images: int) -> tuple[dict, float]:
    """Usual CPU seconds of every op of a step, and of what is between two.

    The latter is what a step took besides its own ops: against the usual ones every disturbance of a step would count
    as time between.
    """
    workload, times, outside = Workload(name, images), Times(), []
    workload.step()
    workload.observe(times)
    for _ in range(LOOKS):
        times.inside, begin = 0.0, time.thread_time()
        workload.step()
        outside.append(time.thread_time() - begin - times.inside)
    workload.observe(None)
    return {op: usual(seconds) for op, seconds in times.ops.items()}, max(0.0, usual(outside)) / len(times.ops)


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


def _toml(numbers: dict) -> str:
    lines = [f'extends = "{BASE}"', ""]
    for section in ("node", "network", "program", "shares"):
        own = {name.partition(".")[2]: value for name, value in numbers.items() if name.startswith(f"{section}.")}
        if own:
            lines.append(f"[{section}]")
            lines += [f"processor = {json.dumps(machine_facts()['processor'])}"] if section == "node" else []
            lines += [f'{key} = [{value:.4g}, "measured here"]' for key, value in own.items()] + [""]
    return "\n".join(lines)
