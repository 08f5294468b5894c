"""`bench overlap`: the ways really differ in what they exchange, and a pretended wire is really waited for."""

import json

import pytest
from mpirun import run_mpi

from knltrain import cli

TINY = ["-m", "knltrain", "bench", "overlap", "--model", "resnet_cifar8", "--slot-batch", "4", "--set", "width=8"]


def test_bench_overlap__waits_for_the_wire_between_the_layers():
    run = run_mpi(2, *TINY, "--delay", "3", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["ranks"] == 2 and found["gradient_bytes"] > 4 * 19_000
    assert found["delay_seconds"] > 2.9 * found["backward_seconds"] > 0
    assert found["between_delayed_seconds"] > found["delay_seconds"]  # by construction: it sleeps
    assert found["alone_seconds"] > 0 and found["hidden_seconds"] > 0
    assert found["growth_by_delay"] > 0  # three backward passes hide behind none


def test_bench_overlap__prints_a_table_without_a_wire():
    run = run_mpi(2, *TINY, "--delay", "0", "--bucket-bytes", "16384", "--algorithm", "halving", "--wire", "bf16")
    assert run.returncode == 0, run.stderr
    assert "halving, bf16" in run.stdout and "0.0156" in run.stdout and "nothing exchanged" in run.stdout
    assert "on a wire" not in run.stdout


def test_bench_overlap__refuses_one_rank_and_a_negative_delay(capsys):
    assert cli.main(TINY[2:]) == 2 and "mpiexec -n 2" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main([*TINY[2:], "--delay", "-1"])
    assert stop.value.code == 2 and "argument --delay: found '-1', expected 0 or more" in capsys.readouterr().err
