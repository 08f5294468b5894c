"""The benchmark is a command: it checks, measures, and writes numbers that programs can read."""

import json

import pytest
from mpirun import run_mpi
from ranks import on_ranks

from knltrain import cli
from knltrain.bench import allreduce


def test_bench_allreduce__writes_rows_under_mpi():
    run = run_mpi(2, "-m", "knltrain", "bench", "allreduce", "--sizes", "1024", "100000", "--json")
    assert run.returncode == 0, run.stderr
    check(json.loads(run.stdout))


def test_bench_allreduce__writes_rows_between_nodes():
    (rows, text), other = on_ranks(2, lambda comm: allreduce.run(comm, [1024, 100_000], pretended_nodes=2))
    check(rows)
    assert len(text.splitlines()) == 2 + len(rows) and other is None


def check(rows):
    assert {row["bytes"] for row in rows} == {1024, 100000} and {row["ranks"] for row in rows} == {2}
    names = {row["algorithm"] for row in rows}
    assert {"mpi", "auto", "ring", "halving", "doubling", "tree", "torus", "hierarchical"} <= names
    assert {row["wire"] for row in rows if row["algorithm"] == "ring"} == {"fp32", "bf16", "fp16"}
    assert all(row["seconds"] > 0 and row["ratio_to_mpi"] > 0 for row in rows)


def test_bench_allreduce__refuses_one_rank_and_unknown_names(capsys):
    assert cli.main(["bench", "allreduce"]) == 2 and "mpiexec -n 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown algorithm 'rong'"):
        on_ranks(2, lambda comm: allreduce.run(comm, [1024], ["rong"], ["fp32"]))
