"""`knltrain init`: a recipe to begin with for given shards, every line with its reason; it trains as it is."""

import json
import os
from pathlib import Path

import numpy as np

from ..claims.text import printable
from ..data import DataSet
from ..models import build
from .config import parse_recipe
from .derived import derive
from .experiment import open_data

SAMPLE = 2000  # pictures from which colours are computed: their mean is known to a level or so
SMALL, MEDIUM = 40, 100  # pixels up to which a picture is taken whole, and halved once by the stem
PHOTO = 224  # pixels of the crop of a photo
TEMPLATE = """\
# Written by `knltrain init` for {train}: {rows:,} pictures, {classes} classes, {encoding}, {pixels}.
#
#   knltrain train {name}

[model]
name = "{model}"{stem}

[data]
train = {train_path}
val = {val_path}  # {val_why}
crop = {crop}  # pixels, side of the network's input
pad = {pad}  # pixels of mean colour around a picture, into which a random crop may reach
augmentation = "{augmentation}"  # {why}
mean = {mean}  # of {sample:,} of these pictures, 0..255, red green blue
std = {std}

[batch]
global_batch = {batch}  # images per update, over all ranks: the rate below belongs to it
slot_batch = {slot}  # images that batch norm sees together; a rank runs one slot or more

[optim]
momentum = 0.9  # plain SGD; for batches of many thousands: trust_coefficient = 0.001, which is LARS
nesterov = true
weight_decay = {decay}
label_smoothing = 0.1

[schedule]
policy = "cosine"
origin = "warmup"  # the curve begins where warm-up ends
base_lr = {rate}  # {rate_why}
warmup_epochs = {warmup}

[run]
epochs = {epochs}
"""


def write_starter(train: Path, val: Path | None, path: Path) -> str:
    """Write a recipe for the shards in `train`; returns a line that says what it holds.

    val: shards to evaluate on; None takes the folder `val` beside a folder `train`, if it is there.

    Raises: ShardError if there are no shards; ValueError if nothing can be trained, or path exists.
    """
    train, path = Path(train), Path(path)
    if path.exists():
        raise ValueError(f"{path}: found a file, expected none: --out FILE names another")
    beside = train.resolve().parent / "val"
    if val is None and train.resolve().name == "train" and beside.is_dir():
        val = beside
    data = DataSet(train)
    text = TEMPLATE.format(**_facts(data, train, val, path))
    recipe = parse_recipe(text, source=str(path), folder=path.parent)
    open_data(recipe)
    derived = derive(recipe, len(data))
    build(recipe.model.name, classes=len(data.class_names), input_size=recipe.data.crop, **recipe.model.args)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return (
        f"{path}: {recipe.model.name} at {recipe.data.crop} pixels, {derived.total_steps:,} steps of "
        f"{recipe.batch.global_batch} images: knltrain train {path}"
    )


def _facts(data, train, val, path):
    """What goes into the template."""
    size, whole = data.size or 256, data.encoding == "jpeg"
    small = size <= MEDIUM
    crop = size if size <= SMALL else min(PHOTO, max(32, size * 7 // 8 // 8 * 8))
    batch = 2 ** int(np.log2(max(1, min(128 if small else 256, len(data) // 8))))
    sample, mean, std = _colours(data)
    photos = whole and not small
    per = 128 if small else 256
    return {
        "train": printable(train.name),
        "name": printable(path.name),
        "rows": len(data),
        "classes": len(data.class_names),
        "encoding": data.encoding,
        "pixels": f"{data.size} pixels" if data.size else "as large as they were",
        "model": "resnet_cifar20" if small else "resnet18",
        "stem": "\nstem_stride = 2  # halves pictures of this size at once" if SMALL < size <= MEDIUM else "",
        "train_path": _relative(train, path),
        "val_path": _relative(val, path) if val else '""',
        "val_why": "shards to evaluate on" if val else "none given: evaluation is on the training set",
        "crop": crop,
        "pad": size // 8 if size <= SMALL else 0,
        "augmentation": "scale_aspect" if photos else "crop_flip",
        "why": "boxes of random area and aspect" if photos else "a random crop, mirrored half of the time",
        "mean": mean,
        "std": std,
        "sample": sample,
        "batch": batch,
        "slot": min(batch, 32),
        "decay": 5e-4 if small else 1e-4,
        "rate": round(0.1 * batch / per, 6),
        "rate_why": f"0.1 for {per} images (He et al. 2015), in proportion to the batch (Goyal et al. 2017)",
        "warmup": 2.0 if small else 5.0,
        "epochs": 30.0,
    }


def _colours(data):
    """(pictures, mean, standard deviation) of up to SAMPLE rows, spread over the data set."""
    rows = np.unique(np.linspace(0, len(data) - 1, SAMPLE).astype(int))
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for row in rows.tolist():
        pixels = data.image(row).reshape(-1, 3).astype(np.float64)
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # one colour alone is not divided by zero
    return len(rows), np.round(mean, 2).tolist(), np.round(std, 2).tolist()


def _relative(folder, path):
    """A path as the recipe has it, quoted: JSON's text is TOML's."""
    return json.dumps(os.path.relpath(folder.resolve(), path.resolve().parent), ensure_ascii=False)
