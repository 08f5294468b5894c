"""How long the sums of gradients take over nodes, and how much of that backward does not hide.

A message costs latency + bytes / beta, beta = min(gb_s / ranks of a node, core_ghz / exchange_cycles): the link, or
the core that sends and sums. In a node of L ranks memory moves (L + 1) n bytes. Between nodes each rank has n / L of
them (`between`).

fully connected layers, each of weights (C, K), B images in all, P nodes, groups of G nodes (bytes that a node sends):
    sum       2 (P - 1) / P C K numbers, as any gradient
    factors   (P - 1) / P B (C + K), in the type of x: every node is given all of x and dy, and makes the whole dw after
              backward, P times the flops
    split     2 (P / G - 1) / (P / G) C K / G, and (G - 1) / P B (2 C / G + 2 K) of activations, which nothing hides
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..comm import Curve
from ..comm.block import SMALL_BYTES
from ..layers import Program, dense_ops
from .cost import StepCost
from .machine import Machine

WIRE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1 + 1 / 256}
FC_MODES = ("sum", "factors", "split")


class Scheme(NamedTuple):
    """nodes x ranks a node; wire: format of gradients; fc: of FC_MODES; group: nodes that share a split layer.

    parts: sums that a node sends, on average; 0: one, with equal shares in a power of two and a format that adds.
    """

    nodes: int
    ranks: int = 1
    wire: str = "fp32"
    fc: str = "sum"
    group: int = 8
    parts: float = 0.0


class Job(NamedTuple):
    """A sum: seconds from the start of the last backward pass to when it may start, and what it takes."""

    ready: float
    core: float  # seconds in which a core sums and sends
    wire: float  # seconds in which it waits


@dataclass(frozen=True)
class Exchanged:
    """Of a step. exposed: seconds by which it is longer; total: seconds of all sums; sent: bytes that a node sends."""

    total: float
    exposed: float
    buckets: int
    bucket_bytes: int
    sent: float


def between(nodes: int, nbytes: float, over: Curve, even: bool, parts: float = 1.0) -> float:
    """Seconds of a sum of so many bytes between nodes, one rank each, by the algorithm that `comm.links` would take.

    Messages times alpha, and bytes that a rank sends divided by beta; additions count for nothing. even: whether nodes
    are a power of two with equal shares. parts: partial sums of a node, of which `direct` sends all.
    """
    depth, most = math.ceil(math.log2(nodes)), 2 * (nodes - 1) / nodes
    if nbytes <= SMALL_BYTES:
        messages = share = depth if even else 2 * depth  # doubling, tree
    elif even:
        messages, share = 2 * depth, most  # halving
    else:
        messages, share = parts * (nodes - 1) + depth, (parts + 1) / 2 * most  # direct
    return messages * over.alpha + share * nbytes / over.beta


def link(machine: Machine, ranks: int) -> Curve:
    """A message between two ranks of different nodes while all ranks of a node send."""
    core = machine.core_ghz / machine.exchange_cycles if machine.exchange_cycles else math.inf
    return Curve(machine.latency_us * 1e-6, 1e9 * min(machine.gb_s / ranks, core))


def sum_seconds(nbytes: float, machine: Machine, scheme: Scheme) -> tuple[float, float]:
    """Seconds of a core and of waiting for the wire, for a sum of so many bytes of float32."""
    nodes, ranks = scheme.nodes, scheme.ranks
    inside = (ranks + 1) * nbytes / (1e9 * machine.memory_gb_s * machine.node_sum) if ranks > 1 else 0.0
    if nodes == 1:
        return inside, 0.0
    share = nbytes / ranks * WIRE_BYTES[scheme.wire] / 4
    how = nodes & (nodes - 1) == 0 and not scheme.parts, scheme.parts or 1
    core = between(nodes, share, Curve(0.0, 1e9 * machine.core_ghz), *how) * machine.exchange_cycles
    wire = between(nodes, share, link(machine, ranks), *how) - core
    return inside + core + 1e-6 * machine.exchange_us, wire


def bucket_size(total_bytes: float, machine: Machine, scheme: Scheme) -> int:
    """As `Travel` chooses it, from the curve of its exchanges before anything is computed."""
    machine = replace(machine, numbers=machine.numbers | {"program.exchange_us": 0.0})
    small, large = (sum(sum_seconds(n, machine, scheme)) for n in (1 << 17, 1 << 22))
    slope = max((large - small) / ((1 << 22) - (1 << 17)), 1e-15)
    return Curve(max(small - slope * (1 << 17), 1e-7), 1 / slope).bucket_bytes(total_bytes)


def exchange(
    program: Program, step: StepCost, machine: Machine, scheme: Scheme, images: int, reserved: bool
) -> Exchanged:
    """The sums of a step. images: of the global batch; reserved: whether a core is kept for communication."""
    if scheme.nodes * scheme.ranks == 1:
        return Exchanged(0.0, 0.0, 0, 0, 0.0)
    fully = fully_connected(program) if scheme.fc != "sum" and scheme.nodes > 1 else {}
    sizes = {p.name: 4 * p.size for p in program.parameters.parameters}
    limit = bucket_size(sum(sizes.values()), machine, scheme)
    jobs, waiting, clock, moved = [], 0, 0.0, 0.0

    def send(nbytes):
        core, wire = sum_seconds(nbytes, machine, scheme)
        jobs.append(Job(clock, core, wire))
        copies = 1 + (scheme.parts or 1)
        return copies * (scheme.nodes - 1) / scheme.nodes * nbytes * WIRE_BYTES[scheme.wire] / 4

    blocking = 0.0
    for cost in step.backward:
        clock += cost.seconds
        for name in cost.completes:
            if name in fully:
                job, stop, sent = _other_way(fully[name], cost, machine, scheme, (images, program.images), clock)
                jobs.append(job)
                moved, blocking = moved + sent, blocking + stop
                continue
            waiting += sizes[name]
            while waiting >= limit:
                moved, waiting = moved + send(limit), waiting - limit
    moved += send(waiting) if waiting else 0.0
    total = sum(job.core + job.wire for job in jobs) + blocking
    return Exchanged(total, blocking + _exposed(jobs, step.backward_s, reserved), len(jobs), limit, moved)


def _exposed(jobs: list[Job], backward: float, reserved: bool) -> float:
    """One sum after the other beside backward; without a core of its own what needs a core delays backward itself."""
    late = end = 0.0
    for job in jobs:
        start = max(job.ready + late, end)
        end = start + job.core + job.wire
        late += 0.0 if reserved else job.core
    return max(end, backward + late) - backward


def fully_connected(program: Program) -> dict[str, tuple[int, int]]:
    """(C, K) of the weights of each fully connected layer, by the parameter's name."""
    return {op.writes["dw"].owner.name: op.writes["dw"].shape[2:] for op in dense_ops(program)}


