"""`knltrain warmup RECIPE`: compile ahead what a recipe needs, so that a job on many nodes begins from a full cache.

One process runs one step, two slots, and one evaluation of the recipe's own parts on random pictures. What is compiled
does not depend on the number of images, only on types: few images are enough.
"""

import dataclasses
import time
from contextlib import closing

import numpy as np

from knltrain.kernels import (
    ARCH,
    cache_folder,
    decode_int8,
    digest,
    encode_int8,
    meet_arrive,
    meet_wait,
    node_allreduce,
    squared_norm_chunks,
    sum_blocks,
    sum_scratch,
)

from .assembly import make_trainer
from .comm import WIRES, Wire, world
from .data.shards import checksum
from .data.synthetic import Synthetic
from .evaluate import evaluate
from .node.machine import arithmetic_peak, take_share
from .recipe.config import Recipe, Schedule, at_phase
from .recipe.experiment import center_crop

IMAGES = 8  # of a slot, at most: few, yet more than one share of the pixels in backward-weight
MARGIN = 8  # pixels by which the pictures are larger than the crop


def warmup(recipe: Recipe) -> str:
    """Fill the cache and say in one line what was done. Raises ValueError as `train` does for a bad recipe."""
    start = time.perf_counter()
    before = _compiled()
    comm = world()
    placement = take_share(comm)
    for one in {at.data.crop: at for at in (at_phase(recipe, n) for n in range(len(recipe.phases) + 1))}.values():
        _run(one, comm, placement)
    _exchange()
    arithmetic_peak(0.0, recipe.compute.precision)
    return (
        f"{_compiled() - before} functions compiled for {ARCH.name} in {time.perf_counter() - start:.1f} s, "
        f"{_compiled()} in {cache_folder()}"
    )


def _compiled() -> int:
    """Compiled functions in the cache."""
    return sum(1 for _ in cache_folder().rglob("*.nbc"))


def _run(recipe: Recipe, comm, placement):
    """One step and one evaluation."""
    slot_batch = min(recipe.batch.slot_batch, IMAGES)
    batch = dataclasses.replace(recipe.batch, slot_batch=slot_batch, global_batch=2 * slot_batch)
    section = dataclasses.replace(recipe.data, mean_image="")  # which is of another size, and compiles nothing more
    recipe = dataclasses.replace(recipe, batch=batch, data=section, schedule=Schedule("constant", 0.0))
    classes = recipe.model.args.get("classes", 10)
    data = Synthetic(2 * slot_batch, recipe.data.crop + MARGIN, classes)
    with closing(make_trainer(recipe, data, comm, placement)) as trainer:
        trainer.seek(0)
        trainer.step()
    crop = center_crop(recipe, data)
    evaluate(trainer.model, data, crop, comm)
    small = np.zeros((recipe.data.crop // 2 + 1, recipe.data.crop, 3), np.uint8)  # a picture that must be resampled
    crop.apply(small, 0, 0, np.empty((recipe.data.crop, recipe.data.crop, 3), np.float32))
    checksum(0, small)  # as reading a shard does


def _exchange():
    """Call every kernel of an exchange once, on little data."""
    words, blocks, sums = np.zeros((4, 16), np.int32), np.zeros((1, 64), np.float32), sum_scratch(1)
    node_allreduce(words, 1, 1, blocks, 0, 64, sums, 1, 0)
    sum_blocks(blocks, 0, 64, sums)
    meet_arrive(words[2], 1, 1)
    meet_wait(words[2], 1, 1, 1)
    for name in WIRES:
        wire = Wire(name)
        wire.round(blocks[0])
        if not wire.feeds_back:
            wire.accumulate(blocks[0], np.zeros(64, wire.dtype))
    coded, edges = np.zeros(65, np.uint8), np.array([0, 64])
    encode_int8(blocks[0], blocks[0], edges, coded)
    decode_int8(coded, edges, blocks[0])
    digest(blocks)
    digest(np.zeros(1 << 17, np.float32))
    squared_norm_chunks(blocks, blocks)
