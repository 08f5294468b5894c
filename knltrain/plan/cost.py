"""What an op of a step costs on a machine: a roofline of the cores that its tasks keep busy, times a share of it.

    busy    = tasks / ceil(tasks / cores)              tasks are handed out evenly: the last wave may be half empty
    compute = flops made x waste / (busy x core_gflops)
    memory  = bytes / min(busy x core_memory_gb_s, memory_gb_s)     from caches where the op's bytes fit them:
              bytes / (busy x core_cache_gb_s)
    seconds = max(compute, memory) / share + fork + call

flops and bytes are the program's own (`Op.arithmetic`, `Op.nbytes`): what is read and written from end to end, once.
waste: what tiles do besides their products, seen on two cores of Zen 4: tiles of 32 channels (and, where images are
single pixels, of 14 rows) that are not full; what a tile does once, as much as 48 steps of its depth; packing in
backward-weight, as much as 16 output channels; Winograd's transforms, of pixels as much as 10 channels on either side,
of filters as much as 120 pixels; where a tile begins the backward of a batch norm, 75 flops for each of its outputs.
Left out: where memory lies (NUMA), lines that two cores write, waiting for weights that many tasks read again.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..arena import Parameters
from ..layers import CONVOLUTION, UPDATE, Op, Program, SoftmaxCrossEntropy, Tensor, fuse, is_dense
from .machine import Machine

BLOCK = 32  # output channels of a tile of AVX-512
ONCE, PACK, TRANSFORM, FILTERS, ROWS, SUMS = 48, 16, 10, 120, 14, 75  # of tiles: see `waste`
PART, UPDATE_PART = 1 << 15, 1 << 16  # numbers in a task of the passes over memory, and of the update
LARS_PASSES, SGD_PASSES = (4, 3, 2), (2, 3, 2)  # tensors read for the norms, then read and written by the update
SHARE_OF_KERNEL = {
    "batchnorm": "batchnorm", "maxpool": "pool", "global": "pool", "avgpool": "pool", "relu": "relu", "add": "relu",
    "lrn": "lrn",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """An op on a machine. idle: share of the cores' time that no task fills; bound: what limits it."""

    layer: str
    kind: str
    share: str
    tasks: int
    idle: float
    seconds: float
    roofline: float  # seconds at a share of 1, without calling and forking
    bound: str
    completes: tuple = ()  # names of the parameters whose gradients are whole


def training_program(layers, input_shape, slot_batch: int, number=np.float32) -> Program:
    """The fused training program of a network, with its loss, as `Model` builds it; without memory."""
    images = Tensor("images", (slot_batch, *input_shape), number)
    loss = SoftmaxCrossEntropy(slot_batch, slot_batch, 0.0)
    program = Program(images, Parameters(), True, np.zeros(slot_batch, np.uint64), layers.last)
    layers.backward(program, loss.forward(program, layers.forward(program, images)))
    fuse(program)
    return program


