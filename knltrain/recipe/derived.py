"""What follows from a recipe and the number of training images: epochs as steps."""

from dataclasses import dataclass

from ..optim.schedule import LearningRate
from .config import Recipe, RecipeError


@dataclass(frozen=True)
class Derived:
    """What follows from a recipe and the number of training images."""

    slots: int
    steps_per_epoch: int  # images that do not fill a global batch are left out, others each epoch
    total_steps: int  # where this run ends: with the schedule, or at run.max_steps if that is sooner
    evaluate_every_steps: int  # 0: only at the end
    checkpoint_every_steps: int  # 0: only at the end
    rate: LearningRate  # of a step; it goes on behind total_steps


def derive(recipe: Recipe, n_rows: int) -> Derived:
    """Derived numbers for a training set of n_rows images. Raises RecipeError when they do not fill one batch."""
    batch, run = recipe.batch, recipe.run
    steps_per_epoch = n_rows // batch.global_batch
    if steps_per_epoch == 0:
        raise RecipeError(
            f"batch.global_batch is {batch.global_batch}; expected at most {n_rows}, the images in {recipe.data.train}"
        )

    def steps(epochs):
        return round(epochs * steps_per_epoch)

    schedule_steps = max(1, steps(run.epochs))
    by_epochs = max(1, steps(run.checkpoint_every_epochs)) if run.checkpoint_every_epochs else 0
    return Derived(
        slots=batch.global_batch // batch.slot_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=min(schedule_steps, run.max_steps or schedule_steps),
        evaluate_every_steps=max(1, steps(run.evaluate_every_epochs)) if run.evaluate_every_epochs else 0,
        checkpoint_every_steps=min(filter(None, (run.checkpoint_every_steps, by_epochs)), default=0),
        rate=LearningRate(recipe.schedule, schedule_steps, steps_per_epoch),
    )
