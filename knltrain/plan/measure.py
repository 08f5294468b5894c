"""The machine file of this machine: its ceilings, and what share of them the ops of three networks reach.

The best of some looks at each op and each ceiling: a neighbour's work makes a machine slower, never quicker. Network
and storage cannot be seen from one process: what an allreduce between nodes took may be given, the rest is `extends`.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

import numba

from knltrain.kernels import set_threads, stream

from ..bench.ceiling import Ceiling, clock
from ..bench.workload import Workload
from ..comm import Curve, predicted
from ..journal import machine_facts
from ..layers import Observer
from ..whole import write_whole
from .cost import op_cost
from .machine import KNOWN, Machine, load_machine

NETWORKS = (("resnet50", 8), ("alexnet", 16), ("resnet_cifar20", 32))  # and images
LOOKS = 12  # at an op; at a ceiling, which takes milliseconds, PEAKS
PEAKS = 150
STREAM_BYTES = 64 << 20
SMALL_S = 2e-6  # of roofline: a call of such an op is nothing but a call
CACHE_SIZES = [1 << k for k in range(17, 27)]  # bytes
BASE = "skx8160"  # for what is not measured


class Best(Observer):
    """The least seconds of each op."""

    def __init__(self):
        self.ops = {}

    def end(self, op, seconds):
        self.ops[op] = min(seconds, self.ops.get(op, seconds))


def measure(path: Path, allreduce: Path | None = None) -> str:
    """Write the file of this machine to `path`; returns a line. allreduce: rows of `bench allreduce --json`.

    Raises ValueError for rows that are no such thing.
    """
    link = read_link(allreduce) if allreduce else {}
    numbers = ceilings()
    rough = Machine("rough", numbers=dict.fromkeys(KNOWN, 1.0) | numbers | {"node.call_us": 0.0, "node.fork_us": 0.0})
    threads, looks = int(numbers["node.cores"]), [best_ops(name, images) for name, images in NETWORKS]
    seen = [(op_cost(op, rough, threads), seconds) for ops, _ in looks for op, seconds in ops.items()]
    ops, step = looks[-1]  # of many small ops: there the time between them counts
    numbers |= calls(seen, threads, between=max(0.0, step - sum(ops.values())) / len(ops))
    numbers |= shares(seen, numbers, threads)
    text = _toml(numbers | link)
    write_whole(path, text)
    load_machine(path)
    return f"{path}: {numbers['node.core_gflops']:.0f} GFLOP/s and {numbers['node.core_memory_gb_s']:.0f} GB/s a core"


def ceilings() -> dict[str, float]:
    """Arithmetic and memory, of all cores and of one."""
    threads, found = numba.get_num_threads(), {}
    for count in (threads, 1):
        set_threads(count)
        ceiling = Ceiling(STREAM_BYTES)
        found[count] = max(ceiling.peak() for _ in range(PEAKS)), best_rate(ceiling, STREAM_BYTES)
    rates = {size: best_rate(ceiling, size) for size in CACHE_SIZES}
    set_threads(threads)
    most = max((size for size, rate in rates.items() if rate > 1.5 * found[1][1]), default=0)
    return {
        "node.cores": float(threads),
        "node.core_gflops": found[threads][0] / threads / 1e9,
        "node.memory_gb_s": found[threads][1] / 1e9,
        "node.core_memory_gb_s": found[1][1] / 1e9,
        "node.cache_mb": 2 * most / 1e6,  # both sides of a copy
        "node.core_cache_gb_s": rates[max(most // 4, CACHE_SIZES[0])] / 1e9,
    }


def best_rate(ceiling: Ceiling, nbytes: int) -> float:
    """bytes/s of a copy of so many bytes, read and written, by the quicker way."""
    source, target = (array[: nbytes // 4] for array in (ceiling.source, ceiling.target))
    repeats = max(1, (1 << 22) // nbytes)

    def copy(name):
        for _ in range(repeats):
            stream(name, source, target)

    ways = ("copy", "copy past the caches")
    return 2 * nbytes * repeats / min(clock(copy, name) for name in ways for _ in range(4 * LOOKS))


def best_ops(name: str, images: int) -> tuple[dict, float]:
    """Least seconds of every op of a step, and of the whole."""
    workload, best = Workload(name, images), Best()
    workload.step()
    workload.observe(best)
    whole = min(clock(workload.step) for _ in range(LOOKS))
    workload.observe(None)
    return best.ops, whole


def calls(seen, threads: int, between: float) -> dict[str, float]:
    """us of a call, with the seconds between two ops, and of a fork, from ops that do hardly anything."""
    small = [(cost.tasks, seconds) for cost, seconds in seen if cost.roofline < SMALL_S]
    alone = statistics.median([seconds for tasks, seconds in small if tasks == 1] or [0.0])
    many = statistics.median([seconds for tasks, seconds in small if tasks > 1] or [alone])
    fork = max(0.0, many - alone) if threads > 1 else 0.0
    return {"node.call_us": 1e6 * (alone + between), "node.fork_us": 1e6 * fork}


def shares(seen, numbers: dict, threads: int) -> dict[str, float]:
    """Of the roofline, by what an op does: all its ideal seconds over all it took, calls not counted."""
    ideal, taken = defaultdict(float), defaultdict(float)
    for cost, seconds in seen:
        fixed = numbers["node.call_us"] + (numbers["node.fork_us"] if cost.tasks > 1 and threads > 1 else 0.0)
        if cost.roofline >= SMALL_S:
            ideal[cost.share] += cost.roofline
            taken[cost.share] += max(seconds - 1e-6 * fixed, seconds / 10)
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
    for section in ("node", "network", "shares"):
        own = {name.partition(".")[2]: value for name, value in numbers.items() if name.startswith(f"{section}.")}
        if own:
            lines.append(f"[{section}]")
            lines += [f"processor = {json.dumps(machine_facts()['processor'])}"] if section == "node" else []
            lines += [f'{key} = [{value:.4g}, "measured here"]' for key, value in own.items()] + [""]
    return "\n".join(lines)
