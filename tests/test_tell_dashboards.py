"""A run in TensorBoard and MLflow, as these read it themselves; and that a run does not need them."""

import json
import re
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import tinyrun

from knltrain.data import Synthetic
from knltrain.data.augment import Augment
from knltrain.tell import dashboards
from knltrain.tell.dashboards import Dashboards, curves, sample
from knltrain.tell.journal import read_log

RECIPE = '[run]\nseed = 3\nmlflow = "tests"\n'


def step(number, seconds=None, **more):
    facts = {"kind": "step", "step": number, "loss": 1.0 / number, "accuracy": 0.5, "lr": 0.1, "images_per_s": None}
    return facts | {"time": 1e9 + (number if seconds is None else seconds)} | more


def begin(done=0):
    return {"kind": "begin", "step": done, "time": 1e9}


def test_curves__are_the_finite_numbers_of_a_record():
    assert dict(curves(step(2))) == {"train/loss": 0.5, "train/top1": 0.5, "train/learning_rate": 0.1}
    assert list(curves({"kind": "trust", "ratios": {"a.w": 0.1, "b": None}})) == [("trust/a.w", 0.1)]
    ranks = {"kind": "ranks", "compute_s": [1.0, 2.0], "data_wait_s": [0.0, 0.0], "exchange_exposed_s": [3.0, 0.0]}
    assert dict(curves(ranks))["ranks/most_compute_s"] == 2.0
    assert not list(curves({"kind": "note", "text": "train/loss"}))


class Batches:
    """What a loader knows of its pictures."""

    def __init__(self):
        self.dataset, self.augment = Synthetic(20, 24, 3), Augment("crop_flip", 16, (100.0,) * 3, (50.0,) * 3, seed=1)


def test_sample__is_pixels_of_the_same_rows_in_each_epoch():
    first, again, other = (sample(Batches(), epoch) for epoch in (0, 0, 1))
    assert first.shape == (16, 8 * 16, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    stored = Batches().dataset.image(0)
    assert set(first[:, :16].reshape(-1, 3)[:, 0]) <= set(stored[..., 0].reshape(-1))


class Trainer:
    parts = SimpleNamespace(leg=SimpleNamespace(epoch=lambda done: done / 3), batches=Batches())


class Done:
    def __init__(self, number):
        self.number = number


def test_tensorboard__reads_curves_and_pictures_and_continues_them(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes event files: pip install knltrain[tensorboard]")
    reason = "reads event files: pip install tensorboard"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    for begun, steps in ((0, range(1, 8)), (4, range(5, 10))):
        boards = Dashboards(tmp_path, True, "", RECIPE, pytest.fail)
        boards.tell(begin(begun))
        for number in steps:
            boards.tell(step(number, 10 * begun + number, loss=float(begun + number)))
            boards.end_step(Trainer, Done(number))
        boards.tell({"kind": "trust", "step": 6, "ratios": {"conv.w": 0.25}, "time": 1e9 + 99})
        boards.tell({"kind": "evaluation", "step": 6, "top1": 0.5, "top5": 0.75, "time": 1e9 + 99})
        boards.close()
        boards.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    loss = {event.step: event.value for event in events.Scalars("train/loss")}
    assert loss == {n: float(n) for n in range(1, 5)} | {n: 4.0 + n for n in range(5, 10)}
    assert events.Scalars("trust/conv.w")[-1].value == 0.25 and events.Scalars("val/top5")[-1].step == 6
    assert events.Scalars("train/loss")[0].wall_time == 1e9 + 1
    picture = events.Images("samples")[0]
    assert (picture.width, picture.height, picture.step) == (128, 16, 1) and len(events.Images("samples")) == 4


def test_steps__that_follow_too_fast_are_left_out():
    handed = []
    boards = Dashboards(None, False, "", RECIPE, pytest.fail)
    boards.boards = [type("Board", (), {"points": lambda self, points, step, seconds: handed.append(step)})()]
    for number in range(1, 41):
        boards.tell(step(number, number / 32))
    assert handed == list(range(1, 41, 4))


def test_mlflow__has_the_run_its_recipe_curves_and_pictures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install knltrain[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    run = tmp_path / "first"
    run.mkdir()
    for begun, steps in ((0, range(1, 4)), (3, range(4, 6))):
        boards = Dashboards(run, False, "tests", RECIPE, pytest.fail)
        boards.tell(begin(begun))
        for number in steps:
            boards.tell(step(number))
        boards.end_step(Trainer, Done(steps[0]))
        boards.close()
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert found.info.run_name == "first" and found.info.status == "FINISHED"
    assert found.data.params == {"run.seed": "3", "run.mlflow": "tests"}
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(n, 1.0 / n) for n in range(1, 6)]
    assert client.list_artifacts(found.info.run_id, "images")


def test_boards__that_fail_are_left_with_one_line():
    class Failing:
        name = "Failing"

        def points(self, *_):
            raise RuntimeError("the server is away")

    lines = []
    boards = Dashboards(None, False, "", RECIPE, lines.append)
    boards.boards = [Failing()]
    for number in (1, 2, 3):
        boards.tell(step(number))
    assert lines == ["warning: Failing is left, training goes on (RuntimeError: the server is away)"]


@pytest.mark.parametrize(
    "asked, module, extra", [((True, ""), "tensorboardX", "tensorboard"), ((False, "x"), "mlflow", "mlflow")]
)
def test_clients__that_are_missing_are_named_when_the_run_begins(tmp_path, monkeypatch, asked, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    boards = Dashboards(tmp_path, *asked, RECIPE, pytest.fail)
    with pytest.raises(ImportError, match=rf"{module} is not installed, .*pip install knltrain\[{extra}\]"):
        boards.tell(begin())


def test_run__is_in_tensorboard_as_it_is_in_its_log(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="writes event files: pip install knltrain[tensorboard]")
    reason = "reads event files: pip install tensorboard"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    from knltrain.cli import main

    monkeypatch.setattr(dashboards, "STEP_S", 0.0)
    tinyrun.write_recipe(tmp_path)
    settings = ["run.tensorboard=true", "optim.trust_coefficient=0.01", "run.max_steps=4"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "run"), *words]) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    log = read_log(tmp_path / "run")
    for kind, key, name in (("step", "loss", "train/loss"), ("evaluation", "top1", "val/top1")):
        expected = [(r["step"], pytest.approx(r[key], rel=1e-6)) for r in log if r["kind"] == kind]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected and expected
    trust = next(r for r in log if r["kind"] == "trust")["ratios"]
    assert events.Scalars("trust/fc.w")[0].value == pytest.approx(trust["fc.w"], rel=1e-6)
    assert [image.step for image in events.Images("samples")] == [1, 4]
    pages = "scalars/tags", "scalars/scalars?run=run/tensorboard&tag=train/loss", "images/tags"
    tags, points, images = ask_tensorboard(tmp_path, *pages)
    assert {"train/loss", "val/top1", "trust/fc.w"} <= set(tags["run/tensorboard"])
    losses = [r["loss"] for r in log if r["kind"] == "step"]
    assert [value for _, _, value in points] == pytest.approx(losses, rel=1e-6)
    assert "samples" in images["run/tensorboard"]


def ask_tensorboard(folder, *paths):
    """What TensorBoard itself, started on `folder`, answers its pages, as they ask it."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", "--load_fast", "false"]
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--host", "127.0.0.1"], **how) as server:
        try:
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
            answers = []
            for path in paths:
                with urllib.request.urlopen(f"{url}data/plugin/{path}", timeout=120) as answer:
                    answers.append(json.load(answer))
            return answers
        finally:
            server.kill()
