"""Every algorithm on every kind of rank count, against sums computed here: between threads, a few times under MPI."""

import json
import time

import pytest
from exchange_ranks import check, check_in_a_row
from mpirun import ROOT, run_mpi
from ranks import on_ranks

from knltrain.comm import Links, make_block

SIZES = [1, 15, 1000, 40_000]
ANY = ["direct", "tree", "ring", "torus", "auto", "hierarchical"]
POWER = [*ANY, "halving", "doubling"]


def _cases(algorithms, nodes):
    fp32 = [[name, "fp32", n] for name in algorithms for n in nodes]
    return fp32 + [[name, wire, nodes[-1]] for name in algorithms if name != "mpi" for wire in ("bf16", "fp16")]


@pytest.mark.parametrize(
    ("ranks", "algorithms", "nodes"),
    [(3, ANY, [0, 2, 3]), (4, POWER, [0, 2, 3]), (6, ANY, [0, 4, 3]), (7, ANY, [0, 2]), (8, POWER, [4])],
)
def test_exchange__sums_over_any_number_of_ranks(ranks, algorithms, nodes):
    def work(comm):
        for case in _cases(algorithms, nodes):
            check(comm, *case, SIZES)
            check_in_a_row(comm, *case)

    on_ranks(ranks, work)


@pytest.mark.parametrize(("ranks", "algorithms", "nodes"), [(2, POWER, [0, 2]), (3, ANY, [0, 2])])
def test_exchange__sums_under_mpi(ranks, algorithms, nodes):
    script = str(ROOT / "tests" / "exchange_ranks.py")
    run = run_mpi(ranks, script, json.dumps(_cases(["mpi", *algorithms], nodes)), json.dumps(SIZES))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("nodes", "times"), [(2, 1.0), (4, 1.5)])
def test_exchange__a_pretended_wire_takes_what_a_node_sends(nodes, times):
    floats, bandwidth = 10_000, 1e6  # bytes/s: 40 ms for as many bytes as are summed

    def work(comm):
        block = make_block(Links(comm, pretended_nodes=nodes, bandwidth=bandwidth), floats)
        begin = time.perf_counter()
        block.allreduce(0, floats)
        return time.perf_counter() - begin, block.crossing

    for seconds, crossing in on_ranks(4, work):
        assert seconds >= times * 4 * floats / bandwidth and crossing == 1 - 1 / nodes
