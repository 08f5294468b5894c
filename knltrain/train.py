"""The training loop: the one page that knows the whole story."""

from contextlib import closing, nullcontext

from .assembly import make_trainer
from .claims.keys import traced_steps
from .comm import compare_replicas
from .evaluate import evaluate
from .models.state import replicated
from .node.leaks import sweep
from .node.machine import take_share
from .recipe.config import Recipe, resolved
from .recipe.experiment import center_crop, identity, open_data, watch_ranks
from .recipe.phases import legs
from .run.balance import Balance
from .run.checkpoint import advice
from .run.lifecycle import Lifecycle
from .run.observe import StepObserver
from .run.restart import Restart
from .tell import told
from .tell.gauge import Gauge
from .tell.journal import PREDICTIONS
from .tell.screen import Screen
from .trace import Tracer


def train(recipe: Recipe, life: Lifecycle, resume: str, comm, observers: list[StepObserver], screen: Screen) -> int:
    """Train `recipe` on the ranks of `comm`; everything that is kept goes to the run folder, which `life` owns.

    resume: "auto" continues from the newest good checkpoint there, to the bit; "never" demands that there is none.
    observers are told how it goes, screen shows it. Returns 0, or 128 + the signal that stopped it after a checkpoint.
    """
    run_dir, placement = life.run_dir, take_share(comm)
    if placement.first_on_node:
        sweep()
    data, val = open_data(recipe, comm)
    _phase(observers, "shards")
    route = legs(recipe, len(data))
    total, check_every = route[-1].stop, recipe.comm.check_every_steps
    journal, boards = told.journal_of(recipe, route, life, comm, screen, (len(data), len(val)))
    observers = [*observers, Tracer(run_dir, comm, traced_steps(recipe.run.trace)), journal, boards, Gauge(comm, total)]
    observers.append(Balance(comm, recipe.run.shares == "measured"))

    with (
        closing(journal),
        closing(boards),
        closing(watch_ranks(recipe, data, comm, lambda: advice(run_dir))) as watch,
        closing(make_trainer(recipe, data, comm, placement, watch, observers=observers, journal=journal)) as trainer,
        closing(Restart(run_dir, trainer, comm, identity(recipe, data), recipe.run, journal.note)) as restart,
    ):
        _phase(observers, "model")
        trainer.done = restart.restore(resume)
        if comm.gather(life.finished(trainer.total))[0]:
            journal.note(f"{run_dir} is done after step {trainer.total}: nothing is left to train")
            life.end(trainer.done, trainer.total)
            return 0
        machine = told.machine(recipe, trainer, comm, placement, watch)
        journal.start(resolved(recipe), machine, told.begin(recipe, data, trainer, watch))
        for line in told.notes(recipe, trainer, restart.begun_epochs, data, val):
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
            if evaluating:
                trainer.update.gather_weights()
            restart.check(step, weights=evaluating or saving)
            top1 = _evaluate(recipe, trainer, step, val, comm, life, journal) if evaluating else None
            saving |= trainer.stopped
            if checking:
                compare_replicas(comm, replicated(trainer.model.parameters, trainer.update.single), step.number)
            if saving:
                restart.save(step.number, top1)

        restart.leave(trainer.done)
        life.end(trainer.done, trainer.total)
        journal.record("end", told.end(run_dir, trainer))
    return max(comm.gather(life.exit_code))  # nobody leaves before all is written


def _evaluate(recipe, trainer, step, val, comm, life, journal) -> float | None:
    """Top-1 on `val`, told to the journal; None where it was left, and the training with it, as a stop is asked for."""
    how = (recipe.data.reader_threads, recipe.data.val_mirror, recipe.data.val_shift, life.stop_asked)
    crop = center_crop(trainer.leg.recipe, val)
    with trainer.average.in_place() if trainer.average else nullcontext():
        result = evaluate(trainer.model, val, crop, comm, *how)
    if not result:
        journal.evaluation_left()
        trainer.stopped = True
        return None
    journal.evaluation(step.number, step.epoch, result.top1, result.top5, result.images)
    journal.keep(PREDICTIONS, lambda: {"step": step.number, **result.facts(val, crop)})
    return result.top1


def _phase(observers, name: str):
    for observer in observers:
        observer.phase(name)


def _due(step: int, every: int) -> bool:
    """At every so many steps; 0: never."""
    return every > 0 and step % every == 0
