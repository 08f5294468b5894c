"""Every command of README and tutorial is run as it is printed, on a few drawn pictures and for a few steps.

A block of commands that cannot be run here has a class, in a comment before it; CLASSES says why, and what runs it.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mpirun import ROOT, mpiexec

from knltrain.cli import main

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

PAGES = ("README.md", "docs/tutorial.md")
BLOCK = re.compile(r"(?:<!-- class: (\w+) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
CLASSES = {  # words with which its commands begin
    "install": ("python3", "pip", "module"),  # makes environments: test_packaging runs them as printed
    "long": ("make",),  # takes minutes: CI runs them
    "cluster": ("srun", "sbatch"),  # needs SLURM: test_jobs_slurm runs lines of srun, and jobs; drill has a test
    "container": ("docker", "apptainer", "srun", "spack"),  # needs its program: see docs/containers.md
}
SHORTER = {"train": ["--set", "run.max_steps=4", "--set", "comm.bucket_bytes=1048576", "--progress", "lines"]}


def blocks(page):
    """(class, language, text) of each fenced block."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(text):
    """The commands of a block, as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `make demo` leaves, but for the training, and the pictures of the README."""
    from knltrain.data import pack
    from knltrain.demo import SIZE, render

    folder = tmp_path_factory.mktemp("docs")
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    for split, per_class in (("train", 64), ("val", 2)):
        render(folder / "demo" / "jpeg" / split, split, per_class)
        pack(folder / "demo" / "jpeg" / split, folder / "demo" / "shards" / split, size=SIZE, report=None)
    (folder / "demo" / "demo.toml").write_bytes((ROOT / "knltrain" / "demo.toml").read_bytes())
    (folder / "PICTURES").symlink_to(folder / "demo" / "jpeg")
    return folder


def run(words, folder, capfd):
    """One command as the shell would run it; training is made short. Fails the test if it fails."""
    environment, launcher = {}, []
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words[0] == "mpiexec":
        at = words.index("knltrain")
        launcher, words = [mpiexec(), *words[1:at]], words[at:]
    if words[:2] == [".", ".venv/bin/activate"]:
        assert (folder / ".venv" / "bin" / "knltrain").exists()
        return ""
    assert words[0] == "knltrain", f"{shlex.join(words)}: give the block a class, or run it here"
    words = words[1:] + SHORTER.get(words[1], [])
    if launcher:
        command = [*launcher, sys.executable, "-m", "knltrain", *words]
        env = os.environ | {"NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
        result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        code, output = result.returncode, result.stdout + result.stderr
    else:
        code = main(words)
        captured = capfd.readouterr()
        output = captured.out + captured.err
    assert code == 0, f"{shlex.join(words)}\n{output}"
    return output


@pytest.mark.parametrize("page", PAGES)
def test_commands__run_as_printed(page, folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "PICTURES", ".venv"):
        (tmp_path / name).symlink_to(folder / name)
    count = 0
    for kind, language, text in blocks(page):
        if language in ("python", "toml") and page == "docs/tutorial.md":
            Path({"python": "my_nets.py", "toml": "tiny.toml"}[language]).write_text(text)
        elif not language and not kind:
            for words in commands(text):
                run(words, tmp_path, capfd)
                count += 1
    assert count >= 8
    if page == "docs/tutorial.md":
        for name in ("alone", "longer", "two", "mine", "tiny"):
            assert (tmp_path / "runs" / name / "DONE").exists()
        run_slow_snippet(capfd)


def run_slow_snippet(capfd):
    """The snippet of docs/slow.md, on the run that the tutorial has made."""
    (text,) = [text for _, language, text in blocks("docs/slow.md") if language == "python"]
    exec(compile(text, "docs/slow.md", "exec"), {})
    assert re.match(r"data \d+%, exchange \d+%, the rest is arithmetic", capfd.readouterr().out)


def test_classes__are_known_and_deserved():
    """A block has a class only where a command in it could not be run above."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for kind, _, text in blocks(path.relative_to(ROOT)):
            if kind:
                assert kind in CLASSES, f"{path}: class {kind}"
                found = [words for words in commands(text) if words[0] in CLASSES[kind]]
                assert found, f"{path}: {text}"
