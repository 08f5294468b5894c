"""The benchmark is a command: it checks, measures, and writes numbers that programs can read."""

import json

import pytest
from mpirun import run_mpi


@pytest.mark.parametrize("nodes", [0, 2])
def test_bench_allreduce__writes_rows(nodes):
    arguments = ["--sizes", "1024", "100000", "--nodes", str(nodes), "--json"]
    run = run_mpi(2, "-m", "knltrain", "bench", "allreduce", *arguments)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    assert {row["bytes"] for row in rows} == {1024, 100000} and {row["ranks"] for row in rows} == {2}
    names = {row["algorithm"] for row in rows}
    assert {"mpi", "auto", "ring", "halving", "doubling", "tree", "torus", "hierarchical"} <= names
    assert {row["wire"] for row in rows if row["algorithm"] == "ring"} == {"fp32", "bf16", "fp16"}
    assert all(row["seconds"] > 0 and row["ratio_to_mpi"] > 0 for row in rows)


def test_bench_allreduce__refuses_one_rank_and_unknown_names():
    run = run_mpi(1, "-m", "knltrain", "bench", "allreduce")
    assert run.returncode == 2 and "mpiexec -n 2" in run.stderr
    run = run_mpi(2, "-m", "knltrain", "bench", "allreduce", "--algorithms", "rong", "--wires", "fp32")
    assert run.returncode == 2 and "unknown algorithm 'rong'" in run.stderr
