"""`knltrain plan`: from a recipe, a machine and numbers of nodes to tables, a figure, records."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from knltrain.kernels import number_named

from .cost import step_cost, training_program
from .exchange import FC_MODES
from .machine import load_machine
from .published import Published
from .run import GROUP, JPEG_BYTES, Training, best, choices
from .show import choice_table, plan_table, published_table, step_record, step_table

VAL_IMAGES = 50_000
STORED = 256  # pixels of a side of raw ImageNet
SLOTS = (0.25, 0.5, 1, 2)  # factors on the recipe's slot batch that are tried


def training_of(recipe, name: str, derived, build) -> Training:
    """What of a recipe counts. derived: its numbers of steps; build: () → (layers, input shape)."""
    decoded = recipe.data.augmentation in ("scale_aspect", "color")
    precision, crop = recipe.compute.precision, recipe.data.crop
    side = STORED if STORED // 2 < crop < STORED else crop
    every = derived.checkpoint_every_steps
    evaluations = derived.total_steps // derived.evaluate_every_steps if derived.evaluate_every_steps else 1
    return Training(
        name,
        lru_cache(lambda slot: training_program(*build(), slot, number_named(precision).dtype)),
        derived.total_steps / derived.steps_per_epoch,
        recipe.batch.global_batch,
        recipe.batch.slot_batch,
        derived.total_steps,
        evaluations if recipe.data.val else 0,
        VAL_IMAGES,
        derived.total_steps // every if every else 1,
        JPEG_BYTES if decoded else 3 * side**2,
        decoded,
        recipe.data.stage != "none",
        lars=recipe.optim.trust_coefficient > 0,
        precision=precision,
        wire=precision if recipe.comm.wire == "auto" else recipe.comm.wire,
        workers=recipe.comm.workers,
        fc=ways_of(recipe.comm),
        group=recipe.comm.fc_group or (recipe.comm.fc_shards if recipe.comm.fc_shards > 1 else GROUP),
    )


def ways_of(comm) -> tuple[str, ...]:
    """In which fully connected layers may travel."""
    if comm.wire == "int8":
        return ("sum",)
    return FC_MODES[: 2 + (comm.fc_shards > 1)] if comm.fc == "auto" else (comm.fc,)


def node_counts(text: str) -> list[int]:
    """`64`, `16,32,48`, or `1..4096`: the powers of two between, and both ends. Raises ValueError."""
    try:
        first, dots, last = text.partition("..")
        if dots:
            low, high = int(first), int(last)
            found = sorted({low, high, *(1 << k for k in range(21) if low < 1 << k < high)})
        else:
            found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > 1 << 20 or (dots and low > high):
        raise ValueError(f"--nodes {text!r}: expected a number, some as 16,32, or a range as 1..4096") from None
    return found


def plan(training: Training, on: str, nodes: str, ranks: int = 0, plot: Path | None = None) -> tuple[dict, str]:
    """The plan of a training on a machine, as a record and as text; ranks: a node, 0 for what is quickest.

    Raises ValueError where no number of nodes has a slot for each.
    """
    machine, counts = load_machine(on), node_counts(nodes)
    rows = [found for count in counts if (found := best(training, machine, count, ranks))]
    slots = training.global_batch // training.slot_batch
    if not rows:
        raise ValueError(f"--nodes {nodes}: the recipe has {slots} slots, expected at most as many nodes")
    ways = choices(training, machine, rows[-1].nodes, slots=SLOTS, ranks=ranks)
    if plot:
        from ..tell.plots import scaling

        quick = [choices(training, machine, row.nodes, ranks=ranks)[0] for row in rows]
        lines = {f"as the recipe says, {training.wire}": rows, "the quickest set-up": quick}
        points = {name: [(r.nodes, r.images_per_s, r.minutes) for r in line] for name, line in lines.items()}
        scaling(points, plot, f"{training.name} on {machine.name}")
    record = {"recipe": training.name, "machine": machine.name, "rows": [asdict(row) for row in rows]}
    text = plan_table(training, machine, rows) + "\n\n" + choice_table(training, ways)
    left = ", ".join(str(count) for count in counts if count > rows[-1].nodes)
    if left:
        text += f"\nnot on {left} nodes: the recipe has {slots} slots of {training.slot_batch} images"
    return record | {"choices": [asdict(way) for way in ways]}, text


def published() -> tuple[list[dict], str]:
    """Published runs beside their predictions."""
    rows = Published().predictions()
    return [asdict(row) | {"error": row.error} for row in rows], published_table(rows)


def simulate(network, what: str, on: str, cores: int, slot_batch: int, precision: str) -> tuple[dict, str]:
    """`bench step --machine`: a step on a model of cores, caches and memory. cores 0: all."""
    machine = load_machine(on)
    cores = cores or int(machine.cores)
    if cores > machine.cores:
        raise ValueError(f"--cores {cores}: {machine.name} has {machine.cores:.0f} cores")
    program = training_program(*network, slot_batch, number_named(precision).dtype)
    step = step_cost(program, machine, cores, lars=False, precision=precision)
    found = {"machine": machine.name, "cores": cores, "slot_batch": slot_batch} | step_record(step, slot_batch)
    return found, step_table(step, machine, cores, what, slot_batch)
