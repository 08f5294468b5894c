"""A training that takes a second: a narrow ResNet on random pictures, for tests of everything around training."""

import numpy as np
from mpirun import run_here, run_mpi

from knltrain.data.shards import Row, finish_shard, write_shard
from knltrain.run.checkpoint import checkpoints, load

STEPS = 12
RECIPE = """
[model]
name = "resnet_cifar8"
width = 8
[data]
train = "shards"
augmentation = "crop_flip"
crop = 16
[batch]
global_batch = 16
slot_batch = 4
[optim]
variant = "mlperf"
[schedule]
base_lr = 0.1
[run]
epochs = 4.0
seed = 7
evaluate_every_epochs = 4
"""


def write_recipe(folder):
    """`folder`/tiny.toml and its shards: 52 pictures, 3 steps an epoch, 12 in all."""
    rng = np.random.default_rng(3)
    rows = [Row(rng.integers(0, 256, (20, 20, 3), np.uint8), i % 3, f"{i % 3}/{i:02}.png") for i in range(52)]
    (folder / "shards").mkdir(parents=True)
    temporary = folder / "shards" / "part.tmp"
    write_shard(temporary, rows, encoding="raw", size=20, class_names=["0", "1", "2"])
    finish_shard(temporary, folder / "shards" / "shard-00000.h5", len(rows), 0)
    (folder / "tiny.toml").write_text(RECIPE)


def train(folder, run, *options, ranks=1, apart=False, **more):
    """CompletedProcess of a training of tiny.toml in the run folder `run`, continued where there is one.

    One rank is this process, if it need not be apart, as where limits of the process are changed.
    """
    command = ["train", str(folder / "tiny.toml"), "--run", str(folder / run), "--resume", "auto", *options]
    if ranks == 1 and not apart:
        return run_here(*command, **more)
    return run_mpi(ranks, "-m", "knltrain", *command, **more)


def newest_state(folder, run, steps=STEPS):
    """Arrays of the run's last checkpoint, which must be of the last step."""
    arrays, meta = load(checkpoints(folder / run / "checkpoints")[-1])
    assert meta["step"] == steps
    return arrays


def same(one, two):
    """Equal to the bit."""
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name
