"""Leaving and coming back: which state a run saves, when it restores it, and what it says when it must stop.

Only rank 0 touches the disk. It broadcasts what it read, so a run may continue on any allowed number of ranks, and
512 ranks do not read one file at once. Files are written in the background, from a copy of the state.
"""

import math
import time
from pathlib import Path

import numpy as np

from ..claims.keys import shown
from ..models.state import load as load_state
from ..models.state import state as state_of
from .background import Writer
from .checkpoint import FOLDER, CheckpointError, checkpoints, load_latest, save

LENGTH = "run.epochs"  # of an experiment; may grow
PRECISION = "compute.precision"  # of one, too
ABSENT = object()  # in place of a value that is not there
BEFORE = {  # what a run was that says nothing of it
    PRECISION: "fp32", "compute.loss_scale": "auto", "optim.beta2": 0.999, "optim.average": 0.0,
    "optim.end_momentum": 0.0, "optim.blend_epochs": 10.0, "data.fit": "crop",
    "comm.fc_shards": 1, "comm.workers": 0, "optim.local_steps": 1,
}  # fmt: skip
PATIENCE_S = 20.0  # a step waits so long for the checkpoint before, then goes on without its own
LAST_LIMIT_S = 20.0  # a run that leaves tries so long to write its last checkpoint
FAILING_LIMIT_S = 5.0  # a run that fails waits so long for the one under way: the other ranks hang as long


