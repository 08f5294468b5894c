"""Accidents done for real: every rank ends in time, with words that name the rank and the place."""

import json
import os
import subprocess
import time

import numpy as np
import pytest
from mpirun import mpiexec, run_mpi
from test_knltrain_train import NETWORKS, RECIPE, write_set

from knltrain.comm.communicator import Serial
from knltrain.comm.guards import compare_replicas, compare_signatures


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guards")
    write_set(folder / "shards" / "train", 52, 1)
    write_set(folder / "shards" / "val", 11, 2)
    path = folder / "resnet.toml"
    path.write_text(NETWORKS["resnet"] + RECIPE)
    return path


def _run(recipe, tmp_path, fault, *settings, ranks=3, **more):
    """The result of a run whose rank 1 suffers `fault` before step 3, and how long it went on after step 2.

    Or after step 1: rank 1 may be done with step 2, and dead, before rank 0 has noted it.
    """
    orders = [word for setting in settings for word in ("--set", setting)]
    orders += ["--inject", f"{fault}:rank=1@step=3"] if fault else []
    run = tmp_path / "run"
    command = ["-m", "knltrain", "train", str(recipe), "--run", str(run), *orders]
    result = run_mpi(ranks, *command, timeout=600, **more)
    return result, time.time() - _steps(run)[:2][-1]["time"]


def _steps(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


def soon() -> float:
    """Ten seconds where the cores are ours; more where others wait for them too, and the watch with them."""
    return 10 * (1 + os.getloadavg()[0] / os.cpu_count())


def test_guards__a_killed_rank_ends_all_and_is_named(recipe, tmp_path):
    # MPICH's launcher kills the others at once and may then name one of those: the watch needs a core to be the first
    result, seconds = _run(recipe, tmp_path, "kill", ranks=2)
    assert result.returncode != 0 and seconds < soon()
    # MPICH's launcher may be faster than we: it names the process, and machine.json says which rank that was
    place = json.loads((tmp_path / "run" / "machine.json").read_text())["processes"][1]
    by_launcher = f"PID {place.rpartition(' ')[2]} " in result.stdout + result.stderr
    assert by_launcher or f"rank 1 ({place}) is gone" in result.stderr, result.stdout + result.stderr


def test_guards__a_killed_rank_is_named_where_the_launcher_does_nothing(recipe, tmp_path):
    info = subprocess.run([mpiexec(), "--version"], capture_output=True, text=True)
    if "HYDRA" not in info.stdout:
        pytest.skip("only MPICH's launcher can be told to leave a job alone whose rank has died")
    # Even so it kills the others as soon as it sees a process end by a signal, perhaps before our words: a shell
    # around each rank ends well where the rank does not. The launcher's SIGUSR1 is for MPI and must not end the shell.
    shell = ["sh", "-c", "trap '' USR1; \"$@\"; exit 0", "shell"]
    result, seconds = _run(recipe, tmp_path, "kill", launcher=["-disable-auto-cleanup"], each=shell)
    assert result.returncode != 0 and seconds < soon()
    assert "is gone: its process has ended: ending all ranks" in result.stderr
    assert "error: rank 1 (" in result.stderr, result.stderr


def test_guards__a_stopped_rank_is_named_and_then_all_end(recipe, tmp_path):
    result, seconds = _run(recipe, tmp_path, "freeze", "comm.stall_warn_s=1", "comm.stall_end_s=3")
    assert result.returncode != 0 and seconds < 5 + soon()
    lines = [line for line in result.stderr.splitlines() if "no progress" in line]
    assert "waits for rank 1 (" in lines[0] and "bucket 0" in lines[0], result.stderr
    assert "nothing is heard from rank 1 (" in result.stderr
    assert "ending all ranks" in result.stderr


def test_guards__a_raising_rank_ends_all_and_is_named(recipe, tmp_path):
    result, seconds = _run(recipe, tmp_path, "raise")
    assert result.returncode != 0 and seconds < soon()
    assert "knltrain: rank 1: error: RuntimeError: injected on rank 1" in result.stderr, result.stderr


def test_guards__one_flipped_bit_is_found(recipe, tmp_path):
    result, _ = _run(recipe, tmp_path, "flip", "comm.check_every_steps=4")
    assert result.returncode != 0
    assert "after step 4 the replicas differ: rank 1 in value/" in result.stderr, result.stderr


def test_guards__are_silent_while_all_is_well(recipe, tmp_path):
    settings = ["comm.stall_warn_s=20", "comm.check_every_steps=1"]
    result, _ = _run(recipe, tmp_path, "", *settings)
    assert result.returncode == 0, result.stderr
    assert "error:" not in result.stderr and "no progress" not in result.stderr
    assert all(s["exchange_exposed_s"] >= 0 and s["exchange_hidden_s"] >= 0 for s in _steps(tmp_path / "run"))


class _Ranks(Serial):
    """Four ranks in one process: `others` say what they have gathered, in turn."""

    def __init__(self, *others):
        self.size, self.others = 4, iter(others)

    def gather(self, value):
        return [value, *next(self.others)]


def test_compare_signatures__names_rank_and_difference():
    good, bad = {"a": "1", "b": '"x"'}, {"a": "1", "b": '"y"'}
    comm = _Ranks(["other"] * 3, [good, bad, good])
    with pytest.raises(ValueError, match=r'rank 2 has b = "y", the others "x"'):
        compare_signatures(comm, {"a": 1, "b": "x"})


def test_compare_replicas__names_the_tensors_of_the_minority():
    state = {"value/w": np.arange(70_000, dtype=np.float32), "momentum/w": np.zeros(5, np.float32)}
    from knltrain.kernels import digest

    good = {name: f"{digest(array):016x}" for name, array in state.items()}
    bad = good | {"momentum/w": "0" * 16}
    with pytest.raises(ValueError, match="after step 7 the replicas differ: rank 3 in momentum/w"):
        compare_replicas(_Ranks([{"": "other"}] * 3, [good, good, bad]), state, 7)


@pytest.mark.parametrize("size", [1, 15, 16, 1000, 1 << 16, 200_001])
def test_digest__sees_every_bit_and_no_threads(size):
    from knltrain.kernels import digest

    array = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    before = digest(array)
    assert digest(array.copy()) == before
    for index in {0, size // 2, size - 1}:
        array.view(np.uint32)[index] ^= 1 << 31
        assert digest(array) != before
        array.view(np.uint32)[index] ^= 1 << 31
    assert digest(array) == before
