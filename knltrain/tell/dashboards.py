"""A run in TensorBoard and MLflow, as `run.tensorboard` and `run.mlflow` ask: records of the log and sample pictures.

Both are written by their own clients, which are extras. Rank 0 only. What a client fails at is said once; the run does
not need it.
"""

import math
import os
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..claims.whole import write_whole
from ..run.observe import StepObserver

STEP_S, SEND_S = 0.1, 10.0  # seconds between steps that are handed on; between two messages to MLflow
PICTURES = 8  # of a sample
NAMES = {  # kind of record → what of it is a curve, and of which name
    "step": {
        "loss": "train/loss", "accuracy": "train/top1", "lr": "train/learning_rate", "loss_scale": "train/loss_scale",
        "images_per_s": "speed/images_per_s", "exchange_exposed_s": "wait/exchange_exposed_s",
        "data_wait_s": "wait/data_since_start_s",
    },
    "evaluation": {"top1": "val/top1", "top5": "val/top5"},
    "epoch": {"loss": "epoch/loss", "accuracy": "epoch/top1", "seconds": "epoch/seconds"},
    "ops": {"step_s": "speed/step_s"},
}  # fmt: skip


def curves(record: dict) -> Iterator[tuple[str, float]]:
    """(name, value) of every number of a record that is a point of a curve."""
    values = {NAMES[record["kind"]][key]: record.get(key) for key in NAMES.get(record["kind"], ())}
    if record["kind"] == "trust":
        values = {f"trust/{tensor}": ratio for tensor, ratio in record["ratios"].items()}
    elif record["kind"] == "ranks":
        values = {f"ranks/most_{key}": max(record[key]) for key in ("compute_s", "data_wait_s", "exchange_exposed_s")}
    return ((name, value) for name, value in values.items() if value is not None and math.isfinite(value))


class Dashboards(StepObserver):
    """Hands the records of a run to TensorBoard, to MLflow's `experiment` where it has a name, and in each epoch the
    same pictures, as they are trained on.

    It opens what it writes when the run begins. warn: prints a line; what fails is left.
    """

    def __init__(self, run_dir: Path, tensorboard: bool, experiment: str, recipe_text: str, warn):
        self.makers, self.boards, self.warn = [], [], warn
        if tensorboard:
            self.makers.append(lambda begun: TensorBoard(run_dir / "tensorboard", recipe_text, begun))
        if experiment:
            self.makers.append(lambda begun: MLflow(run_dir, experiment, recipe_text))
        self.handed, self.epoch = -math.inf, None

    def tell(self, record: dict):
        """A record of the log, as it is written there. Raises ImportError where the run begins without a client."""
        if record["kind"] == "begin":
            self._open(record["step"])
        elif record["kind"] == "step":
            if record["time"] - self.handed < STEP_S:
                return
            self.handed = record["time"]
        if points := list(curves(record)):
            self._each("points", points, record["step"], record["time"])

    def end_step(self, trainer, step):
        """After the first step of an epoch: show what it trains on."""
        epoch = int(trainer.parts.leg.epoch(step.number - 1))
        if self.boards and epoch != self.epoch:
            self.epoch = epoch
            self._each("picture", "samples", sample(trainer.parts.batches, epoch), step.number)

    def close(self):
        """Send what is left; harmless when repeated."""
        self._each("close")
        self.boards = []

    def _open(self, begun: int):
        for make in self.makers:
            try:
                self.boards.append(make(begun))
            except ImportError:
                raise
            except Exception as error:
                self.warn(f"warning: training goes on without a dashboard ({_short(error)})")

    def _each(self, method: str, *arguments):
        for board in list(self.boards):
            try:
                getattr(board, method)(*arguments)
            except Exception as error:  # whatever a client raises: it is not the run's
                self.boards.remove(board)
                self.warn(f"warning: {board.name} is left, training goes on ({_short(error)})")


