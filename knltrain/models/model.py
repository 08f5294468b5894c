"""A network made ready to run: its programs built for one slot size, their memory allocated, each pass one call."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from knltrain.kernels import convert, number_named

from ..arena import FLOAT, GradientBlock, Parameters
from ..layers import (
    ALIGN,
    Memory,
    Observer,
    Program,
    Sequential,
    ShardedDense,
    SoftmaxCrossEntropy,
    Tensor,
    execute,
    fuse,
    shard_dense,
)
from ..node.hardware import memory_free


class Among(NamedTuple):
    """What it means for a model that its rank is one of several."""

    ranks_on_node: int = 1  # they share its memory
    gradient_copies: int = 0  # of the gradient block, which the caller will add to it
    gradient_block: Callable[[int], GradientBlock] | None = None  # see `Parameters.allocate`
    fc_shards: int = 1  # of fully connected layers: see `layers.sharded`
    fc_group: int = 1  # of ranks that will split them, each with its own part of momentum and gradients


ALONE = Among()


class Model:
    """`layers` as programs for slots of `slot_batch` images of `input_shape` (H, W, C), all in one block of memory.

    `parameters`: blocks and names. `training`, `inference`: the programs; train=False leaves out the first, which saves
    most of the memory. `loss`: of the last slot, with its gradient divided by `global_batch` (default: slot_batch).
    precision: "fp32", "bf16" or "fp16": what activations and their gradients hold; parameters, their gradients,
    statistics and logits are float32.

    Before anything is allocated the whole need is compared with this rank's share of the node's free memory. Raises
    ValueError where it is too little.
    """

    def __init__(
        self, layers: Sequential, input_shape, slot_batch: int, global_batch=None, smoothing=0.0, seed=0, train=True,
        precision="fp32", among: Among = ALONE,
    ):  # fmt: skip
        self.slot_batch, self.parameters = slot_batch, Parameters()
        self.keys = np.zeros(slot_batch, np.uint64)
        self.observer: Observer | None = None
        self.number = number_named(precision)
        images = Tensor("images", (slot_batch, *input_shape), self.number.dtype)
        images.lie_in(np.zeros(0, np.uint8))  # beside the planned memory: the same for both programs
        self.loss = SoftmaxCrossEntropy(slot_batch, global_batch or slot_batch, smoothing)
        self.sharded: dict[str, ShardedDense] = {}  # of `training`, by parameter
        self.training = self._program(layers, images, self.loss, among.fc_shards) if train else None
        self.inference = self._program(layers, images, None)
        self.programs = [program for program in (self.training, self.inference) if program]
        memories = [Memory(program) for program in self.programs]
        self.memory_bytes = images.nbytes + max(memory.nbytes for memory in memories) + 2 * ALIGN
        self._check_memory(among)
        self.parameters.allocate(seed, among.gradient_block)
        images.lie_in(_block(images.nbytes))
        block = _block(self.memory_bytes - images.nbytes - 2 * ALIGN)
        for program, memory in zip(self.programs, memories, strict=True):
            memory.bind(block)
            program.bind()
        self.images = images.array
        self.logits = self.inference.results[0].array.reshape(slot_batch, -1)

    def _program(self, layers, images, loss, fc_shards=1) -> Program:
        program = Program(images, self.parameters, loss is not None, self.keys, layers.last)
        logits = layers.forward(program, images)
        if loss:
            layers.backward(program, loss.forward(program, logits))
            self.sharded = shard_dense(program, fc_shards)
        else:
            program.results.append(logits)
        fuse(program)
        return program

    def _check_memory(self, among: Among):
        parameters, ranks, copies = self.parameters, among.ranks_on_node, among.gradient_copies
        need = self.memory_bytes + parameters.total_bytes + copies * parameters.gradient_bytes
        split = sum(parameters.named[name].size for name in self.sharded) * (among.fc_group - 1) // among.fc_group
        need -= (2 + copies) * FLOAT * split  # momentum and gradients; weights are whole at the start
        free = memory_free() // ranks
        if need > free:
            several = ranks > 1
            raise ValueError(
                f"slot_batch {self.slot_batch} needs {need / 2**30:.1f} GiB, this machine has {free / 2**30:.1f} GiB "
                f"free{f' for each of its {ranks} ranks' * several}: "
                f"choose a smaller slot_batch{' or fewer ranks on this node' * several}"
            )

    def feed(self, images: np.ndarray, labels: np.ndarray | None = None, keys: np.ndarray | None = None, mixed=None):
        """Copy in up to slot_batch images (n, H, W, C), labels (n,), and keys (n,) for what is random, one per image.

        mixed: where images are mixed, (labels of the others (n,), own shares (n,)); None: they are not.
        Images are float32, and rounded here. The rest of the slot keeps what it held.
        """
        if len(images):
            convert(np.ascontiguousarray(images, np.float32), self.images[: len(images)])
        others, shares = mixed or (labels, 1.0)
        for array, values in ((self.loss.labels, labels), (self.loss.others, others), (self.keys, keys)):
            if values is not None:
                array[: len(values)] = values
        self.loss.shares[: len(images)] = shares

    def observe(self, observer: Observer | None):
        """From now on `observer` is told of every op that runs; None: nobody."""
        self.observer = observer

    def forward(self):
        """From the images to `loss`: one training pass, with batch statistics and dropout."""
        execute(self.training.forward, self.observer)

    def backward(self, ready=None):
        """From the loss's gradient to all parameter gradients; ready(parameter) is called as each is complete."""
        execute(self.training.backward, self.observer, ready)

    def infer(self) -> np.ndarray:
        """The logits (N, classes) of the images, with running statistics and without dropout; overwritten next time."""
        execute(self.inference.forward, self.observer)
        return self.logits


def _block(nbytes: int) -> np.ndarray:
    """uint8, beginning at a cache line."""
    raw = np.empty(nbytes + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + nbytes]
