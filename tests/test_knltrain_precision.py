"""A whole training in 16 bits, half of it warm-up: the same bits on two ranks of MPI, and after an interruption."""

import pytest
from tinyrun import newest_state, same, train, write_recipe

from knltrain import cli


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def setting(request):
    settings = f"compute.precision={request.param}", "run.checkpoint_every_steps=2", "schedule.warmup_epochs=2"
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, setting):
    folder = tmp_path_factory.mktemp("precision")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def serial(folder, setting):
    assert _run(folder, "serial", *setting) == 0
    return newest_state(folder, "serial")


def _run(folder, name, *options) -> int:
    command = ["train", str(folder / "tiny.toml"), "--run", str(folder / name), "--resume", "auto"]
    return cli.main([*command, "--progress", "none", *options])


def test_train__on_two_ranks_gives_the_bits_of_one(folder, setting, serial):
    done = train(folder, "two", *setting, "--set", "comm.pretended_nodes=2", ranks=2)
    assert done.returncode == 0, done.stderr
    same(newest_state(folder, "two"), serial)


def test_train__interrupted_and_resumed_gives_the_bits_of_one_go(folder, setting, serial):
    assert _run(folder, "resumed", *setting, "--inject", "raise@step=7") == 1
    assert _run(folder, "resumed", *setting) == 0
    same(newest_state(folder, "resumed"), serial)
