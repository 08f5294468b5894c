"""From a recipe to its parts: the only place that translates the recipe's keys into constructor arguments."""

import dataclasses
import hashlib
import socket
from pathlib import Path

import numba
import numpy as np

from knltrain.kernels import ARCH, DOT

from .. import __version__
from ..comm import (
    LOCAL,
    FullyConnected,
    Links,
    LocalUpdate,
    Reducer,
    ShardedUpdate,
    Shares,
    Travel,
    Update,
    Watch,
    compare_signatures,
    group_sizes,
)
from ..data import Augment, DataSet, Loader, Order, read_mean_image
from ..data.ranks import from_first
from ..data.shards import Packed
from ..layers import DenseGradient, Layer, dense_ops
from ..models import Among, Model, build, declare
from ..models.model import ALONE
from ..models.state import load as load_state
from ..optim.adaptive import OPTIMIZERS
from ..optim.lars import Lars
from ..optim.scaling import LossScale
from ..run.balance import read_speeds
from ..run.checkpoint import load_run
from .config import SHARES, Recipe, rules
from .derived import Derived

PREPROCESSING = ("crop", "short_side", "val_short_side", "mean", "std", "mean_image")
UNSCALED_SHORT_SIDE = 256  # pixels; before a crop of pictures that were packed as large as they are


def open_data(recipe: Recipe, comm=None) -> tuple[DataSet, DataSet]:
    """Training and validation set, opened by all ranks together; without `data.val` the training set is both.

    Raises ValueError if classes differ.
    """
    data = DataSet(recipe.data.train, comm, recipe.data.stage)
    if not recipe.data.val:
        return data, data
    val = DataSet(recipe.data.val, comm, recipe.data.stage)
    if val.class_names != data.class_names:
        raise ValueError(f"{val.folder} has other classes than {data.folder}; expected the same: pack both alike")
    return data, val


def misfits(recipe: Recipe, data: DataSet, val: DataSet) -> list[str]:
    """What the recipe asks of pictures that these shards do not have, a line each; nothing of it stops a run."""
    d, level, lines = recipe.data, recipe.data.augmentation, []
    for folder, size in {data.folder: data.size, val.folder: val.size}.items():
        if 0 < (d.short_side or size) < d.crop:
            side = f"data.short_side {d.short_side}" if d.short_side else f"the {size} pixels stored in {folder}"
            lines.append(f"data.crop {d.crop} is larger than {side}: pictures are enlarged, which adds only work")
    if data.encoding == "raw" and level in ("scale_aspect", "color"):
        enlarged = ((d.crop / data.size) ** 2 - d.min_area) / max(1 - d.min_area, 1e-9)
        lines.append(
            f"data.augmentation {level} wants whole pictures, {data.folder} holds squares of {data.size} pixels: what "
            f"packing cut off is never seen, and {min(1, max(0, enlarged)):.0%} of the boxes are enlarged to {d.crop}; "
            "where the originals are larger, pack them with --encoding jpeg --size 0"
        )
    if data.encoding == "raw" and level == "crop_flip" and (d.short_side or data.size) == d.crop and not d.pad:
        lines.append(f"data.augmentation crop_flip at crop {d.crop}, as large as the pictures, only mirrors: set pad")
    return [f"warning: {line}" for line in lines]


def identity(recipe: Recipe, data: DataSet) -> dict:
    """Everything the result of a run depends on, as flat JSON-able values: two equal ones give the same bits.

    Left out are the recipe's free keys: places, threads, buckets, how often something is logged or saved.
    """
    facts = {"data.images": len(data), "data.classes": list(data.class_names), "data.rows": data.digest}
    facts |= {"data.encoding": data.encoding, "data.size": data.size, "data.fit": data.fit}
    for name, rule in rules().items():
        if not rule.free:
            section, _, key = name.partition(".")
            value = getattr(getattr(recipe, section), key)
            facts[name] = _plain(value)
    if recipe.phases:
        facts["phases"] = [[p.from_epoch, {name: _plain(value) for name, value in p.settings}] for p in recipe.phases]
    facts["model.args"] = recipe.model.args
    facts["comm.wire"] = wire_of(recipe) + " in every sum" * (recipe.comm.wire == "auto" and wire_of(recipe) != "fp32")
    if recipe.compute.precision != "fp32":
        facts["compute.dot"] = DOT  # how the CPU multiplies 16-bit numbers, or KNLTRAIN_DOT says
    if recipe.data.mean_image:  # what is in it counts, not where it lies
        mean = read_mean_image(recipe.data.mean_image, data.size)
        facts["data.mean_image"] = hashlib.sha256(mean.tobytes()).hexdigest()[:16]
    return facts


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def network_facts(recipe: Recipe, class_names: list[str], packed: Packed) -> dict:
    """What of `identity` a network must be used with: layers, classes, and what is done to a picture."""
    facts = {"model.name": recipe.model.name, "model.args": recipe.model.args, "data.classes": list(class_names)}
    facts |= {f"data.{key}": value for key, value in packed._asdict().items()}
    d = recipe.data
    return facts | {f"data.{key}": value for key, value in dataclasses.asdict(d).items() if key in PREPROCESSING}


