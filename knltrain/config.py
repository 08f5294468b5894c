"""The recipe: one TOML file that defines an experiment whole, read into frozen dataclasses and checked at once.

Order: defaults < recipe < `--set section.key=value`. Environment variables are for the machine and never appear here.
"""

import dataclasses
import difflib
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path


class RecipeError(ValueError):
    """A recipe that cannot be run; one line: where, what was found, what was expected."""


# ---- sections: one line per key: default, then unit and meaning ----------------------------------------------------


@dataclass(frozen=True)
class Model:
    name: str  # which network: a name known to `knltrain describe`
    args: dict = field(default_factory=dict)  # every other key of [model], checked by the network itself


@dataclass(frozen=True)
class Data:
    train: str  # folder of shards; relative to the recipe (in --set: to the current folder)
    val: str = ""  # folder of shards to evaluate on; "": none
    val_mirror: bool = False  # evaluate a picture by the sum of its logits and those of its mirror image
    augmentation: str = "crop_flip"  # none | crop_flip | scale | scale_aspect | color
    crop: int = 224  # pixels, side of the network's input
    short_side: int = 0  # pixels of the short side before a crop (not of scale_aspect); 0: as stored, 256 if unscaled
    pad: int = 0  # pixels of zeros around a stored image before a random crop
    cutout: int = 0  # pixels, side of a square of mean colour laid over each training picture; 0: none
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # 0..255, red green blue, subtracted
    mean_image: str = ""  # instead of mean: .npy file of a mean picture, as Caffe's; raw shards of its size only
    std: tuple[float, ...] = (58.395, 57.12, 57.375)  # 0..255, red green blue, divided by; 256 for Caffe's scale
    min_area: float = 0.08  # share of the image, least area of a scale_aspect crop
    shuffle: str = "quasi"  # quasi (reads stay large) | full (a permutation of all rows) | sequential
    stage: str = "none"  # none | local | memory: copy the shards to each node's disk or shared memory first
    reader_threads: int = 1  # per rank, 1..256
    prefetch: int = 2  # batches read ahead, per rank, 1..64


@dataclass(frozen=True)
class Batch:
    global_batch: int = 256  # images per update, over all ranks
    slot_batch: int = 32  # images per slot: the unit of batch norm statistics and of sums


@dataclass(frozen=True)
class Optim:
    variant: str = "caffe2017"  # caffe2017 | mlperf | larc_clip | nus
    trust_coefficient: float = 0.001  # LARS's eta; 0: plain SGD
    momentum: float = 0.9  # share of the past kept per step
    nesterov: bool = False  # look ahead by one step of momentum
    weight_decay: float = 0.0005  # per step, times the weight, added to the gradient
    epsilon: float = 0.0  # added below the trust ratio, in units of the gradient's norm
    momentum_correction: bool = False  # in warm-up, rescale the past to the rising rate (Goyal et al.)
    decay_bias_and_norm: bool = False  # weight decay also for biases and batch norm
    label_smoothing: float = 0.0  # probability moved from the label to all classes alike


@dataclass(frozen=True)
class Schedule:
    policy: str = "poly"  # poly | step | cosine | constant
    base_lr: float = 0.1  # learning rate at the end of warm-up, for the whole global batch
    warmup_epochs: float = 0.0  # epochs
    warmup: str = "linear"  # linear | quadratic
    start_lr: float = -1.0  # learning rate of step 0; negative: base_lr / warm-up steps
    power: float = 2.0  # exponent of poly
    end_lr: float = 0.0  # where poly and cosine end
    origin: str = "zero"  # zero (decay counts from step 0, as Caffe) | warmup (from its end, as MLPerf)
    milestones: tuple[float, ...] = ()  # epochs at which step multiplies by factor
    factor: float = 0.1  # of policy step


