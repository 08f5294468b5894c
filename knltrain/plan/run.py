"""A whole run on so many nodes: step, input, evaluation, checkpoints, minutes and node-hours; and how to set it up.

    step       slots of a rank x (forward + backward) + what of the exchange backward does not hide + update,
               or reading and decoding the pictures of a step, where that is longer
    minutes    steps x step + evaluations x slots of validation pictures a rank x forward + checkpoints
Left out: starting, compiling, staging, stragglers, and the share of a file system that others leave.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from ..comm import Shares
from ..node.machine import RESERVE_FROM, RESERVE_TWO_FROM
from .cost import StepCost, step_cost
from .exchange import FC_MODES, Scheme, exchange, fully_connected
from .machine import Machine

RANKS = (1, 2, 4, 8, 16)  # a node, that are tried
GROUP = 8  # ranks that split a layer, of which a recipe does not say
LEAST_CORES = 4  # of a rank that is tried
JPEG_BYTES = 110_000  # of a picture of ImageNet as it comes
OF_A_CORE = ("core_gflops", "core_bf16_gflops", "core_ghz", "core_memory_gb_s", "core_cache_gb_s")


@dataclass(frozen=True)  # and so a key of a cache
class Training:
    """What of a recipe counts. program: slot batch → its training program; val_images: each evaluation."""

    name: str
    program: Callable
    epochs: float
    global_batch: int
    slot_batch: int
    steps: int
    evaluations: int
    val_images: int
    checkpoints: int
    image_bytes: int
    decoded: bool  # pictures are JPEG
    staged: bool = False  # and lie on the node
    lars: bool = True
    precision: str = "fp32"
    wire: str = "fp32"
    workers: int = 0  # as comm.workers
    fc: tuple = FC_MODES[:2]  # that the program may choose
    group: int = GROUP  # ranks that split a layer


@dataclass(frozen=True)
class Prediction:
    """Of a run; seconds are of a step where nothing else is said."""

    nodes: int
    ranks_a_node: int
    slot_batch: int
    slots_a_rank: int
    wire: str
    fc: str
    compute_cores: int  # of a rank
    step_s: float
    compute_s: float
    exchange_s: float
    exposed_s: float
    input_s: float
    buckets: int
    bucket_bytes: int
    sent_bytes: float  # by a node
    images_per_s: float
    read_mb_per_s: float  # by a node
    evaluation_s: float  # of the run
    checkpoint_s: float  # of the run
    minutes: float
    node_hours: float


def cores_of(machine: Machine, ranks: int) -> tuple[int, int]:
    """(compute cores, cores kept for communication) of a rank, as `knltrain.node.machine` divides a node."""
    own = int(machine.cores) // ranks
    kept = 0 if own < RESERVE_FROM else 2 if own >= RESERVE_TWO_FROM else 1
    return max(1, own - 2 * kept), kept


def in_turns(machine: Machine, ranks: int) -> Machine:
    """A node on which more ranks than cores take turns: as many cores, each so much slower."""
    turns = ranks / machine.cores
    if turns <= 1:
        return machine
    changed = {f"node.{key}": machine.numbers[f"node.{key}"] / turns for key in OF_A_CORE}
    changed |= {"node.cores": float(ranks), "node.call_us": machine.call_us * turns}
    return replace(machine, numbers=machine.numbers | changed)


def predict(training: Training, machine: Machine, scheme: Scheme) -> Prediction | None:
    """None where there are fewer slots than ranks, or parts of workers on a node."""
    slots, ranks = training.global_batch // training.slot_batch, scheme.nodes * scheme.ranks
    if slots < ranks:
        return None
    machine = in_turns(machine, scheme.ranks)
    cores, kept = cores_of(machine, scheme.ranks)
    program, step = training.program(training.slot_batch), _step(training, machine, cores, scheme.ranks)
    workers = training.workers if scheme.wire == "int8" else 0
    shares = Shares.of(slots, [1.0] * ranks, workers)
    between = shares.merged([range(node, node + scheme.ranks) for node in range(0, ranks, scheme.ranks)])
    if workers and any(edge % between.most for edge in between.edges):
        return None
    if workers or not between.even:
        scheme = scheme._replace(parts=sum(map(len, between.sums)) / scheme.nodes)
    sums = exchange(program, step, machine, scheme, training.global_batch, kept > 0)
    mine = max(map(len, shares.ranges))
    compute = mine * (step.forward_s + step.backward_s) + step.update_s
    images = mine * scheme.ranks * training.slot_batch  # of a node in a step
    reading = 0.0 if training.staged else images * training.image_bytes / (machine.read_gb_s * 1e9)
    decoding = images / (scheme.ranks * max(1, kept) * machine.core_ghz * machine.reader_images_ghz)
    feed = max(reading, decoding if training.decoded else 0.0)
    seconds = max(compute + sums.exposed, feed)
    evaluation = training.evaluations * -(-training.val_images // (ranks * training.slot_batch)) * step.forward_s
    copies = 2 + (workers and workers + 1)  # weights, momentum and what is lost on the wire
    state = 4 * copies * sum(p.size for p in program.parameters.parameters)
    saving = training.checkpoints * state / (machine.core_memory_gb_s * 1e9) + state / (machine.write_gb_s * 1e9)
    whole = training.steps * seconds + evaluation + saving
    return Prediction(
        scheme.nodes, scheme.ranks, training.slot_batch, mine, scheme.wire, scheme.fc, cores, seconds, compute,
        sums.total, sums.exposed, feed, sums.buckets, sums.bucket_bytes, sums.sent,
        training.global_batch / seconds, images * training.image_bytes / seconds / 1e6, evaluation, saving, whole / 60,
        whole * scheme.nodes / 3600,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _step(training: Training, machine: Machine, cores: int, ranks: int) -> StepCost:
    """On the cores and the share of memory of one of `ranks` ranks."""
    own = replace(machine, numbers=machine.numbers | {"node.memory_gb_s": machine.memory_gb_s / ranks})
    return step_cost(training.program(training.slot_batch), own, cores, training.lars, training.precision)


def choices(
    training: Training, machine: Machine, nodes: int, wires=("fp32", "bf16"), modes=FC_MODES, slots=(1,), ranks=0
) -> list[Prediction]:
    """All ways to set up a run on so many nodes, the quickest first.

    slots: factors on the recipe's slot batch; ranks: a node, 0 for those that divide its cores well.
    """
    if not fully_connected(training.program(training.slot_batch)) or nodes == 1:
        modes = modes[:1]
    counts = [ranks] if ranks else [n for n in RANKS if n == 1 or machine.cores // n >= LEAST_CORES]
    sizes = [int(training.slot_batch * factor) for factor in slots]
    sizes = [size for size in sizes if size and training.global_batch % size == 0]
    ways = itertools.product(sizes, counts, wires[: 1 if nodes == 1 else None], modes)
    found = [
        predict(replace(training, slot_batch=size), machine, Scheme(nodes, *way, max(1, training.group // way[0])))
        for size, *way in ways
    ]
    return sorted(filter(None, found), key=lambda one: one.minutes)


def best(training: Training, machine: Machine, nodes: int, ranks: int = 0) -> Prediction | None:
    """The quickest way, in the recipe's own wire format, as `comm.fc` lets the program choose."""
    return next(iter(choices(training, machine, nodes, (training.wire,), training.fc, ranks=ranks)), None)
