"""No kernel reads or writes outside of its arrays, not even where it would do no harm on this machine."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from guarded import BEGIN, END

HERE = Path(__file__).parent


def run(*arguments):
    command = [sys.executable, str(HERE / "guarded.py"), *arguments]
    how = {"capture_output": True, "text": True, "timeout": 600, "cwd": HERE.parent}
    return subprocess.run(command, **how)


def test_kernels__stay_inside():
    done = run()
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    assert done.returncode == 0 and last == "all inside", f"{done.returncode} in {last}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("side", [BEGIN, END])
def test_guarded__ends_who_steps_outside(side):
    assert run(side).returncode in (-signal.SIGSEGV, -signal.SIGBUS)
