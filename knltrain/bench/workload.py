"""A model, a synthetic batch, and the trainer of both: one slot, alone where nothing else is said."""

import dataclasses
import itertools
from functools import partial

import numpy as np

from knltrain.kernels import set_threads

from ..comm import Links, Reducer, Serial, Travel, Update, make_block
from ..data.loader import Batch, Batches
from ..data.synthetic import Synthetic
from ..models import Among, Model, build
from ..optim.lars import Lars
from ..optim.options import Optim
from ..recipe import config
from ..recipe.phases import legs
from ..trainer import Parts, Trainer

LEARNING_RATE, SGD = 1e-4, Optim(momentum=0.9, weight_decay=5e-5)
CLASSES = 1000


class Workload(Trainer):
    """`name` planned for `slot_batch` images, with random pictures, SGD with momentum and weight decay.

    links: who sums its gradients, which then lie as that wants it. precision: as of a recipe. threads: that compute
    from now on; 0: as many as before.

    Raises ValueError for an unknown model or option, and for fewer than one image.
    """

    def __init__(
        self, name: str, slot_batch: int, options: dict | None = None, links: Links | None = None, precision="fp32",
        threads: int = 0,
    ):  # fmt: skip
        if slot_batch < 1:
            raise ValueError(f"slot batch is {slot_batch}, expected at least 1 image")
        if threads:
            set_threads(threads)
        layers, shape = build(name, **(options or {}))
        block = partial(make_block, links or Links(Serial()))
        model = Model(layers, shape, slot_batch, precision=precision, among=Among(gradient_block=block))
        parameters = model.parameters
        optimizer = Lars(parameters.parameters, SGD)
        for parameter in parameters.parameters:
            if not parameter.w.any():  # a gradient of exactly zero would prove nothing
                parameter.w[...] = 0.1
        data = Synthetic(slot_batch, shape[0], model.logits.shape[1], pictures=slot_batch)
        pixels = np.stack([data.image(row) for row in range(slot_batch)])
        images, labels = (pixels.astype(np.float32) - 127.5) / 60, data.labels.astype(np.int64)
        self.batch = Batch(images, labels, np.arange(slot_batch), 0)
        alone = make_block(Links(Serial()), parameters.gradient.size, of=parameters.block)
        reducer = Reducer(parameters, Travel(parameters, alone))
        update, batches = Update(parameters, optimizer, reducer), Batches(itertools.repeat(self.batch))
        how = {"optim": SGD, "schedule": config.Schedule("constant", LEARNING_RATE), "run": config.Run(epochs=1e9)}
        recipe = config.Recipe(config.Model(name), config.Data("-"), config.Batch(slot_batch, slot_batch), **how)
        (leg,) = legs(recipe, slot_batch)
        super().__init__(Parts(leg, model, optimizer, reducer, update, batches))

    def like(self, **parts) -> Trainer:
        """A trainer of the same weights on other `batches`, or one whose gradients another `reducer` sums."""
        parts = dataclasses.replace(self.parts, **parts)
        update = Update(parts.model.parameters, parts.optimizer, parts.reducer)
        return Trainer(dataclasses.replace(parts, update=update))

    @property
    def flops(self) -> int:
        """Of the convolutions and fully connected layers in one step: three directions, where dx is wanted."""
        return sum(op.flops for op in self.model.training.ops)

    @property
    def arithmetic(self) -> int:
        """Those of them that are really made: fewer by Winograd's method."""
        return sum(op.arithmetic for op in self.model.training.ops)