def sample(loader, epoch: int) -> np.ndarray:
    """Pictures beside each other, (crop, n · crop, 3) uint8: the same rows, as they are in this epoch."""
    data, augment = loader.dataset, loader.augment
    rows = np.unique(np.linspace(0, len(data) - 1, PICTURES).astype(int)).tolist()
    pictures = np.empty((len(rows), augment.crop, augment.crop, 3), np.float32)
    for row, picture in zip(rows, pictures, strict=True):
        augment.apply(data.image(row), epoch, row, picture)
    return np.concatenate(list(augment.pixels(pictures)), axis=1)


class TensorBoard:
    """Event files in `folder`. begun: the steps done, from where an earlier curve is continued."""

    name = "TensorBoard"

    def __init__(self, folder: Path, recipe_text: str, begun: int):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise _missing(error, "run.tensorboard", "tensorboard") from None
        purge = {"purge_step": begun + 1} if begun else {}
        name = f".step{begun:08}"  # unlike that of an earlier start in the same second
        self.writer = SummaryWriter(str(folder), filename_suffix=name, flush_secs=10, **purge)
        self.writer.add_text("recipe", "```toml\n" + recipe_text + "```", begun)

    def points(self, points, step: int, seconds: float):
        """Points of curves at a step; seconds since 1970."""
        for name, value in points:
            self.writer.add_scalar(name, value, step, walltime=seconds)

    def picture(self, name: str, pixels: np.ndarray, step: int):
        """A picture, (H, W, 3) uint8."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self):
        """Write what is left."""
        self.writer.close()


class MLflow:
    """A run of `experiment` on the server that MLFLOW_TRACKING_URI names, which a continued run goes on with."""

    name = "MLflow"

    def __init__(self, run_dir: Path, experiment: str, recipe_text: str):
        for key, value in (("MAX_RETRIES", 2), ("TIMEOUT", 10)):  # else a server that is away holds up the start
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", str(value))
        try:
            from mlflow import MlflowClient, entities
        except ModuleNotFoundError as error:
            raise _missing(error, "run.mlflow", "mlflow") from None
        self.client, self.entities, self.sending = MlflowClient(), entities, None
        place, self.waiting, self.sent = run_dir / "mlflow", [], time.monotonic()
        if place.exists():
            self.run = place.read_text(encoding="utf-8").strip()
            self.client.update_run(self.run, "RUNNING")
            return
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self.client.create_experiment(experiment)
        self.run = self.client.create_run(number, run_name=run_dir.resolve().name).info.run_id
        write_whole(place, self.run + "\n")
        recipe = tomllib.loads(recipe_text)
        named = ((f"{section}.{key}", value) for section, keys in recipe.items() for key, value in keys.items())
        facts = [entities.Param(key, str(value)[:500]) for key, value in named]
        for first in range(0, len(facts), 100):  # the most that a message may have
            self.client.log_batch(self.run, params=facts[first : first + 100])

    def points(self, points, step: int, seconds: float):
        """As TensorBoard's; sent together, now and then, by a thread of the client's."""
        self.waiting += [self.entities.Metric(name, value, round(1e3 * seconds), step) for name, value in points]
        if time.monotonic() - self.sent >= SEND_S:
            self._send(synchronous=False)

    def picture(self, name: str, pixels: np.ndarray, step: int):
        """As TensorBoard's."""
        self.client.log_image(self.run, pixels, key=name, step=step)

    def close(self):
        """Send what is left and end the run."""
        self._send(synchronous=True)
        self.client.set_terminated(self.run)

    def _send(self, synchronous: bool):
        if self.sending:
            self.sending.wait()
        metrics, self.waiting, self.sent = self.waiting, [], time.monotonic()
        for first in range(0, len(metrics), 1000):
            self.sending = self.client.log_batch(self.run, metrics[first : first + 1000], synchronous=synchronous)


def _short(error) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{' …' * (len(text) > 200)}"


def _missing(error, key: str, extra: str) -> ImportError:
    how = f"pip install knltrain[{extra}], or leave {key} out"
    return ImportError(f"{error.name} is not installed, expected it for {key}: {how}")
