"""Run under mpiexec: a tiny network trains in every way in which ranks may exchange, to the bits of one rank alone.

    mpiexec -n 128 python tests/rehearsal_ranks.py [WORD]      # only ways whose settings have that word

Prints a line for each way; a rank that has other bits ends all. The launcher's time limit finds what hangs.
"""

import sys
import time
from contextlib import closing

from ranks import ALONE, learned

from knltrain.assembly import make_trainer
from knltrain.comm import ALGORITHMS, FC, Serial, Watch, compare_replicas, world
from knltrain.data.synthetic import Synthetic
from knltrain.layers import Linear, ReLU, Sequential
from knltrain.recipe.config import parse_recipe

RECIPE = """
[model]
name = "unused"
[data]
train = "unused"
crop = 8
[optim]
trust_coefficient = 0.01
[schedule]
base_lr = 0.2
warmup_epochs = 0.5
[run]
epochs = 1.0
"""
STEPS, SLOT, CLASSES = 2, 2, 5
SHARDED = "comm.shard_update=true"


def ways(ranks: int):
    """Settings of comm: each algorithm that fits, each way of fc, with a sharded update; nodes of several sizes."""
    power, fcs = ranks & (ranks - 1) == 0, FC[1:] if ranks % 2 == 0 else FC[1:3]  # an odd number makes no groups
    for algorithm in ALGORITHMS:
        if algorithm in ("halving", "doubling") and not power:
            continue
        for fc in fcs:
            yield f"comm.algorithm={algorithm}", f"comm.fc={fc}"
            if fc != "sum" and algorithm not in ("doubling", "tree"):
                yield f"comm.algorithm={algorithm}", f"comm.fc={fc}", "comm.fc_group=2", SHARDED
    for nodes in {2, 3, max(2, ranks // 4)}:
        for fc in fcs[1:]:
            yield f"comm.pretended_nodes={nodes}", f"comm.fc={fc}", "comm.bucket_bytes=2000"


def experiments(ranks: int):
    """Settings with bits of their own: one byte a number between nodes, or all ranks; workers that train apart."""
    workers = min(ranks & -ranks, 8)
    yield "comm.wire=int8", f"comm.workers={workers}", f"comm.pretended_nodes={workers}"
    if ranks & (ranks - 1) == 0:
        yield "comm.wire=int8", f"comm.workers={ranks}", "comm.algorithm=direct"
        yield "optim.local_steps=2", f"comm.workers={ranks}"


def made(comm, slots: int, settings, watch=None, stem=list):
    """The trainer of a tiny network, for STEPS steps an epoch; stem: makes layers that it begins with."""
    sizes = [f"batch.global_batch={SLOT * slots}", f"batch.slot_batch={SLOT}", "comm.fc_shards=4"]
    layers = Sequential("net", *stem(), Linear("fc0", 130), ReLU("relu"), Linear("fc1", CLASSES)), (8, 8, 3)
    data = Synthetic(SLOT * slots * STEPS, 8, CLASSES)
    return make_trainer(parse_recipe(RECIPE, [*sizes, *settings]), data, comm, ALONE, watch, layers=layers)


def train(comm, slots: int, settings, watch=None, stem=list):
    """What is learned in some steps."""
    with closing(made(comm, slots, settings, watch, stem)) as trainer:
        found = learned(trainer, STEPS)
        del found["loss"]  # arrays alone are compared
        return found


def rehearse(comm, word=""):
    """Every way with as many slots as ranks, and half as many again. What one rank alone learns, rank 0 finds out."""
    with closing(Watch(comm, 120.0, 600.0)) as watch:
        for slots in (comm.size, comm.size * 3 // 2):
            ever = train(Serial(), slots, []) if comm.rank == 0 else {}
            same = [*ways(comm.size)] if slots == comm.size else [[f"comm.fc={fc}"] for fc in FC[1:]]
            others = [*experiments(comm.size)] if slots == comm.size else []
            for number, settings in enumerate([*same, *others]):
                if word not in " ".join(settings):
                    continue
                begin = time.monotonic()
                found = train(comm, slots, settings, watch)
                compare_replicas(comm, found, STEPS)
                if comm.rank == 0:
                    alone = ever if number < len(same) else train(Serial(), slots, settings)
                    wrong = [name for name, array in found.items() if array.tobytes() != alone[name].tobytes()]
                    if wrong:
                        raise RuntimeError(f"{slots} slots, {' '.join(settings)}: other bits than alone: {wrong}")
                    print(f"{slots} slots  {time.monotonic() - begin:6.1f} s  {' '.join(settings)}", flush=True)


if __name__ == "__main__":
    rehearse(world(), *sys.argv[1:])
