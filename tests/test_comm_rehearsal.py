"""Every way in which MPI ranks may exchange, on more ranks than there are cores: right bits, no hang."""

import os

import pytest
from mpirun import ROOT, run_mpi
from rehearsal_ranks import experiments, ways

RANKS = int(os.environ.get("KNLTRAIN_REHEARSAL", "5"))


@pytest.mark.parametrize("ranks", [RANKS])  # KNLTRAIN_REHEARSAL=128 takes minutes
def test_rehearsal__every_way_has_the_bits_of_one_rank(ranks):
    run = run_mpi(ranks, str(ROOT / "tests" / "rehearsal_ranks.py"), timeout=100 + 30 * ranks)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.splitlines()) == len([*ways(ranks), *experiments(ranks)]) + 3
