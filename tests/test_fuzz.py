"""A tenth of `make fuzz`, and that its runner sees what it looks for."""

import fuzz
import pytest

BAD = """
import os, signal, time
import numpy as np
import fuzz
import knltrain.models
from fuzz import Case, Kind, refused

def case(action=lambda: "", verdict=refused):
    def make(random, folder):
        action()
        return Case(["describe", "alexnet"], verdict)
    return Kind(1, make)

def defect():
    knltrain.models.describe = lambda name: 1 / 0

fuzz.GROWTH = 1 << 27
KINDS = {
    "fine": case(verdict=lambda code, text: "" if code == 0 and "conv1" in text else text),
    "accepted silently": case(),
    "ZeroDivisionError": case(defect),
    "died by SIGSEGV": case(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "still running after 2 s": case(lambda: time.sleep(60)),
    "GiB of memory": case(lambda: np.ones(1 << 28, np.uint8)),
}
"""


@pytest.fixture(scope="module")
def worker():
    worker = fuzz.Worker(limit_s=60)  # machines that test are busy
    yield worker
    worker.close()


@pytest.mark.parametrize("kind", fuzz.load_kinds())
def test_fuzz__a_tenth_goes_as_it_should(kind, worker):
    count = round(fuzz.load_kinds()[kind].count / 10)
    wrong = {number: worker.run(kind, 0, number) for number in range(count)}
    assert not {number: what for number, what in wrong.items() if what}


def test_fuzz__sees_what_goes_wrong(tmp_path):
    (tmp_path / "fuzz_bad.py").write_text(BAD)
    bad = fuzz.Worker(folder=tmp_path)
    kinds = ["accepted silently", "ZeroDivisionError", "died by SIGSEGV", "still running after 2 s", "GiB of memory"]
    for name in kinds:
        bad.limit_s = 2 if name.startswith("still") else 60
        assert name in bad.run(name, 0, 0)
    bad.limit_s = 60
    assert bad.run("fine", 0, 0) == ""
    bad.close()
