"""The training loop: the one page that knows the whole story."""

import dataclasses
from contextlib import closing

from knltrain.kernels import ARCH, THREADING_LAYER, product

from .checkpoint import FOLDER, advice, best_checkpoint
from .comm import compare_replicas
from .config import Recipe, resolved
from .dashboards import Dashboards
from .evaluate import evaluate
from .experiment import center_crop, identity, misfits, open_data, watch_ranks
from .gauge import Gauge
from .journal import PREDICTIONS, Journal, machine_facts
from .keys import traced_steps
from .leaks import sweep
from .lifecycle import Lifecycle
from .lint import lint
from .machine import arithmetic_peak, take_share
from .mlperf import MlperfLog
from .models.state import state
from .observe import StepObserver
from .phases import leg_of, legs
from .restart import Restart
from .screen import Screen
from .trace import Tracer
from .trainer import Trainer

PEAK_S = 0.02  # that the machine's peak is looked at


def train(recipe: Recipe, life: Lifecycle, resume: str, comm, observers: list[StepObserver], screen: Screen) -> int:
    """Train `recipe` on the ranks of `comm`; everything that is kept goes to the run folder, which `life` owns.

    resume: "auto" continues from the newest good checkpoint of run_dir, to the bit, also on another number of ranks;
    "never" demands a folder without one. observers: are told how it goes; screen shows it. Returns an exit code: 0, or
    128 + the signal's number after a stop by a signal; a stop saves a checkpoint first.
    """
    run_dir, placement = life.run_dir, take_share(comm)
    if placement.first_on_node:
        sweep()
    data, val = open_data(recipe, comm)
    _phase(observers, "shards")
    plan = legs(recipe, len(data))
    derived, total, check_every = plan[0].derived, plan[-1].stop, recipe.comm.check_every_steps
    journal, boards = _journal(recipe, plan, life, comm, screen, (len(data), len(val)))
    observers = [*observers, Tracer(run_dir, comm, traced_steps(recipe.run.trace)), journal, boards, Gauge(comm, total)]

    with (
        closing(journal),
        closing(boards),
        closing(watch_ranks(recipe, data, comm, lambda: advice(run_dir))) as watch,
        closing(Trainer.of(recipe, data, comm, placement, watch, observers=observers)) as trainer,
        closing(Restart(run_dir, trainer, comm, identity(recipe, data), recipe.run, journal.note)) as restart,
    ):
        trainer.note, trainer.record = journal.note, journal.record
        _phase(observers, "model")
        trainer.done = restart.restore(resume)
        if comm.gather(life.finished(trainer.total))[0]:
            journal.note(f"{run_dir} is done after step {trainer.total}: nothing is left to train")
            life.end(trainer.done, trainer.total)
            return 0
        machine = _machine(recipe, trainer, comm, placement, watch)
        journal.start(resolved(recipe), machine, _begin(recipe, derived, data, trainer, watch))
        for line in _notes(recipe, trainer, restart.begun_epochs, data, val):
            journal.note(line)
        with placement.on("readers"):
            trainer.seek(trainer.done)
        trainer.wishes = lambda: (life.stop_asked(), restart.due())
        life.begin(trainer.done)
        _phase(observers, "checkpoint")

        for step in trainer:
            leg, end = trainer.leg, step.number == total
            evaluating = end or _due(trainer.own, leg.derived.evaluate_every_steps)
            saving = end or _due(trainer.own, leg.derived.checkpoint_every_steps) or step.save or step.stop
            checking = end or _due(step.number, check_every)
            restart.check(step, weights=evaluating or saving)
            top1 = _evaluate(recipe, trainer, step, val, comm, life, journal) if evaluating else None
            saving |= trainer.stopped
            if saving or checking:
                trainer.update.complete()
            if checking and comm.size > 1:
                compare_replicas(comm, state(trainer.model.parameters), step.number)
            if saving:
                restart.save(step.number, top1)

        restart.leave(trainer.done)
        life.end(trainer.done, trainer.total)
        journal.record("end", _end(run_dir, trainer))
    return max(comm.gather(life.exit_code))  # nobody leaves before all is written


