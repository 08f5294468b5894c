"""The recipe: one TOML file that defines an experiment whole, read into frozen dataclasses and checked at once.

Order: defaults < recipe < `--set section.key=value`. Environment variables are for the machine and never appear here.
"""

import dataclasses
import difflib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..claims.keys import REQUIRED, Rule, converted, key, plain, shown, traced_steps
from ..claims.toml import toml_key, toml_text, toml_value
from ..optim.options import OTHERS, Optim
from ..optim.schedule import Schedule
from .inherit import Part, RecipeError, parts_of_file, parts_of_text
from .workers import worker_problems, workers_are_for

# ---- sections: one line per key ------------------------------------------------------------------------------

EPOCHS = 10**6
RGB, SHARES = {"count": 3, "most": 1024}, ("equal", "measured")
# relative to the recipe
PATHS = {("data", "train"), ("data", "val"), ("data", "mean_image"), ("model", "weights"), ("run", "shares")}
LEVELS = ("none", "crop_flip", "scale", "scale_aspect", "color")  # to import these from where they are known would load
SHUFFLES = ("quasi", "full", "sequential")  # Numba; a test compares them
MIRRORS, STAGES = ("random", "alternate"), ("none", "local", "memory")
ALGORITHMS = ("auto", "hierarchical", "halving", "doubling", "direct", "tree")
FC = ("auto", "sum", "factors", "split")
FC_SHARDS = tuple(2**k for k in range(7))
PRECISIONS = ("fp32", "bf16", "fp16")
WIRES = (*PRECISIONS, "int8")
LOSS_SCALES = ("auto", "dynamic", *(2.0**k for k in range(25)))


@dataclass(frozen=True)
class Model:
    name: str = key(REQUIRED, "which network: a name known to `knltrain describe`", least=1)
    weights: str = key("", "begin with those of a run, a checkpoint or a saved network; '': random", free=True)
    args: dict = field(default_factory=dict)  # every other key of [model], checked by the network itself


@dataclass(frozen=True)
class Data:
    train: str = key(REQUIRED, "folder of shards; relative to the recipe (of --set: to here)", least=1, free=True)
    val: str = key("", "folder of shards to evaluate on; '': none", free=True)
    val_mirror: bool = key(False, "evaluate a picture by its logits and those of its mirror image, summed", free=True)
    val_shift: int = key(0, "pixels: evaluate also a picture moved down right and up left; 0: no", most=64, free=True)
    augmentation: str = key("crop_flip", "what training does to a picture", one_of=LEVELS)
    mirror: str = key("random", "when; alternate: in every second epoch, so that two show both", one_of=MIRRORS)
    crop: int = key(224, "pixels, side of the network's input", above=0, most=8192)
    short_side: int = key(0, "pixels of the short side before a crop; 0: as stored, 256 if unscaled", most=8192)
    val_short_side: int = key(0, "the same in evaluation; 0: short_side", most=8192, free=True)
    pad: int = key(0, "pixels of zeros around a stored image before a random crop", most=1024)
    cutout: int = key(0, "pixels, side of a square of mean colour laid over each training picture; 0: none", most=8192)
    mixup: float = key(0.0, "a, where samples are mixed by shares of Beta(a, a), labels too; 0: not", most=1)
    mean: tuple[float, ...] = key((123.675, 116.28, 103.53), "0..255, red green blue, subtracted", **RGB)
    mean_image: str = key("", "instead of mean: .npy file of a mean picture, as Caffe's; raw shards of its size only")
    std: tuple[float, ...] = key((58.395, 57.12, 57.375), "the same, divided by; 256 for Caffe's scale", **RGB, above=0)
    max_pixels: int = key(89_478_485, "of a stored JPEG: one that claims more is refused", above=0, free=True)
    min_area: float = key(0.08, "share of the image, least area of a scale_aspect crop", above=0, most=1)
    shuffle: str = key("quasi", "order of the rows; quasi: reads stay large", one_of=SHUFFLES)
    stage: str = key("none", "copy the shards to each node first: its disk, its memory", one_of=STAGES, free=True)
    reader_threads: int = key(1, "a rank", above=0, most=256, free=True)
    prefetch: int = key(2, "batches read ahead, a rank", above=0, most=64, free=True)