def _other_way(weights, cost, machine, scheme, images, ready) -> tuple[Job, float, float]:
    """A fully connected layer by factors or split: its job, seconds that nothing hides, bytes that a node sends."""
    (c, k), (images, slot) = weights, images
    nodes, wire = scheme.nodes, WIRE_BYTES[scheme.wire]
    net = link(machine, scheme.ranks)
    rate = net.beta * scheme.ranks
    if scheme.fc == "factors":
        sent, more = (nodes - 1) / nodes * images * (c + k) * slot.dtype.itemsize, images / slot.shape[0] / scheme.ranks
        more *= (1 - 1 / nodes) * cost.roofline  # after backward
        return Job(ready, 0.0, math.log2(nodes) * net.alpha + sent / rate), more, sent
    group = min(scheme.group, nodes)
    others = max(1, nodes // group)
    columns, outputs = 2 * c / group * slot.dtype.itemsize, k * (slot.dtype.itemsize + 4)  # y of a part is float32
    activations = (group - 1) / nodes * images * (columns + outputs * scheme.ranks)  # outputs go to each rank
    core, seconds = sum_seconds(4 * c * k / group, machine, scheme._replace(nodes=others))
    sent = activations + 2 * (others - 1) / others * c * k / group * wire
    messages = 4 * images / slot.shape[0] / (nodes * scheme.ranks)
    return Job(ready, core, seconds), messages * net.alpha + activations / rate, sent
