"""A small sample of the drills; the many stand in docs/results/survival.md. And damage, wherever it falls."""

import random

import numpy as np
import pytest
from mpirun import mpiexec, run_mpi

from knltrain.checkpoint import CheckpointError, load, save
from knltrain.config import RecipeError, load_recipe
from knltrain.drill import drill


def test_drill__six_kinds_on_two_ranks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    kinds = ["kill", "stop", "corrupt-shard", "truncate-checkpoint", "flip", "freeze"]
    code = drill(tmp_path / "out", ranks=2, count=6, seed=3, launcher=f"{mpiexec()} -n {{ranks}}", kinds=kinds)
    text = capsys.readouterr().out
    assert code == 0, text
    assert "6 as expected, 0 wrong" in text and text.count("as expected") == 7


def test_drill__notices_what_is_not_as_expected(tmp_path, capsys, monkeypatch):
    """A launcher that swallows exit codes."""
    script = tmp_path / "launcher.sh"
    script.write_text('#!/bin/sh\n"$@"\nexit 0\n')
    script.chmod(0o755)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert drill(tmp_path / "out", ranks=1, count=1, seed=1, launcher=str(script), kinds=["raise"]) == 1
    assert "WRONG: exit code 0, expected not 0" in capsys.readouterr().out


def test_drill__refuses_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="power of two"):
        drill(tmp_path, ranks=3, count=1, seed=0, launcher=None)
    with pytest.raises(ValueError, match="expected one of kill"):
        drill(tmp_path, ranks=2, count=1, seed=0, launcher=None, kinds=["earthquake"])
    with pytest.raises(ValueError, match="found --kind freeze, .* on 1 ranks"):  # nobody else is there to notice
        drill(tmp_path, ranks=1, count=1, seed=0, launcher=None, kinds=["freeze"])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One random injury: a bit, some bytes, a hole, a cut, something inserted, a piece moved."""
    data, kind = bytearray(data), rng.randrange(6)
    at, length = rng.randrange(len(data)), rng.randrange(1, 64)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at : at + length] = rng.randbytes(len(data[at : at + length]))
    elif kind == 2:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at:at] = rng.randbytes(length)
    else:
        piece = data[at : at + length]
        del data[at : at + length]
        data[len(data) // 2 : len(data) // 2] = piece
    return bytes(data)


def test_damage__a_thousand_checkpoints_give_a_clear_error_or_the_same_numbers(tmp_path):
    rng, numbers = random.Random(5), np.random.default_rng(1)
    arrays = {f"value/layer{i}.w": numbers.normal(size=(3, 5, 7)).astype(np.float32) for i in range(4)}
    path = save(tmp_path, 7, arrays, {"previous_lr": 0.1, "experiment": {"x": 1}}, keep=1)
    whole, expected, refused = path.read_bytes(), load(path), 0
    for _ in range(1200):
        path.write_bytes(damaged(whole, rng))
        try:
            found, meta = load(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
        else:
            assert meta == expected[1] and found.keys() == expected[0].keys()
            assert all(np.array_equal(found[name], expected[0][name]) for name in found)
    assert refused > 400


def test_damage__a_thousand_recipes_give_a_clear_error_or_a_recipe(tmp_path):
    from mpirun import ROOT

    rng = random.Random(6)
    recipes = [path.read_bytes() for path in sorted((ROOT / "jobs" / "recipes").glob("*.toml"))]
    path, refused = tmp_path / "recipe.toml", 0
    for _ in range(1200):
        path.write_bytes(damaged(rng.choice(recipes), rng))
        try:
            load_recipe(path)
        except RecipeError as error:
            assert "\n" not in str(error) and "recipe.toml" in str(error)
            refused += 1
    assert refused > 200


KILLED = """
import os, random, signal, sys, time
import numpy as np
from pathlib import Path
from knltrain.checkpoint import load_latest, save
folder, rng, seen = Path(sys.argv[1]), random.Random(4), 0
META = {"previous_lr": 0.1, "experiment": {}}
arrays = {f"value/{i}": np.full(20_000, i, np.float32) for i in range(20)}
save(folder, 1, arrays | {"value/step": np.int64(1)}, META, keep=2)
for moment in range(100):
    newest = load_latest(folder, print)[1]["step"]
    child = os.fork()
    if child == 0:
        for step in range(newest + 1, 10**6):
            save(folder, step, arrays | {"value/step": np.int64(step)}, META, keep=2)
    time.sleep(rng.random() * 0.05)
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