@dataclass(frozen=True)
class Batch:
    global_batch: int = key(256, "images per update, over all ranks", above=0, most=2**24)
    slot_batch: int = key(32, "images per slot: the unit of batch norm statistics and of sums", above=0, most=2**16)


@dataclass(frozen=True)
class Compute:
    precision: str = key("fp32", "of activations, their gradients and packed weights", one_of=PRECISIONS)
    loss_scale: str | float = key("auto", "of the gradients, a power of two; auto: dynamic for fp16, else none")


@dataclass(frozen=True)
class Comm:
    algorithm: str = key("auto", "of the sum over ranks", one_of=ALGORITHMS, free=True)
    wire: str = key("auto", "how gradients travel between nodes; auto: as the precision", one_of=("auto", *WIRES))
    workers: int = key(0, "groups of slots whose sums int8 codes, or that train apart: a power of two", most=128)
    fc: str = key("auto", "fully connected layers: sums of dw, dw from x and dy of all, or split", one_of=FC, free=True)
    fc_shards: int = key(1, "of their inputs, in which y is summed: what ranks may split", one_of=FC_SHARDS)
    fc_group: int = key(0, "ranks that split them, at most; 0: as many as there are shards", most=64, free=True)
    bucket_bytes: int = key(0, "of gradient reduced at once; 0: chosen by measuring", most=2**31 - 1, free=True)
    cut_before: tuple[str, ...] = key((), "instead: buckets begin at these tensors, as ['fc6.w']", free=True)
    overlap: bool = key(True, "exchange while the backward pass goes on", free=True)
    shard_update: bool = key(False, "each rank updates its part of the weights and sends them", free=True)
    check_every_steps: int = key(100, "compare the replicas of all ranks by a hash; 0: never", free=True)
    stall_warn_s: float = key(60.0, "seconds without progress until ranks are named", above=0, free=True)
    stall_end_s: float = key(600.0, "and until the job is ended", above=0, free=True)
    pretended_nodes: int = key(0, "cut one machine's ranks into so many nodes; 0: as it is", most=2**16, free=True)
    pretended_bandwidth: float = key(0.0, "bytes/s out of a node, by sleeping; 0: as it is", most=10**13, free=True)


@dataclass(frozen=True)
class Run:
    epochs: float = key(90.0, "length of the run and of the schedule", above=0, most=EPOCHS)
    max_steps: int = key(0, "stop after so many steps, the schedule unchanged; 0: run to the end", free=True)
    seed: int = key(0, "of weights, order, augmentation and dropout", most=2**63 - 1)
    evaluate_every_epochs: float = key(1.0, "0: only at the end", most=EPOCHS, free=True)
    checkpoint_every_steps: int = key(0, "0: not by steps", free=True)
    checkpoint_every_epochs: float = key(1.0, "0: not by epochs; else the shorter counts", most=EPOCHS, free=True)
    checkpoint_every_minutes: float = key(10.0, "besides; what a crash may cost; 0: not by the clock", free=True)
    keep_checkpoints: int = key(2, "the newest so many; the best is kept besides", above=0, most=10**6, free=True)
    tensorboard: bool = key(False, "event files in RUN/tensorboard, by tensorboardX", free=True)
    mlflow: str = key("", "experiment of MLflow that the run is told to; '': none", free=True)
    mlperf_log: bool = key(False, "RUN/mlperf.log, the lines of MLPerf's ResNet benchmark, open division", free=True)
    shares: str = key("equal", "of slots; measured: by speed, at first; or a file of HOST SPEED", least=1, free=True)
    trace: str = key("", "what all ranks do in some steps, as 'steps 100..104': see `knltrain trace`", free=True)
    log_every_seconds: float = key(5.0, "seconds between progress lines in a file", free=True)


class Phase(NamedTuple):
    """From this epoch on these keys have other values: `[[phase]]` in a recipe."""

    from_epoch: float
    settings: tuple[tuple[str, object], ...]  # of ("section.key", value)

    def __str__(self):
        settings = ", ".join(f"{name} {shown(value)}" for name, value in self.settings)
        return f"from epoch {self.from_epoch:g}: {settings}"