@dataclass(frozen=True)
class Comm:
    algorithm: str = "auto"  # auto | hierarchical | mpi | ring | halving | doubling | tree | torus
    wire: str = "fp32"  # fp32 | bf16 | fp16: how gradients travel between nodes; sums are fp32
    bucket_bytes: int = 0  # bytes of gradient reduced at once, changes only speed; 0: chosen by measuring
    cut_before: tuple[str, ...] = ()  # instead: buckets begin at these tensors, named as in a checkpoint: ["fc6.w"]
    overlap: bool = True  # exchange while the backward pass goes on
    shard_update: bool = False  # each rank updates its part of the weights and sends them: the same bits, less work
    check_every_steps: int = 100  # compare the replicas of all ranks by a hash; 0: never
    stall_warn_s: float = 60.0  # seconds without progress until the ranks that are waited for are named
    stall_end_s: float = 600.0  # and until the job is ended
    trace_steps: int = 0  # write the exchanges of so many first steps to trace-RANK.json in the run folder
    pretended_nodes: int = 0  # cut the ranks of one machine into so many nodes, for tests; 0: as it is
    pretended_bandwidth: float = 0.0  # bytes/s of a network to pretend, by sleeping; 0: as it is


@dataclass(frozen=True)
class Run:
    epochs: float = 90.0  # length of the run and of the schedule
    max_steps: int = 0  # stop after so many steps, the schedule unchanged; 0: run to the end
    seed: int = 0  # of weights, order, augmentation and dropout
    evaluate_every_epochs: float = 1.0  # 0: only at the end
    checkpoint_every_steps: int = 0  # 0: not by steps
    checkpoint_every_epochs: float = 1.0  # 0: not by epochs; the shorter of the two counts; one is always at the end
    checkpoint_every_minutes: float = 10.0  # beside the two above: what a crash may cost; 0: not by the clock
    keep_checkpoints: int = 2  # the newest so many; the best is kept besides
    log_every_seconds: float = 5.0  # seconds between progress lines in a file


@dataclass(frozen=True)
class Recipe:
    model: Model
    data: Data
    batch: Batch = Batch()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    comm: Comm = Comm()
    run: Run = Run()


SECTIONS = {f.name: f.type for f in dataclasses.fields(Recipe)}

CHOICES = {  # said again by optim and data, which to import here would load Numba; a test compares them
    "data.augmentation": ("none", "crop_flip", "scale", "scale_aspect", "color"),
    "data.shuffle": ("quasi", "full", "sequential"),
    "data.stage": ("none", "local", "memory"),
    "comm.algorithm": ("auto", "hierarchical", "mpi", "ring", "halving", "doubling", "tree", "torus"),
    "comm.wire": ("fp32", "bf16", "fp16"),
    "optim.variant": ("caffe2017", "mlperf", "larc_clip", "nus"),
    "schedule.policy": ("poly", "step", "cosine", "constant"),
    "schedule.warmup": ("linear", "quadratic"),
    "schedule.origin": ("zero", "warmup"),
}
POSITIVE = (
    *("batch.global_batch", "batch.slot_batch", "data.crop", "data.min_area", "data.std"),
    *("comm.stall_warn_s", "comm.stall_end_s"),
    *("data.prefetch", "data.reader_threads", "run.epochs", "run.keep_checkpoints", "schedule.base_lr"),
    *("schedule.factor", "schedule.power"),
)
NOT_EMPTY = ("model.name", "data.train")
MAY_BE_NEGATIVE = ("schedule.start_lr",)
BELOW_ONE = ("optim.momentum", "optim.label_smoothing")
AT_MOST = {"data.min_area": 1, "data.prefetch": 64, "data.reader_threads": 256}

# ---- reading -------------------------------------------------------------------------------------------------


