"""The training loop: the one page that knows the whole story."""

import dataclasses
import math
from contextlib import closing

import numpy as np

from kernels import ARCH, THREADING_LAYER, sample_key

from .checkpoint import FOLDER, advice, best_checkpoint
from .comm import Trace, compare_replicas
from .config import Recipe, derive, resolved
from .evaluate import evaluate
from .experiment import (
    center_crop,
    identity,
    make_exchange,
    make_loader,
    make_model,
    make_optimizer,
    make_reducer,
    make_update,
    misfits,
    open_data,
    own_slots,
    watch_ranks,
)
from .faults import Faults
from .leaks import sweep
from .lifecycle import Lifecycle
from .machine import take_share
from .optim import learning_rate
from .report import Report, machine_facts
from .restart import Restart

DROPOUT = 2  # purpose of the random numbers that are not augmentation's


def train(recipe: Recipe, life: Lifecycle, resume: str, comm, inject, clock) -> int:
    """Train `recipe` on the ranks of `comm`; everything that is kept goes to the run folder, which `life` owns.

    resume: "auto" continues from the newest good checkpoint of run_dir, to the bit, also on another number of ranks;
    "never" demands a folder without one. inject: faults to suffer, for drills. clock: of the start-up. Returns an exit
    code: 0, or 128 + the signal's number after a stop by a signal; a stop saves a checkpoint first.
    """
    run_dir = life.run_dir
    faults = Faults(inject, comm.rank, run_dir)
    placement = take_share(comm)
    if placement.first_on_node:
        sweep()
    data, val = open_data(recipe, comm)
    derived = derive(recipe, len(data))
    clock.mark("shards")
    slots = own_slots(derived.slots, comm)
    watch, exchange = watch_ranks(recipe, data, comm, lambda: advice(run_dir)), make_exchange(recipe, comm)
    model = make_model(recipe, len(data.class_names), len(slots), placement.ranks_on_node, exchange.allocate)
    optimizer = make_optimizer(recipe, model)
    optimizer.check_start(*(learning_rate(early, **derived.schedule) for early in (0, 1)))
    with placement.on("communication"):
        reducer = make_reducer(recipe, model, exchange, slots, watch)
    update = make_update(model, optimizer, reducer)
    report = Report(run_dir, comm.rank, derived.total_steps, recipe.batch.global_batch, recipe.run.log_every_seconds)
    every_s, keep = 60 * recipe.run.checkpoint_every_minutes, recipe.run.keep_checkpoints
    restart = Restart(run_dir, model, optimizer, comm, identity(recipe, data), keep, every_s, report.note)
    life.warn = report.note
    trace = Trace(run_dir / f"trace-{comm.rank:05}.json", comm.rank, recipe.comm.trace_steps)
    scalars = model.parameters.scalars

    with (
        closing(report), closing(restart), closing(reducer),
        closing(make_loader(recipe, derived, data, slots)) as loader,
    ):  # fmt: skip
        clock.mark("model")
        step = restart.restore(resume)
        if restart.begun_epochs:
            report.note(_prolonged(recipe, derived, len(data), restart.begun_epochs, step))
        if comm.gather(life.finished(derived.total_steps))[0]:
            report.note(f"{run_dir} is done after step {derived.total_steps}: nothing is left to train")
            life.end(step, derived.total_steps)
            return 0
        facts = {"ranks": comm.size, "threads_per_rank": placement.threads, "mpi": comm.library}
        facts = machine_facts(**facts, kernels=ARCH.name, openmp=THREADING_LAYER, processes=watch.places)
        lines = _headline(recipe, model, derived, data, reducer, comm, placement, step)
        report.start(resolved(recipe), facts, [*lines, *misfits(recipe, data, val)])
        with placement.on("readers"):
            loader.seek(step)
        life.begin(step)
        clock.mark("checkpoint")
        while step < derived.total_steps and not scalars[2]:  # a stop, asked of any rank
            faults.strike(step + 1, model)
            lr = learning_rate(step, **derived.schedule)
            finite = True
            for _ in slots:
                batch = next(loader)
                keys = [sample_key(recipe.run.seed, batch.epoch, row, DROPOUT) for row in batch.rows]
                model.feed(batch.images, batch.labels, keys)
                model.forward()
                model.backward(reducer.ready)  # a bucket is summed as soon as its last gradient is there
                finite &= bool(np.isfinite(model.loss.losses).all())
                correct = np.count_nonzero(model.loss.ranks == 0)
                scalars[:] = model.loss.losses.sum(), correct, life.stop_asked(), restart.due()
                reducer.end_slot()
            update.step(lr)  # a tensor is updated as soon as its sum is there
            step += 1
            epoch = step / derived.steps_per_epoch
            loss, accuracy = (float(total) / recipe.batch.global_batch for total in scalars[:2])
            if not math.isfinite(loss):
                restart.fail("the loss", step, lr, finite)
            model.parameters.update_statistics(derived.slots)
            waits = {"data_wait_s": loader.stall_seconds} | reducer.seconds()
            trace.add(step, reducer.finished)
            report.step(step, epoch, loss, lr, accuracy, waits)
            if clock.running:
                report.note(clock.finish())
            evaluating = _due(step, derived.evaluate_every_steps, derived.total_steps)
            saving = _due(step, derived.checkpoint_every_steps, derived.total_steps) or scalars[2:].any()
            if (evaluating or saving) and not np.isfinite(model.parameters.value).all():
                restart.fail("a weight", step, lr, finite)
            top1 = None
            if evaluating:
                crop, threads, mirror = center_crop(recipe, val), recipe.data.reader_threads, recipe.data.val_mirror
                result = evaluate(model, val, crop, comm, threads, mirror, life.stop_asked)
                if result:
                    report.evaluation(step, epoch, result.top1, result.top5, result.images)
                    top1 = result.top1
                else:
                    report.note("the evaluation was left, as a stop is asked for")
                    scalars[2], saving = 1, True
            checking = _due(step, recipe.comm.check_every_steps, derived.total_steps) and comm.size > 1
            if saving or checking:
                update.complete()
            if checking:
                compare_replicas(comm, model.parameters.state(), step)
            if saving:
                restart.save(step, top1)
        restart.leave(step)
        life.end(step, derived.total_steps)
        if step < derived.total_steps:
            report.note(f"stopped as asked after step {step}; {advice(run_dir)}")
        else:
            best = best_checkpoint(run_dir / FOLDER)
            report.note(f"done; {f'best checkpoint: {best}; ' * bool(best)}evaluate with: knltrain evaluate {run_dir}")
    return max(comm.gather(life.exit_code))  # nobody leaves before all is written


