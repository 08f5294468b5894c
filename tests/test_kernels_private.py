"""kernels/private.py and the caches that are claimed by it: nothing is read where another user could have put it."""

import os
import shutil
import subprocess
import sys

import numba
import pytest
from mpirun import ROOT
from tinyrun import write_recipe

from knltrain.kernels import _jit, claim, private

STRANGER = 12345
ADD = (  # compiles one small kernel
    "import numpy as np; from knltrain.kernels import accumulate_serial, cache_folder; x = np.ones(3, np.float32);"
    "accumulate_serial(x, x); print(cache_folder())"
)


def run(*arguments, **environment):
    env = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env |= {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)


def test_claim__makes_the_folder_and_its_parents_private(tmp_path):
    made = claim(tmp_path / "a" / "b")
    assert made == tmp_path / "a" / "b" == claim(made)
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700] * 2


def test_claim__takes_links_of_our_own_and_sticky_folders_on_the_way(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o1777)
    (tmp_path / "link").symlink_to("there")
    claim(tmp_path / "link" / "ours")
    assert (tmp_path / "there" / "ours").is_dir()
    claim(tmp_path / "link" / "ours" / ".." / "beside")
    (tmp_path / "deep").symlink_to(tmp_path / "there" / "ours")
    claim(tmp_path / "deep" / ".." / "over")  # .. of what the link leads to, as the system has it
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["beside", "ours", "over"]


