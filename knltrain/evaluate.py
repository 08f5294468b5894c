"""Accuracy on a data set, every image counted exactly once on any number of ranks."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels import rank_of_label

from .checkpoint import CheckpointError, best_checkpoint, load, load_latest
from .config import load_recipe
from .data import Augment, DataSet, EvalLoader, eval_rows
from .experiment import center_crop, make_model
from .machine import take_share
from .models import Model
from .report import RECIPE
from .restart import FOLDER, apply_state
from .text import printable


@dataclass(frozen=True)
class Accuracy:
    """Counts over `images` images: the label had the largest logit, or one of the five largest."""

    images: int
    correct: int
    correct_of_five: int

    @property
    def top1(self) -> float:
        return self.correct / self.images

    @property
    def top5(self) -> float:
        return self.correct_of_five / self.images


def evaluate(model: Model, data: DataSet, augment: Augment, comm, threads: int = 1, mirror: bool = False) -> Accuracy:
    """Top-1 and top-5 of `model` with its running statistics, the rows of `data` divided over the ranks of `comm`.

    mirror: an image counts by the sum of its logits and those of its mirror image.
    Labels that tie for a place are counted by the lower class first, so the result is the same on every machine.
    """
    batch, counts = model.slot_batch, [0, 0, 0]
    with EvalLoader(data, eval_rows(len(data), comm.rank, comm.size, batch), augment, threads=threads) as loader:
        for part in loader:
            count = len(part.labels)
            model.feed(part.images)
            logits = model.infer()
            if mirror:
                logits = logits.copy()
                model.feed(part.images[:, :, ::-1])
                logits += model.infer()
            ranks = np.zeros(count, np.int64)
            rank_of_label(logits[:count], part.labels, ranks)
            sums = count, int((ranks < 1).sum()), int((ranks < 5).sum())
            counts = [total + more for total, more in zip(counts, sums, strict=True)]
    return Accuracy(*(sum(column) for column in zip(*comm.gather(counts), strict=True)))


def evaluate_run(path: Path, data: Path | None, comm) -> None:
    """Evaluate a run folder (its best checkpoint, else its newest good one) or one checkpoint, and print the result.

    data: a folder of shards; None for the validation set of the run's recipe. Raises CheckpointError, ShardError, or
    ValueError where the data have other classes than the network was trained on.
    """
    share = take_share(comm)
    path = Path(path)
    folder = path if path.is_dir() else path.parent.parent
    if not path.exists() or not (folder / RECIPE).is_file():
        raise CheckpointError(f"{path}: no run folder, nor a checkpoint in one; expected what `knltrain train` wrote")
    recipe = load_recipe(folder / RECIPE)
    dataset = DataSet(data or recipe.data.val or recipe.data.train, comm)
    arrays, meta = _load(path)
    if meta["experiment"].get("data.classes") != dataset.class_names:
        raise ValueError(f"{dataset.folder} has other classes than {folder}; expected the same: pack both alike")
    model = make_model(recipe, len(dataset.class_names), ranks_on_node=share.ranks_on_node)
    apply_state(model.parameters, arrays, path)
    crop, threads, mirror = center_crop(recipe, dataset), recipe.data.reader_threads, recipe.data.val_mirror
    result = evaluate(model, dataset, crop, comm, threads, mirror)
    if comm.rank == 0:
        where = printable(f"{path} (step {meta['step']}) on {dataset.folder}")
        print(f"{where}: {result.images} images, each counted once")
        print(f"top-1 {result.top1:.2%} ({result.correct})  top-5 {result.top5:.2%} ({result.correct_of_five})")


def _warn(message):
    print(f"knltrain: warning: {printable(str(message))}", file=sys.stderr)


def _load(path: Path):
    """A checkpoint file; of a run folder the best, or where that is damaged or not known the newest good one."""
    if path.is_file():
        return load(path)
    best = best_checkpoint(path / FOLDER)
    if best is not None:
        try:
            return load(best)
        except CheckpointError as error:
            _warn(error)
    found = load_latest(path / FOLDER, _warn)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint in this run yet; train it first")
    return found
