"""A run in phases: from some epoch on another batch, crop, augmentation, decay or schedule.

Smith et al. 2018 (arXiv:1711.00489) and Mikami et al. 2018 (arXiv:1811.05233) let the batch grow, ffcv and others the
pictures; Codreanu et al. 2017 (arXiv:1711.04291) end on the plain picture ("collapse"). A phase is a stretch of
steps, a leg, in which a run is that of an ordinary recipe; weights, momentum and running statistics go on.

Steps of the run are counted through. A leg counts its own from the run's first epoch, in batches of its own size: the
order of the pictures goes on where it was in the epoch. A schedule counts from the phase that set any of its keys,
else from the run's begin, to the run's end.
"""

import dataclasses
import math
from typing import NamedTuple

from ..claims.keys import shown
from .config import Recipe, RecipeError, at_phase
from .derived import Derived, derive


class Leg(NamedTuple):
    """Steps start..stop - 1 of a run. first: the leg's own number of `start`; since: of where its schedule begins."""

    recipe: Recipe
    derived: Derived  # numbers of the recipe, its schedule from `since` on
    start: int
    stop: int
    first: int
    since: int
    number: int = 0  # of phases that have begun
    says: str = ""  # what begins with it

    def own(self, step: int) -> int:
        """The leg's own number of a step of the run."""
        return step - self.start + self.first

    def epoch(self, step: int) -> float:
        """How many have passed before a step of the run."""
        return self.own(step) / self.derived.steps_per_epoch

    def warming(self, step: int) -> bool:
        """Whether the rate still rises in a step of the run."""
        return self.own(step) - self.since < self.derived.rate.warmup_steps

    def meets(self, step: int) -> bool:
        """Whether workers that train apart meet after a step of the run."""
        return (step + 1 - self.start) % self.recipe.optim.local_steps == 0

    def rate(self, step: int) -> float:
        """The learning rate of a step of the run."""
        return self.derived.rate(self.own(step) - self.since)


def legs(recipe: Recipe, n_rows: int) -> list[Leg]:
    """The legs of a recipe on n_rows images; one where it has no phases. Raises RecipeError as `derive`."""
    starts = [0.0, *(phase.from_epoch for phase in recipe.phases), recipe.run.epochs]
    most, found, start, began = recipe.run.max_steps or math.inf, [], 0, 0.0
    for number, says in enumerate(("", *map(str, recipe.phases))):
        own = at_phase(recipe, number)
        if number and any(name.startswith("schedule.") for name, _ in recipe.phases[number - 1].settings):
            began = starts[number]
        left = dataclasses.replace(own.run, epochs=recipe.run.epochs - began, max_steps=0)
        derived = derive(dataclasses.replace(own, run=left), n_rows)
        since, first, last = (round(e * derived.steps_per_epoch) for e in (began, starts[number], starts[number + 1]))
        stop = min(start + max(last - first, 0 if number else 1), most)
        if stop > start:
            found.append(Leg(own, derived, start, stop, first, since, number, says))
        start = stop
    return found


def leg_of(found: list[Leg], step: int) -> Leg:
    """The leg in which a step is done; the last one also behind its end."""
    return next((leg for leg in found if step < leg.stop), found[-1])


def facts_at(meta: dict) -> dict:
    """What a checkpoint's weights are used with: the facts of its run, as they were in the phase that it was saved in.

    Raises RecipeError where its phases are no such.
    """
    facts, phases = dict(meta["experiment"]), meta["experiment"].get("phases", [])
    try:
        for _, settings in phases[: meta.get("phase", len(phases))]:
            facts |= settings
    except (TypeError, ValueError):
        raise RecipeError(f"the file has phases {shown(phases)}; expected a list of epochs and keys") from None
    return facts