def load_recipe(path, overrides=()) -> Recipe:
    """Read a recipe and apply overrides, a list of "section.key=value".

    Paths in [data] become absolute. Raises RecipeError, one line with the file's name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: {reason}; expected a recipe, a TOML file as in jobs/recipes") from None
    return parse_recipe(text, overrides, source=str(path), folder=path.parent)


def parse_recipe(text: str, overrides=(), *, source: str = "recipe", folder=".") -> Recipe:
    """As load_recipe, from TOML text: `source` names it in errors, `folder` is where its relative paths start."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source}: not valid TOML: {error}") from None
    values = {section: {} for section in SECTIONS}
    for section, keys in table.items():
        if not isinstance(keys, dict):
            raise RecipeError(f"{source}: key {section} stands outside a section; {_nearest('', section)}")
        for key, value in keys.items():
            _store(values, source, section, key, value, folder)
        if section not in SECTIONS:  # an empty section that nobody knows
            raise RecipeError(f"{source}: unknown section [{section}]; {_nearest(section, '')}")
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise RecipeError(f"--set {override}: expected section.key=value, as in schedule.base_lr=2.0")
        _store(values, f"--set {override}", section, key, _parse_value(value, section, key), ".")
    for section, cls in SECTIONS.items():
        for f in dataclasses.fields(cls):
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and f.name not in values[section]:
                raise RecipeError(f"{source}: {section}.{f.name} is missing; add it under [{section}]")
    recipe = Recipe(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})
    for name, found, expected in _problems(recipe):
        raise RecipeError(f"{source}: {name} is {found!r}; expected {expected}")
    return recipe


def _fields(section: str) -> dict:
    return {f.name: f.type for f in dataclasses.fields(SECTIONS[section]) if f.name != "args"}


def _store(values, source, section, key, value, folder):
    """Check one key's name and type and put it into `values`."""
    if section not in SECTIONS:
        raise RecipeError(f"{source}: unknown section [{section}]; {_nearest(section, key)}")
    known = _fields(section)
    if key not in known and section == "model":
        if not _is_plain(value):
            raise RecipeError(f"{source}: model.{key} is {value!r}; expected text, a number, true, false or a list")
        values["model"].setdefault("args", {})[key] = value
        return
    if key not in known:
        raise RecipeError(f"{source}: unknown key {section}.{key}; {_nearest(section, key)}")
    value = _convert(value, known[key], f"{source}: {section}.{key}")
    if (section, key) in (("data", "train"), ("data", "val"), ("data", "mean_image")) and value:
        value = str((Path(folder) / Path(value).expanduser()).resolve())
    values[section][key] = value


def _convert(value, kind, where: str):
    """`value` as the field's type: whole numbers serve as floats, lists as tuples; nothing else is converted."""
    if kind in (tuple[float, ...], tuple[str, ...]):
        item_kind = kind.__args__[0]
        if not isinstance(value, list):
            raise RecipeError(f"{where} is {value!r}; expected a list of {'names' if item_kind is str else 'numbers'}")
        return tuple(_convert(item, item_kind, where) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}[kind]
        raise RecipeError(f"{where} is {value!r}; expected {expected}")
    return value


def _is_plain(value) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (str, bool, int, float))


def _parse_value(text: str, section: str, key: str):
    """`toml_value`, but a key for text takes a number as the text it is (a folder 2024)."""
    value = toml_value(text)
    is_text = section in SECTIONS and _fields(section).get(key) is str
    return text.strip() if is_text and not isinstance(value, str) else value


def toml_value(text: str):
    """The TOML value that the text of a `--set` is, else the bare text."""
    text = text.strip()
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def _nearest(section: str, key: str) -> str:
    """The hint in an error: the same key of another section, or the most similar name."""
    names = [f"{s}.{k}" for s in SECTIONS for k in _fields(s)]
    same = [name for name in names if key and name.split(".")[1] == key]
    inside = [name for name in names if name.startswith(f"{section}.")] or names
    similar = difflib.get_close_matches(f"{section}.{key}", inside, n=1, cutoff=0.0)
    if not key:
        return f"the nearest known one is [{difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.0)[0]}]"
    return f"the nearest known one is {(same or similar)[0]}"


# ---- checks --------------------------------------------------------------------------------------------------


