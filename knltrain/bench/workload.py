"""A model with a synthetic batch, and its training step as `train.py` does it, on one rank with one slot."""

import numpy as np

from ..data.synthetic import Synthetic
from ..layers import Observer
from ..models import Model, build
from ..optim import Lars

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 5e-5
CLASSES = 1000


class Workload:
    """`name` planned for `slot_batch` images, with random pictures, SGD with momentum and weight decay.

    gradient_memory: where its gradients shall lie, as for `Model`.

    Raises ValueError for an unknown model or option, and for fewer than one image.
    """

    def __init__(self, name: str, slot_batch: int, options: dict | None = None, gradient_memory=None):
        if slot_batch < 1:
            raise ValueError(f"slot batch is {slot_batch}, expected at least 1 image")
        layers, shape = build(name, **(options or {}))
        self.model = Model(layers, shape, slot_batch, gradient_memory=gradient_memory)
        self.optimizer = Lars(
            self.model.parameters.parameters, trust_coefficient=0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        for parameter in self.model.parameters.parameters:
            if not parameter.w.any():  # a gradient of exactly zero would prove nothing
                parameter.w[...] = 0.1
        classes = self.model.logits.shape[1]
        data = Synthetic(slot_batch, shape[0], classes, pictures=slot_batch)
        pixels = np.stack([data.image(row) for row in range(slot_batch)])
        self.images = (pixels.astype(np.float32) - 127.5) / 60
        self.labels = data.labels.astype(np.int64)
        self.keys = np.arange(slot_batch, dtype=np.uint64)

    def step(self):
        """One whole step: packing, copy of the batch, forward, loss, backward, statistics, update."""
        self.begin_step()
        self.model.backward()
        self.end_step()

    def begin_step(self):
        """What comes before the backward pass."""
        self.model.feed(self.images, self.labels, self.keys)
        self.model.forward()

    def end_step(self):
        """What comes after it, where there is nobody to exchange gradients with."""
        self.model.parameters.update_statistics(1)
        self.optimizer.step(LEARNING_RATE)

    def observe(self, observer: Observer | None):
        """Let `observer` be told of every op of the steps that follow; None: nobody."""
        self.model.observer = self.optimizer.observer = observer

    @property
    def flops(self) -> int:
        """Of the convolutions and fully connected layers in one step: three directions, where dx is wanted."""
        return sum(op.flops for op in self.model.training.ops)

    @property
    def arithmetic(self) -> int:
        """Those of them that are really made: fewer by Winograd's method."""
        return sum(op.arithmetic for op in self.model.training.ops)
