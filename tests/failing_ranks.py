"""Run by test_comm_guards under mpiexec: a real training run in which rank 1 has an accident in its third update.

Arguments: recipe, run folder, what happens (kill, stop, raise, flip, none), settings of the recipe.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from knltrain.cli import all_ranks
from knltrain.comm import world
from knltrain.config import load_recipe
from knltrain.optim import Lars
from knltrain.startup import Clock
from knltrain.train import train


def accident(optimizer, what):
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "raise":
        raise RuntimeError("an accident")
    if what == "flip":
        optimizer.parameters[0].w.reshape(-1).view(np.uint32)[1] ^= 1 << 16


if __name__ == "__main__":
    recipe, run, what, *settings = sys.argv[1:]
    with all_ranks(world()) as comm:
        begin, steps = Lars.begin, []

        def watched(self, lr):
            steps.append(lr)
            if len(steps) == 3 and comm.rank == 1:
                (Path(run) / "accident").write_text(str(time.time()))
                accident(self, what)
            begin(self, lr)

        Lars.begin = watched
        train(load_recipe(recipe, settings), Path(run), "never", comm, [], Clock())
