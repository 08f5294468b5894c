"""knltrain/comm/arrival.py: who has not come is named while MPI does not start, and the job then ends."""

import subprocess
import sys
import time
from itertools import pairwise

import pytest
from mpirun import ROOT, mpiexec

from knltrain.comm import arrival
from knltrain.comm.arrival import Arrival


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Arrivals of ranks of four, and what they have said; quick."""
    for name, seconds in (("LATE_S", 0.2), ("END_S", 100.0), ("PERIOD_S", 0.2)):
        monkeypatch.setattr(arrival, name, seconds)
    told = tmp_path / "said"
    told.touch()

    def say(line):
        with open(told, "a") as file:
            file.write(f"{line}\n")

    def begin(rank):
        monkeypatch.setenv("PMI_SIZE", "4")
        monkeypatch.setenv("PMI_RANK", str(rank))
        return Arrival(tmp_path / "run", say)

    return begin, lambda: told.read_text().splitlines()


def _until(true):
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_arrival__names_who_is_missing_once(start, tmp_path):
    begin, said = start
    with begin(1), begin(3):
        _until(lambda: any("of 4 ranks 0, 2 did not come" in line for line in said()))
        time.sleep(0.5)
    what = [line.partition(" s: ")[2] for line in said()]  # several, where a busy machine kept one of both for 0.6 s
    assert all(one != another for one, another in pairwise(what)) and "ends after 100 s" in what[-1]


def test_arrival__is_silent_and_leaves_nothing_where_all_is_well(start, tmp_path, monkeypatch):
    begin, said = start
    monkeypatch.setattr(arrival, "LATE_S", 20.0)  # four forks take their time where other tests run
    with begin(0), begin(1), begin(2), begin(3):
        pass
    time.sleep(0.3)
    assert not said() and not (tmp_path / "run").exists()


def test_arrival__of_all_is_told_too(start, tmp_path):
    begin, said = start
    with begin(0), begin(1), begin(2), begin(3):
        _until(lambda: any("all ranks are there" in line for line in said()))
    assert not list((tmp_path / "run").iterdir())


def test_train__names_a_rank_that_does_not_start(tmp_path):
    """One of two processes never calls MPI."""
    patched = (
        "import sys; from knltrain.comm import arrival as a; a.LATE_S, a.END_S, a.PERIOD_S = 0.5, 2.0, 0.1;"
        f"from knltrain.cli import main; sys.exit(main(['train', 'none.toml', '--run', {str(tmp_path / 'run')!r}]))"
    )
    command = [mpiexec(), "-n", "1", sys.executable, "-c", patched, ":", "-n", "1", "sleep", "60"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode != 0
    assert "of 2 ranks 1 did not come" in result.stderr and "ending all ranks" in result.stderr, result.stderr