def rank_speeds(recipe: Recipe, comm) -> list[float]:
    """How fast the ranks are, in any unit, as the file of run.shares says of their hosts; what it does not name: 1."""
    if recipe.run.shares in SHARES:
        return [1.0] * comm.size
    named = from_first(comm, lambda: {"speeds": read_speeds(Path(recipe.run.shares))})["speeds"]
    return [named.get(host, 1.0) for host in comm.gather(socket.gethostname())]


def make_links(recipe: Recipe, comm, shares: Shares) -> Links:
    """Who talks to whom, by the recipe's algorithm, and who runs which slots."""
    c = recipe.comm
    how = {"wire": wire_of(recipe), "every_sum": c.wire == "auto", "shares": shares}
    return Links(comm, c.algorithm, **how, pretended_nodes=c.pretended_nodes, bandwidth=c.pretended_bandwidth)


def copies_of(recipe: Recipe, apart: bool) -> int:
    """Of the weights, that a rank keeps for the workers: what the wire loses; where they train apart, what they are."""
    workers = recipe.comm.workers
    return (workers + 1) * (recipe.comm.wire == "int8") + len(LOCAL) * workers * apart


def wire_of(recipe: Recipe) -> str:
    """How gradients travel: as the recipe says, else in its precision."""
    return recipe.compute.precision if recipe.comm.wire == "auto" else recipe.comm.wire


def watch_ranks(recipe: Recipe, data: DataSet, comm, last_words=lambda: "") -> Watch:
    """A watch over all ranks, after a look whether they are about to do the same. Raises ValueError if not."""
    versions = {"kernels": ARCH.name, "NumPy": np.__version__, "Numba": numba.__version__, "knltrain": __version__}
    compare_signatures(comm, identity(recipe, data) | versions)
    return Watch(comm, recipe.comm.stall_warn_s, recipe.comm.stall_end_s, last_words)


def make_model(
    recipe: Recipe, classes: int, among: Among = ALONE, train: bool = True, layers: tuple[Layer, tuple] | None = None
) -> Model:
    """The recipe's network, planned and initialised. layers: it and its input shape, not the recipe's."""
    layers, input_shape = layers or build_network(recipe, classes)
    return Model(
        layers,
        input_shape,
        recipe.batch.slot_batch,
        recipe.batch.global_batch,
        smoothing=recipe.optim.label_smoothing,
        seed=recipe.run.seed,
        train=train,
        precision=recipe.compute.precision,
        among=among._replace(fc_shards=recipe.comm.fc_shards),
    )


def build_network(recipe: Recipe, classes: int):
    """The layers and the input shape that the recipe names."""
    options = {"classes": classes, "input_size": recipe.data.crop} | recipe.model.args
    if options["input_size"] != recipe.data.crop or options["classes"] != classes:
        raise ValueError(
            f"[model] has input_size {options['input_size']} and classes {options['classes']}; "
            f"expected {recipe.data.crop} (data.crop) and {classes} (of the data): leave both out"
        )
    return build(recipe.model.name, **options)


def check_sizes(recipes: list[Recipe], classes: int):
    """Raise ValueError where a phase has pictures of a size with which the network is another one."""
    by_crop = {recipe.data.crop: recipe for recipe in reversed(recipes)}
    shapes = {}
    for crop in by_crop if len(by_crop) > 1 else ():
        parameters = declare(*build_network(by_crop[crop], classes)).parameters.parameters
        shapes[crop] = {(p.name, p.shape) for p in parameters}
    first = recipes[0].data.crop
    for crop in shapes:
        for name, _ in sorted(shapes[crop] - shapes[first]):
            what = f"data.crop {crop} of a phase: {name} has another size than at {first}"
            raise ValueError(f"{what}; expected a network that ends in an average, as resnet50")


