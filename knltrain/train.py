"""The training loop: the one page that knows the whole story."""

from contextlib import closing, nullcontext

from .assembly import make_trainer
from .claims.keys import traced_steps
from .comm import compare_replicas
from .evaluate import evaluate
from .models.state import replicated
from .node.leaks import sweep
from .node.machine import take_share
from .recipe.config import Recipe
from .recipe.experiment import center_crop, identity, open_data, watch_ranks
from .run.balance import Balance
from .run.checkpoint import advice
from .run.lifecycle import Lifecycle
from .run.observe import StepObserver
from .run.restart import Restart
from .tell import told
from .tell.journal import PREDICTIONS
from .tell.screen import Screen
from .trace import Tracer


def train(recipe: Recipe, life: Lifecycle, resume: str, comm, observers: list[StepObserver], screen: Screen) -> int:
    """Train `recipe` on the ranks of `comm`; everything that is kept goes to the run folder, which `life` owns.

    resume: "auto" continues from the newest good checkpoint there, to the bit; "never" demands that there is none.
    observers are told how it goes, screen shows it. Returns 0, or 128 + the signal that stopped it after a checkpoint.
    """
    placement = take_share(comm)
    if placement.first_on_node:
        sweep()
    data, val = open_data(recipe, comm)
    _phase(observers, "shards")
    tracer = Tracer(life.run_dir, comm, traced_steps(recipe.run.trace))
    balance = Balance(comm, recipe.run.shares == "measured")
    with (
        told.opened(recipe, (data, val), life, comm, screen) as (journal, tellers),
        closing(watch_ranks(recipe, data, comm, lambda: advice(life.run_dir))) as watch,
        closing(make_trainer(recipe, data, comm, placement, watch, [*observers, tracer, *tellers, balance])) as trainer,
        closing(Restart(life.run_dir, trainer, comm, identity(recipe, data), recipe.run, journal.note)) as restart,
    ):
        _phase(observers, "model")
        restart.restore(resume)
        if comm.gather(life.finished(trainer.total))[0]:
            journal.note(f"{life.run_dir} is done after step {trainer.total}: nothing is left to train")
            life.end(trainer.done, trainer.total)
        else:
            told.start(journal, recipe, (data, val), comm, placement, watch, trainer, restart.begun_epochs)
            with placement.on("readers"):
                trainer.seek(trainer.done)
            life.begin(trainer.done, journal.note)
            _phase(observers, "checkpoint")
            for step in trainer.steps(lambda: (life.stop_asked(), restart.due())):
                if not _after(step, recipe, trainer, val, comm, life, journal, restart):
                    break
            restart.leave(trainer.done)
            life.end(trainer.done, trainer.total)
            journal.record("end", told.end(life.run_dir, trainer))
    return max(comm.gather(life.exit_code))  # nobody leaves before all is written


def _after(step, recipe, trainer, val, comm, life, journal, restart) -> bool:
    """What is due behind a step: evaluate, compare the ranks, save. Whether to go on: no evaluation was left."""
    parts, end = trainer.parts, step.number == trainer.total
    own, derived = parts.leg.own(step.number), parts.leg.derived
    evaluating = end or _due(own, derived.evaluate_every_steps)
    saving = end or _due(own, derived.checkpoint_every_steps) or step.save or step.stop
    if evaluating:
        parts.update.gather_weights()
    restart.check(step, weights=evaluating or saving)
    top1 = _evaluate(recipe, trainer, step, val, comm, life, journal) if evaluating else None
    left = evaluating and top1 is None
    if end or _due(step.number, recipe.comm.check_every_steps):
        compare_replicas(comm, replicated(parts.model.parameters, parts.update.single), step.number)
    if saving or left:
        restart.save(step.number, top1)
    return not left


def _evaluate(recipe, trainer, step, val, comm, life, journal) -> float | None:
    """Top-1 on `val`, told to the journal; None where it was left, as a stop is asked for."""
    parts, how = trainer.parts, (recipe.data.reader_threads, recipe.data.val_mirror, recipe.data.val_shift)
    crop = center_crop(parts.leg.recipe, val)
    with parts.average.in_place() if parts.average else nullcontext():
        result = evaluate(parts.model, val, crop, comm, *how, life.stop_asked)
    if not result:
        return journal.evaluation_left()
    journal.evaluation(step.number, step.epoch, result.top1, result.top5, result.images)
    journal.keep(PREDICTIONS, lambda: {"step": step.number, **result.facts(val, crop)})
    return result.top1


def _phase(observers, name: str):
    for observer in observers:
        observer.phase(name)


def _due(step: int, every: int) -> bool:
    """At every so many steps; 0: never."""
    return every > 0 and step % every == 0
