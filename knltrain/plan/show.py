"""What `knltrain plan` and `bench step --machine` print."""

from collections import defaultdict
from collections.abc import Sequence

from .cost import StepCost
from .machine import Machine
from .published import WITHIN, Row
from .run import Prediction, Training

GAIN = 0.98  # of the minutes of a way that changes less: what is not quicker is not shown
IDLE = 0.10  # of the cores' time, from which on an op is listed
BY_FACTORS = "dense layers by factors"
SMALL = 0.004  # of a step, below which it is not


def plan_table(training: Training, machine: Machine, rows: Sequence[Prediction]) -> str:
    """The scaling table: each row by the quickest number of ranks a node."""
    first = rows[0]
    lines = [
        f"{training.name} on {machine.name}: {machine.processor}; {machine.fabric}",
        f"{training.steps:,} steps ({training.epochs:.4g} epochs) of {training.global_batch:,} images, slots of "
        f"{training.slot_batch}, "
        f"{training.precision}, {training.wire} on the wire; {training.evaluations} evaluations; "
        f"{training.image_bytes / 1e3:,.0f} kB a picture",
        "",
        "nodes  ranks  slots  step ms  compute  exposed    input   images/s  linear  MB/s node    minutes  node-hours",
    ]
    for one in rows:
        linear = one.images_per_s / one.nodes / (first.images_per_s / first.nodes)
        lines.append(
            f"{one.nodes:5}  {one.ranks_a_node:5}  {one.slots_a_rank:5}  {1e3 * one.step_s:7,.0f}  "
            f"{1e3 * one.compute_s:7,.0f}  {1e3 * one.exposed_s:7,.1f}  {1e3 * one.input_s:7,.0f}  "
            f"{one.images_per_s:9,.0f}  {linear:6.0%}  {one.read_mb_per_s:9,.0f}  {one.minutes:9,.1f}  "
            f"{one.node_hours:10,.1f}"
        )
    last = rows[-1]
    lines.append(
        f"on {last.nodes} nodes: {last.compute_cores} cores of a rank compute, {last.buckets} sums of up to "
        f"{last.bucket_bytes >> 10:,} KiB, {last.sent_bytes / 1e6:,.0f} MB sent by a node in a step; "
        f"evaluation {last.evaluation_s:,.0f} s, checkpoints {last.checkpoint_s:,.0f} s"
    )
    lines += [BY_FACTORS] if last.fc == "factors" else []
    if last.input_s == last.step_s:
        lines.append("a step waits for its pictures: data.stage, raw shards, or readers on more cores")
    return "\n".join(lines)


def choice_table(training: Training, found: Sequence[Prediction]) -> str:
    """The recipe's own way, and what is quicker than all ways that change less of the experiment than it does."""
    kept = []
    for one in sorted(found, key=lambda one: (len(_changes(training, one)), one.minutes)):
        less = [other for other in kept if set(_changes(training, other)) <= set(_changes(training, one))]
        if all(one.minutes < GAIN * other.minutes for other in less):
            kept.append(one)
    lines = [_choice(one, _changes(training, one) or ["as the recipe says"]) for one in kept]
    return "\n".join([f"set up on {kept[0].nodes} nodes:", *lines])


def _choice(one: Prediction, notes: list[str]) -> str:
    notes = notes + [BY_FACTORS] * (one.fc == "factors")
    return (
        f"  {one.minutes:8,.1f} minutes  {one.ranks_a_node:2} ranks a node, slots of {one.slot_batch:3}, {one.wire}, "
        f"exposed {1e3 * one.exposed_s:5,.0f} ms, buckets of {one.bucket_bytes >> 10:6,} KiB  {'; '.join(notes)}"
    )


def _changes(training: Training, one: Prediction) -> list[str]:
    """What a way changes of the experiment, or of the program, which chooses itself as comm.fc lets it."""
    notes = ["batch norm over other slots"] if one.slot_batch != training.slot_batch else []
    notes += [f"gradients travel in {one.wire}"] if one.wire != training.wire else []
    return notes + (["dense layers split (comm.fc_shards)"] if one.fc == "split" not in training.fc else [])


def published_table(rows: Sequence[Row]) -> str:
    """Published figures beside predictions, then what each used."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'run':{width}}      seen  predicted  {'unit':16}  error"]
    for row in rows:
        miss = "" if abs(row.error) <= WITHIN else "  *"
        lines.append(
            f"{row.what:{width}}  {row.seen:8.2f}  {row.predicted:9.2f}  {row.unit:16}  {row.error:+6.1%}{miss}"
        )
    good = sum(abs(row.error) <= WITHIN for row in rows)
    lines += [f"{good} of {len(rows)} within {WITHIN:.0%}", "", "what each used (none its own result):"]
    for row in rows:
        lines += [f"{row.id}: {row.used}"] + [f"    {row.note}"] * bool(row.note)
    return "\n".join(lines)


def step_record(step: StepCost, images: int) -> dict:
    """A simulated step for JSON: as `bench step` says of a real one, with tasks and idle cores."""
    costs, told = [*step.forward, *step.backward, *step.update], ("layer", "kind", "tasks", "idle", "seconds", "bound")
    kinds = defaultdict(float)
    for cost in costs:
        kinds[cost.kind] += cost.seconds
    ops = [{key: getattr(cost, key) for key in told} for cost in costs]
    kinds["rest"] = step.feed
    return {"step_seconds": step.seconds, "images_per_s": images / step.seconds, "by_kind": dict(kinds), "ops": ops}


def step_table(step: StepCost, machine: Machine, cores: int, what: str, images: int) -> str:
    """A simulated step for a reader: time by kind, and the ops that leave cores idle."""
    record = step_record(step, images)
    lines = [
        f"simulated: {what} on {cores} cores of {machine.name} ({machine.processor})",
        f"{record['images_per_s']:.1f} images/s    {step.seconds:.4f} s a step",
        "",
        f"{'by kind':16}        ms  of step",
    ]
    lines += [f"{k:16}  {1e3 * s:8.1f}  {s / step.seconds:7.1%}" for k, s in record["by_kind"].items()]
    bounds = defaultdict(float)
    for op in record["ops"]:
        bounds[op["bound"]] += op["seconds"]
    lines += ["", "limited by  " + "  ".join(f"{name} {s / step.seconds:.0%}" for name, s in sorted(bounds.items()))]
    idle = [op for op in record["ops"] if op["idle"] > IDLE]
    lost = sum(op["idle"] * op["seconds"] for op in idle) / step.seconds
    lines.append(
        f"{len(idle)} of {len(record['ops'])} ops leave over {IDLE:.0%} of the cores idle: {lost:.1%} of the step"
    )
    for op in sorted(idle, key=lambda op: -op["idle"] * op["seconds"]):
        if op["idle"] * op["seconds"] > SMALL * step.seconds:
            place = f"  {op['layer']:24}  {op['kind']:15}  {op['tasks']:5} tasks"
            lines.append(f"{place}  idle {op['idle']:4.0%}  {1e3 * op['seconds']:8.2f} ms")
    return "\n".join(lines)
