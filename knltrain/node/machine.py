"""Which cores and which memory of its node a rank uses, and for what: decided from the topology, printed as a table.

    ranks of a node that a launcher has bound to cores of their own keep them; ranks that share a mask divide its cores
    compute           one thread a core
    communication     with several ranks: the last core of a rank that has 8 or more, two of 64 or more
    readers           as many, before those
    memory            fast memory without CPUs (KNL, Xeon Max in flat mode) is preferred

Overrides, each one line of the table: KNLTRAIN_THREADS=60 (else NUMBA_NUM_THREADS, else OMP_NUM_THREADS),
KNLTRAIN_COMPUTE_CPUS=0-59, KNLTRAIN_READER_CPUS=64,65, KNLTRAIN_COMMUNICATION_CPUS=66,67 (on every node alike, so for
one rank a node), KNLTRAIN_MEMORY=8-15 (empty: left alone). Threads are pinned with KNLTRAIN_BIND=1, which a job sets
as it has its nodes alone. Memory is placed by first touch: the blocks are zero pages until the compute threads write
to them.
"""

import ctypes
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numba

from knltrain.kernels import fma_peak, product, set_threads

from .hardware import Topology, format_list, machine_facts, parse_list, read_topology

RESERVE_FROM, RESERVE_TWO_FROM = 8, 64  # cores of a rank
PEAK_ROUNDS = 20_000  # about 100 us: much more than starting the threads takes
THREADS = ("KNLTRAIN_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")  # the first that is set counts
FAST_MEMORY = ("Xeon Phi", "CPU Max")  # processors whose memory without CPUs is the fast one
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_PREFERRED, _PREFERRED_MANY = 1, 5


@dataclass(frozen=True)
class Placement:
    """What of this node belongs to this rank: lists of logical CPUs, and the NUMA nodes whose memory is preferred."""

    compute: list
    communication: list
    readers: list
    memory: list
    threads: int
    ranks_on_node: int
    bound: bool = False
    first_on_node: bool = True
    spans: list = field(default_factory=list)  # NUMA nodes of the compute CPUs
    threads_by: str = ""  # the variable that says how many

    @contextmanager
    def on(self, role: str):
        """Threads that are started inside run on the CPUs of "communication" or "readers": they inherit the mask."""
        cpus = getattr(self, role)
        if not (self.bound and cpus):
            yield
            return
        os.sched_setaffinity(0, cpus)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.compute)


def plan(topology: Topology, neighbours: int, position: int, environment=os.environ, processor: str = "") -> Placement:
    """The placement of rank number `position` of the `neighbours` on a node that share the topology's CPUs.

    Raises ValueError for an override that is no list of CPUs, or of CPUs that this rank does not have.
    """
    cores, share = list(topology.cores), max(1, len(topology.cores) // neighbours)
    if neighbours > 1:
        first = position * share % len(cores)
        cores = cores[first : first + share]
    reserved = 0 if len(cores) < RESERVE_FROM else 2 if len(cores) >= RESERVE_TWO_FROM else 1
    split = len(cores) - 2 * reserved
    parts = {
        "compute": [core[0] for core in cores[:split]],
        "reader": [cpu for core in cores[split : split + reserved] for cpu in core],
        "communication": [cpu for core in cores[split + reserved :] for cpu in core],
    }
    allowed = {cpu for core in topology.cores for cpu in core}
    for part in parts:
        name = f"KNLTRAIN_{part.upper()}_CPUS"
        if environment.get(name):
            parts[part] = _numbers(name, environment[name], allowed)
    threads, threads_by = len(parts["compute"]), ""
    for name in THREADS:
        if environment.get(name):
            threads = _numbers(name, environment[name].partition(",")[0], range(1, 4097))[0]
            threads_by = name
            break
    memory = topology.memory_only if any(name in processor for name in FAST_MEMORY) else []
    if "KNLTRAIN_MEMORY" in environment:
        memory = _numbers("KNLTRAIN_MEMORY", environment["KNLTRAIN_MEMORY"], topology.nodes)
    spans = sorted({topology.node_of(cpu) for cpu in parts["compute"]})
    bound = environment.get("KNLTRAIN_BIND") == "1"
    return Placement(
        parts["compute"], parts["communication"], parts["reader"], memory, threads, neighbours, bound, spans=spans,
        threads_by=threads_by,
    )  # fmt: skip


def _numbers(name, text, allowed):
    try:
        numbers = parse_list(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    wrong = sorted(set(numbers) - set(allowed))
    if wrong:
        raise ValueError(f"{name}={text}: found {format_list(wrong)}, expected some of {format_list(allowed)}")
    return numbers


def take_share(comm) -> Placement:
    """Give this rank its share of the node, and say which. There are never more threads than Numba was started with."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    place = [socket.gethostname(), cpus]
    places = comm.gather(place)
    same, on_node = places.count(place), sum(host == place[0] for host, _ in places)
    placement = plan(read_topology(cpus), same, places[: comm.rank].count(place), processor=_processor())
    threads = min(placement.threads, numba.config.NUMBA_NUM_THREADS)
    if placement.bound:
        os.sched_setaffinity(0, placement.compute)
    if placement.memory and not _prefer_memory(placement.memory):
        placement = replace(placement, memory=[])
    set_threads(threads)
    first = all(host != place[0] for host, _ in places[: comm.rank])
    return replace(placement, threads=threads, ranks_on_node=on_node, first_on_node=first)


def best_rate(run, seconds: float) -> float:
    """Work a second: the best of the calls of `run`, which returns the work it did, that fit into so many seconds."""
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work = run()
        best = max(best, work / (time.perf_counter() - begin))
    return best


def arithmetic_peak(seconds: float, precision: str = "fp32") -> float:
    """flop/s of multiply-adds in registers on all threads of this rank, as convolutions of a precision multiply."""
    multiplied = product(precision)
    fma_peak(1, multiplied)  # compiles
    return best_rate(lambda: fma_peak(PEAK_ROUNDS, multiplied), seconds)


def _processor() -> str:
    return machine_facts()["processor"]


def _prefer_memory(nodes: list) -> bool:
    """As `numactl --preferred-many`, for this process; False where the system refuses."""
    number = _SET_MEMPOLICY.get(os.uname().machine)
    if number is None:
        return False
    mask = (ctypes.c_ulong * 16)()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    libc = ctypes.CDLL(None)
    policy = _PREFERRED_MANY if len(nodes) > 1 else _PREFERRED
    return libc.syscall(number, policy, ctypes.byref(mask), ctypes.c_ulong(8 * ctypes.sizeof(mask))) == 0
