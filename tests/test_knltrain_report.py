"""What a run prints and logs: once, on rank 0, in a form that survives kills, terminals and NaN."""

import io
import json

import numpy as np
import pytest

from knltrain import report
from knltrain.report import Report, machine_facts, read_log


class Clock:
    """Stands in for the time module: time moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    time = perf_counter


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    return clock


def make(folder, stream, rank=0, total=100, every=5.0):
    return Report(folder, rank, total, 64, every, stream)


def run(reporter, clock, steps, seconds=1.0):
    for step in steps:
        clock.now += seconds
        reporter.step(step, step / 10, 2.0 / step, 0.1, 0.5)


def test_report__other_ranks_are_silent(tmp_path, clock):
    stream = io.StringIO()
    reporter = make(tmp_path / "run", stream, rank=3)
    reporter.start("[run]", {}, ["a"])
    reporter.note("b")
    run(reporter, clock, [1, 2])
    reporter.evaluation(2, 0.2, 0.5, 0.9, 100)
    reporter.close()
    assert stream.getvalue() == "" and not (tmp_path / "run").exists()


def test_report__start_stores_recipe_and_machine(tmp_path):
    stream = io.StringIO()
    reporter = make(tmp_path, stream)
    reporter.start("[run]\nseed = 1\n", {"cores": 2}, ["8 slots", "570 steps"])
    reporter.close()
    assert stream.getvalue() == "8 slots\n570 steps\n"
    assert (tmp_path / "recipe.toml").read_text() == "[run]\nseed = 1\n"
    assert json.loads((tmp_path / "machine.json").read_text()) == {"cores": 2}


def test_report__a_file_gets_the_first_the_last_and_a_line_now_and_then(tmp_path, clock):
    stream = io.StringIO()
    reporter = make(tmp_path, stream, total=22)
    run(reporter, clock, range(1, 23))
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, 6, 11, 16, 21, 22]
    assert lines[0] == "step 1/22  epoch 0.10  loss 2.0000  top-1 50.0%  lr 0.1"
    assert lines[1] == "step 6/22  epoch 0.60  loss 0.3333  top-1 50.0%  lr 0.1  64 images/s  0:16 left"


def test_report__a_terminal_has_one_redrawn_line_and_notes_stand_above(tmp_path, clock):
    stream = Terminal()
    reporter = make(tmp_path, stream)
    run(reporter, clock, [1, 2])
    clock.now += 0.01
    reporter.step(3, 0.3, 0.1, 0.1)  # too soon to redraw
    reporter.note("saved")
    reporter.close()
    drawn = stream.getvalue().split("\r")
    assert len(drawn) == 4 and "\n" not in drawn[1] + drawn[2]
    assert drawn[3].startswith("saved\x1b[K\nstep 2/100") and drawn[3].endswith("\n")


def test_report__a_line_never_wraps(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    reporter = make(tmp_path, stream)
    run(reporter, clock, [1])
    reporter.log.close()
    assert stream.getvalue() == "\rstep 1/100  epoch 0.10  loss \x1b[K"


def test_rate__is_recent_and_leaves_evaluation_out(tmp_path, clock):
    reporter = make(tmp_path, io.StringIO())
    run(reporter, clock, range(1, 11), seconds=100)  # slow start
    run(reporter, clock, range(11, 51), seconds=1)
    assert read_log(tmp_path)[-1]["images_per_s"] == pytest.approx(64)
    clock.now += 1000
    reporter.evaluation(50, 5.0, 0.5, 0.9, 100)
    run(reporter, clock, [51], seconds=2)
    reporter.close()
    assert read_log(tmp_path)[-1]["images_per_s"] == pytest.approx(32)


def test_log__holds_plain_finite_json(tmp_path, clock):
    reporter = make(tmp_path, io.StringIO())
    extra = {"trust": {"conv1.w": np.float64(0.5), "b": np.inf}, "count": np.int64(3), "list": [np.float32(0.25)]}
    reporter.step(1, 0.1, np.float32("nan"), np.float64(0.1), np.float32(0.5), extra)
    reporter.evaluation(1, 0.1, 0.25, 0.5, 8)
    reporter.close()
    step, evaluation = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert step == {
        "kind": "step",
        "step": 1,
        "epoch": 0.1,
        "loss": None,
        "lr": 0.1,
        "images_per_s": None,
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
    reporter = make(tmp_path, io.StringIO())
    reporter.evaluation(3, 0.3, 0.5, 0.9, 10)
    reporter.step(4, 0.4, 9.0, 0.1)
    reporter.close()
    records = read_log(tmp_path)
    assert [(r["kind"][0], r["step"]) for r in records] == [("s", 1), ("s", 2), ("s", 3), ("e", 3), ("s", 4), ("s", 5)]
    assert records[4]["loss"] == 9.0


def test_log__absent_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="log.jsonl"):
        read_log(tmp_path)


def test_report__closing_twice_is_harmless(tmp_path):
    reporter = make(tmp_path, io.StringIO())
    reporter.close()
    reporter.close()


def test_machine_facts__are_json_and_take_more():
    facts = machine_facts(threads=2)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1 and facts["threads"] == 2 and facts["processor"]
    assert facts["numpy"] == np.__version__