class Restart:
    """Checkpoints of one run in `run_dir`: the weights, the momentum, the running statistics and the step.

    experiment: everything that the result depends on, as a flat dict of JSON-able values; a checkpoint of another
    experiment is refused, but for one that is only shorter. how: the recipe's [run]: how many of the newest stay, and
    the minutes of training that may be lost at most (0: only what `save` is called for). note: told of damaged ones, a
    disk that refuses, a new beginning.
    """

    def __init__(self, run_dir: Path, trainer, comm, experiment: dict, how, note):
        self.folder, self.comm, self.experiment = Path(run_dir) / FOLDER, comm, experiment
        self.trainer = trainer  # its model changes from phase to phase
        self.keep, self.every_s = how.keep_checkpoints, 60 * how.checkpoint_every_minutes
        self.note, self.warn = note, lambda message: note(f"warning: {message}")
        self.last_saved, self.last_time, self.missed = None, time.monotonic(), False
        self.begun_epochs = 0.0  # where a run is made longer: how long it was
        self.copy = None
        self.writer = Writer(self._write, self.warn)

    @property
    def parameters(self):
        return self.trainer.model.parameters

    # ---- coming back -----------------------------------------------------------------------------------------

    def restore(self, resume: str):
        """Have all ranks go on from the newest good checkpoint; in a fresh folder they begin.

        Raises CheckpointError where resume is "never" and there is one, or where it is of another experiment.
        """
        found = self._read(resume) if self.comm.rank == 0 else None
        self.trainer.restore(*self.comm.gather(found)[0])
        for block in self.parameters.blocks:
            self.comm.broadcast(block)
            if block.shape == self.parameters.value.shape:
                self.parameters.forget(block)  # the next may take as much memory
        self.last_time = time.monotonic()

    def _read(self, resume) -> tuple[int, dict]:
        if resume == "never":
            if checkpoints(self.folder):
                raise CheckpointError(
                    f"{self.folder} already holds checkpoints; "
                    "continue with --resume auto, or choose another --run folder"
                )
            return 0, {}
        found = load_latest(self.folder, self.warn)
        if found is None:
            self.note(f"no run here: beginning anew in {self.folder.parent}")
            return 0, {}
        arrays, meta = found
        begun = meta["experiment"]
        for key, now in self.experiment.items():
            before = begun.get(key, BEFORE.get(key))
            if key == LENGTH and isinstance(before, float) and before < now:
                self.begun_epochs = before
            elif before != now:
                way = "use the recipe and the pictures of that run, or another --run folder"
                if key == PRECISION:
                    way = f"go on in that, or begin another run with [model] weights = {str(self.folder.parent)!r}"
                key, before, now = _first_difference(key, before, now)
                what = f"this run was begun with {key} = {before}, now it is {now}"
                raise CheckpointError(f"{self.folder}: {what}: {way}")
        load_state(self.parameters, arrays, self.folder)
        self.last_saved = meta["step"]
        return meta["step"], {name: meta[name] for name in ("previous_lr", "loss_scale") if name in meta}

    # ---- saving ----------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether the clock of rank 0 asks for a checkpoint; the other ranks never do."""
        late = self.every_s > 0 and time.monotonic() - self.last_time >= self.every_s
        return self.comm.rank == 0 and (late or self.missed) and not self.writer.busy(0.0)

    def save(self, step: int, metric: float | None = None):
        """Begin to write the state after `step` steps, whose metric (higher is better) was measured, or None.

        Training waits while the state is copied, and for the checkpoint before if that is not written yet. Where this
        takes PATIENCE_S the file system is too slow: this one is left out, and `due` asks for another. Collective.
        """
        self.trainer.parts.update.complete(everywhere=False)
        if self.comm.rank == 0 and self.last_saved != step:
            self._begin(step, metric)

    def _begin(self, step, metric=None):
        since = self.writer.busy(PATIENCE_S)
        self.missed = since > 0
        if self.missed:
            self.warn(f"a checkpoint is being written since {since:.0f} s, a slow file system: none of step {step}")
            return
        meta = {"step": step, "experiment": self.experiment, **self.trainer.state()}
        if "phases" in self.experiment:
            meta["phase"] = self.trainer.parts.leg.number
        self.writer.submit(lambda: (step, self._copy(), meta, metric))
        self.last_saved, self.last_time = step, time.monotonic()

    def leave(self, step: int):
        """Save the state after `step` steps if it is not saved yet, and wait for the disk.

        Raises CheckpointError or TimeoutError where it could not be written.
        """
        if self.comm.rank == 0:
            self.writer.busy(LAST_LIMIT_S)
            if self.last_saved != step:
                self._begin(step)
            self.writer.finish(LAST_LIMIT_S)

    def close(self):
        """Write nothing more; a checkpoint under way may still become whole."""
        self.writer.close(FAILING_LIMIT_S)

    def _copy(self) -> dict[str, np.ndarray]:
        state = state_of(self.parameters)
        if self.copy is None:
            self.copy = {name: np.empty_like(array) for name, array in state.items()}
        for name, array in state.items():
            np.copyto(self.copy[name], array)
        return self.copy

    def _write(self, job):
        step, arrays, meta, metric = job
        save(self.folder, step, arrays, meta, keep=self.keep, best_metric=metric)

    # ---- failing ---------------------------------------------------------------------------------------------

    def check(self, step, weights: bool):
        """That the loss of `step`, its gradients and, where asked for, the weights after it are numbers.

        Raises FloatingPointError, on all ranks alike.
        """
        if not math.isfinite(step.loss):
            self._fail("the loss", step)
        scaling = self.trainer.scaling
        if scaling and scaling.hopeless:
            self._fail(f"the gradient of {scaling.failed} steps in a row, whatever the loss scale,", step)
        if weights and not all(self.comm.gather(self._finite())):
            self._fail("a weight", step)

    def _finite(self) -> bool:
        """Of the weights that this rank keeps."""
        return all(bool(np.isfinite(self.parameters.value[here]).all()) for here in self.parameters.kept())

    def _fail(self, what: str, step):
        """`what` is NaN or infinite in `step`: say where and what to do."""
        flags = self.comm.gather(step.finite)
        ranks = ", ".join(str(rank) for rank, good in enumerate(flags) if not good)
        self.writer.busy(PATIENCE_S)
        last = next(reversed(checkpoints(self.folder)), None)
        raise FloatingPointError(
            f"{what} is not finite in step {step.number} ({f'rank {ranks}' if ranks else 'all ranks'}, learning rate "
            f"{step.lr:g}); last good checkpoint: {last or 'none'}: lower the learning rate or lengthen the warm-up"
        )


def _first_difference(key: str, before, now) -> tuple[str, str, str]:
    """Where, in two values under a key, of which tables are a part, they differ first: key, before and now."""
    if isinstance(before, dict) and isinstance(now, dict):
        values = ((name, before.get(name, ABSENT), now.get(name, ABSENT)) for name in {**before, **now})
        name, before, now = next(value for value in values if value[1] != value[2])
        return _first_difference(f"{key}.{name}", before, now)
    before, now = ("not set" if value is ABSENT else shown(value) for value in (before, now))
    return key.replace("model.args.", "model."), before, now
