"""The block on a terminal, and a run watched from another shell: what it shows, and that nothing in a log breaks it."""

import io
import json
import math
import os
import re
import socket
import time

import pytest

from knltrain import cli
from knltrain.run.lock import Lock, is_held
from knltrain.tell import screen
from knltrain.tell.board import Board, Curve, sparkline
from knltrain.tell.screen import Screen
from knltrain.tell.watch import Follower, Viewer, watch

MACHINE = {"host": "node07", "ranks": 2, "threads_per_rank": 4, "peak_flops": 1e11, "kernels": "avx2"}
MACHINE |= {"processes": ["node07 process 5", "node08 process 6"]}
BEGIN = {"kind": "begin", "step": 0, "total_steps": 40, "steps_per_epoch": 10, "model": "alexnet", "flops": 10**8}
BEGIN |= {"parameters": 12000, "memory_bytes": 3 << 20, "images": 660, "classes": 3, "global_batch": 64, "slots": 2}
BEGIN |= {"slot_batch": 32, "epochs": 4.0}
RANKS = {"kind": "ranks", "step": 20, "compute_s": [0.1, 0.13], "data_wait_s": [0, 0], "exchange_exposed_s": [0, 0]}
EPOCH = {"kind": "epoch", "step": 20, "epoch": 2.0, "epochs": 4.0, "loss": 0.1, "accuracy": 0.5, "images_per_s": 64.0}
EPOCH |= {"seconds": 9.0, "top1": 0.75, "top5": 1.0, "best_top1": 0.8, "best_epoch": 1.0}


def step(number, **more):
    facts = {"kind": "step", "step": number, "epoch": number / 10, "loss": 2.0 / number, "lr": 0.1, "accuracy": 0.5}
    facts |= {"images_per_s": 640.0, "left_s": 75.0, "data_wait_s": 0.01 * number, "exchange_exposed_s": 0.02}
    return facts | more


RUN = [BEGIN, *map(step, range(1, 21)), RANKS, EPOCH]


def write(folder, records, mode="w"):
    folder.mkdir(exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(MACHINE))
    with open(folder / "log.jsonl", mode) as log:
        log.writelines(json.dumps(record) + "\n" for record in records)


def plain(text):
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def terminal(monkeypatch):
    """A screen that believes in a terminal of 90 columns and 30 rows."""
    pytest.importorskip("rich", reason="rich draws the block: pip install knltrain[live]")
    monkeypatch.setattr(screen, "_terminal", lambda stream: 1)
    monkeypatch.setattr(Screen, "_size", lambda self: (90, 30))
    monkeypatch.setenv("TERM", "xterm")
    return Screen("auto", stream=io.StringIO())


def test_board__counts_in_the_batches_of_the_phase():
    pytest.importorskip("rich")
    board = Board()
    for record in (MACHINE | BEGIN, *map(step, range(1, 21))):
        board.tell(record)
    before = {line.split()[0]: line for line in (plain(line).rstrip() for line in board.lines(90)[2:])}
    board.tell({"kind": "phase", "step": 20, "global_batch": 128, "steps_per_epoch": 5, "flops": 2 * 10**8})
    after = {line.split()[0]: line for line in (plain(line).rstrip() for line in board.lines(90)[2:])}
    assert before["epoch"] == after["epoch"] and "of 4 " in after["epoch"]
    assert "64.0% of peak" in before["speed"] and "128.0% of peak" in after["speed"]
    assert "for data 10.0%" in before["waiting"] and "for data 5.0%" in after["waiting"]


def test_board__shows_what_a_run_is_about():
    pytest.importorskip("rich", reason="rich draws the block: pip install knltrain[live]")
    board = Board()
    for record in [MACHINE | BEGIN, *RUN[1:]]:
        board.tell(record)
    lines = [plain(line).rstrip() for line in board.lines(100)]
    assert lines[0] == "alexnet  2 ranks of 4 threads  node07"
    assert lines[1].endswith("50%  step 20/40  1:15 left")
    told = {line.split()[0]: line for line in lines[2:]}
    assert told["epoch"] == "epoch    2.00 of 4   learning rate 0.1"
    assert told["loss"].startswith("loss     0.3598   █▄▃▂")
    assert told["top-1"] == "top-1    train 50.0%   val 75.00%   best 80.00% after epoch 1"
    assert told["speed"] == "speed    640 images/s   64.0% of peak (64.0 of 100.0 GFLOP/s)"
    assert told["waiting"] == "waiting  for data 10.0%   for exchanges 20.0%"
    assert told["slowest"] == "slowest  rank 1 (node08 process 6), computes 30 ms a step longer than the median"
    assert all(len(plain(line)) <= 60 for line in board.lines(60))


def test_block__is_redrawn_in_its_place_and_lines_stand_above(terminal):
    terminal.tell(MACHINE | BEGIN)
    terminal.tell(step(1, total_steps=40, images_per_s=None, left_s=None))
    first = len(terminal.drawn)
    terminal.stream.truncate(0)
    terminal.say("saved")
    text = terminal.stream.getvalue().lstrip("\0")
    assert text.startswith(f"\r\x1b[{first}Asaved\x1b[K\n") and text.endswith("\n\x1b[J")
    terminal.tell(step(40, total_steps=40))
    assert len(terminal.drawn) > first and f"\r\x1b[{first}A" in terminal.stream.getvalue()
    terminal.tell({"kind": "end", "step": 40, "state": "done", "run": "r", "best_checkpoint": None})
    assert terminal.stream.getvalue().endswith("\n\x1b[Jdone; evaluate with: knltrain evaluate r\n")


