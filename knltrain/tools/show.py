"""`knltrain show SHARDS`: what is in a data set, and what a recipe makes of it, as pictures to look at."""

from pathlib import Path

import numpy as np

from ..claims.text import between
from ..data import DataSet, EvalLoader
from ..data.decode import fit_square, jpeg_header
from ..recipe.config import load_recipe
from ..recipe.experiment import center_crop, make_augment, misfits
from ..tell.plots import contact_sheet, data_overview

CLASSES, COLUMNS = 10, 8  # of a sheet
SAMPLE = 1000  # pictures from which sizes and the mean picture are computed
MEAN_SIDE = 64  # pixels of the mean picture of JPEG shards, whose pictures differ in size
SEED = 0  # of which pictures are shown


def show_pictures(folder: Path, png: Path) -> str:
    """Draw pictures of up to CLASSES classes, how many each class has, sizes, and the mean; returns what it says.

    Raises: ShardError if there are no shards or one is damaged; OSError if `png` cannot be written.
    """
    data, random = DataSet(folder), np.random.default_rng(SEED)
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    shown = np.flatnonzero(counts)
    shown = shown[_spread(len(shown), CLASSES)]
    rows = []
    for label in shown.tolist():
        own = np.flatnonzero(data.labels == label)
        some = random.choice(own, min(COLUMNS, len(own)), replace=False)
        rows.append((data.class_names[label], [data.image(row) for row in some.tolist()]))
    sample = _spread(len(data), SAMPLE).tolist()
    sizes = _sizes(data, sample)
    mean = sum(fit_square(data.image(row), data.size if data.encoding == "raw" else MEAN_SIDE).astype(np.float64)
               for row in sample) / len(sample)  # fmt: skip
    kinds = f"{len(data):,} pictures of {len(counts):,} classes"
    by_class = dict(zip(data.class_names, counts.tolist(), strict=True))
    name = Path(folder).resolve().name
    data_overview(rows, by_class, sizes, np.rint(mean).astype(np.uint8), png, f"{name}: {kinds}, {data.encoding}")
    height, width = np.median(sizes, axis=0).astype(int)
    colour = ", ".join(f"{value:.0f}" for value in mean.mean((0, 1)))
    each = f"{between(counts)} each; {width} x {height} pixels (median); mean colour {colour}"
    return f"{png}: {kinds}, {each}"


def show_samples(folder: Path, recipe_path: Path, settings: list[str], png: Path) -> str:
    """Draw pictures as they are stored, in several epochs as the network of a recipe is given them, and evaluated.

    Mean and standard deviation are undone (of a mean picture its colour), everything else is as in training: the
    sample of a row in an epoch is the one that a run with this seed trains on. Returns what it says.
    """
    recipe, data = load_recipe(recipe_path, settings), DataSet(folder)
    rows = np.sort(np.random.default_rng(SEED).choice(len(data), min(CLASSES, len(data)), replace=False))
    train, evaluation = make_augment(recipe, data, recipe.data.augmentation), center_crop(recipe, data)
    columns = [[data.image(row) for row in rows.tolist()]]
    for augment, epochs in ((train, COLUMNS - 2), (evaluation, 1)):
        with _Epochs(data, [rows] * epochs, augment) as loader:
            columns += [augment.pixels(batch.images) for batch in loader]
    names = [data.class_names[label] for label in data.labels[rows]]
    sheet = list(zip(names, (list(line) for line in zip(*columns, strict=True)), strict=True))
    heads = ["stored", *(f"epoch {epoch}" for epoch in range(COLUMNS - 2)), "evaluation"]
    d = recipe.data
    contact_sheet(sheet, png, f"{recipe_path.stem}: augmentation {d.augmentation}, crop {d.crop}", heads)
    return "\n".join([f"{png}: {len(rows)} pictures in {COLUMNS - 2} epochs", *misfits(recipe, data, data)])


class _Epochs(EvalLoader):
    """Batch i in epoch i."""

    def _plan(self, i):
        return (i, self.batches[i]) if i < len(self.batches) else None


def _sizes(data, rows):
    """(height, width) of each row's picture."""
    if data.encoding == "raw":
        return np.full((len(rows), 2), data.size)
    return np.array([jpeg_header(data.read(row))[:2] for row in rows])


def _spread(count, most):
    """Up to `most` of the numbers 0..count - 1, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