@dataclass(frozen=True)
class Recipe:
    model: Model
    data: Data
    batch: Batch = Batch()
    compute: Compute = Compute()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    comm: Comm = Comm()
    run: Run = Run()
    phases: tuple[Phase, ...] = ()


SECTIONS = {f.name: f.type for f in dataclasses.fields(Recipe) if f.name != "phases"}
PHASED = {  # section: keys that a phase may change
    "data": ("augmentation", "crop", "short_side", "val_short_side", "pad", "cutout", "mixup", "min_area"),
    "batch": ("global_batch", "slot_batch"),
    "optim": (
        "local_steps", "momentum", "nesterov", "weight_decay", "decay_bias_and_norm", "epsilon", "label_smoothing",
    ),
    "schedule": tuple(f.name for f in dataclasses.fields(Schedule)),
}


def rules() -> dict[str, Rule]:
    """The rule of every key, by `section.key`; the free keys of [model] have none."""
    named = ((f"{section}.{f.name}", f) for section, cls in SECTIONS.items() for f in dataclasses.fields(cls))
    return {name: f.metadata["rule"] for name, f in named if f.metadata}


# ---- reading -------------------------------------------------------------------------------------------------


def load_recipe(path, overrides=()) -> Recipe:
    """Read a recipe, a file or the name of a published one, and apply overrides, a list of "section.key=value".

    Paths in [data] become absolute: those of a file are relative to it, those of a published recipe to the current
    folder. Raises RecipeError, one line with the file's name.
    """
    return _put_together(parts_of_file(path), overrides)


def parse_recipe(text: str, overrides=(), *, source: str = "recipe", folder=".") -> Recipe:
    """As load_recipe, from TOML text: `source` names it in errors, `folder` is where its relative paths start."""
    return _put_together(parts_of_text(text, source, folder), overrides)


def _put_together(parts: list[Part], overrides) -> Recipe:
    values, source, phases = {section: {} for section in SECTIONS}, parts[-1].source, ()
    for part in parts:
        _store_part(values, part)
        phases = _read_phases(part, phases)
    for override in overrides:
        _store_override(values, override)
    for section, cls in SECTIONS.items():
        required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
        for name in filter(lambda name: name not in values[section], required):
            raise RecipeError(f"{source}: {section}.{name} is missing; add it under [{section}]")
    recipe = Recipe(**{section: cls(**values[section]) for section, cls in SECTIONS.items()}, phases=phases)
    return checked(recipe, source, overrides)


