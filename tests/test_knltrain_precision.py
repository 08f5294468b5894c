"""A whole training in 16 bits: the same bits on two ranks, with the update cut in shards, and after an interruption."""

import pytest
from tinyrun import newest_state, same, train, write_recipe

from knltrain import cli

RANKS = {"sharded": ("comm.shard_update=true",), "two nodes": ("comm.pretended_nodes=2", "comm.bucket_bytes=8192")}


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def setting(request):
    return "--set", f"compute.precision={request.param}", "--set", "run.checkpoint_every_steps=2"


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


@pytest.mark.parametrize("settings", RANKS.values(), ids=RANKS)
def test_train__on_two_ranks_gives_the_bits_of_one(folder, setting, serial, settings):
    name = settings[0].replace("=", "-")
    done = train(folder, name, *setting, *(word for value in settings for word in ("--set", value)), ranks=2)
    assert done.returncode == 0, done.stderr
    same(newest_state(folder, name), serial)


def test_train__interrupted_and_resumed_gives_the_bits_of_one_go(folder, setting, serial):
    assert _run(folder, "resumed", *setting, "--inject", "raise@step=7") == 1
    assert _run(folder, "resumed", *setting) == 0
    same(newest_state(folder, "resumed"), serial)
