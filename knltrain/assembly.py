"""From a recipe to the trainer of a rank, and to the parts that it works with in each leg of the run."""

from collections.abc import Sequence
from functools import partial

from .arena import Parameters
from .comm import LOCAL, Shares, check_whole, kept_sums, make_block
from .models import Among
from .optim.average import Average
from .recipe.config import Recipe
from .recipe.experiment import (
    asked_group,
    begin_with,
    check_sizes,
    copies_of,
    make_links,
    make_loader,
    make_loss_scale,
    make_model,
    make_optimizer,
    make_reducer,
    make_update,
    rank_speeds,
)
from .recipe.phases import Leg, legs
from .run.observe import StepObserver
from .trainer import Trainer


def make_trainer(
    recipe: Recipe, data, comm, placement, watch=None, layers=None, observers: Sequence[StepObserver] = (), journal=None
) -> Trainer:
    """The trainer of a recipe on `data`, for this rank. layers: a network and its input shape, not the recipe's.

    journal: of the run, which prints lines and keeps facts; None: nobody does.
    """
    found, speeds = legs(recipe, len(data)), rank_speeds(recipe, comm)
    check_sizes([leg.recipe for leg in found], len(data.class_names))
    parts = _Parts(recipe, found, data, comm, placement, watch, layers)
    for leg in parts.apart:
        check_whole(parts.shares(leg, speeds))
    made, begun = parts.of(found[0], speeds), []
    if recipe.model.weights:
        fresh = begin_with(recipe.model.weights, made["model"].parameters, comm)
        if made["average"]:
            made["average"].begin()
        begun = [f"beginning with the weights of {recipe.model.weights}"]
        begun += [f"fresh, for other classes: {', '.join(fresh)}"] if fresh else []
    made["optimizer"].check_start(*(found[0].rate(early) for early in (0, 1)))
    made |= {"total": found[-1].stop, "epochs": recipe.run.epochs, "seed": recipe.run.seed, "observers": observers}
    made |= {"workers": recipe.comm.workers, "scaling": make_loss_scale(recipe), "begun_with": begun}
    if journal:
        made |= {"note": journal.note, "record": journal.record}
    return Trainer(**made, legs=found, speeds=speeds, remake=parts.of)


class _Parts:
    """Makes what changes from leg to leg, or with the speeds of the ranks."""

    def __init__(self, recipe: Recipe, found: list[Leg], data, comm, placement, watch, layers):
        self.recipe, self.data, self.comm, self.placement = recipe, data, comm, placement
        self.watch, self.layers = watch, layers
        self.apart = [leg for leg in found if leg.recipe.optim.local_steps > 1]  # workers train apart

    def shares(self, leg: Leg, speeds: Sequence[float]) -> Shares:
        return Shares.of(leg.derived.slots, speeds, self.recipe.comm.workers)

    def of(self, leg: Leg, speeds: Sequence[float], learned: Parameters | None = None) -> dict:
        """Fields of a `Trainer`. learned: so far; its memory is used again."""
        recipe, data, shares = self.recipe, self.data, self.shares(leg, speeds)
        slots = shares.ranges[self.comm.rank]
        model = self._model(leg, shares, slots, learned)
        optimizer = make_optimizer(leg.recipe, model)
        average = Average(model.parameters, recipe.optim.average) if recipe.optim.average else None
        with self.placement.on("communication"):
            reducer = make_reducer(leg.recipe, model, self.watch)
        with self.placement.on("readers"):
            loader = make_loader(leg.recipe, leg.derived, data, slots)
        update = make_update(leg.recipe, model, optimizer, reducer)
        parts = {"model": model, "optimizer": optimizer, "reducer": reducer, "batches": loader, "update": update}
        parts |= {"average": average, "rate": leg.rate, "slots": len(slots), "total_slots": leg.derived.slots}
        return parts | {"steps_per_epoch": leg.derived.steps_per_epoch}

    def _model(self, leg, shares, slots, learned):
        recipe = self.recipe
        old = learned and learned.block
        block = partial(make_block, make_links(recipe, self.comm, shares)) if old is None else lambda _: old
        if old is not None:
            old.arrange(shares)
        copies = kept_sums(slots, shares.slots, shares.most) + copies_of(recipe, bool(self.apart))
        among = Among(self.placement.ranks_on_node, copies, block, fc_group=asked_group(leg.recipe, shares))
        model = make_model(leg.recipe, len(self.data.class_names), among, layers=self.layers)
        if learned is not None:
            model.parameters.take(learned)
        elif self.apart:
            for name in LOCAL:
                model.parameters.keep(name, recipe.comm.workers)
        return model
