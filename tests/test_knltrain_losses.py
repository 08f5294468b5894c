"""Ten steps give the losses that they always gave. A change of kernels may move the last digits, and nothing else.

Where a change is meant to: `python tests/test_knltrain_losses.py` prints them anew, and the commit says why.
"""

import tempfile
from pathlib import Path

import pytest
from tinyrun import train, write_recipe

from knltrain.tell.journal import read_log

LOSSES = [
    1.100189, 1.118992, 1.159528, 1.094307, 1.127619, 1.096996, 1.119040, 1.088430, 1.093232, 1.054468,
]  # fmt: skip


def losses(folder):
    write_recipe(folder)
    assert train(folder, "run", "--set", "run.max_steps=10").returncode == 0
    return [record["loss"] for record in read_log(folder / "run") if record["kind"] == "step"]


def test_losses__are_those_of_always(tmp_path):
    assert losses(tmp_path) == pytest.approx(LOSSES, rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(losses(Path(folder)))
