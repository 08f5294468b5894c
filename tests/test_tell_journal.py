"""What a run shows and logs: once, on rank 0, in a form that survives kills, terminals and NaN."""

import io
import json
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mpirun import ROOT, mpiexec

from knltrain.node.hardware import machine_facts
from knltrain.run.observe import Step
from knltrain.tell import journal, screen
from knltrain.tell.journal import Journal, read_log
from knltrain.tell.screen import Screen


class Clock:
    """Stands in for the time module: time moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    time = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(journal, "time", clock)
    monkeypatch.setattr(screen, "time", clock)
    return clock


BEGIN = {"model": "alexnet", "parameters": 12000, "memory_bytes": 3 << 20, "images": 660, "classes": 3}
BEGIN |= {"steps_per_epoch": 10, "total_steps": 100, "global_batch": 64, "slots": 2, "slot_batch": 32}
MACHINE = {"cores": 2, "ranks": 2, "threads_per_rank": 1, "kernels": "avx2"}


def make(folder, stream, rank=0, total=100, progress="lines", every=(0, 0)):
    due = dict(zip(("evaluation", "checkpoint"), every, strict=True))
    return Journal(folder, rank, 64, total, total / 10, due, Screen(progress, stream=stream), val_images=660)


def one_step(writer, clock, step, seconds=1.0, loss=None, accuracy=0.5, waits=()):
    writer.begin_step(None)
    clock.now += seconds
    loss = 2.0 / step if loss is None else loss
    done = Step(step, step / 10, 0.1, loss, accuracy, 64, 0.5, True, False, False, dict(waits))
    writer.end_step(SimpleNamespace(parts=SimpleNamespace(global_batch=64)), done)


def run(writer, clock, steps, seconds=1.0):
    for step in steps:
        one_step(writer, clock, step, seconds)


def test_journal__other_ranks_are_silent(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path / "run", stream, rank=3)
    writer.start("[run]", {}, BEGIN | {"step": 0})
    writer.note("b")
    run(writer, clock, [1, 2])
    writer.evaluation(2, 0.2, 0.5, 0.9, 100)
    writer.close()
    assert stream.getvalue() == "" and not (tmp_path / "run").exists()


def test_journal__start_stores_recipe_and_machine_and_says_what_it_is(tmp_path):
    stream = io.StringIO()
    writer = make(tmp_path, stream)
    writer.start("[run]\nseed = 1\n", MACHINE, BEGIN | {"step": 20})
    writer.close()
    assert stream.getvalue() == (
        "alexnet: 12,000 parameters, 3 MiB of memory for a step\n"
        "660 images in 3 classes, 10 steps an epoch, 100 in all\n"
        "global batch 64 = 2 slots of 32, on 2 ranks of 1 thread (avx2 kernels)\n"
        "continuing after step 20\n"
    )
    assert (tmp_path / "recipe.toml").read_text() == "[run]\nseed = 1\n"
    assert json.loads((tmp_path / "machine.json").read_text()) == MACHINE
    (begin,) = read_log(tmp_path)
    assert begin.items() >= {"kind": "begin", "step": 20, "parameters": 12000}.items()


def test_lines__are_the_first_the_last_and_one_now_and_then(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, total=22)
    run(writer, clock, range(1, 23))
    writer.close()
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step")]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, 6, 11, 16, 21, 22]
    assert lines[0] == "step 1/22  epoch 0.10  loss 2.0000  top-1 50.0%  lr 0.1"
    # the mean of 2/1 to 2/6; 16 steps, and 660 images evaluated at three times the rate
    assert lines[1] == "step 6/22  epoch 0.60  loss 0.8167  top-1 50.0%  lr 0.1  64 images/s  0:19 left"


def test_bar__is_one_redrawn_line_and_notes_stand_above(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, progress="bar")
    run(writer, clock, [1, 2])
    one_step(writer, clock, 3, 0.01)  # too soon to redraw
    writer.note("saved")
    writer.close()
    drawn = stream.getvalue().split("\r")
    assert len(drawn) == 4 and "\n" not in drawn[1] + drawn[2]
    assert drawn[3].startswith("saved\x1b[K\nstep 2/100") and drawn[3].endswith("\n")


def test_bar__is_gone_at_the_end(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, progress="bar")
    run(writer, clock, [1])
    writer.record("end", {"state": "done", "run": "runs/a", "best_checkpoint": None})
    writer.close()
    assert stream.getvalue().endswith("\r\x1b[Kdone; evaluate with: knltrain evaluate runs/a\n")


def test_bar__never_wraps(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    writer = make(tmp_path, stream, progress="bar")
    run(writer, clock, [1])
    writer.log.close()
    assert stream.getvalue() == "\rstep 1/100  epoch 0.10  loss \x1b[K"


def test_none__leaves_notes_alone(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, progress="none", every=(10, 0))
    run(writer, clock, range(1, 11))
    writer.evaluation(10, 1.0, 0.5, 0.9, 660)
    writer.note("saved")
    writer.close()
    assert stream.getvalue() == "saved\n" and len(read_log(tmp_path)) == 12


def test_epoch__ends_with_a_line_that_stays(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, total=45, every=(10, 0))
    writer.start("", MACHINE, BEGIN | {"step": 0})
    for step, top1 in zip(range(1, 46), np.repeat([0.6, 0.8, 0.7, 0.75, 0.9], 10)):  # noqa: B905
        one_step(writer, clock, step, loss=3.0 if step % 2 else 1.0, accuracy=0.25)
        if step % 10 == 0 or step == 45:
            clock.now += 4
            writer.evaluation(step, step / 10, top1, 0.95, 660)
    writer.close()
    val = "val top-1 {:.2%} top-5 95.00%  {}  64 images/s"
    assert [line for line in stream.getvalue().splitlines() if line.startswith("epoch")] == [
        f"epoch 1/4.5  train loss 2.0000 top-1 25.0%  {val.format(0.6, 'best so far')}  0:14",
        f"epoch 2/4.5  train loss 2.0000 top-1 25.0%  {val.format(0.8, 'best so far')}  0:14",
        f"epoch 3/4.5  train loss 2.0000 top-1 25.0%  {val.format(0.7, 'best 80.00% (epoch 2)')}  0:14",
        f"epoch 4/4.5  train loss 2.0000 top-1 25.0%  {val.format(0.75, 'best 80.00% (epoch 2)')}  0:14",
        f"epoch 4.5/4.5  train loss 2.2000 top-1 25.0%  {val.format(0.9, 'best so far')}  0:09",
    ]
    epochs = [record for record in read_log(tmp_path) if record["kind"] == "epoch"]
    assert [record["best_top1"] for record in epochs] == [0.6, 0.8, 0.8, 0.8, 0.9] and epochs[0]["seconds"] == 14


def test_epoch__without_an_evaluation_and_an_evaluation_inside_of_one(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, every=(15, 0))
    run(writer, clock, range(1, 16))
    writer.evaluation(15, 1.5, 0.5, 0.9, 660)
    writer.close()
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("e")]
    assert lines == [
        "epoch 1/10  train loss 0.5858 top-1 50.0%  64 images/s  0:10",
        "evaluation after epoch 1.50: top-1 50.00%, top-5 90.00% of 660 images",
    ]


def test_best__is_remembered_by_the_log(tmp_path, clock):
    writer = make(tmp_path, io.StringIO())
    for step, top1 in ((10, 0.5), (20, 0.8), (30, 0.9)):
        writer.evaluation(step, step / 10, top1, 0.9, 660)
    writer.close()
    resumed = make(tmp_path, io.StringIO())
    resumed.start("", MACHINE, BEGIN | {"step": 20})
    assert resumed.best == (0.8, 2.0)
    resumed.close()


def test_rate__is_recent_and_leaves_evaluation_out_which_time_left_counts(tmp_path, clock):
    writer = make(tmp_path, io.StringIO(), every=(25, 10))
    run(writer, clock, range(1, 11), seconds=100)  # slow start
    run(writer, clock, range(11, 51), seconds=1)
    assert read_log(tmp_path)[-2]["images_per_s"] == pytest.approx(64)
    clock.now += 1000
    writer.evaluation(50, 5.0, 0.5, 0.9, 100)
    clock.now += 30  # a checkpoint
    one_step(writer, clock, 51, 2.0)
    assert writer._left(64.0) == 49 * 1 + 2 * 1000 + 5 * 30
    run(writer, clock, range(52, 62), seconds=2)
    writer.close()
    assert read_log(tmp_path)[-1]["images_per_s"] == pytest.approx(32)


@pytest.mark.parametrize("piped", [False, True])
def test_terminal__is_found_behind_the_launcher(piped):
    """Rank 0 of two writes into a pipe; what counts is where the launcher writes."""
    script = "import sys; from knltrain.tell.screen import Screen; print(Screen().redrawn, file=sys.stderr)"
    command = [mpiexec(), "-n", "2", sys.executable, "-c", script]
    shown, terminal = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    where = subprocess.PIPE if piped else terminal
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=where, env=env, cwd=ROOT)
    error = process.communicate(timeout=60)[1] if piped else b""
    assert process.wait(timeout=60) == 0
    os.close(terminal)
    text = (error or os.read(shown, 4096)).decode()
    os.close(shown)
    assert text.count(str(not piped)) == 2 and str(piped) not in text  # the two may share a line


def test_log__holds_plain_finite_json(tmp_path, clock):
    writer = make(tmp_path, io.StringIO())
    waits = {"trust": {"conv1.w": np.float64(0.5), "b": np.inf}, "count": np.int64(3), "list": [np.float32(0.25)]}
    one_step(writer, clock, 1, 0.0, loss=np.float32("nan"), accuracy=np.float32(0.5), waits=waits)
    writer.evaluation(1, 0.1, 0.25, 0.5, 8)
    writer.close()
    step, evaluation = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert step == {
        "kind": "step",
        "step": 1,
        "epoch": 0.1,
        "loss": None,
        "lr": 0.1,
        "images_per_s": None,
        "left_s": None,
        "accuracy": 0.5,
        "trust": {"conv1.w": 0.5, "b": None},
        "count": 3,
        "list": [0.25],
        "time": 100.0,
    }
    assert evaluation["kind"] == "evaluation" and evaluation["top1"] == 0.25 and evaluation["images"] == 8


def test_log__a_resumed_run_continues_it_and_supersedes_what_it_did_again(tmp_path, clock):
    killed = make(tmp_path, io.StringIO())
    run(killed, clock, range(1, 6))
    killed.log.close()
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"kind": "step", "st')  # killed while writing
    writer = make(tmp_path, io.StringIO())
    writer.evaluation(3, 0.3, 0.5, 0.9, 10)
    one_step(writer, clock, 4, loss=9.0)
    writer.close()
    records = read_log(tmp_path)
    assert [(r["kind"][0], r["step"]) for r in records] == [("s", 1), ("s", 2), ("s", 3), ("e", 3), ("s", 4), ("s", 5)]
    assert records[4]["loss"] == 9.0


def test_log__absent_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="log.jsonl"):
        read_log(tmp_path)


def test_journal__closing_twice_is_harmless(tmp_path):
    writer = make(tmp_path, io.StringIO())
    writer.close()
    writer.close()


def test_machine_facts__are_json_and_take_more():
    facts = machine_facts(threads=2)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1 and facts["threads"] == 2 and facts["processor"]
    assert facts["numpy"] == np.__version__


def test_evaluation__that_is_left_leaves_the_epoch(tmp_path, clock):
    stream = io.StringIO()
    writer = make(tmp_path, stream, every=(10, 0))
    run(writer, clock, range(1, 11))
    assert "epoch 1/10" not in stream.getvalue()  # it waits for its accuracy
    writer.evaluation_left()
    writer.close()
    told = stream.getvalue()
    assert "the evaluation was left" in told and "epoch 1/10  train loss" in told and "val top-1" not in told
    (epoch,) = (record for record in read_log(tmp_path) if record["kind"] == "epoch")
    assert epoch["top1"] is None and epoch["loss"] > 0
