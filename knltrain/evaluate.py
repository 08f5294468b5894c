"""Accuracy on a data set, every image counted exactly once on any number of ranks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from .claims.text import printable
from .data import Augment, DataSet, EvalLoader, PictureFolder, eval_rows
from .data.shards import Packed
from .models import Among, Model
from .models.state import load as load_state
from .node.machine import take_share
from .recipe.config import Comm, at_phase, load_recipe, parse_recipe, resolved
from .recipe.experiment import center_crop, make_model
from .run.checkpoint import CheckpointError, load_run
from .tell.accuracy import Accuracy, Tally
from .tell.journal import RECIPE


def evaluate(
    model: Model, data: DataSet, augment: Augment, comm, threads=1, mirror=False, shift=0, stop=lambda: False
) -> Accuracy | None:
    """Top-1 and top-5 of `model` with its running statistics, the rows of `data` divided over the ranks of `comm`.

    mirror: an image counts by the sum of its logits and those of its mirror image; shift: besides by those of the image
    moved by so many pixels down to the right, and up to the left. stop(): asked before each batch; where it says yes on
    any rank, all leave the evaluation, and None is returned.
    Labels that tie for a place are counted by the lower class first, so the result is the same on every machine.
    """
    batch, tally = model.slot_batch, Tally(len(data.class_names))
    rounds = -(-len(data) // (comm.size * batch))  # the batches of the rank that has most
    with EvalLoader(data, eval_rows(len(data), comm.rank, comm.size, batch), augment, threads=threads) as loader:
        parts = iter(loader)
        for _ in range(rounds):
            if any(comm.gather(int(stop()))):
                return None
            if (part := next(parts, None)) is None:
                continue
            count = len(part.labels)
            logits = np.zeros_like(model.logits)
            for view in _views(part.images, mirror, shift):
                model.feed(view)
                logits += model.infer()
            tally.add(part.rows, part.labels, logits[:count])
    return tally.total(comm)


def _views(images: np.ndarray, mirror: bool, shift: int) -> Iterator[np.ndarray]:
    """What `evaluate` looks at in place of images (N, H, W, 3); where a moved one ends, it has the mean colour."""
    for by in (0, shift, -shift) if shift else (0,):
        moved = images if by == 0 else np.zeros_like(images)
        if by > 0:
            moved[:, by:, by:] = images[:, :-by, :-by]
        elif by < 0:
            moved[:, :by, :by] = images[:, -by:, -by:]
        yield moved
        if mirror:
            yield moved[:, :, ::-1]


def evaluate_run(path: Path, data: Path | None, overrides: list[str], by_class: bool, comm) -> None:
    """Evaluate a run folder (its best checkpoint, else its newest good one) or one checkpoint, and print the result.

    data: shards, or pictures in class folders (in a tar too); None for the validation set of the run's recipe.
    overrides: of the recipe, as `section.key=value`. by_class: print the accuracy of each class as well. Raises
    CheckpointError, ShardError, or ValueError where the data have other classes than the network was trained on.
    """
    share = take_share(comm)
    path = Path(path)
    folder = path if path.is_dir() else path.parent.parent
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{path}: no run folder, nor a checkpoint in one; expected what `knltrain train` wrote")
    whole, (arrays, meta) = load_recipe(folder / RECIPE), load_run(path)
    at = at_phase(whole, meta.get("phase", len(whole.phases)))
    recipe = parse_recipe(resolved(replace(at, comm=Comm())), overrides)  # of the phase alone, which may use no workers
    dataset = _open(Path(data or recipe.data.val or recipe.data.train), meta["experiment"], folder, comm)
    model = make_model(recipe, len(dataset.class_names), Among(share.ranks_on_node), train=False)
    load_state(model.parameters, arrays, path)
    d = recipe.data
    result = evaluate(model, dataset, center_crop(recipe, dataset), comm, d.reader_threads, d.val_mirror, d.val_shift)
    if comm.rank == 0:
        where = printable(f"{path} (step {meta['step']}) on {dataset.folder}")
        print(f"{where}: {result.images} images, each counted once")
        print(f"top-1 {result.top1:.2%} ({result.correct})  top-5 {result.top5:.2%} ({result.correct_of_five})")
        for name, (images, correct, of_five) in zip(dataset.class_names, result.by_class, strict=True):
            if by_class and images:
                shares = f"top-1 {correct / images:7.2%}  top-5 {of_five / images:7.2%}"
                print(f"{shares}  of {images:6}  {printable(name)}")


def _open(data: Path, experiment: dict, folder: Path, comm) -> DataSet | PictureFolder:
    """Shards, or where there are none the pictures of class folders."""
    trained_on = experiment.get("data.classes")
    if data.exists() and not any(data.glob("*.h5")):
        if type(trained_on) is not list or {*map(type, trained_on)} != {str}:
            raise CheckpointError(f"{folder}: no word of what pictures it was trained on; expected --data with shards")
        return PictureFolder(data, trained_on, Packed.of(experiment))
    dataset = DataSet(data, comm)
    if dataset.class_names != trained_on:
        raise ValueError(f"{dataset.folder} has other classes than {folder}; expected the same: pack both alike")
    return dataset
