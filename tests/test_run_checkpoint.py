"""Checkpoints: to the bit, whole or absent, and never trusted when damaged."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from knltrain.arena import Parameter, Parameters
from knltrain.claims import whole
from knltrain.models.state import load as load_state
from knltrain.run.checkpoint import CheckpointError, best_checkpoint, checkpoints, load, load_latest, load_run, save

META = {"previous_lr": 0.1 + 0.2, "experiment": {"recipe": "[run]\nseed = 3\n", "unicode": "è"}}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    special = np.array([np.nan, -0.0, np.inf, 1e-45, 3.4e38], np.float32)
    special.view(np.uint32)[0] |= 0x1234  # a NaN with a payload
    return {
        "value/conv1.w": rng.standard_normal((3, 3, 5, 7)).astype(np.float32),
        "value/conv1.b": special,
        "order": rng.integers(0, 2**62, 11),
        "pixels": rng.integers(0, 255, (2, 3), np.uint8),
        "scalar": np.float64(rng.standard_normal()),
        "nothing": np.empty((0, 4), np.float32),
        "transposed": rng.standard_normal((4, 6)).T,
        "flags": np.array([True, False]),
    }


def same(found, expected) -> bool:
    return list(found) == list(expected) and all(
        found[k].dtype == np.asarray(v).dtype and found[k].shape == v.shape and found[k].tobytes() == v.tobytes()
        for k, v in expected.items()
    )


def steps(folder):
    return [int(path.stem.split("-")[1]) for path in checkpoints(folder)]


def test_checkpoint__round_trip_is_bitwise(tmp_path):
    path = save(tmp_path / "run", 123, arrays(), META, keep=2)
    assert path == tmp_path / "run" / "checkpoint-0000123.h5"
    found, meta = load(path)
    assert same(found, arrays())
    assert meta == {**META, "step": 123}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_checkpoint__keeps_the_last_and_the_best(tmp_path):
    for step, metric in ((10, 0.5), (20, 0.9), (30, None), (40, 0.7), (50, float("nan"))):
        save(tmp_path, step, arrays(), META, keep=2, best_metric=metric)
    assert steps(tmp_path) == [20, 40, 50]
    assert best_checkpoint(tmp_path).name == "checkpoint-0000020.h5"
    save(tmp_path, 60, arrays(), META, keep=1, best_metric=0.95)
    assert steps(tmp_path) == [60]
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "name": "checkpoint-0000060.h5",
        "step": 60,
        "metric": 0.95,
    }


def test_checkpoint__a_file_of_a_later_step_does_not_crowd_out_the_new_one(tmp_path):
    for step in (10, 90, 20):
        save(tmp_path, step, arrays(), META, keep=1)
    assert steps(tmp_path) == [20, 90]


def test_checkpoint__same_step_again_replaces(tmp_path):
    save(tmp_path, 5, arrays(0), META, keep=1)
    found, _ = load(save(tmp_path, 5, arrays(1), META, keep=1))
    assert same(found, arrays(1))


def test_write__names_the_place_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        whole.write_whole(tmp_path / "nowhere" / "page.html", "text")
    assert error.value.filename == str(tmp_path / "nowhere" / "page.html")


def test_best__a_damaged_note_is_no_best(tmp_path):
    save(tmp_path, 1, arrays(), META, keep=1, best_metric=0.9)
    (tmp_path / "best.json").write_text('{"name": "../../etc/passwd", "metric": 2}')
    assert best_checkpoint(tmp_path) is None
    save(tmp_path, 2, arrays(), META, keep=1, best_metric=0.1)
    assert best_checkpoint(tmp_path).name == "checkpoint-0000002.h5"


def test_load__no_flipped_byte_is_taken_for_truth(tmp_path):
    path = save(tmp_path, 1, {"w": np.arange(40, dtype=np.float32)}, META, keep=1)
    whole, expected = path.read_bytes(), load(path)
    data = whole.index(np.arange(40, dtype=np.float32).tobytes())
    refused = 0
    for position in {*range(0, len(whole), 23), *range(data, data + 160, 3)}:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            found, meta = load(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # a byte that carries nothing
            assert same(found, expected[0]) and meta == expected[1]
            assert not data <= position < data + 160
    assert refused >= 54


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_load__refuses_a_truncated_file(tmp_path, share):
    path = save(tmp_path, 1, arrays(), META, keep=1)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="truncated or damaged|more than the file|checksum"):
        load(path)


def test_load__refuses_what_is_not_ours(tmp_path):
    path = tmp_path / "checkpoint-0000001.h5"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(path)
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(3)
    with pytest.raises(CheckpointError, match="found no format, expected 'knltrain-checkpoint'"):
        load(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load(path)
    save(tmp_path, 1, arrays(), META, keep=1)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 2
    with pytest.raises(CheckpointError, match="found version 2, expected 1"):
        load(path)


def test_load__notices_a_missing_array(tmp_path):
    path = save(tmp_path, 1, arrays(), META, keep=1)
    with h5py.File(path, "a") as file:
        del file["arrays/value/conv1.b"]
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize(
    "meta, words",
    [
        ({"previous_lr": None}, "found previous_lr None, expected a number"),
        ({"previous_lr": float("nan")}, "found previous_lr nan, expected a finite number"),
        ({"experiment": []}, r"found experiment \[\], expected a table"),
        ({"deep": [[[0]]] * 2, "previous_lr": True}, "found previous_lr True"),
    ],
)
def test_load__checks_what_it_hands_on(tmp_path, meta, words):
    with pytest.raises(CheckpointError, match=words):
        load(save(tmp_path, 1, arrays(), META | meta, keep=1))


def test_load__believes_no_other_step_than_that_of_the_name(tmp_path):
    path = save(tmp_path, 1, arrays(), META, keep=1)
    assert load(path.rename(tmp_path / "copy.h5"))[1]["step"] == 1
    with pytest.raises(CheckpointError, match="found step 1, expected that of the file's name"):
        load((tmp_path / "copy.h5").rename(tmp_path / "checkpoint-1000000000.h5"))


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, "S4", ">f4"])
def test_state__of_another_type_is_refused(tmp_path, dtype):
    parameters = Parameters()
    parameters.add(Parameter("c.w", (3,), lambda rng: np.zeros(3)))
    parameters.allocate(seed=0)
    names = ("value/c.w", "momentum/c.w")
    good = dict.fromkeys(names, np.ones(3, np.float32))
    load_state(parameters, load(save(tmp_path, 1, good, META, keep=1))[0], tmp_path)
    assert parameters.value[:3].tolist() == parameters.momentum[:3].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"differing: value/c.w|expected numbers"):
        bad = dict.fromkeys(names, np.ones(3, dtype))
        load_state(parameters, load(save(tmp_path, 1, bad, META, keep=1))[0], tmp_path)


def test_latest__goes_back_past_a_damaged_one_and_says_so(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, arrays(step), META, keep=3)
    newest = tmp_path / "checkpoint-0000003.h5"
    newest.write_bytes(newest.read_bytes()[:-100])
    warnings = []
    found, meta = load_latest(tmp_path, warnings.append)
    assert meta["step"] == 2 and same(found, arrays(2))
    assert len(warnings) == 1 and str(newest) in warnings[0] and warnings[0].endswith("trying checkpoint-0000002.h5")


def test_latest__none_is_not_the_same_as_all_damaged(tmp_path):
    assert load_latest(tmp_path / "absent", print) is None
    assert load_latest(tmp_path, print) is None
    (tmp_path / "checkpoint-0000001.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged; remove them to start from step 0"):
        load_latest(tmp_path, lambda message: None)


def test_run__says_of_each_damaged_checkpoint_once_that_it_is(tmp_path):
    folder, said = tmp_path / "checkpoints", []
    folder.mkdir()
    for step in (1, 2, 3):
        save(folder, step, arrays(step), META, keep=3, best_metric=-step)
    assert best_checkpoint(folder).name == "checkpoint-0000001.h5"
    for path in folder.glob("*.h5"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="all 3 checkpoints are damaged; name another run$"):
        load_run(tmp_path, said.append)
    order = ["checkpoint-0000001.h5", "checkpoint-0000003.h5", "checkpoint-0000002.h5"]
    assert [Path(line.partition(": ")[0]).name for line in said] == order
    assert [line.rpartition("; trying ")[2] for line in said[:2]] == order[1:] and "trying" not in said[2]


def test_save__killed_before_the_rename_leaves_the_last_good_one(tmp_path):
    save(tmp_path, 1, arrays(), META, keep=2)
    script = (
        "import os, sys; import numpy as np; from knltrain.run import checkpoint;"
        "os.replace = lambda *names: os._exit(9);"
        "checkpoint.save(sys.argv[1], 2, {'w': np.ones(1000)}, {'previous_lr': 0.1, 'experiment': {}}, keep=2)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root).returncode == 9
    assert len(list(tmp_path.glob("checkpoint-0000002.h5.*.tmp"))) == 1
    assert load_latest(tmp_path, pytest.fail)[1]["step"] == 1
    save(tmp_path, 3, arrays(), META, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-0000001.h5", "checkpoint-0000003.h5"]


def test_save__a_failing_disk_changes_nothing(tmp_path, monkeypatch):
    save(tmp_path, 1, arrays(), META, keep=1)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole, "_sync", full)
    with pytest.raises(CheckpointError, match="checkpoint-0000002.h5: cannot be written .*No space left") as error:
        save(tmp_path, 2, arrays(), META, keep=1)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0000001.h5"]


@pytest.mark.parametrize("limit", [1000, 30_000])
def test_save__a_disk_that_fills_while_hdf5_writes_changes_nothing(tmp_path, limit):
    save(tmp_path, 1, arrays(), META, keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # writes beyond fail, as on a full disk
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save(tmp_path, 2, {f"w{i}": np.ones(5000) for i in range(4)}, META, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0000001.h5"]


def test_save__refuses_objects_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="array names has dtype object; expected numbers"):
        save(tmp_path, 1, {"names": np.array(["a", None])}, META, keep=1)
    assert list(tmp_path.iterdir()) == []
