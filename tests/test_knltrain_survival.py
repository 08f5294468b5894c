"""A run is asked to stop, its disk refuses, its ranks die: what it says, what stays, and that it goes on to the bit."""

import re
import threading
import time

import pytest
from mpirun import run_mpi
from tinyrun import STEPS, newest_state, same, train, write_recipe

from knltrain.background import Writer
from knltrain.checkpoint import checkpoints, load
from knltrain.faults import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """Final state of the run that nothing disturbs."""
    result = train(folder, "whole")
    assert result.returncode == 0, result.stderr
    return newest_state(folder, "whole")


def status(folder, run):
    return (folder / run / "status").read_text().strip()


# ---- stop, status, DONE ----------------------------------------------------------------------------------------


def test_stop__file_is_honoured_by_all_ranks_and_removed(folder, whole):
    result = train(folder, "stop", "--inject", "stop@step=4", "--inject", "slow:ms=600@step=4", ranks=2)
    assert result.returncode == 0, result.stderr
    step = int(re.fullmatch(r"stopped step (\d+)", status(folder, "stop")).group(1))
    assert 4 <= step <= 5 and not (folder / "stop" / "stop").exists() and not (folder / "stop" / "DONE").exists()
    assert load(checkpoints(folder / "stop" / "checkpoints")[-1])[1]["step"] == step
    result = train(folder, "stop", ranks=4)
    assert result.returncode == 0, result.stderr
    assert status(folder, "stop") == f"done step {STEPS}"
    same(newest_state(folder, "stop"), whole)


def test_done__a_further_run_says_so_and_changes_nothing(folder, whole):
    before = (folder / "whole" / "log.jsonl").read_bytes()
    result = train(folder, "whole", ranks=2)
    assert result.returncode == 0 and f"done after step {STEPS}: nothing is left to train" in result.stderr
    assert (folder / "whole" / "log.jsonl").read_bytes() == before


def test_done__a_run_is_prolonged_and_evaluated_otherwise(folder):
    assert train(folder, "longer").returncode == 0
    settings = ("data.val_mirror=true", "data.reader_threads=2", "data.val_short_side=18", "run.epochs=5")
    result = train(folder, "longer", *(word for setting in settings for word in ("--set", setting)))
    says = "prolonged from 4 to 5 epochs: poly ends at step 15, not 12; the learning rate is 0.004, where it was 0"
    assert result.returncode == 0 and says in result.stderr, result.stderr
    assert status(folder, "longer") == "done step 15"
    result = train(folder, "longer")
    assert result.returncode == 2 and "run.epochs = 5.0, now it is 4.0" in result.stderr


def test_signal__on_any_rank_stops_all(folder, whole):
    result = train(folder, "signal", "--inject", "signal:rank=1@step=3", ranks=2)
    assert result.returncode == 143, result.stderr
    assert status(folder, "signal") == "stopped step 3"
    assert train(folder, "signal").returncode == 0
    same(newest_state(folder, "signal"), whole)


@pytest.mark.parametrize(("fault", "left"), [("raise:rank=1@step=6", "running"), ("kill:rank=1@step=6", "running")])
def test_crash__leaves_running_as_the_status_and_a_good_checkpoint(folder, whole, fault, left):
    run = fault.partition(":")[0]
    begin = time.monotonic()
    result = train(folder, run, "--inject", fault, "--set", "run.checkpoint_every_steps=2", ranks=2)
    assert result.returncode not in (0, 143) and time.monotonic() - begin < 60
    assert status(folder, run).startswith(left)
    assert load(checkpoints(folder / run / "checkpoints")[-1])[1]["step"] in (2, 4)
    assert train(folder, run, ranks=2).returncode == 0
    same(newest_state(folder, run), whole)


def test_status__of_a_run_that_would_fail_again_says_why(folder):
    result = train(folder, "nan", "--inject", "nan:rank=1@step=2", ranks=2)
    assert result.returncode == 2
    assert re.match(r"failed FloatingPointError: .*is not finite in step 2", status(folder, "nan"))


# ---- checkpoints by the clock, in the background, on bad disks -----------------------------------------------------


