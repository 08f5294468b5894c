"""From a recipe to the trainer of a rank, and to the parts that it works with in each leg of the run."""

from collections.abc import Sequence
from functools import partial

from .arena import Parameters
from .comm import LOCAL, Shares, check_whole, kept_sums, make_block
from .models import Among
from .optim.average import Average
from .recipe import experiment
from .recipe.config import Recipe
from .recipe.phases import Leg, legs
from .run.observe import StepObserver
from .trainer import Parts, Trainer


def make_trainer(
    recipe: Recipe, data, comm, placement, watch=None, observers: Sequence[StepObserver] = (), layers=None
) -> Trainer:
    """The trainer of a recipe on `data`, for this rank. layers: a network and its input shape, not the recipe's."""
    found, speeds = legs(recipe, len(data)), experiment.rank_speeds(recipe, comm)
    experiment.check_sizes([leg.recipe for leg in found], len(data.class_names))
    assembly = _Assembly(recipe, found, data, comm, placement, watch, layers)
    for leg in assembly.apart:
        check_whole(assembly.shares(leg, speeds))
    parts, begun = assembly.parts(found[0], speeds), []
    if recipe.model.weights:
        fresh = experiment.begin_with(recipe.model.weights, parts.model.parameters, comm)
        if parts.average:
            parts.average.begin()
        begun = [f"beginning with the weights of {recipe.model.weights}"]
        begun += [f"fresh, for other classes: {', '.join(fresh)}"] if fresh else []
    parts.optimizer.check_start(*(found[0].rate(early) for early in (0, 1)))
    how = {"legs": found, "speeds": speeds, "remake": assembly.parts, "begun_with": begun}
    return Trainer(parts, **how, scaling=experiment.make_loss_scale(recipe), observers=observers)


class _Assembly:
    """Makes what changes from leg to leg, or with the speeds of the ranks."""

    def __init__(self, recipe: Recipe, found: list[Leg], data, comm, placement, watch, layers):
        self.recipe, self.data, self.comm, self.placement = recipe, data, comm, placement
        self.watch, self.layers = watch, layers
        self.apart = [leg for leg in found if leg.recipe.optim.local_steps > 1]  # workers train apart

    def shares(self, leg: Leg, speeds: Sequence[float]) -> Shares:
        return Shares.of(leg.derived.slots, speeds, self.recipe.comm.workers)

    def parts(self, leg: Leg, speeds: Sequence[float], learned: Parameters | None = None) -> Parts:
        """What a trainer works with in a leg. learned: so far; its memory is used again."""
        shares = self.shares(leg, speeds)
        slots, keep = shares.ranges[self.comm.rank], self.recipe.optim.average
        model = self._model(leg, shares, slots, learned)
        optimizer = experiment.make_optimizer(leg.recipe, model)
        average = Average(model.parameters, keep) if keep else None
        with self.placement.on("communication"):
            reducer = experiment.make_reducer(leg.recipe, model, self.watch)
        with self.placement.on("readers"):
            loader = experiment.make_loader(leg.recipe, leg.derived, self.data, slots)
        update = experiment.make_update(leg.recipe, model, optimizer, reducer)
        return Parts(leg, model, optimizer, reducer, update, loader, average)

    def _model(self, leg, shares, slots, learned):
        recipe = self.recipe
        old = learned and learned.block
        block = partial(make_block, experiment.make_links(recipe, self.comm, shares)) if old is None else lambda _: old
        if old is not None:
            old.arrange(shares)
        copies = kept_sums(slots, shares.slots, shares.most) + experiment.copies_of(recipe, bool(self.apart))
        among = Among(self.placement.ranks_on_node, copies, block, fc_group=experiment.asked_group(leg.recipe, shares))
        model = experiment.make_model(leg.recipe, len(self.data.class_names), among, layers=self.layers)
        if learned is not None:
            model.parameters.take(learned)
        elif self.apart:
            for name in LOCAL:
                model.parameters.keep(name, recipe.comm.workers)
        return model