def _read_phases(part: Part, inherited: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The phases of a file, else those of the files it extends: a list is replaced as a whole."""
    tables = part.table.get("phase")
    if tables is None:
        return inherited
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f"{part.source}: phase is {shown(tables)}; expected [[phase]] with from_epoch and keys")
    phases = []
    for number, table in enumerate(tables, start=1):
        values, where = {section: {} for section in SECTIONS}, f"{part.source}: phase {number}"
        try:
            start = converted(table.get("from_epoch", ""), float)
        except ValueError as error:
            raise RecipeError(f"{where}: from_epoch is {error}") from None
        _store_part(values, Part(where, part.folder, {k: v for k, v in table.items() if k != "from_epoch"}))
        settings = tuple((f"{section}.{k}", v) for section in values for k, v in values[section].items())
        for name, _ in settings:
            section, _, key = name.partition(".")
            if key not in PHASED.get(section, ()):
                known = ", ".join(f"{section}.{key}" for section, keys in PHASED.items() for key in keys)
                raise RecipeError(f"{where} sets {name}; expected one of {known}")
        phases.append(Phase(start, settings))
    return tuple(phases)


def at_phase(recipe: Recipe, number: int) -> Recipe:
    """The recipe as it is after so many phases began, without phases."""
    changes = {section: {} for section in SECTIONS}
    for phase in recipe.phases[:number]:
        for name, value in phase.settings:
            section, _, key = name.partition(".")
            changes[section][key] = value
    parts = {name: dataclasses.replace(getattr(recipe, name), **keys) for name, keys in changes.items() if keys}
    return dataclasses.replace(recipe, **parts, phases=())


def _store_part(values, part: Part):
    for section, keys in part.table.items():
        if section == "phase" and isinstance(keys, list):
            continue
        if not isinstance(keys, dict):
            raise RecipeError(f"{part.source}: key {section} stands outside a section; {_nearest('', section)}")
        for name, value in keys.items():
            _store(values, part.source, section, name, value, part.folder)
        if section not in SECTIONS:  # an empty section that nobody knows
            near = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{part.source}: unknown section [{section}]; the nearest known one is [{near}]")


def _store_override(values, override):
    """Put one "section.key=value" into `values`; a key for text takes a number as the text it is (a folder 2024)."""
    name, equals, text = override.partition("=")
    section, dot, name = name.strip().partition(".")
    if not (equals and dot):
        raise RecipeError(f"--set {override}: expected section.key=value, as in schedule.base_lr=2.0")
    value = toml_value(text)
    if section in SECTIONS and _kinds(section).get(name) is str and not isinstance(value, str):
        value = text.strip()
    _store(values, f"--set {override}", section, name, value, ".")


def _kinds(section: str) -> dict:
    return {f.name: f.type for f in dataclasses.fields(SECTIONS[section]) if f.name != "args"}


def _store(values, source, section, key, value, folder):
    """Check one key's name and type and put it into `values`."""
    if section not in SECTIONS:
        raise RecipeError(f"{source}: unknown section [{section}]; {_nearest(section, key)}")
    if key not in _kinds(section):
        if section != "model":
            raise RecipeError(f"{source}: unknown key {section}.{key}; {_nearest(section, key)}")
        if not plain(value):
            expected = "text, a number, true, false or a list"
            raise RecipeError(f"{source}: model.{key} is {shown(value)}; expected {expected}")
        values["model"].setdefault("args", {})[key] = value
        return
    value = _converted(value, section, key, f"{source}: ")
    if (section, key) == ("model", "name") and ".py:" in value:  # FILE.py:FUNCTION
        path, _, function = value.rpartition(":")
        value = f"{(Path(folder) / Path(path).expanduser()).resolve()}:{function}"
    if (section, key) in PATHS and value not in ("", *SHARES):
        try:
            value = str((Path(folder) / Path(value).expanduser()).resolve())
            value.encode()  # the run folder's recipe is UTF-8
        except (OSError, ValueError, RuntimeError) as error:  # a NUL, too long, an unknown ~user
            raise RecipeError(f"{source}: {section}.{key} is {shown(value)}; expected a path ({error})") from None
    values[section][key] = value


def _converted(value, section, key, where=""):
    try:
        return converted(value, _kinds(section)[key])
    except ValueError as error:
        raise RecipeError(f"{where}{section}.{key} is {error}") from None


def _nearest(section: str, key: str) -> str:
    """The hint in an error: the same key of another section, or the most similar name."""
    names = [f"{s}.{k}" for s in SECTIONS for k in _kinds(s)]
    same = [name for name in names if name.split(".")[1] == key]
    inside = [name for name in names if name.startswith(f"{section}.")] or names
    similar = difflib.get_close_matches(f"{section}.{key}", inside, n=1, cutoff=0.0)
    return f"the nearest known one is {(same or similar)[0]}"


def recipe_of(facts: dict) -> Recipe:
    """The recipe's [model] and [data] that the facts of a run tell (see `experiment.network_facts`), else defaults.

    Raises RecipeError for a value that the recipe would not take.
    """
    values = {"model": {"args": facts.get("model.args", {})}, "data": {"train": facts.get("data.train", "-")}}
    for name in rules():
        section, _, key = name.partition(".")
        if section in values and name in facts and not (name == "data.mean_image" and facts[name]):
            values[section][key] = _converted(facts[name], section, key)
    if not isinstance(values["model"]["args"], dict) or "name" not in values["model"]:
        raise RecipeError("the file names no network; expected what `knltrain train` or `Network.save` wrote")
    return checked(Recipe(Model(**values["model"]), Data(**values["data"])))


def checked(recipe: Recipe, source: str = "", overrides=()) -> Recipe:
    """The recipe, if every value is in its range, in each phase. Raises RecipeError, which begins with the source."""
    begin, stages = f"{source}: " if source else "", [at_phase(recipe, n) for n in range(len(recipe.phases) + 1)]
    for number, stage in enumerate(stages):
        for name, found, expected in _problems(stage):
            where = f"{begin}phase {number}: " if number else begin
            asked = [override for override in overrides if override.partition("=")[0].strip() == name]
            if asked and not number:  # what a phase sets is the file's
                where = f"--set {asked[-1]}: "
            raise RecipeError(f"{where}{name} is {shown(found)}; expected {expected}")
    if recipe.comm.workers and not any(workers_are_for(stage) for stage in stages):
        found = f"{begin}comm.workers is {recipe.comm.workers}"
        raise RecipeError(f'{found}; expected 0 without comm.wire = "int8" or optim.local_steps above 1')
    starts = [phase.from_epoch for phase in recipe.phases]
    if any(not before < after for before, after in itertools.pairwise([0.0, *starts, recipe.run.epochs])):
        found = f"the phases begin at {', '.join(f'{epoch:g}' for epoch in starts)}"
        raise RecipeError(f"{source}: {found}; expected rising epochs between 0 and run.epochs, {recipe.run.epochs:g}")
    return recipe


# ---- checks --------------------------------------------------------------------------------------------------


def _problems(recipe: Recipe):
    """Yield (name, found, expected) for every value that is out of its range."""
    for name, rule in rules().items():
        section, _, field_name = name.partition(".")
        value = getattr(getattr(recipe, section), field_name)
        if rule.expected(value):
            yield name, value, rule.expected(value)
    batch, optim, compute = recipe.batch, recipe.optim, recipe.compute
    if batch.global_batch % batch.slot_batch:
        yield "batch.slot_batch", batch.slot_batch, f"a divisor of batch.global_batch, {batch.global_batch}"
    if compute.loss_scale not in LOSS_SCALES:
        expected = f"auto, dynamic, or a power of two from 1 to {LOSS_SCALES[-1]:.0f}"
        yield "compute.loss_scale", compute.loss_scale, expected
    if list(recipe.schedule.milestones) != sorted(recipe.schedule.milestones):
        yield "schedule.milestones", recipe.schedule.milestones, "rising epochs"
    scaled = compute.precision == "fp16" or compute.loss_scale != "auto"
    if scaled and optim.variant in OTHERS:
        expected = f"auto, and fp32 or bf16, with {optim.variant}, whose moments know no scale"
        yield "compute.loss_scale", compute.loss_scale, expected
    if recipe.comm.fc == "split" and recipe.comm.fc_shards == 1:
        yield "comm.fc_shards", 1, 'shards that ranks can split, as 8, with comm.fc = "split"'
    yield from optim.problems()
    yield from worker_problems(recipe)
    try:
        traced_steps(recipe.run.trace)
    except ValueError as error:
        yield "run.trace", recipe.run.trace, str(error)


# ---- writing -------------------------------------------------------------------------------------------------


def resolved(recipe: Recipe, notes: dict[str, str] | None = None) -> str:
    """TOML text with every key, defaults included, that loads back to an equal recipe.

    notes: where given, behind each key the one of `section.key`, or "default".
    """
    lines = []
    for section in SECTIONS:
        values = dataclasses.asdict(getattr(recipe, section))
        values |= values.pop("args", {})
        lines.append(f"[{section}]")
        for name, value in values.items():
            line = f"{toml_key(name)} = {toml_text(value)}"
            lines.append(line if notes is None else f"{line:40}  # {notes.get(f'{section}.{name}', 'default')}")
        lines.append("")
    for phase in recipe.phases:
        settings = [f"{name} = {toml_text(value)}" for name, value in phase.settings]
        lines += ["[[phase]]", f"from_epoch = {phase.from_epoch!r}", *settings, ""]
    return "\n".join(lines)