def test_block__is_a_line_where_there_is_no_room_or_no_rich(terminal, monkeypatch):
    terminal.tell(MACHINE | BEGIN)
    monkeypatch.setattr(Screen, "_size", lambda self: (90, 6))
    terminal.tell(step(40, total_steps=40))
    assert terminal.drawn == ["step 40/40  epoch 4.00  loss 0.0500  top-1 50.0%  lr 0.1  640 images/s  1:15 left"]
    monkeypatch.setattr(screen, "available", lambda: False)
    assert not Screen("auto", stream=io.StringIO()).block


def test_curve__keeps_the_course_of_any_length():
    curve = Curve(16)
    for i in range(10_000):
        curve.add(float(i))
    curve.add(math.nan)
    assert 16 <= len(curve.values) <= 33 and curve.values == sorted(curve.values)
    assert curve.recent == 9974.5 and sum(curve.values) / len(curve.values) == pytest.approx(5000, rel=0.1)
    assert sparkline([3, 2, 1, 0], 4) == "█▆▃▁" and sparkline([1, 1], 9) == "▁▁"
    assert sparkline(range(100), 8) == "▁▂▃▄▅▆▇█"


def test_watch__of_an_ended_run_shows_where_it_stands(tmp_path, capsys):
    end = {"kind": "end", "step": 20, "state": "stopped", "run": "r", "advice": "go on"}
    write(tmp_path / "run", [*RUN, end])
    assert cli.main(["watch", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step 20/40  epoch 2.00  loss 0.3598  top-1 50.0%  lr 0.1  640 images/s  1:15 left",
        "stopped as asked after step 20; go on",
    ]


def test_watch__follows_a_run_that_goes_on(tmp_path):
    folder, stream = tmp_path / "run", io.StringIO()
    write(folder, RUN)
    lock = Lock(folder, lambda line: None)
    lock.acquire()
    try:
        viewer = Viewer(folder, Screen("lines", stream=stream))
        assert viewer.look() and stream.getvalue().count("\n") == 1
        os.utime(folder / "log.jsonl", (time.time() - 90, time.time() - 90))
        assert viewer.look() and viewer.look() and stream.getvalue().splitlines()[1:] == ["no record for 90 s"]
        evaluation = {"kind": "evaluation", "step": 30, "epoch": 3.0, "top1": 0.75, "top5": 1.0, "images": 8}
        write(folder, [evaluation, EPOCH | {"step": 30, "epoch": 3.0}], "a")
        assert viewer.look() and stream.getvalue().splitlines()[2].startswith("epoch 3/4  train loss 0.1000")
        with open(folder / "log.jsonl", "a") as log:
            log.write('{"kind": "end", "step": 40, "state": "do')
        assert viewer.look()
        with open(folder / "log.jsonl", "a") as log:
            log.write('ne", "run": "r", "best_checkpoint": null}\n')
        assert not viewer.look()
    finally:
        lock.release()
    assert stream.getvalue().splitlines()[3:] == ["done; evaluate with: knltrain evaluate r"]


def test_watch__says_that_a_run_was_killed(tmp_path):
    write(tmp_path / "run", RUN)
    owner = Lock(tmp_path / "run", None).own | {"process": 2**22 + 1}
    (tmp_path / "run" / "lock").write_text(json.dumps(owner))
    (tmp_path / "run" / "status").write_text("running step 0\n")
    assert owner["host"] == socket.gethostname() and not is_held(tmp_path / "run")
    stream = io.StringIO()
    watch(tmp_path / "run", Screen("lines", stream=stream))
    last = stream.getvalue().splitlines()[-1]
    assert last.endswith("run: nothing runs here any more; it was killed")
    (tmp_path / "run" / "lock").write_text(json.dumps(owner | {"host": "elsewhere"}))
    assert is_held(tmp_path / "run")
    os.utime(tmp_path / "run" / "lock", (1, 1))
    assert not is_held(tmp_path / "run")


def test_watch__a_folder_that_is_no_runs_is_one_line(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"knltrain: error: {tmp_path}: no log.jsonl in it; expected the folder of a run\n"


@pytest.mark.parametrize("block", [True, False])
def test_watch__passes_over_what_is_no_record(tmp_path, terminal, block):
    broken = [1, None, [], {"kind": 3}, {"kind": "step"}, step(21, loss="low"), step(22, epoch=10**400)]
    broken += [step(9) | {"step": wrong} for wrong in ("x", None, 1e999, 10**400, True)]
    broken += [BEGIN | {"total_steps": "many"}, RANKS | {"compute_s": []}, RANKS | {"compute_s": 7}]
    broken += [{"kind": "evaluation", "top1": 1}, EPOCH | {"best_top1": "x"}, {"kind": "end"}, step(23, lr=1e300)]
    broken += [BEGIN | {"model": "a\x1b[2J\nb"}, step(24, loss=None, epoch=None), {"kind": "note", "text": 5}]
    write(tmp_path / "run", RUN + broken)
    with open(tmp_path / "run" / "log.jsonl", "ab") as log:
        log.write(b"\xff\xfe not json\n" + b"[" * 5000 + b"\n")
    shown = terminal if block else Screen("lines", stream=io.StringIO())
    watch(tmp_path / "run", shown)
    text = shown.stream.getvalue()
    assert "step 24/40" in text and "nothing runs here" in text and "\x1b[2J" not in text
    assert not block or "a\\x1b[2J\\nb" in text


def test_follower__reads_each_record_once_and_a_new_log_from_its_begin(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": "b"')
    follower = Follower(path)
    assert [r["kind"] for r in follower.news()] == ["a"]
    path.write_text('{"kind": "a"}\n{"kind": "b"}\n')
    assert [r["kind"] for r in follower.news()] == ["b"] and follower.news() == []
    path.write_text('{"kind": "c"}\n')
    assert [r["kind"] for r in follower.news()] == ["c"]
