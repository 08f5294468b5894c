"""Start a Python program on several ranks, with a hard time limit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from knltrain.demo import find_mpiexec

ROOT = Path(__file__).resolve().parents[1]


def mpiexec() -> str:
    """The launcher that belongs to this environment's MPI, or a skip with the reason."""
    try:
        return str(find_mpiexec())
    except ValueError as error:
        pytest.skip(str(error))


def run_mpi(ranks: int, *arguments: str, threads: int = 1, timeout: float = 300, launcher=(), before=(), **environment):
    """CompletedProcess of `python ARGUMENTS` on `ranks` ranks; text output, never raises on a bad exit.

    launcher: more options of mpiexec. before: a command that runs it all, as `nice`.
    """
    env = os.environ | {"NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)} | environment
    command = [*before, mpiexec(), *launcher, "-n", str(ranks), sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, cwd=ROOT)
