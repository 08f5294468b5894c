"""`knltrain warmup`: after it, training and evaluation compile nothing more."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from knltrain import cli
from knltrain.data.shards import Row, finish_shard, write_shard

RECIPE = """
[model]
name = "resnet_cifar8"
width = 8
[data]
train = "train"
crop = 24
pad = 1
[batch]
global_batch = 32
slot_batch = 16
[optim]
trust_coefficient = 0.01
[run]
epochs = 1.0
evaluate_every_epochs = 1
"""
PROGRAM = """
import sys
from isa import compiled_functions
from knltrain import cli

def signatures():
    return {name: [str(one) for one in function.signatures] for name, function in compiled_functions()}

assert cli.main(["warmup", sys.argv[1]]) == 0
before = signatures()
assert cli.main(["train", sys.argv[1], "--run", sys.argv[2]]) == 0
after = signatures()
print({name: (before[name], after[name]) for name in after if after[name] != before[name]})
"""


def test_warmup__compiles_all_that_training_calls(tmp_path):
    (tmp_path / "train").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 3), dtype=np.uint8)
    rows = [Row(picture, i % 2, f"{i % 2}/{i}.png") for i, picture in enumerate(pictures)]
    write_shard(tmp_path / "part", rows, encoding="raw", size=28, first_row=0, class_names=["0", "1"])
    finish_shard(tmp_path / "part", tmp_path / "train" / "shard-00000.h5", 64)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(recipe), str(tmp_path / "run")], capture_output=True, text=True,
        timeout=300, cwd=here, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, difference = done.stdout.splitlines()
    assert re.match(r"\d+ functions compiled for \w+ in \d+\.\d s, [1-9]\d* in /", said)
    assert difference == "{}"


def test_warmup__of_a_bad_recipe_is_one_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("resnet_cifar8", "resnet_cifar9"))
    assert cli.main(["warmup", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "depth is 9" in error and error.count("\n") == 1