def _problems(recipe: Recipe):
    """Yield (name, found, expected) for every value that is out of its range."""
    for section in SECTIONS:
        for key in _fields(section):
            name, value = f"{section}.{key}", getattr(getattr(recipe, section), key)
            numbers = value if isinstance(value, tuple) else (value,)
            if name in CHOICES and value not in CHOICES[name]:
                yield name, value, f"one of {', '.join(CHOICES[name])}"
            if name in NOT_EMPTY and not value:
                yield name, value, "a name"
            if any(isinstance(x, str) for x in numbers):
                continue
            if not all(math.isfinite(x) for x in numbers):
                yield name, value, "a finite number"
            if name in POSITIVE and not all(x > 0 for x in numbers):
                yield name, value, "more than 0"
            if name not in MAY_BE_NEGATIVE and not all(x >= 0 for x in numbers):
                yield name, value, "0 or more"
            if name in BELOW_ONE and value >= 1:
                yield name, value, "less than 1"
            if name in AT_MOST and value > AT_MOST[name]:
                yield name, value, f"at most {AT_MOST[name]}"
    batch, data = recipe.batch, recipe.data
    if batch.global_batch % batch.slot_batch:
        yield "batch.slot_batch", batch.slot_batch, f"a divisor of batch.global_batch, {batch.global_batch}"
    for key in ("mean", "std"):
        if len(getattr(data, key)) != 3:
            yield f"data.{key}", getattr(data, key), "three numbers: red, green, blue"
    milestones = recipe.schedule.milestones
    if list(milestones) != sorted(milestones):
        yield "schedule.milestones", milestones, "rising epochs"
    if recipe.run.seed >= 2**63:
        yield "run.seed", recipe.run.seed, "less than 2^63"
    if recipe.optim.momentum_correction and recipe.optim.variant in ("larc_clip", "nus"):
        yield "optim.momentum_correction", True, "false with this variant, whose buffer does not scale with the rate"


# ---- writing -------------------------------------------------------------------------------------------------


def resolved(recipe: Recipe) -> str:
    """TOML text with every key, defaults included, that loads back to an equal recipe."""
    lines = []
    for section in SECTIONS:
        values = dict(dataclasses.asdict(getattr(recipe, section)))
        values |= values.pop("args", {})
        lines += [f"[{section}]", *(f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return repr(value)


# ---- derived numbers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Derived:
    """What follows from a recipe and the number of training images."""

    slots: int
    steps_per_epoch: int  # images that do not fill a global batch are left out, others each epoch
    total_steps: int  # where this run ends: with the schedule, or at run.max_steps if that is sooner
    evaluate_every_steps: int  # 0: only at the end
    checkpoint_every_steps: int  # 0: only at the end
    schedule: dict  # arguments of optim.learning_rate after the step


def derive(recipe: Recipe, n_rows: int) -> Derived:
    """Derived numbers for a training set of n_rows images. Raises RecipeError when they do not fill one batch."""
    batch, plan, run = recipe.batch, recipe.schedule, recipe.run
    steps_per_epoch = n_rows // batch.global_batch
    if steps_per_epoch == 0:
        raise RecipeError(
            f"batch.global_batch is {batch.global_batch}; expected at most {n_rows}, the images in {recipe.data.train}"
        )

    def steps(epochs):
        return round(epochs * steps_per_epoch)

    schedule_steps = max(1, steps(run.epochs))
    by_epochs = max(1, steps(run.checkpoint_every_epochs)) if run.checkpoint_every_epochs else 0
    arguments = dataclasses.asdict(plan)
    del arguments["warmup_epochs"]
    arguments |= {"total_steps": schedule_steps, "warmup_steps": steps(plan.warmup_epochs)}
    arguments["milestones"] = tuple(steps(epoch) for epoch in plan.milestones)
    return Derived(
        slots=batch.global_batch // batch.slot_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=min(schedule_steps, run.max_steps or schedule_steps),
        evaluate_every_steps=max(1, steps(run.evaluate_every_epochs)) if run.evaluate_every_epochs else 0,
        checkpoint_every_steps=min(filter(None, (run.checkpoint_every_steps, by_epochs)), default=0),
        schedule=arguments,
    )