def begin_with(path: str, parameters, comm) -> list[str]:
    """Copy the weights of a run, checkpoint or saved network into a model on all ranks, read by rank 0.

    Returns the tensors of the last layer that had other classes there and begin at random. Raises ValueError where the
    file is no such thing or of another network.
    """

    def read():
        arrays, _ = load_run(Path(path))
        return {"fresh": load_state(parameters, arrays, path, strict=False)}

    fresh = from_first(comm, read)["fresh"]
    for block in (parameters.value, parameters.running):
        comm.broadcast(block)
    return fresh


def asked_group(recipe: Recipe, shares: Shares) -> int:
    """Of how many ranks the groups are that split layers, where a recipe asks for that; 1 where arithmetic decides."""
    c = recipe.comm
    asks = c.fc == "split" and recipe.optim.local_steps == 1
    return [1, *(group_sizes(shares, c.fc_shards, c.fc_group or c.fc_shards) if asks else ())][-1]


def make_optimizer(recipe: Recipe, model: Model) -> Lars:
    """The recipe's optimizer over the model's parameters."""
    made = OPTIMIZERS.get(recipe.optim.variant, Lars)
    for name in made.states:
        if name not in model.parameters.states:
            model.parameters.keep(name)
    return made(model.parameters.parameters, recipe.optim)


def make_loss_scale(recipe: Recipe) -> LossScale | None:
    """As the recipe says, else dynamic for fp16, whose gradients would vanish, and none for the others."""
    scale = recipe.compute.loss_scale
    if scale == "auto":
        scale = "dynamic" if recipe.compute.precision == "fp16" else None
    return scale and LossScale(None if scale == "dynamic" else scale)


def make_reducer(recipe: Recipe, model: Model, watch) -> Reducer:
    """The sum of gradients over this rank's slots and all ranks."""
    c = recipe.comm
    how = (c.bucket_bytes, c.cut_before, c.overlap, c.shard_update, watch, fully_connected(recipe, model))
    return Reducer(model.parameters, Travel(model.parameters, model.parameters.block, *how))


def fully_connected(recipe: Recipe, model: Model) -> FullyConnected:
    """Which layers are, and what the recipe says of their gradients."""
    program, c = model.training, recipe.comm
    layers = [
        DenseGradient(program, op, lambda: model.observer, model.sharded.get(op.writes["dw"].owner.name))
        for op in reversed(dense_ops(program))
    ]
    flops = sum(op.arithmetic for op in program.backward)
    mode = "sum" if recipe.optim.local_steps > 1 else c.fc
    return FullyConnected(mode, layers, flops, c.wire not in ("auto", "fp32"), c.fc_shards, c.fc_group)


def make_update(recipe: Recipe, model: Model, optimizer: Lars, reducer: Reducer) -> Update:
    """The step of the optimizer on what the reducer gives: on every rank all of it, a part on each, workers apart."""
    if recipe.optim.local_steps > 1:
        return LocalUpdate(model.parameters, optimizer, reducer)
    parts = reducer.sums.scattered or reducer.travel.splits
    return (ShardedUpdate if parts else Update)(model.parameters, optimizer, reducer)


def make_loader(recipe: Recipe, derived: Derived, data: DataSet, slots: range) -> Loader:
    """The training batches of this rank's slots."""
    d, page_rows = recipe.data, data.page_rows
    order = Order(len(data), page_rows, derived.slots, recipe.batch.slot_batch, recipe.run.seed, kind=d.shuffle)
    augment = make_augment(recipe, data, d.augmentation)
    return Loader(data, order, augment, slots=slots, threads=d.reader_threads, prefetch=d.prefetch)


def center_crop(recipe: Recipe, data: DataSet) -> Augment:
    """What evaluation does to a picture of `data`."""
    d = recipe.data
    d = dataclasses.replace(d, short_side=d.val_short_side or d.short_side)
    return make_augment(dataclasses.replace(recipe, data=d), data, "none")


def make_augment(recipe: Recipe, data: DataSet, level: str) -> Augment:
    """Augmentation by the recipe's numbers. A mean picture is read here; raises ValueError if it does not fit."""
    d = recipe.data
    short_side = d.short_side or (UNSCALED_SHORT_SIDE if data.size == 0 else 0)
    mean = read_mean_image(d.mean_image, data.size) if d.mean_image else d.mean
    options = {"pad": d.pad, "min_area": d.min_area, "short_side": short_side, "cutout": d.cutout}
    options |= {"max_pixels": d.max_pixels, "mirror": d.mirror, "mixup": d.mixup}
    return Augment(level, d.crop, mean, d.std, seed=recipe.run.seed, **options)
