"""A scaled loss through a whole training: no bit of the result changes, but where a step overflows, on all ranks."""

import pytest
from tinyrun import STEPS, newest_state, same, train, write_recipe

from knltrain import cli
from knltrain.optim.scaling import HOPELESS
from knltrain.run.checkpoint import checkpoints, load
from knltrain.tell.journal import read_log

DYNAMIC = ("--set", "compute.loss_scale=dynamic", "--set", "run.checkpoint_every_steps=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    write_recipe(folder)
    return folder


def run(folder, name, *options) -> int:
    """A training on one rank, in this process."""
    command = ["train", str(folder / "tiny.toml"), "--run", str(folder / name), "--resume", "auto"]
    return cli.main([*command, "--progress", "none", *options])


@pytest.fixture(scope="module")
def overflowed(folder):
    """A training whose third step overflows: state, and the rest of its last checkpoint."""
    assert run(folder, "overflowed", *DYNAMIC, "--inject", "overflow@step=3") == 0
    return newest_state(folder, "overflowed"), _scale(folder, "overflowed")


def _scale(folder, name) -> dict:
    return load(checkpoints(folder / name / "checkpoints")[-1])[1]["loss_scale"]


def _skipped(folder, name) -> list[int]:
    return [record["step"] for record in read_log(folder / name) if record.get("skipped")]


def test_train__a_scale_changes_no_bit(folder):
    assert run(folder, "plain") == run(folder, "scaled", "--set", "compute.loss_scale=4096") == 0
    same(newest_state(folder, "plain"), newest_state(folder, "scaled"))


def test_train__an_overflow_skips_the_step_halves_the_scale_and_is_in_the_log(folder, overflowed):
    assert overflowed[1] == {"scale": 2.0**15, "good": STEPS - 3, "failed": 0, "skipped": 1}
    assert _skipped(folder, "overflowed") == [3]
    notes = [record["text"] for record in read_log(folder / "overflowed") if record["kind"] == "note"]
    assert [note for note in notes if note.startswith("step 3 is skipped")] == [
        "step 3 is skipped: a gradient is out of range at loss scale 65536, the next has 32768"
    ]


@pytest.mark.parametrize("setting", ["comm.shard_update=true", "comm.pretended_nodes=2"])
def test_train__an_overflow_on_one_rank_is_skipped_on_all(folder, overflowed, setting):
    name = setting.replace("=", "-")
    done = train(folder, name, *DYNAMIC, "--set", setting, "--inject", "overflow:rank=1@step=3", ranks=2)
    assert done.returncode == 0, done.stderr
    same(newest_state(folder, name), overflowed[0])
    assert _scale(folder, name) == overflowed[1] and _skipped(folder, name) == [3]


def test_train__resumed_after_an_overflow_equals_uninterrupted(folder, overflowed):
    assert run(folder, "resumed", *DYNAMIC, "--inject", "overflow@step=3", "--inject", "raise@step=8") == 1
    assert run(folder, "resumed", *DYNAMIC) == 0
    same(newest_state(folder, "resumed"), overflowed[0])
    assert _scale(folder, "resumed") == overflowed[1]


def test_train__gradients_that_overflow_at_any_scale_end_the_run(folder, capsys):
    overflows = [word for step in range(1, HOPELESS + 1) for word in ("--inject", f"overflow@step={step}")]
    assert run(folder, "hopeless", *DYNAMIC, "--set", "run.epochs=10", *overflows) == 2
    expected = f"the gradient of {HOPELESS} steps in a row, whatever the loss scale, is not finite in step {HOPELESS} "
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("value", ["3", "0.5", "off", "inf", "true", "1e9"])
def test_train__a_scale_that_is_no_power_of_two_is_refused(folder, capsys, value):
    assert run(folder, "none", "--set", f"compute.loss_scale={value}") == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and "compute.loss_scale is " in found[0] and "expected" in found[0]


def test_train__another_precision_is_refused_with_the_way_to_change_it(folder, overflowed, capsys):
    assert run(folder, "overflowed", *DYNAMIC, "--set", "compute.precision=bf16") == 2
    (found,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert "begun with compute.precision = 'fp32', now it is 'bf16'" in found
    assert f"begin another run with [model] weights = '{folder / 'overflowed'}'" in found