def test_cache__of_an_import_by_another_name_is_another(tmp_path):
    """A kernel's types are named by their module: what a checkout's `kernels` leaves is not for others to load."""
    program = "import importlib, sys; print(importlib.import_module(sys.argv[1]).cache_folder())"
    names = ("knltrain.kernels", "knltrain.kernels", "kernels")
    done = [run("-c", program, name, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for name in names]
    one, again, other = (result.stdout for result in done)
    assert one == again != other and all(str(tmp_path) in place for place in (one, other))


def _of_a_stranger(path):
    if os.geteuid():
        pytest.skip("only root can give a folder to another user")
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def _folder(folder):
    folder.mkdir(parents=True)
    return folder


PLANTED = {
    "folder of a stranger": lambda place: _of_a_stranger(_folder(place)),
    "parent of a stranger": lambda place: _of_a_stranger(_folder(place).parent),
    "parent that all may write": lambda place: _folder(place).parent.chmod(0o777),
    "sticky folder itself": lambda place: _folder(place).chmod(0o1777),
    "group that may write": lambda place: (os.chown(_folder(place), -1, _group()), place.chmod(0o770)),
    "link": lambda place: (_folder(place.parent), place.symlink_to(_folder(place.parent.parent / "elsewhere"))),
    "dangling link": lambda place: (_folder(place.parent), place.symlink_to("nowhere")),
    "file": lambda place: (_folder(place.parent), place.write_text("")),
    "link of a stranger on the way": lambda place: (
        _folder(place.parent.parent / "there" / place.name),
        place.parent.symlink_to("there"),
        _of_a_stranger(place.parent),
    ),
    "stranger behind our link": lambda place: (
        _of_a_stranger(_folder(place.parent.parent / "there" / place.name).parent),
        place.parent.symlink_to("there"),
    ),
}


def _group():
    """A group that is not named like this user."""
    if os.geteuid():
        pytest.skip("only root can give a folder to any group")
    return STRANGER


@pytest.mark.parametrize("how", PLANTED)
def test_claim__refuses_what_others_may_have_planted(tmp_path, how):
    place = tmp_path / "way" / "private"
    PLANTED[how](place)
    with pytest.raises(ValueError, match="found .*; expected (a folder|that only)"):
        claim(place)


def test_claim__refuses_the_folder_of_another_user(tmp_path, monkeypatch):
    claim(tmp_path / "mine")
    monkeypatch.setattr(private.os, "getuid", lambda: STRANGER)
    with pytest.raises(ValueError, match=f"expected a folder of user {STRANGER}|others may change"):
        claim(tmp_path / "mine")


def test_private__as_a_program_ends_a_job_in_one_line(tmp_path):
    program = str(ROOT / "kernels" / "private.py")
    assert run("-I", program, str(tmp_path / "new")).returncode == 0 and (tmp_path / "new").is_dir()
    (tmp_path / "link").symlink_to("new")
    done = run("-I", program, str(tmp_path / "link"))
    assert done.returncode == 1 and done.stderr.startswith("knltrain: error: ") and done.stderr.count("\n") == 1


# ---- the cache of compiled kernels -------------------------------------------------------------------------------


def test_cache__falls_back_to_a_private_folder_with_one_line(tmp_path):
    done = run("-c", ADD, HOME="/proc/nowhere", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"knltrain-{os.getuid()}"
    assert done.stdout.strip().startswith(str(folder / "kernels-")) and list(folder.rglob("*.nbc"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert done.stderr.count("\n") == 1 and "NUMBA_CACHE_DIR or XDG_CACHE_HOME" in done.stderr, done.stderr


def test_cache__that_was_planted_is_never_read(tmp_path):
    folder = tmp_path / f"knltrain-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    write_recipe(tmp_path / "recipe")
    planted = {"NUMBA_CACHE_DIR": str(folder / "kernels"), "TMPDIR": str(tmp_path)}
    done = run("-m", "knltrain", "warmup", str(tmp_path / "recipe" / "tiny.toml"), **planted)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "others may change" in done.stderr and "set NUMBA_CACHE_DIR" in done.stderr
    assert not list(folder.iterdir())


def test_cache__is_not_touched_by_commands_that_compile_nothing(tmp_path):
    for command in (["--help"], ["describe", "resnet_cifar8"], ["shards", str(tmp_path / "none")]):
        done = run("-m", "knltrain", *command, HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path))
        assert done.returncode == (2 if "shards" in command else 0) and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_cache__of_processes_that_miss_a_kernel_at_once_one_compiles__wherever_its_copy_of_the_sources_lies(tmp_path):
    shutil.copytree(ROOT / "knltrain", tmp_path / "copy" / "knltrain", ignore=shutil.ignore_patterns("__pycache__"))
    program = ADD.replace("print(cache_folder())", "print(sum(accumulate_serial.stats.cache_misses.values()))")
    env = os.environ | {"NUMBA_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    how = {"stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=env | {"PYTHONPATH": str(place)}, **how)
        for place in (ROOT, ROOT, tmp_path / "copy")
    ]
    misses = [int(process.communicate(timeout=300)[0]) for process in running]
    assert sorted(misses) == [0, 0, 1]


def test_cache__does_not_wait_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(_jit, "_COMPILES_S", 0.05)
    held = _jit._lock(tmp_path / "lock")
    assert held is not None and _jit._lock(tmp_path / "lock") is None
    os.close(held)
    again = _jit._lock(tmp_path / "lock")
    assert again is not None
    os.close(again)
    assert _jit._lock(tmp_path / "nowhere" / "lock") is None  # no place for a lock: everybody compiles


def test_cache__of_a_kernel_that_does_not_compile_keeps_nobody_waiting(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    wrong = _jit.kernel(lambda x: x + "1")
    for _ in range(2):
        with pytest.raises(numba.TypingError):
            wrong(3.0)
    (lock,) = _jit.cache_folder().glob("*.lock")
    held = _jit._lock(lock)
    assert held is not None
    os.close(held)


def test_cache__gives_another_kernel_what_it_calls_and_reads_it_only_then(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first = _jit.kernel(lambda x: x + 1)
    assert first(3.0) == 4

    again = _jit.kernel(first.py_func)
    assert again(3.0) == 4 and sum(again.stats.cache_hits.values()) == 1
    (loaded,) = again.overloads.values()
    assert loaded.library._shared_module is None
    assert _jit.kernel(lambda x: again(x) * 2)(3.0) == 8
    assert loaded.library._shared_module is not None


def test_inlined__is_compiled_into_its_kernel_alone_and_raises_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    @_jit.inlined
    def half(x):
        if x < 0:
            raise ValueError("expected a size")
        return x / 2

    @_jit.kernel
    def more(x):
        return half(x) + 1

    for _ in range(2):  # before and after it is compiled
        with pytest.raises(TypeError, match=r"half is compiled as a part of kernels: .* or its py_func"):
            half(3.0)
        assert more(3.0) == half.py_func(3.0) + 1
        with pytest.raises(ValueError, match="expected a size"):
            more(-3.0)
    (part,) = half.overloads.values()
    assert part.library.get_pointer_to_function(part.fndesc.llvm_func_name) == 0
