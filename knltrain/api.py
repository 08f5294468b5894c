"""knltrain from Python: a network, data, a trainer to iterate over, evaluation, prediction, and one file to keep.

The same parts as the command's, wired by the same `experiment`; a script works alone and under mpiexec.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .assembly import make_trainer
from .comm import world
from .data import Arrays, Augment, DataSet
from .data.decode import fit_stored
from .data.shards import Packed
from .evaluate import Accuracy
from .evaluate import evaluate as count
from .models import Model, custom
from .models.state import load as load_state
from .models.state import state
from .node.machine import take_share
from .recipe.config import Batch, Compute, Data, Optim, Recipe, Run, Schedule, checked, recipe_of
from .recipe.config import Model as ModelSection
from .recipe.experiment import build_network, center_crop, network_facts
from .recipe.phases import facts_at
from .run import checkpoint
from .run.observe import Step, StepObserver

SQUARES = Packed("raw", 0)  # pictures of any size, taken as they are
PREDICT_BATCH = 32  # images of one pass of a network that is not being trained


# ---- data, optimizer, schedule -----------------------------------------------------------------------------------


def data(folder: str | Path) -> DataSet:
    """The shards of a folder, as `knltrain pack` makes them; opened by all ranks together. Raises ShardError."""
    return DataSet(folder, world())


def arrays(images: np.ndarray, labels: np.ndarray, class_names: list[str]) -> Arrays:
    """Pictures in memory: images (N, size, size, 3) uint8, labels (N,) integers. Raises ValueError."""
    return Arrays(images, labels, class_names)


def Lars(trust_coefficient: float = 0.001, **options) -> Optim:
    """LARS with momentum (You et al. 2017); options: the keys of [optim], as momentum, weight_decay, variant."""
    return Optim(trust_coefficient=trust_coefficient, **options)


def Sgd(**options) -> Optim:
    """Stochastic gradient descent with momentum; options: the keys of [optim], as momentum, nesterov, weight_decay."""
    return Optim(trust_coefficient=0.0, **options)


class Plan(NamedTuple):
    """A schedule of the learning rate and how long it is."""

    schedule: Schedule
    epochs: float


def poly(base_lr: float, epochs: float, power: float = 2.0, **options) -> Plan:
    """base_lr * (1 - progress)^power; options: the other keys of [schedule], as warmup_epochs."""
    return Plan(Schedule("poly", base_lr, power=power, **options), epochs)


def cosine(base_lr: float, epochs: float, **options) -> Plan:
    """base_lr * (1 + cos(pi * progress)) / 2; options: the other keys of [schedule]."""
    return Plan(Schedule("cosine", base_lr, **options), epochs)


def constant(base_lr: float, epochs: float, **options) -> Plan:
    """base_lr throughout; options: the other keys of [schedule]."""
    return Plan(Schedule("constant", base_lr, **options), epochs)


# ---- networks ------------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """Class names and their probabilities, the most probable first."""

    names: tuple[str, ...]
    probabilities: tuple[float, ...]


class Network:
    """A network for named classes, what it does to pictures, and, once trained or loaded, its weights.

    Make one with `network` or `load`.
    """

    def __init__(self, recipe: Recipe, class_names: list[str], layers, packed: Packed = SQUARES):
        self.recipe, self.class_names, self.layers, self.input_shape = recipe, list(class_names), *layers
        self.packed = packed  # how the pictures it was trained on are
        self.model: Model | None = None
        self.complete: Callable[[], None] = lambda: None  # of a network in training: its weights are whole on this rank

    def train_as(self, recipe: Recipe, model: Model, packed: Packed, complete: Callable[[], None]):
        """From now on its weights are those of `model`, which trains; complete: makes them whole on this rank."""
        self.recipe, self.model, self.packed, self.complete = recipe, model, packed, complete

    def save(self, path: str | Path) -> None:
        """Write weights, classes and preprocessing to one file, whole or not at all. Raises OSError."""
        facts = network_facts(self.recipe, self.class_names, self.packed)
        meta = {"previous_lr": 0.0, "experiment": facts}
        checkpoint.save_file(Path(path), 0, state(self._model().parameters, momentum=False), meta)

    def predict(self, pictures, top: int = 5) -> list[Prediction]:
        """The `top` most probable classes of each picture, (H, W, 3) uint8, of any sizes; scaled as packing does.

        Raises ValueError for something else than such pictures.
        """
        model, augment = self._model(), self.preprocessing()
        results, pictures = [], list(pictures)
        for first in range(0, len(pictures), model.slot_batch):
            some = pictures[first : first + model.slot_batch]
            batch = np.empty((len(some), *self.input_shape), np.float32)
            for index, (picture, out) in enumerate(zip(some, batch, strict=True)):
                picture = np.asarray(picture)
                if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                    found = f"found {picture.shape} of {picture.dtype}, expected (H, W, 3) of uint8"
                    raise ValueError(f"picture {first + index}: {found}")
                augment.apply(np.ascontiguousarray(fit_stored(picture, *self.packed)), 0, 0, out)
            model.feed(batch)
            results += [self._named(row, top) for row in model.infer()[: len(some)]]
        return results

    def preprocessing(self) -> Augment:
        """What is done to a picture that was fitted as packing did, before the network sees it."""
        return center_crop(self.recipe, self.packed)

    def _named(self, logits, top) -> Prediction:
        shares = np.exp(logits.astype(np.float64) - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")[:top]
        return Prediction(tuple(self.class_names[k] for k in order), tuple(float(shares[k]) for k in order))

    def _model(self) -> Model:
        if self.model is None:
            options = {"seed": self.recipe.run.seed, "precision": self.recipe.compute.precision}
            self.model = Model(self.layers, self.input_shape, PREDICT_BATCH, train=False, **options)
        return self.model


def network(
    name: str | Callable,
    classes: list[str],
    crop: int,
    mean: tuple = (123.675, 116.28, 103.53),
    std: tuple = (58.395, 57.12, 57.375),
    seed: int = 0,
    precision: str = "fp32",
    **options,
) -> Network:
    """A network by name ("resnet50", "my_nets.py:tiny_vgg") or by a function that returns its layers.

    classes: their names. crop: pixels, side of its input. mean, std: 0..255, red green blue. precision: "fp32", "bf16"
    or "fp16", of activations, their gradients and packed weights. options: of the network.
    Raises ValueError for an unknown name or option, or classes that are no list.
    """
    if isinstance(classes, str | int):
        raise ValueError(f"classes is {classes!r}; expected a list of their names, as DataSet.class_names")
    text = name if isinstance(name, str) else f"{name.__module__}.{name.__name__}"
    section = Data("-", crop=crop, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    recipe = Recipe(ModelSection(text, args=options), section, compute=Compute(precision), run=Run(seed=seed))
    if isinstance(name, str):
        layers = build_network(recipe, len(classes))
    else:
        layers = custom.make(name, len(classes), crop, **options)
    return Network(checked(recipe), classes, layers)


def load(path: str | Path, network: Callable | None = None) -> Network:
    """The network of a file that `Network.save` wrote, of a checkpoint, or of a run folder (its best checkpoint).

    network: the function that made its layers, where that was not a name. Raises CheckpointError, ValueError.
    """
    found, meta = checkpoint.load_run(Path(path))
    try:
        facts = facts_at(meta)
        recipe, classes, packed = recipe_of(facts), facts["data.classes"], Packed.of(facts)
    except KeyError as error:
        raise checkpoint.CheckpointError(f"{path}: says nothing of {error}; expected a file of this version") from None
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{path}: {error}") from None
    if facts.get("data.mean_image"):
        colours = ", ".join(f"{value:g}" for value in recipe.data.mean)
        lost = "trained with a mean picture, which is not in the file"
        checkpoint.print_warning(f"{path}: {lost}: its place is taken by data.mean, {colours}")
    if network:
        layers = custom.make(network, len(classes), recipe.data.crop, **recipe.model.args)
    else:
        layers = build_network(recipe, len(classes))
    net = Network(recipe, classes, layers, packed)
    wanted = {name: array for name, array in found.items() if not name.startswith("momentum/")}
    load_state(net._model().parameters, wanted, path, strict=False)
    return net


# ---- training and evaluating -----------------------------------------------------------------------------------------


class Trainer:
    """Trains a network: `for step in Trainer(net, data, …)`, with step.number, .loss, .accuracy, .images_per_s, .lr.

    global_batch: images per update, over all ranks; slot_batch: images of one pass, the unit of batch norm statistics.
    optimizer: `Lars(…)` or `Sgd(…)`. schedule: `poly(…)`, `cosine(…)` or `constant(…)`. more: keys of the recipe's
    sections [data], [comm] and [compute] by their names, as augmentation="none", precision="bf16". observers: told of
    steps. Ctrl-C raises KeyboardInterrupt as anywhere; the trainer may be iterated again and goes on. Raises ValueError
    for numbers that do not fit.
    """

    def __init__(
        self, net: Network, data, *, global_batch: int, slot_batch: int, optimizer: Optim, schedule: Plan,
        seed: int = 0, label_smoothing: float = 0.0, observers: tuple[StepObserver, ...] = (), **more,
    ):  # fmt: skip
        _check_classes(net, data)
        sections = {"data": net.recipe.data, "comm": net.recipe.comm, "compute": net.recipe.compute}
        for name, value in more.items():
            place = next((s for s, keys in sections.items() if hasattr(keys, name)), None)
            if place is None:
                expected = "a key of the recipe's [data], [comm] or [compute]"
                raise ValueError(f"Trainer: unknown option {name!r}; expected {expected}")
            sections[place] = dataclasses.replace(sections[place], **{name: value})
        recipe = dataclasses.replace(
            net.recipe, **sections, batch=Batch(global_batch, slot_batch), schedule=schedule.schedule,
            optim=dataclasses.replace(optimizer, label_smoothing=label_smoothing),
            run=dataclasses.replace(net.recipe.run, epochs=schedule.epochs, seed=seed),
        )  # fmt: skip
        comm = world()
        layers, before = (net.layers, net.input_shape), net.model
        how = {"layers": layers, "observers": observers}
        self._trainer = make_trainer(checked(recipe), data, comm, take_share(comm), **how)
        self._trainer.seek(0)
        if before is not None:
            load_state(self._trainer.model.parameters, state(before.parameters, False), "the network", strict=False)
        packed = Packed(data.encoding, data.size, data.fit)
        self._complete = lambda: self._trainer.parts.update.gather_weights()
        net.train_as(recipe, self._trainer.model, packed, self._complete)

    def __iter__(self) -> Iterator[Step]:
        yield from self._trainer.steps()
        self._complete()
        self.close()

    def __len__(self) -> int:
        """Steps in all."""
        return self._trainer.total

    def close(self) -> None:
        """Stop reading ahead; done by itself at the end. Harmless when repeated."""
        self._trainer.close()


def evaluate(net: Network, data, mirror: bool = False, shift: int = 0) -> Accuracy:
    """Top-1 and top-5 of a network on data, over all ranks; see `Accuracy` for what else it counts.

    mirror: a picture counts by its logits and those of its mirror image, summed; shift: and of the picture moved by so
    many pixels. Raises ValueError for other classes.
    """
    _check_classes(net, data)
    net.complete()
    augment = center_crop(net.recipe, data)
    return count(net._model(), data, augment, world(), net.recipe.data.reader_threads, mirror, shift)


def _check_classes(net, data):
    if list(data.class_names) != net.class_names:
        few = [f"{len(names)} ({', '.join(names[:3])}, …)" for names in (data.class_names, net.class_names)]
        raise ValueError(f"the data have classes {few[0]}, the network {few[1]}: expected the same")


def predict_files(path: Path, images: list[Path], top: int, as_json: bool) -> None:
    """`knltrain predict`: print the most probable classes of picture files, and of those in folders."""
    from .claims.text import printable
    from .data.decode import DecodeError, decode, require_decoder

    require_decoder()
    for image in images:
        if not image.exists():
            raise FileNotFoundError(f"{image}: found no such file or folder, expected pictures")
    net = load(path)
    files = [file for image in images for file in (sorted(image.rglob("*")) if image.is_dir() else [image])]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"found no file in {', '.join(map(str, images))}, expected pictures")
    for file in files:
        try:
            (found,) = net.predict([decode(np.frombuffer(file.read_bytes(), np.uint8))], top)
        except DecodeError as error:
            raise ValueError(f"{file}: found no picture ({error})") from None
        pairs = zip(found.names, found.probabilities, strict=True)
        if as_json:
            print(json.dumps({"file": str(file), "classes": [{"name": n, "probability": p} for n, p in pairs]}))
        else:
            print(printable(f"{file}  " + "  ".join(f"{name} {share:.1%}" for name, share in pairs)))
