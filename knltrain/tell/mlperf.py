"""A run's log in the words of MLPerf training, for its own checker: `:::MLLOG` lines of the ResNet benchmark.

Keys and their order: mlcommons/logging, compliance_checker/training_4.0.0, the last ruleset that has ResNet. The
division is the open one: closed wants ImageNet, 75.9 %, and LARS or SGD with the reference's constants, which
a recipe may have. A run that is continued has no whole log: nothing is appended to it.
"""

import json
import time
from pathlib import Path

from ..optim.options import VARIANTS
from ..recipe.config import Recipe
from ..recipe.phases import Leg

FILE = "mlperf.log"  # in a run folder


class MlperfLog:
    """Turns the records of the journal into lines of RUN/mlperf.log. Rank 0; made when the run starts.

    leg: the first of the run. images: to train and to evaluate on. ranks: of the job. note: prints a line.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, leg: Leg, images: tuple[int, int], ranks: int, note):
        self.path, self.recipe, self.leg, self.images, self.ranks = Path(run_dir) / FILE, recipe, leg, images, ranks
        self.note, self.started, self.lines, self.going = note, time.time(), None, False
        self.epoch, self.last = 0, 0.0  # the one that goes on, from 1; when the last step was done

    def tell(self, record: dict):
        """A record of the log, as it is written there."""
        if record["kind"] == "begin":
            self._begin(record)
        elif self.lines is None:
            return
        elif record["kind"] == "step":
            self._epoch(record)
        elif record["kind"] == "evaluation":
            self._evaluation(record)
        elif record["kind"] == "epoch":
            self._put("epoch_stop", record["time"], None, "INTERVAL_END", epoch_num=self.epoch)
            self.going, self.last = False, record["time"]
        elif record["kind"] == "end":
            status = {"done": "success"}.get(record["state"], "aborted")
            self._put("run_stop", record["time"], None, "INTERVAL_END", status=status, epoch_num=self.epoch)
            self.close()

    def close(self):
        """Close the file; harmless when repeated."""
        if self.lines:
            self.lines.close()
            self.lines = None

    def _begin(self, record):
        if record["step"]:
            self.note(f"note: {self.path} ends where the run was left: MLPerf knows no run that is continued")
            return
        self.lines, now = open(self.path, "w", encoding="utf-8"), record["time"]
        self._put("cache_clear", self.started, True)
        self._put("init_start", self.started, None, "INTERVAL_START")
        for name, value in self._facts().items():
            self._put(name, now, value)
        self._put("init_stop", now, None, "INTERVAL_END")
        self._put("run_start", now, None, "INTERVAL_START")
        self.last = now

    def _facts(self) -> dict:
        """Who runs what, and with which numbers."""
        optim, schedule, steps = self.recipe.optim, self.recipe.schedule, self.leg.derived
        name = ("lars" if optim.trust_coefficient else "sgd") if optim.variant in VARIANTS else optim.variant
        facts = {"submission_benchmark": "resnet", "submission_division": "open", "submission_status": "research"}
        facts |= {"submission_org": "knltrain", "submission_platform": f"{self.ranks} ranks"}
        facts |= {"seed": self.recipe.run.seed, "global_batch_size": self.recipe.batch.global_batch}
        facts |= {"gradient_accumulation_steps": steps.slots // self.ranks, "opt_name": name}
        facts |= {"model_bn_span": self.recipe.batch.slot_batch, "train_samples": self.images[0]}
        facts |= {"eval_samples": self.images[1]}
        warmup, decay = schedule.warmup_epochs, steps.rate.total_steps - steps.rate.warmup_steps + 1
        rates = {"base_learning_rate": schedule.base_lr, "end_learning_rate": schedule.end_lr}
        rates |= {"learning_rate_decay_poly_power": schedule.power, "learning_rate_decay_steps": decay}
        rates |= {"momentum": optim.momentum, "weight_decay": optim.weight_decay}
        facts |= {f"{name}_opt_{key}": value for key, value in rates.items()}
        if name != "lars":
            return facts | {"opt_learning_rate_warmup_epochs": warmup}
        return facts | {"lars_opt_learning_rate_warmup_epochs": warmup, "lars_epsilon": optim.epsilon}

    def _epoch(self, record):
        if not self.going:
            self.epoch, self.going = self.epoch + 1, True
            self._put("epoch_start", self.last, None, "INTERVAL_START", epoch_num=self.epoch)
        self.last = record["time"]

    def _evaluation(self, record):
        self._put("eval_start", self.last, None, "INTERVAL_START", epoch_num=self.epoch)
        self._put("eval_accuracy", record["time"], record["top1"], epoch_num=self.epoch)
        self._put("eval_stop", record["time"], None, "INTERVAL_END", epoch_num=self.epoch)
        self.last = record["time"]

    def _put(self, key: str, when: float, value, event="POINT_IN_TIME", **metadata):
        line = {"namespace": "", "time_ms": round(1000 * when), "event_type": event, "key": key, "value": value}
        where = {"file": "knltrain/tell/mlperf.py", "lineno": 0}
        self.lines.write(f":::MLLOG {json.dumps({**line, 'metadata': metadata | where})}\n")
        self.lines.flush()
