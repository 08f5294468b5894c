"""`knltrain bench settings RECIPE`: the steps of a recipe under different settings, in turn, on random pictures.

All ranks train; some may be slowed, by sleeping a share of what a slot computes. The settings take turns, so that a
noisy machine disturbs all alike. Beside each stands the ideal: the slots shared by the ranks' speeds as if they could
be cut at will, with nothing to wait for.
"""

import statistics
import time
from contextlib import ExitStack, closing

from ..assembly import make_trainer
from ..data.synthetic import Synthetic
from ..layers import Observer
from ..run.balance import FIRST, SKIPPED, Balance
from ..run.observe import StepObserver

CLASSES = 1000


class _Slots(StepObserver, Observer):
    """Notes the seconds of each slot of this rank, from its first op to its last; slows it by a share of them."""

    def __init__(self, by: float):
        self.by, self.program, self.seconds, self.begun = by, None, [], 0.0

    def begin_step(self, trainer):
        """The model may be another one since the last step."""
        self.program = trainer.model.training
        trainer.observe(self)

    def begin(self, op):
        """With the first op begins a slot."""
        if op is self.program.forward[0]:
            self.begun = time.perf_counter()

    def end(self, op, seconds):
        """With the last it ends, late on a slowed rank."""
        if op is self.program.backward[-1]:
            time.sleep(self.by * (time.perf_counter() - self.begun))
            self.seconds.append(time.perf_counter() - self.begun)


def run(comm, placement, recipes, *, slow=(), by=0.3, steps=20) -> tuple[list, str] | None:
    """What all ranks measure, for rank 0. recipes: by what is said of their settings; slow: ranks, by a share.

    Raises ValueError for a rank that is not there.
    """
    if slow and not 0 <= min(slow) <= max(slow) < comm.size:
        raise ValueError(f"found --slow {' '.join(map(str, slow))}, expected ranks from 0 to {comm.size - 1}")
    rows = []
    with ExitStack() as stack:
        trained = {}
        for way, recipe in recipes.items():
            count = recipe.batch.global_batch * 4
            data = Synthetic(count, recipe.data.crop, recipe.model.args.get("classes", CLASSES))
            slots = _Slots(by if comm.rank in slow else 0.0)
            observers = [slots, Balance(comm, recipe.run.shares == "measured")]
            trainer = stack.enter_context(closing(make_trainer(recipe, data, comm, placement, observers=observers)))
            trainer.seek(0)
            for _ in range(SKIPPED + FIRST + SKIPPED if recipe.run.shares == "measured" else SKIPPED):
                trainer.step()
            slots.seconds.clear()
            trained[way] = trainer, slots, []
        for _ in range(steps):
            for trainer, _, times in trained.values():
                comm.barrier()
                begin = time.perf_counter()
                trainer.step()
                times.append(time.perf_counter() - begin)
        for way, (trainer, slots, times) in trained.items():
            slowest = [max(step) for step in zip(*comm.gather(times), strict=True)]
            slot_s = comm.gather(statistics.median(slots.seconds))
            shares = list(map(len, trainer.parts.shares.ranges))
            ideal = sum(shares) / sum(1 / seconds for seconds in slot_s)
            notes = trainer.parts.reducer.travel.notes() if comm.size > 1 else []
            row = {"settings": way, "step_s": statistics.median(slowest), "ideal_s": ideal, "slots": shares}
            rows.append(row | {"slot_s": slot_s, "notes": notes})
    return (rows, _table(rows)) if comm.rank == 0 else None


def _table(rows) -> str:
    width = max(len(row["settings"]) for row in rows)
    lines = [f"{'settings':{width}}   step ms   x first  ideal ms  x ideal  slots of the ranks"]
    for row in rows:
        faster, over = rows[0]["step_s"] / row["step_s"], row["step_s"] / row["ideal_s"]
        shares = " ".join(map(str, row["slots"]))
        lines.append(
            f"{row['settings']:{width}}  {1e3 * row['step_s']:8.1f}  {faster:8.2f}  {1e3 * row['ideal_s']:8.1f}  "
            f"{over:7.2f}  {shares}"
        )
        lines += [f"{'':{width}}  {note}" for note in row["notes"]]
    return "\n".join(lines)
