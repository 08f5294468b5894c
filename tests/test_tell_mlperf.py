"""RUN/mlperf.log of the records of a LARS run, read by MLPerf's own checker, which is an optional package."""

import json

import pytest

from knltrain.recipe.config import parse_recipe
from knltrain.recipe.phases import legs
from knltrain.tell.mlperf import FILE, MlperfLog

RECIPE = """
[model]
name = "resnet50"
[data]
train = "shards"
[batch]
global_batch = 64
slot_batch = 32
[optim]
trust_coefficient = 0.001
variant = "mlperf"
weight_decay = 2e-4
[schedule]
base_lr = 2.0
end_lr = 1e-4
warmup_epochs = 1
origin = "warmup"
[run]
epochs = 3
"""
NOW = 1_700_000_000.0


def write_log(folder, state="done", begun=0):
    """The lines of three epochs of four steps, evaluated after the second and the third."""
    recipe, notes = parse_recipe(RECIPE), []
    log = MlperfLog(folder, recipe, legs(recipe, 256)[0], (256, 100), 2, notes.append)
    log.started = NOW
    log.tell({"kind": "begin", "step": begun, "time": NOW + 10})
    for step in range(1, 13):
        time = NOW + 10 + step
        log.tell({"kind": "step", "step": step, "time": time})
        if step in (8, 12):
            log.tell({"kind": "evaluation", "step": step, "top1": step / 20, "time": time + 0.25})
        if step % 4 == 0:
            log.tell({"kind": "epoch", "step": step, "time": time + 0.5})
    log.tell({"kind": "end", "step": 12, "state": state, "time": NOW + 23})
    return notes


def read(path):
    lines = path.read_text().splitlines()
    assert all(line.startswith(":::MLLOG ") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def test_log__says_what_happened_when(tmp_path):
    assert write_log(tmp_path) == []
    lines = read(tmp_path / FILE)
    values = {line["key"]: line["value"] for line in lines}
    assert values["opt_name"] == "lars" and values["lars_opt_base_learning_rate"] == 2.0
    assert (values["gradient_accumulation_steps"], values["lars_opt_learning_rate_decay_steps"]) == (1, 9)
    assert (values["train_samples"], values["eval_samples"], values["global_batch_size"]) == (256, 100, 64)
    events = [(line["key"], line["metadata"].get("epoch_num"), line["time_ms"] - round(1000 * NOW)) for line in lines]
    events = [event for event in events if event[0].startswith(("run", "epoch", "eval_a", "eval_st"))]
    assert events == [
        ("run_start", None, 10_000), ("epoch_start", 1, 10_000), ("epoch_stop", 1, 14_500), ("epoch_start", 2, 14_500),
        ("eval_start", 2, 18_000), ("eval_accuracy", 2, 18_250), ("eval_stop", 2, 18_250), ("epoch_stop", 2, 18_500),
        ("epoch_start", 3, 18_500), ("eval_start", 3, 22_000), ("eval_accuracy", 3, 22_250), ("eval_stop", 3, 22_250),
        ("epoch_stop", 3, 22_500), ("run_stop", 3, 23_000),
    ]  # fmt: skip
    assert values["eval_accuracy"] == 0.6 and lines[-1]["metadata"]["status"] == "success"


def test_log__of_a_run_that_was_stopped_or_continued(tmp_path):
    write_log(tmp_path, state="stopped")
    assert read(tmp_path / FILE)[-1]["metadata"]["status"] == "aborted"
    before = (tmp_path / FILE).read_bytes()
    (note,) = write_log(tmp_path, begun=4)
    assert "MLPerf knows no run that is continued" in note and (tmp_path / FILE).read_bytes() == before


def test_log__passes_the_checker(tmp_path, monkeypatch):
    compliance = pytest.importorskip("mlperf_logging.compliance_checker.mlp_compliance")
    write_log(tmp_path)
    monkeypatch.chdir(tmp_path)
    checker = compliance.make_checker("training", "4.0.0", False, False)
    valid, *_ = compliance.main(str(tmp_path / FILE), "training_4.0.0/common.yaml", checker)
    assert valid
    text = (tmp_path / FILE).read_text().replace("run_stop", "run_stopped")
    (tmp_path / "broken.log").write_text(text)
    checker = compliance.make_checker("training", "4.0.0", False, False)
    assert not compliance.main(str(tmp_path / "broken.log"), "training_4.0.0/common.yaml", checker)[0]
