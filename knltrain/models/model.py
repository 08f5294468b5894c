"""A network made ready to run: planned for one slot size, its memory allocated, each direction one call."""

import os

import numpy as np

from ..arena import Arena, Parameters
from ..layers import Pass, Sequential, SoftmaxCrossEntropy


class Model:
    """`layers` planned for slots of `slot_batch` images of `input_shape` (H, W, C).

    After construction: `parameters` (blocks and names), `images` (N, H, W, C) to be filled by the caller,
    `loss` with per-image losses and ranks. train=False plans no gradients, which saves most of the memory.
    gradient_memory: see `Parameters.allocate`.

    Before anything is allocated the whole need, with the copies of the gradient block that the caller will add to it,
    is compared with this rank's share of the node's free memory. Raises ValueError where it is too little.
    """

    def __init__(
        self, layers: Sequential, input_shape, slot_batch: int, smoothing=0.0, seed=0, train=True,
        ranks_on_node=1, gradient_copies=0, gradient_memory=None,
    ):  # fmt: skip
        self.layers, self.slot_batch = layers, slot_batch
        self.parameters, self.arena = Parameters(), Arena()
        self.loss = SoftmaxCrossEntropy(smoothing)
        images = self.arena.take((slot_batch, *input_shape))
        logits = layers.plan(images, self.parameters, self.arena)
        dlogits = self.loss.plan(logits, self.arena)
        if train:
            layers.plan_backward(dlogits, self.arena, need_dx=False)
        self._check_memory(ranks_on_node, gradient_copies)
        self.parameters.allocate(seed, gradient_memory)
        self.arena.allocate()
        self.images = images.array

    @property
    def memory_bytes(self) -> int:
        """Activations, gradients of activations, and scratch."""
        return self.arena.total_bytes

    def _check_memory(self, ranks, gradient_copies):
        parameters = self.parameters
        need = self.arena.total_bytes + parameters.total_bytes + gradient_copies * parameters.gradient_bytes
        free = available_bytes() // ranks
        if need > free:
            several = ranks > 1
            raise ValueError(
                f"slot_batch {self.slot_batch} needs {need / 2**30:.1f} GiB, this machine has {free / 2**30:.1f} GiB "
                f"free{f' for each of its {ranks} ranks' * several}: "
                f"choose a smaller slot_batch{' or fewer ranks on this node' * several}"
            )

    def forward(self, train: bool, keys: np.ndarray):
        """From `images` to the logits that `loss` reads; keys (N,) uint64 seed what is random, one per image."""
        self.layers.forward(Pass(train, keys))

    def backward(self, ready):
        """From the loss's gradient to all parameter gradients; ready(parameter) is called as each is complete."""
        self.layers.backward(ready)


def available_bytes() -> int:
    """Memory this process may still take: free on the machine, or less where its control group says so."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError, StopIteration):
        pass  # no such file, or "max": the machine's own number stands
    return free
