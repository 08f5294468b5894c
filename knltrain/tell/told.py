"""What a run tells of itself around its steps: where it tells it, and the records of its start and of its end."""

import dataclasses
from contextlib import closing, contextmanager

from knltrain.kernels import ARCH, THREADING_LAYER, product

from ..node.hardware import machine_facts
from ..node.machine import arithmetic_peak
from ..recipe.config import resolved
from ..recipe.experiment import misfits
from ..recipe.lint import lint
from ..recipe.phases import leg_of, legs
from ..run.checkpoint import FOLDER, advice, best_checkpoint
from .dashboards import Dashboards
from .gauge import Gauge
from .journal import Journal
from .mlperf import MlperfLog

PEAK_S = 0.02  # that the machine's peak is looked at


@contextmanager
def opened(recipe, sets, life, comm, screen):
    """What is told of a run on the data `sets`: its journal, from which others draw, and who must hear of its steps."""
    images, run = tuple(map(len, sets)), recipe.run
    plan = legs(recipe, images[0])
    derived, last, total = plan[0].derived, plan[-1], plan[-1].stop
    every = {"evaluation": derived.evaluate_every_steps, "checkpoint": derived.checkpoint_every_steps}
    length = (recipe.batch.global_batch, total, last.epoch(total), every)
    journal = Journal(life.run_dir, comm.rank, *length, screen, images[1])
    boards = Dashboards(life.run_dir, run.tensorboard, run.mlflow, resolved(recipe), journal.note)
    journal.listeners.append(boards.tell)
    if run.mlperf_log and comm.rank == 0:
        journal.listeners.append(MlperfLog(life.run_dir, recipe, plan[0], images, comm.size, journal.note).tell)
    with closing(journal), closing(boards):
        yield journal, [journal, boards, Gauge(comm, total)]


def start(journal, recipe, sets, comm, placement, watch, trainer, begun_epochs: float):
    """The run begins: on what, with what, and what a reader should know besides. begun_epochs: see `Restart`."""
    machine = _machine(recipe, trainer, comm, placement, watch)
    journal.start(resolved(recipe), machine, _begin(recipe, sets[0], trainer, watch))
    for line in _notes(recipe, trainer, begun_epochs, *sets):
        journal.note(line)


def _notes(recipe, trainer, begun_epochs: float, data, val) -> list[str]:
    """What a reader should know besides the numbers, a line each."""
    longer = [_prolonged(recipe, len(data), begun_epochs, trainer.done)] if begun_epochs else []
    findings = [f"lint: {finding}" for finding in lint(recipe, len(data), len(data.class_names))]
    return [*trainer.begun_with, *longer, *trainer.parts.reducer.travel.notes(), *misfits(recipe, data, val), *findings]


def _prolonged(recipe, n_rows, before: float, step) -> str:
    """What a longer run does to the schedule: poly and cosine are stretched, and go on at another rate."""
    shorter = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, epochs=before))
    plans = [legs(one, n_rows) for one in (recipe, shorter)]
    now, was = (leg_of(plan, step).rate(step) for plan in plans)
    ends = [plan[-1].stop for plan in plans]
    return (
        f"prolonged from {before:g} to {recipe.run.epochs:g} epochs: {recipe.schedule.policy} ends at step {ends[0]}, "
        f"not {ends[1]}; the learning rate is {now:.4g}, {'as before' if was == now else f'where it was {was:.4g}'}"
    )


def _machine(recipe, trainer, comm, placement, watch) -> dict:
    """What the run runs on, as this rank sees it."""
    precision, placed = recipe.compute.precision, dataclasses.asdict(placement)
    facts = {"ranks": comm.size, "threads_per_rank": placement.threads, "mpi": comm.library, "kernels": ARCH.name}
    facts |= {"openmp": THREADING_LAYER, "placement": placed, "precision": precision, "product": product(precision)}
    facts["peak_flops"] = comm.size * arithmetic_peak(PEAK_S, precision)
    exchange = trainer.parts.reducer.travel.facts() if comm.size > 1 else {}
    return machine_facts(**facts, exchange=exchange, processes=watch.places)


def _begin(recipe, data, trainer, watch) -> dict:
    """What a reader wants to know before the first step."""
    model, last = trainer.model, trainer.legs[-1]
    facts = {"step": trainer.done, "total_steps": trainer.total, "epochs": last.epoch(last.stop)}
    facts |= {"model": recipe.model.name, "parameters": model.parameters.count, "memory_bytes": model.memory_bytes}
    facts |= {"images": len(data), "classes": len(data.class_names), **trainer.parts.facts()}
    return facts | {"nodes": len({place.partition(" ")[0] for place in watch.places})}


def end(run_dir, trainer) -> dict:
    """How the run ended, where what was trained lies, and what to do next."""
    if trainer.done < trainer.total:
        return {"state": "stopped", "run": str(run_dir), "advice": advice(run_dir)}
    best = best_checkpoint(run_dir / FOLDER)
    return {"state": "done", "run": str(run_dir), "best_checkpoint": str(best) if best else None}
