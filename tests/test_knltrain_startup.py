"""Start-up of many ranks: kernels compiled once, handed on over MPI, and the phases in the log."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest
from tinyrun import train, write_recipe

from knltrain import startup
from knltrain.comm.communicator import Serial
from knltrain.kernels import cache_folder
from knltrain.tell.journal import read_log

CACHE = cache_folder()
TEXT = "[model]\nname = 'resnet_cifar8'\n[data]\n"


def compiled(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.nbc")}


def test_start__hands_the_kernels_to_the_node_and_tells_the_phases(tmp_path):
    write_recipe(tmp_path)
    assert train(tmp_path, "first", "--set", "run.max_steps=1").returncode == 0  # compiled now, if not before
    shutil.copytree(CACHE, tmp_path / "shared" / CACHE.name)
    places = {"NUMBA_CACHE_DIR": str(tmp_path / "shared"), "KNLTRAIN_NODE_CACHE": str(tmp_path / "node")}
    result = train(tmp_path, "warm", "--set", "run.max_steps=2", ranks=2, **places)
    assert result.returncode == 0 and "functions compiled" not in result.stderr, result.stderr
    assert compiled(tmp_path / "shared") <= compiled(tmp_path / "node")
    (record,) = (r for r in read_log(tmp_path / "warm") if r["kind"] == "startup")
    assert list(record["seconds"]) == ["mpi", "kernels", "imports", "shards", "model", "checkpoint", "first step"]


@pytest.fixture
def warmups(tmp_path, monkeypatch):
    """The calls of `knltrain warmup` that share_kernels makes, into tmp_path/shared, instead of the processes."""
    calls = []

    def run(command, env, **more):
        calls.append((command, env))
        place = tmp_path / "shared" / CACHE.name
        place.mkdir(parents=True, exist_ok=True)
        (place / "one.nbi").write_text("index")
        (place / "one.nbc").write_text("code")
        words = command[command.index("warmup") + 1 :]
        startup.warm_mark(place, words[0], words[2::2]).touch()
        return subprocess.CompletedProcess(command, 0, "1 functions compiled", "")

    monkeypatch.setattr(startup.subprocess, "run", run)
    for key, value in {"PMI_RANK": "3", "SLURM_JOB_ID": "1", "KNLTRAIN_NODE_CACHE": str(tmp_path / "node")}.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "r.toml").write_text(TEXT)

    def start(*overrides, recipe=tmp_path / "r.toml"):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "shared"))  # which names the node's folder afterwards
        startup.share_kernels(Serial(), recipe, overrides)

    return calls, start


def test_start__fills_a_cold_cache_by_one_process_that_knows_no_mpi(tmp_path, warmups, capsys):
    calls, start = warmups
    for _ in range(2):  # the second finds it warm
        start("a.b=1")
    ((command, env),) = calls
    assert command[-4:] == ["warmup", str(tmp_path / "r.toml"), "--set", "a.b=1"]
    assert "PMI_RANK" not in env and "SLURM_JOB_ID" not in env and env["NUMBA_CACHE_DIR"] == str(tmp_path / "shared")
    assert (tmp_path / "node" / CACHE.name / "one.nbi").read_text() == "index"
    assert cache_folder() == tmp_path / "node" / CACHE.name
    told = capsys.readouterr().err
    assert told.startswith("knltrain: compiling the kernels") and "1 functions compiled" in told


def test_start__compiles_again_for_another_recipe_or_processor_only(tmp_path, warmups, monkeypatch, capsys):
    (calls, start), recipe = warmups, tmp_path / "r.toml"
    for more in ([], ["run.seed=2"], ["data.train=/there"], ["model.width=8"], ["model.width=8", "run.epochs=3"]):
        start(*more)
    assert [command[-1] for command, _ in calls] == [str(recipe), "model.width=8"]
    (tmp_path / "beside.toml").write_text(f"{TEXT}train = '/elsewhere'\n[run]\nepochs = 3\n")
    start(recipe=tmp_path / "beside.toml")  # trains the same network
    assert len(calls) == 2
    recipe.write_text(f"{TEXT}\n[compute]\nprecision = 'bf16'\n")
    start()
    monkeypatch.setattr("knltrain.kernels.CPU", "another processor")
    start()
    assert len(calls) == 4
    said = capsys.readouterr().err
    assert (said.count("compiling the kernels"), said.count("no other did is compiled first: up to")) == (1, 3)


def test_start__of_a_recipe_that_is_not_there_is_left_to_the_run(tmp_path, warmups):
    calls, start = warmups
    start(recipe=tmp_path / "nowhere.toml")
    assert calls == []


def test_start__of_two_ranks_compiles_once_and_remembers(tmp_path):
    write_recipe(tmp_path)
    assert train(tmp_path, "before", "--set", "run.max_steps=1").returncode == 0
    cold = tmp_path / "cold" / CACHE.name
    shutil.copytree(CACHE, cold, ignore=shutil.ignore_patterns("warm-*", "softmax.*"))
    places = {"NUMBA_CACHE_DIR": str(tmp_path / "cold"), "KNLTRAIN_NODE_CACHE": ""}
    first = train(tmp_path, "first", "--set", "run.max_steps=1", ranks=2, **places)
    assert first.returncode == 0 and first.stderr.count("functions compiled") == 1, first.stderr
    (marker,) = cold.glob("warm-*")
    before = {path: path.stat().st_mtime_ns for path in [marker, *cold.rglob("softmax.*.nbc")]}
    assert len(before) > 1
    second = train(tmp_path, "second", "--set", "run.max_steps=1", ranks=2, **places)
    assert second.returncode == 0 and "functions compiled" not in second.stderr
    assert before == {path: path.stat().st_mtime_ns for path in [marker, *cold.rglob("softmax.*.nbc")]}


def test_start__of_one_process_says_once_that_it_compiles(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KNLTRAIN_NODE_CACHE", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    (tmp_path / "r.toml").write_text("[run]\nseed = 1\n")
    (cache_folder() / "one.nbc").write_text("another recipe's")
    before = dict(startup.os.environ)
    clock, lines = startup.Clock(), []
    for done in (False, True, False):  # the first start is killed in its first step
        clock.running = True
        clock.leave(startup.share_kernels(Serial(), tmp_path / "r.toml"))
        lines.append(capsys.readouterr().err.count("is compiled in the first step"))
        if done:
            clock.end_step(SimpleNamespace(record=lambda *_: None), None)
    assert lines == [1, 1, 0]
    assert dict(startup.os.environ) == before
    assert startup.share_kernels(Serial(), tmp_path / "nowhere.toml") is None


def test_pack__takes_what_is_whole_of_a_folder_that_others_write_to(tmp_path):
    folder, there = tmp_path / "kernels", tmp_path / "there"
    (folder / "warm").mkdir(parents=True)
    for name in ("a.nbi", "a.1.nbc", "warm/recipe", "a.nbi.tmp.7a731d92", "b.tmp", "c.lock"):
        (folder / name).write_text(name)
    (folder / "gone.nbc").symlink_to("nowhere")  # as one that was listed, and then renamed
    startup._unpack(startup._pack(folder), there)
    found = {path.relative_to(there).as_posix(): path.read_text() for path in there.rglob("*") if path.is_file()}
    assert found == {name: name for name in ("a.nbi", "a.1.nbc", "warm/recipe")}