def test_checkpoint__by_the_clock(folder):
    settings = ["--set", "run.checkpoint_every_minutes=0.0001", "--set", "run.keep_checkpoints=100"]
    result = train(folder, "clock", *settings, "--set", "run.checkpoint_every_epochs=0")
    assert result.returncode == 0, result.stderr
    assert len(checkpoints(folder / "clock" / "checkpoints")) > 2  # the end alone would be one


def test_checkpoint__a_full_disk_is_said_once_and_training_goes_on(folder, whole, monkeypatch):
    settings = ["--set", "run.checkpoint_every_steps=2", "--inject", "disk-full:seconds=4@step=4"]
    result = train(folder, "full", *settings, "--inject", "slow:ms=100")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("cannot be written ([Errno 27] File too large)") == 1
    assert "a checkpoint could be written again" in result.stderr
    same(newest_state(folder, "full"), whole)
    for path in checkpoints(folder / "full" / "checkpoints"):
        load(path)


def test_checkpoint__that_cannot_be_written_at_the_end_is_an_error(folder, monkeypatch):
    script = (
        "import knltrain.restart as r, knltrain.background as b, sys; from knltrain.cli import main;"
        "r.LAST_LIMIT_S = 2.0; b.PAUSE_S = 0.5; sys.exit(main(sys.argv[1:]))"
    )
    order = ["train", str(folder / "tiny.toml"), "--run", str(folder / "lost"), "--inject", "disk-full:seconds=99"]
    result = run_mpi(1, "-c", script, *order)
    assert result.returncode == 2 and "cannot be written ([Errno 27] File too large)" in result.stderr.splitlines()[-1]
    assert status(folder, "lost").startswith("failed CheckpointError")


@pytest.mark.parametrize("word", ["kill:rank=x", "kill:cpu=1", "hang", "kill@3", ""])
def test_inject__refuses_what_it_does_not_know(folder, word):
    with pytest.raises(ValueError, match="--inject .*expected"):
        parse(word)
    assert parse("kill:rank=3@step=50").step == 50


def test_writer__retries_the_newest_job_and_reports_both_ends(monkeypatch):
    monkeypatch.setattr("knltrain.background.PAUSE_S", 0.05)
    written, said, full = [], [], threading.Event()
    full.set()

    def write(job):
        if full.is_set():
            raise OSError(28, "No space left on device")
        written.append(job)

    writer = Writer(write, said.append)
    writer.submit(lambda: 1)
    while not said:
        time.sleep(0.01)
    with pytest.raises(OSError, match="No space"):
        writer.finish(0.2)
    writer.busy(5)
    writer.submit(lambda: 2)
    full.clear()
    writer.finish(5)
    assert written == [2] and len(said) == 2 and "written again" in said[1]
    writer.close(5)


def test_writer__a_slow_write_is_seen_and_not_disturbed():
    go = threading.Event()
    writer = Writer(lambda job: go.wait(10), lambda message: None)
    writer.submit(lambda: 1)
    while not writer.busy(0):
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="during a write"):
        writer.submit(lambda: 2)
    with pytest.raises(TimeoutError, match="hangs"):
        writer.finish(0.05)
    go.set()
    writer.finish(5)
    assert writer.busy(0) == 0
    writer.close(5)


def test_writer__a_process_that_fails_during_a_write_ends_and_the_write_too(tmp_path):
    """The lock is HDF5's: a thread that Python had frozen with it would keep the file below from being closed."""
    script = """
import sys, threading, time
import h5py
from h5py._objects import phil
from pathlib import Path
from knltrain.background import Writer
begun, file = threading.Event(), h5py.File(sys.argv[1] + "/open.h5", "w")
def write(job):
    with phil:
        begun.set()
        time.sleep(1)
        Path(sys.argv[1], "whole").touch()
writer = Writer(write, print)
writer.submit(lambda: 1)
begun.wait()
try:
    raise SystemExit(3)
finally:
    writer.close(0.1)
"""
    assert run_mpi(1, "-c", script, str(tmp_path), timeout=30).returncode == 3
    assert (tmp_path / "whole").exists()
