"""Every command of README and tutorial is run as it is printed, on a few drawn pictures and for a few steps.

A block of commands that cannot be run here has a class, in a comment before it; CLASSES says why, and ELSEWHERE which
test runs each of its commands. What all pages say of `knltrain` is parsed.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mpirun import ROOT, mpiexec

from knltrain.arguments import parser
from knltrain.cli import main
from knltrain.recipe.config import RecipeError, parse_recipe
from knltrain.tools import demo

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

PAGES = ("README.md", "docs/tutorial.md")
BLOCK = re.compile(r"(?:<!-- class: (\w+) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
CLASSES = {  # words with which its commands begin
    "install": ("python3", "pip", "module"),  # makes environments
    "long": ("make",),  # takes minutes: CI runs them whole
    "cluster": ("srun", "sbatch"),  # needs SLURM
    "container": ("docker", "apptainer", "srun", "spack"),  # needs its program: see docs/containers.md
}
ELSEWHERE = {  # of README and tutorial: the words a command begins with, and the test that runs it
    "make demo": "test_docs_commands::folder",
    "make test": "test_docs_commands::test_make_test__runs_tests",
    "python3 -m venv": "test_packaging::test_readme__installs_as_printed",
    ". .venv/bin/activate": "test_packaging::test_readme__installs_as_printed",
    "pip install": "test_packaging::test_readme__installs_as_printed",
    "module load": "test_packaging::test_readme__installs_as_printed",  # a stand-in for the site's
    "srun -n 2 knltrain doctor": "test_packaging::test_readme__installs_as_printed",  # the same
    "srun -N 4 knltrain doctor": "test_jobs_slurm::test_readme__its_doctor_looks_at_four_nodes",
    "sbatch jobs/alexnet_512knl.sh": "test_jobs_slurm::test_job__runs_to_the_end_on_four_nodes",
    "knltrain drill": "test_tools_drill::test_drill__four_kinds_on_two_ranks",
    "srun --nodes=16": "test_jobs_slurm::test_tutorial__its_line_of_srun_trains",
}
SMALLER = ("run.max_steps=3", "data.crop=48", "comm.bucket_bytes=1048576")
SHORTER = {"train": [*(word for setting in SMALLER for word in ("--set", setting)), "--progress", "lines"]}


def blocks(page):
    """(class, language, text) of each fenced block."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(text):
    """The commands of a block, as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def made(target):
    """The words of the last command that `make TARGET` would run, without the folder of its program."""
    result = subprocess.run(["make", "-n", "--no-print-directory", target], cwd=ROOT, capture_output=True, text=True)
    words = shlex.split(result.stdout.splitlines()[-1])
    return [words[0].rpartition("/")[2], *words[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `make demo` leaves, of fewer pictures and epochs, and the pictures of the README."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    (folder / "demo").mkdir()
    recipe = (ROOT / "knltrain" / "tools" / "demo.toml").read_text()
    assert recipe.count("epochs = 28.0") == 1
    (folder / "demo" / "demo.toml").write_text(recipe.replace("epochs = 28.0", "epochs = 4.0"))
    smaller = {"TRAIN_PER_CLASS": 64, "VAL_PER_CLASS": 2, "EXPECTED_TOP1": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in smaller.items():
            patch.setattr(demo, name, value)
        assert made("demo")[:1] == ["knltrain"] and main(made("demo")[1:]) == 0
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


def test_commands__of_readme_and_tutorial_are_run_or_it_is_said_where():
    found = []
    for page in PAGES:
        for kind, language, text in blocks(page):
            for words in [] if language or not kind else commands(text):
                line = shlex.join(words)
                (start,) = [start for start in ELSEWHERE if line.startswith(start)]
                file, _, name = ELSEWHERE[start].partition("::")
                assert f"def {name}" in (ROOT / "tests" / f"{file}.py").read_text(), f"{line}: no {ELSEWHERE[start]}"
                found.append(start)
    assert set(found) == ELSEWHERE.keys()  # none is listed that is not printed


def test_make_test__runs_tests():
    command = made("test")
    assert command[:4] == ["python", "-m", "pytest", "-q"]
    few = [sys.executable, *command[1:], "-n", "0", "tests/test_tools_demo.py", "-k", "absent"]
    result = subprocess.run(few, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout + result.stderr


SPAN = re.compile(r"`((?:(?:mpiexec|srun) [^`\n]*)?knltrain [a-z][^`]*)`")
STAND_INS = {"B": "32", "C": "224", "P": "2"}  # for a number


def told(page):
    """What a page says of `knltrain`, in words: commands of blocks, and of the text those with arguments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [block for kind, language, block in blocks(page) if not language and kind != "container"]
    lines = [words for block in shown for words in commands(block)]
    lines += [shlex.split(span) for span in SPAN.findall(BLOCK.sub("", text).replace("--sizes …", "--sizes 64"))]
    for words in lines:
        if "knltrain" in words:
            own = itertools.takewhile(lambda word: word not in (">", "|", "&&", ";", "&"), words)
            words = [STAND_INS.get(word, word) for word in own if word != "…"]
            words = words[words.index("knltrain") + 1 :]
            if len(words) > 1 + (words[0] == "bench") and not any("[" in word for word in words):
                yield words


def test_pages__name_commands_and_options_that_exist():
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    count = 0
    for page in ("README.md", "CONTRIBUTING.md", "jobs/README.md", *pages):
        for words in told(page):
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    args = parser().parse_args(words)
            except SystemExit:
                pytest.fail(f"{page}: knltrain {shlex.join(words)}: {said.getvalue()}")
            count += 1
            for setting in getattr(args, "set", ()) if words[0] == "train" else ():
                try:
                    parse_recipe("model.name = 'x'\ndata.train = 'y'", [setting])
                except RecipeError as error:
                    pytest.fail(f"{page}: {error}")
    assert count > 100


def test_pages__show_recipes_that_can_be_read(tmp_path):
    found = [text for path in (ROOT / "docs").glob("*.md") for _, language, text in blocks(path) if language == "toml"]
    assert len(found) >= 4
    for text in found:  # a piece of a recipe goes on with one that is whole
        if not text.startswith(("[model]", "extends")):
            text = f'extends = "resnet50_8k_sgd"\n{text}'
        recipe = parse_recipe(text, folder=tmp_path)
        assert text.count("[[phase]]") == len(recipe.phases)
