"""The lock of a run folder: one owner, dead owners, and what killed processes leave in shared memory."""

import errno
import json
import os
import threading

import pytest

from knltrain.node import leaks
from knltrain.run import lock
from knltrain.run.lock import LOCK, Lock, OwnedError


def _left(folder, **facts):
    """A lock as another owner left it."""
    owner = Lock(folder, print).own | facts
    (folder / LOCK).write_text(json.dumps(owner))


def test_lock__has_one_owner_at_a_time(tmp_path):
    one, two = Lock(tmp_path, print), Lock(tmp_path, print)
    one.acquire()
    with pytest.raises(OwnedError, match=f"process {os.getpid()} on .*stop that one, or choose another --run"):
        two.acquire()
    one.release()
    two.acquire()
    two.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "facts",
    [
        {"process": 2**22 + 1, "begun": 5},  # no such process on this host
        {"begun": 1},  # another process had this number
        {"host": "elsewhere", "job": "77", "restart": 0},  # SLURM has begun this job anew
    ],
)
def test_lock__of_a_dead_owner_is_taken_over_with_a_note(tmp_path, monkeypatch, facts):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    _left(tmp_path, **facts)
    said = []
    mine = Lock(tmp_path, said.append)
    mine.acquire()
    assert json.loads((tmp_path / LOCK).read_text()) == mine.own
    assert len(said) == 1 and "without giving it back" in said[0]
    mine.release()


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_lock__of_another_host_or_unreadable_counts_while_it_is_touched(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "LOOK_S", 0.01)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    _left(tmp_path, host="elsewhere")
    if content is not None:
        (tmp_path / LOCK).write_text(content)
    said = []

    def waits(line):  # the owner, somewhere
        said.append(line)
        threading.Timer(0.1, os.utime, [tmp_path / LOCK]).start()

    with pytest.raises(OwnedError, match="alive"):
        Lock(tmp_path, waits).acquire()
    assert len(said) == 1 and "to see whether that run lives" in said[0]
    said = []
    mine = Lock(tmp_path, said.append)  # nobody touches it any more
    mine.acquire()
    assert "to see whether" in said[0] and (len(said) == 2) == (content is None)
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_lock__that_a_full_disk_leaves_empty_is_removed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.json, "dump", full)
    with pytest.raises(OSError, match="No space left.*lock"):
        Lock(tmp_path, print).acquire()
    assert list(tmp_path.iterdir()) == []


def test_lock__moves_while_its_owner_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    mine = Lock(tmp_path, print)
    mine.acquire()
    os.utime(tmp_path / LOCK, (1, 1))
    for _ in range(500):
        if (tmp_path / LOCK).stat().st_mtime > 1:
            break
        mine._done.wait(0.01)
    assert (tmp_path / LOCK).stat().st_mtime > 1
    mine.release()


def test_sweep__removes_what_dead_processes_left_and_nothing_else(tmp_path, monkeypatch):
    mine, dead = os.getpid(), 4194999
    names = [f"__KMP_REGISTERED_LIB_{dead}_0", "mpich_shm_dead", "mpich_shm_open", "hydra_hwloc_xmlfile_x", "other"]
    for name in [f"__KMP_REGISTERED_LIB_{mine}_0", *names]:
        (tmp_path / name).touch()
    for number in (mine, dead):
        (tmp_path / f"ompi.{number}" / "1").mkdir(parents=True)
    monkeypatch.setattr(leaks, "PATTERNS", [(tmp_path, *rest) for _, *rest in leaks.PATTERNS])
    with open(tmp_path / "mpich_shm_open"):
        assert {path.name for path in leaks.sweep()} == {names[0], "mpich_shm_dead", f"ompi.{dead}"}
    now = (tmp_path / "other").stat().st_mtime + 100
    assert {path.name for path in leaks.sweep(now)} == {"mpich_shm_open", "hydra_hwloc_xmlfile_x"}
    assert {path.name for path in tmp_path.iterdir()} == {f"__KMP_REGISTERED_LIB_{mine}_0", "other", f"ompi.{mine}"}
