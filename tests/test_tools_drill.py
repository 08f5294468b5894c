"""A small sample of the drills; the many stand in docs/results/survival.md. And damage, wherever it falls."""

import pytest
from mpirun import mpiexec, run_mpi

from knltrain.tools.drill import drill


def test_drill__four_kinds_on_two_ranks(tmp_path, capsys, monkeypatch):
    """Truncation kills too; a run that is asked to stop is in test_run_survival."""
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    kinds = ["corrupt-shard", "truncate-checkpoint", "flip", "freeze"]
    code = drill(tmp_path / "out", ranks=2, count=4, seed=3, launcher=f"{mpiexec()} -n {{ranks}}", kinds=kinds)
    text = capsys.readouterr().out
    assert code == 0, text
    assert "4 as expected, 0 wrong" in text and text.count("as expected") == 5


def test_drill__notices_what_is_not_as_expected(tmp_path, capsys, monkeypatch):
    """A launcher that swallows exit codes."""
    script = tmp_path / "launcher.sh"
    script.write_text('#!/bin/sh\n"$@"\nexit 0\n')
    script.chmod(0o755)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert drill(tmp_path / "out", ranks=1, count=1, seed=1, launcher=str(script), kinds=["raise"]) == 1
    assert "WRONG: exit code 0, expected not 0" in capsys.readouterr().out


def test_drill__refuses_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="expected 1 to 16"):
        drill(tmp_path, ranks=17, count=1, seed=0, launcher=None)
    with pytest.raises(ValueError, match="expected one of kill"):
        drill(tmp_path, ranks=2, count=1, seed=0, launcher=None, kinds=["earthquake"])
    with pytest.raises(ValueError, match="found --kind freeze, .* on 1 ranks"):  # nobody else is there to notice
        drill(tmp_path, ranks=1, count=1, seed=0, launcher=None, kinds=["freeze"])


KILLED = """
import os, random, signal, sys, time
import numpy as np
from pathlib import Path
from knltrain.run.checkpoint import load_latest, save
folder, rng, seen = Path(sys.argv[1]), random.Random(4), 0
META = {"previous_lr": 0.1, "experiment": {}}
arrays = {f"value/{i}": np.full(20_000, i, np.float32) for i in range(20)}
for step in (0, 1):  # the second as all that follow: moments are shares of what one takes here
    begin = time.perf_counter()
    save(folder, step, arrays | {"value/step": np.int64(step)}, META, keep=2)
usual = time.perf_counter() - begin
for moment in range(100):
    newest = load_latest(folder, print)[1]["step"]
    child = os.fork()
    if child == 0:
        for step in range(newest + 1, 10**6):
            save(folder, step, arrays | {"value/step": np.int64(step)}, META, keep=2)
    time.sleep(rng.random() * 5 * usual)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    warned = []
    found, meta = load_latest(folder, warned.append)
    assert not warned and found["value/step"] == meta["step"] >= newest
    seen += meta["step"] > newest
print(seen)
"""


def test_kill__during_checkpoint_writing_at_a_hundred_random_moments_leaves_a_good_one(tmp_path):
    result = run_mpi(1, "-c", KILLED, str(tmp_path / "checkpoints"))
    assert result.returncode == 0, result.stderr
    assert 20 < int(result.stdout) <= 100  # most kills fell into the middle of some write, not before the first
