"""A run is asked to stop, its disk refuses, its ranks die: what it says, what stays, and that it goes on to the bit."""

import re
import threading
import time

import pytest
from mpirun import run_mpi
from tinyrun import STEPS, newest_state, same, train, write_recipe

from knltrain import cli
from knltrain.comm import world
from knltrain.comm.communicator import Serial
from knltrain.data import Augment, Synthetic
from knltrain.evaluate import evaluate
from knltrain.models import Model, build
from knltrain.run.background import Writer
from knltrain.run.checkpoint import checkpoints, load
from knltrain.run.faults import KINDS, parse
from knltrain.run.lifecycle import LOOK_S, Lifecycle
from knltrain.run.lock import Lock


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
    result = train(folder, "stop", ranks=3)
    assert result.returncode == 0, result.stderr
    assert status(folder, "stop") == f"done step {STEPS}"
    same(newest_state(folder, "stop"), whole)


def test_stop__of_one_launch_asks_no_other(tmp_path, monkeypatch):
    """Whoever cancels a second job in a folder, before that one was refused, must not stop the first."""
    monkeypatch.setenv("KNLTRAIN_LAUNCH", "7.0.1")
    (tmp_path / "stop").touch()
    (tmp_path / "stop.8.0.1").touch()
    life = Lifecycle(tmp_path, world(), print)
    life.claim()
    assert not life.stop_asked() and [path.name for path in tmp_path.glob("stop*")] == ["stop.8.0.1"]
    life.looked = -LOOK_S
    (tmp_path / "stop.7.0.1").touch()
    assert life.stop_asked()


def test_run__that_is_a_file_is_one_line(tmp_path, capsys):
    write_recipe(tmp_path)
    (tmp_path / "run").write_text("mine\n")
    assert cli.main(["train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "run")]) == 2
    assert "run: found a file, expected a folder or a free name: choose another --run\n" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine\n"


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


def test_stop__is_obeyed_between_the_batches_of_an_evaluation():
    class Life:
        asked = 0

        def stop(self):
            self.asked += 1
            return self.asked == 3

    layers, shape = build("resnet_cifar8", width=8, input_size=8)
    model, data, life = Model(layers, shape, 4, train=False), Synthetic(20, 8, 10), Life()
    augment = Augment("none", 8, (0, 0, 0), (1, 1, 1))
    assert evaluate(model, data, augment, world(), stop=life.stop) is None and life.asked == 3
    assert evaluate(model, data, augment, world(), stop=lambda: False).images == 20

    class Two(Serial):
        """The other rank wants to stop before its second batch."""

        asked = 0

        def gather(self, value):
            self.asked += 1
            return [value, self.asked == 2]

    assert evaluate(model, data, augment, both := Two()) is None and both.asked == 2


def test_run__whose_folder_is_deleted_says_so_and_fails_soon(folder, monkeypatch):
    for name, seconds in {"restart.LAST_LIMIT_S": 2.0, "background.PAUSE_S": 0.5, "lock.BEAT_S": 0.1}.items():
        monkeypatch.setattr(f"knltrain.run.{name}", seconds)
    monkeypatch.setitem(KINDS, "stop", lambda fault, model, run: run.rename(f"{run}-away"))
    result = train(folder, "gone", "--inject", "stop@step=4", "--inject", "slow:ms=200")
    assert result.returncode == 2, result.stderr
    assert "gone is gone: what this run saves is lost" in result.stderr and "cannot be written" in result.stderr
    assert not (folder / "gone").exists()


def test_signal__on_any_rank_stops_all(folder, whole):
    result = train(folder, "signal", "--inject", "signal:rank=1@step=3", ranks=2)
    assert result.returncode == 143, result.stderr
    assert status(folder, "signal") == "stopped step 3"
    again = train(folder, "signal")
    assert again.returncode == 0, again.stderr
    same(newest_state(folder, "signal"), whole)


@pytest.mark.parametrize(
    ("fault", "left"), [("raise:rank=1@step=6", "died RuntimeError: injected"), ("kill:rank=1@step=6", "running")]
)
def test_crash__leaves_its_status_a_good_checkpoint_and_the_way_on(folder, whole, fault, left):
    run = fault.partition(":")[0]
    begin = time.monotonic()
    result = train(folder, run, "--inject", fault, "--set", "run.checkpoint_every_steps=2", ranks=2)
    assert result.returncode not in (0, 143) and time.monotonic() - begin < 60
    assert status(folder, run).startswith(left)
    place = folder / run
    advice = rf"newest checkpoint: {place}/checkpoints/\S+.h5; go on with: knltrain train {place}/recipe.toml --run"
    assert run == "kill" or re.search(advice, result.stderr), result.stderr  # a launcher may kill all before they speak
    assert load(checkpoints(folder / run / "checkpoints")[-1])[1]["step"] in (2, 4)
    again = train(folder, run)
    assert again.returncode == 0 and "without giving it back; going on in its place" in again.stderr
    same(newest_state(folder, run), whole)


def test_status__a_failure_before_the_first_step_is_written_for_the_launch_that_asked(folder):
    for index, (before, settings) in enumerate([("done step 12", ["data.train=/nowhere"]), ("", ["optim.momentm=1"])]):
        run = folder / f"early{index}"
        run.mkdir()
        (run / "status").write_text(before)
        result = train(folder, run.name, "--set", settings[0], KNLTRAIN_LAUNCH="7.0.1")
        assert result.returncode == 2
        found, launch = (run / "status").read_text().splitlines()
        assert found.startswith(("failed ShardError: /nowhere", "failed RecipeError")) and launch == "7.0.1"
    assert train(folder, "typo", "--set", "optim.momentm=1").returncode == 2
    assert not (folder / "typo").exists()  # a laptop's mistake leaves nothing


def test_lock__a_second_run_in_the_folder_is_refused_and_changes_nothing(folder, whole):
    log = folder / "whole" / "log.jsonl"
    (folder / "whole" / "stop").write_text("somebody else")
    before = {path.name: path.read_bytes() for path in (folder / "whole").iterdir() if path.is_file()}
    lock = Lock(folder / "whole", print)
    lock.acquire()
    try:
        result = train(folder, "whole", ranks=2, KNLTRAIN_LAUNCH="7.0.2")
        assert result.returncode == 73 and "belongs to a run that is alive (process" in result.stderr
        refused = folder / "whole" / "refused.7.0.2"
        assert "belongs to a run" in refused.read_text()
        refused.unlink()
    finally:
        lock.release()
    assert before == {path.name: path.read_bytes() for path in (folder / "whole").iterdir() if path.is_file()}
    assert log.exists() and train(folder, "whole").stderr.count("was left over and is removed") == 1
    assert not (folder / "whole" / "stop").exists() and not (folder / "whole" / "lock").exists()


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
    result = train(folder, "full", *settings, "--inject", "slow:ms=100", apart=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("cannot be written ([Errno 27] File too large)") == 1
    assert "a checkpoint could be written again" in result.stderr
    same(newest_state(folder, "full"), whole)
    for path in checkpoints(folder / "full" / "checkpoints"):
        load(path)


def test_checkpoint__that_cannot_be_written_at_the_end_is_an_error(folder, monkeypatch):
    script = (
        "import knltrain.run.restart as r, knltrain.run.background as b, sys; from knltrain.cli import main;"
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
    monkeypatch.setattr("knltrain.run.background.PAUSE_S", 0.05)
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
from knltrain.run.background import Writer
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
    assert run_mpi(1, "-c", script, str(tmp_path), timeout=120).returncode == 3
    assert (tmp_path / "whole").exists()