def _due(step: int, every: int, last: int) -> bool:
    """At every so many steps (0: never), and always at the last."""
    return step == last or (every > 0 and step % every == 0)


def _prolonged(recipe, derived, n_rows, before: float, step) -> str:
    """What a longer run does to the schedule: poly and cosine are stretched, and go on at another rate."""
    shorter = derive(dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, epochs=before)), n_rows)
    was, now = (learning_rate(step, **schedule) for schedule in (shorter.schedule, derived.schedule))
    ends = [schedule["total_steps"] for schedule in (derived.schedule, shorter.schedule)]
    return (
        f"prolonged from {before:g} to {recipe.run.epochs:g} epochs: {recipe.schedule.policy} ends at step {ends[0]}, "
        f"not {ends[1]}; the learning rate is {now:.4g}, {'as before' if was == now else f'where it was {was:.4g}'}"
    )


def _headline(recipe, model, derived, data, reducer, comm, placement, step) -> list[str]:
    """What a reader of the log wants to know before the first step."""
    batch = recipe.batch
    memory = f"{model.memory_bytes / 2**20:,.0f} MiB for activations and packed weights"
    lines = [
        f"{recipe.model.name}: {model.parameters.count:,} parameters, {memory}",
        f"{len(data):,} images in {len(data.class_names)} classes, {derived.steps_per_epoch} steps an epoch, "
        f"{derived.total_steps} in all",
        f"global batch {batch.global_batch} = {derived.slots} slots of {batch.slot_batch}, on {comm.size} ranks "
        f"of {placement.threads} threads ({ARCH.name} kernels)",
        *placement.table(),
    ]
    lines += reducer.describe() if comm.size > 1 else []
    return [*lines, f"continuing after step {step}"] if step else lines
