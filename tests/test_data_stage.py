"""knltrain/data/stage.py and ranks.py: rank 0 alone asks the file system; shards are copied once a node."""

import os
from pathlib import Path

import numpy as np
import pytest
from mpirun import run_mpi
from ranks import on_ranks

from knltrain.data import DataSet, ShardError, stage
from knltrain.data.ranks import from_first
from knltrain.data.shards import Row, finish_shard, write_shard


def write(folder, encoding="raw", shards=4):
    random = np.random.default_rng(0)
    folder.mkdir()
    for s in range(shards):
        data = random.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
        rows = [Row(d if encoding == "raw" else d.tobytes()[: 9 + i], i % 3, f"c/{s}{i}") for i, d in enumerate(data)]
        path = folder / f"shard-{s:05d}.h5"
        write_shard(path, rows, encoding=encoding, size=4, class_names=["a", "b", "c"], plan="p")
        finish_shard(path, path, 5 * shards, 5 * s)
    return folder


def contents(data):
    return [(data.name(row), int(data.labels[row]), bytes(data.read(row))) for row in range(len(data))]


# ---- one rank asks for all -----------------------------------------------------------------------------------


def test_from_first__gives_all_ranks_the_same():
    calls = []

    def make():
        calls.append(1)
        return {"a": [1, "two"], "b": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2], "c": np.empty(0, np.uint8)}

    for found in on_ranks(3, lambda comm: from_first(comm, make)):
        assert found["a"] == [1, "two"] and found["b"].tolist() == [[0, 2], [3, 5]] and found["b"].dtype == np.int32
        assert found["c"].shape == (0,)
    assert len(calls) == 1


def test_from_first__gives_all_ranks_the_error():
    def make():
        raise FileNotFoundError(2, "No such file or directory", "/x/y")

    errors = on_ranks(3, lambda comm: from_first(comm, make), catch=(OSError, ValueError))
    assert isinstance(errors[0], FileNotFoundError)
    assert [str(error) for error in errors[1:]] == ["/x/y: No such file or directory"] * 2


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_dataset__is_opened_by_rank_0_for_all(tmp_path, encoding, monkeypatch):
    folder, opened = write(tmp_path / "d", encoding), []
    expected = contents(DataSet(folder))
    load = DataSet.__init__.__globals__["read_index"]
    monkeypatch.setitem(DataSet.__init__.__globals__, "read_index", lambda path: opened.append(path) or load(path))
    for data in on_ranks(3, lambda comm: DataSet(folder, comm)):
        assert contents(data) == expected
    assert len(opened) == 1


def test_dataset__fails_on_all_ranks_alike(tmp_path):
    (write(tmp_path / "d") / "shard-00001.h5").unlink()
    errors = on_ranks(2, lambda comm: DataSet(tmp_path / "d", comm), catch=ShardError)
    assert all(isinstance(error, ShardError) and "missing" in str(error) for error in errors)


# ---- staging -------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Both places in the test's own folder; nothing is left to the end of the interpreter."""
    ends = []
    monkeypatch.setenv("KNLTRAIN_STAGE", str(tmp_path / "stage"))
    monkeypatch.setattr(stage, "MEMORY", tmp_path / "stage")
    monkeypatch.setattr(stage.atexit, "register", lambda function, *args, **options: ends.append((function, args)))
    (tmp_path / "stage").mkdir()
    yield tmp_path / "stage", ends


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_stage__copies_once_a_node_and_is_read_there(tmp_path, place, kind, monkeypatch):
    folder, (stage_folder, ends) = write(tmp_path / "d"), place
    expected, copied = contents(DataSet(folder)), []
    copy = stage.shutil.copyfile
    monkeypatch.setattr(stage.shutil, "copyfile", lambda a, b: copied.append(Path(a).name) or copy(a, b))
    sets = on_ranks(3, lambda comm: DataSet(folder, comm, kind))
    assert sorted(copied) == [f"shard-{s:05d}.h5" for s in range(4)]  # each once, by some rank
    for path in folder.iterdir():
        path.unlink()
    for data in sets:
        assert contents(data) == expected  # the originals are gone
    (made,) = stage_folder.iterdir()
    assert made.stat().st_mode & 0o777 == 0o700 and len(ends) == 1
    function, arguments = ends[0]
    function(*arguments)
    assert not made.exists()


def test_stage__goes_on_with_what_is_there(tmp_path, place, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    folder, copied = write(tmp_path / "d"), []
    copy = stage.shutil.copyfile
    monkeypatch.setattr(stage.shutil, "copyfile", lambda a, b: copied.append(Path(a).name) or copy(a, b))
    DataSet(folder, None, "local")
    (made,) = place[0].iterdir()
    (made / "shard-00002.h5").write_bytes(b"cut short")
    (made / "shard-00003.h5").rename(made / "shard-00003.partial")
    DataSet(folder, None, "local")
    assert copied == [f"shard-{s:05d}.h5" for s in (0, 1, 2, 3, 2, 3)]


def test_stage__refuses_what_does_not_fit(tmp_path, place, monkeypatch):
    folder = write(tmp_path / "d")
    monkeypatch.setattr(stage, "_free_memory", lambda: 1000)
    with pytest.raises(ValueError, match='found room for .* GiB, but the shards take .* data.stage = "none"'):
        DataSet(folder, None, "memory")
    with pytest.raises(ValueError, match="expected one of none, local, memory"):
        DataSet(folder, None, "disk")
    monkeypatch.setenv("KNLTRAIN_STAGE", "/proc/nowhere")
    with pytest.raises(ValueError, match="set KNLTRAIN_STAGE"):
        DataSet(folder, None, "local")


def test_stage__works_on_real_ranks_and_cleans_up(tmp_path):
    folder = write(tmp_path / "d")
    (tmp_path / "stage").mkdir()
    script = (
        "import sys; from knltrain.comm import world; from knltrain.data import DataSet; comm = world();"
        "data = DataSet(sys.argv[1], comm, 'local'); print(sum(int(data.read(row).sum()) for row in range(20)));"
        "comm.barrier()"
    )
    done = run_mpi(2, "-c", script, str(folder), KNLTRAIN_STAGE=str(tmp_path / "stage"))
    assert done.returncode == 0, done.stderr
    data = DataSet(folder)
    assert done.stdout.split() == [str(sum(int(data.read(row).sum()) for row in range(20)))] * 2
    assert os.listdir(tmp_path / "stage") == []