def _journal(recipe, plan, life, comm, screen, images: tuple[int, int]) -> tuple[Journal, Dashboards]:
    """What is told of the run: its records, from which the screen and the dashboards draw."""
    derived, last, total, run = plan[0].derived, plan[-1], plan[-1].stop, recipe.run
    screen.every = run.log_every_seconds
    every = {"evaluation": derived.evaluate_every_steps, "checkpoint": derived.checkpoint_every_steps}
    length = (recipe.batch.global_batch, total, last.own(total) / last.derived.steps_per_epoch, every)
    journal = Journal(life.run_dir, comm.rank, *length, screen, images[1])
    boards = Dashboards(life.run_dir, run.tensorboard, run.mlflow, resolved(recipe), journal.note)
    journal.listeners.append(boards.tell)
    if run.mlperf_log and comm.rank == 0:
        journal.listeners.append(MlperfLog(life.run_dir, recipe, plan[0], images, comm.size, journal.note).tell)
    life.warn = journal.note
    return journal, boards


def _notes(recipe, trainer, begun_epochs: float, data, val) -> list[str]:
    """What a reader should know besides the numbers, a line each."""
    longer = [_prolonged(recipe, len(data), begun_epochs, trainer.done)] if begun_epochs else []
    findings = [f"lint: {finding}" for finding in lint(recipe, len(data), len(data.class_names))]
    return [*trainer.begun_with, *longer, *trainer.reducer.notes(), *misfits(recipe, data, val), *findings]


def _evaluate(recipe, trainer, step, val, comm, life, journal) -> float | None:
    """Top-1 on `val`, told to the journal; None where it was left, and the training with it, as a stop is asked for."""
    how = (recipe.data.reader_threads, recipe.data.val_mirror, life.stop_asked)
    result = evaluate(trainer.model, val, center_crop(trainer.leg.recipe, val), comm, *how)
    if not result:
        journal.evaluation_left()
        trainer.stopped = True
        return None
    journal.evaluation(step.number, step.epoch, result.top1, result.top5, result.images)
    if comm.rank == 0:
        journal.keep(PREDICTIONS, {"step": step.number, **result.facts(val)})
    return result.top1


def _phase(observers, name: str):
    for observer in observers:
        observer.phase(name)


def _due(step: int, every: int) -> bool:
    """At every so many steps; 0: never."""
    return every > 0 and step % every == 0


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


def _end(run_dir, trainer) -> dict:
    """How the run ended, where what was trained lies, and what to do next."""
    if trainer.done < trainer.total:
        return {"state": "stopped", "run": str(run_dir), "advice": advice(run_dir)}
    best = best_checkpoint(run_dir / FOLDER)
    return {"state": "done", "run": str(run_dir), "best_checkpoint": str(best) if best else None}


def _machine(recipe, trainer, comm, placement, watch) -> dict:
    """What the run runs on, as this rank sees it."""
    facts = {"ranks": comm.size, "threads_per_rank": placement.threads, "mpi": comm.library, "kernels": ARCH.name}
    facts |= {"openmp": THREADING_LAYER, "placement": dataclasses.asdict(placement)}
    precision = recipe.compute.precision
    facts |= {"precision": precision, "product": product(precision)}
    facts["peak_flops"] = comm.size * arithmetic_peak(PEAK_S, precision)
    return machine_facts(**facts, exchange=trainer.reducer.facts() if comm.size > 1 else {}, processes=watch.places)


def _begin(recipe, derived, data, trainer, watch) -> dict:
    """What a reader wants to know before the first step."""
    batch, model = recipe.batch, trainer.model
    facts = {"step": trainer.done, "total_steps": trainer.total, "steps_per_epoch": derived.steps_per_epoch}
    facts |= {"model": recipe.model.name, "parameters": model.parameters.count, "memory_bytes": model.memory_bytes}
    facts |= {"images": len(data), "classes": len(data.class_names), "global_batch": batch.global_batch}
    hosts = {place.partition(" ")[0] for place in watch.places}
    facts["flops"] = sum(op.flops for op in model.training.ops) // batch.slot_batch
    return facts | {"slots": derived.slots, "slot_batch": batch.slot_batch, "nodes": len(hosts)}
