"""Start a Python program on several ranks, with a hard time limit; or a command on one, in this process."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numba
import pytest

from knltrain import cli
from knltrain.node.launcher import find_mpiexec

ROOT = Path(__file__).resolve().parents[1]


def mpiexec() -> str:
    """The launcher that belongs to this environment's MPI, or a skip with the reason."""
    try:
        return str(find_mpiexec())
    except ValueError as error:
        pytest.skip(str(error))


def run_mpi(
    ranks: int, *arguments: str, threads: int = 1, timeout: float = 300, launcher=(), before=(), each=(), **environment
):
    """CompletedProcess of `python ARGUMENTS` on `ranks` ranks; text output, never raises on a bad exit.

    launcher: more options of mpiexec. before: a command that runs it all, as `nice`. each: one that runs each rank.
    """
    env = os.environ | {"NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)} | environment
    command = [*before, mpiexec(), *launcher, "-n", str(ranks), *each, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, cwd=ROOT)


def run_here(*arguments, threads: int = 1, **environment):
    """CompletedProcess of `knltrain ARGUMENTS`, alone in this process: nothing is started or loaded again."""
    out, err, before = io.StringIO(), io.StringIO(), numba.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"KNLTRAIN_THREADS": str(threads), **environment}.items():
            patch.setenv(name, value)
        try:
            code = cli.main([str(argument) for argument in arguments])
        finally:
            numba.set_num_threads(before)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