def task_count(op: Op, cores: int) -> int:
    """Tasks into which an op is cut on so many cores."""
    if op.kind not in CONVOLUTION:
        numbers = max(math.prod(value.shape) for value in [*op.reads.values(), *op.writes.values()])
        return max(1, -(-numbers // PART))
    plan = op.others["plan"]
    method = getattr(plan, op.kind)
    if op.kind == "backward_weight":
        return method.tasks(cores)[-1]
    return len(method.order) * method.cut(cores)


def _width(op: Op) -> int:
    """Channels that a tile's columns run over."""
    shape = op.others["plan"].shape
    return shape.w[2] if op.kind == "backward_input" else shape.k_group


def waste(op: Op) -> float:
    """The flops that a convolution spends, over those of its products."""
    behind = math.prod(op.others["plan"].x_shape) if "sums" in op.others else 0
    return _of_tiles(op) + SUMS * behind / op.arithmetic


def _of_tiles(op: Op) -> float:
    (r, s, c, _), k = op.others["plan"].w_shape, op.others["plan"].shape.k_group
    width, images, pixels = _width(op), op.others["plan"].x_shape[0], math.prod(op.others["plan"].x_shape[:3])
    full = -(-width // BLOCK) * BLOCK / width
    if op.arithmetic < op.flops:
        return full * (1 + TRANSFORM * (1 / c + 1 / k)) * (1 + FILTERS / pixels)
    if op.kind == "backward_weight":
        return full * (1 + PACK / k)
    if is_dense(op):
        return full * -(-images // ROWS) * ROWS / images
    taps = r * s / (1 if op.kind == "forward" else op.others["plan"].shape.stride ** 2)
    return full * (1 + ONCE / (taps * (c if op.kind == "forward" else k)))


def share_name(op: Op) -> str:
    """Which of the machine's shares of the roofline an op reaches."""
    if op.kind in CONVOLUTION:
        return op.kind + ("_fc" if is_dense(op) else "_winograd" if op.arithmetic < op.flops else "")
    if op.kind in ("packing", UPDATE):
        return op.kind
    return SHARE_OF_KERNEL.get(op.name.partition("_")[0], "other")


def op_cost(op: Op, machine: Machine, cores: int, precision: str = "fp32") -> Cost:
    """The cost of one op of a program."""
    done = tuple(parameter.name for parameter in op.completes())
    where = op.owner.name, op.kind, share_name(op)
    flops = op.arithmetic * (waste(op) if op.kind in CONVOLUTION else 1)
    return _cost(machine, cores, precision, where, task_count(op, cores), flops, op.nbytes, done)


def update_cost(size: int, machine: Machine, cores: int, lars: bool) -> Cost:
    """The cost of updating a parameter of so many numbers."""
    nbytes = 4 * size * sum(LARS_PASSES if lars else SGD_PASSES)
    return _cost(machine, cores, "fp32", ("update", UPDATE, UPDATE), -(-size // UPDATE_PART), 0, nbytes)


def _cost(machine, cores, precision, where, tasks, flops, nbytes, completes=()) -> Cost:
    busy = tasks / math.ceil(tasks / cores)
    compute = flops / (busy * machine.gflops(precision) * 1e9)
    cached = nbytes <= busy * machine.cache_mb * 1e6
    rate = busy * machine.core_cache_gb_s if cached else min(busy * machine.core_memory_gb_s, machine.memory_gb_s)
    memory = nbytes / (rate * 1e9)
    roofline = max(compute, memory)
    fixed = (machine.call_us + (machine.fork_us if tasks > 1 and cores > 1 else 0)) * 1e-6
    bound = "flops" if compute > memory else "cache" if cached else "memory"
    bound = "call" if fixed > roofline / machine.share(where[2]) else bound
    seconds = roofline / machine.share(where[2]) + fixed
    return Cost(*where, tasks, 1 - busy / cores, seconds, roofline, bound, completes)


@dataclass(frozen=True)
class StepCost:
    """A slot forward and backward, and the update, on the compute cores of one rank."""

    forward: list
    backward: list
    update: list
    feed: float  # seconds of copying the images in

    @property
    def forward_s(self) -> float:
        return self.feed + sum(cost.seconds for cost in self.forward)

    @property
    def backward_s(self) -> float:
        return sum(cost.seconds for cost in self.backward)

    @property
    def update_s(self) -> float:
        return sum(cost.seconds for cost in self.update)

    @property
    def seconds(self) -> float:
        """Of a step of one slot without an exchange."""
        return self.forward_s + self.backward_s + self.update_s


def step_cost(program: Program, machine: Machine, cores: int, lars: bool = True, precision: str = "fp32") -> StepCost:
    """What the program's step costs on `cores` cores of a machine."""
    both = program.forward, program.backward
    forward, backward = ([op_cost(op, machine, cores, precision) for op in ops] for ops in both)
    update = [update_cost(p.size, machine, cores, lars) for p in program.parameters.parameters]
    feed = 2 * program.images.nbytes / (machine.core_memory_gb_s * 1e9)
    return StepCost(forward, backward, update, feed)
