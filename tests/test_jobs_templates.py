"""The job scripts without a cluster: shell syntax, the recipes they name, and the same line under mpiexec."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from mpirun import ROOT, mpiexec
from tinyrun import STEPS, newest_state, write_recipe

from knltrain.recipe.config import load_recipe
from knltrain.recipe.derived import derive

JOBS = sorted((ROOT / "jobs").glob("*.sh"))
TEMPLATES = [path for path in JOBS if path.name not in ("env.sh", "local.sh")]
IMAGENET = 1_281_167  # training images


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_job__is_valid_shell(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck (Debian: apt-get install shellcheck)")
def test_jobs__satisfy_shellcheck():
    command = ["shellcheck", "-x", *map(str, JOBS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_job__names_what_exists_and_has_few_lines_to_edit(path):
    text = path.read_text()
    for recipe in re.findall(r"jobs/recipes/\S+?\.toml", text):
        load_recipe(ROOT / recipe)
    assert 1 <= len(re.findall(r"# *edit \d|  # edit \d", text)) <= 3
    commands = re.findall(r"^(?:survive \S+ |  )?srun python -m knltrain (\w+)", text, re.MULTILINE)
    assert commands and 'jobs/env.sh"' in text and f"--job-name={path.stem}" in text
    if commands == ["train"]:
        nodes, tasks = (int(re.search(rf"--{key}=(\d+)", text).group(1)) for key in ("nodes", "ntasks-per-node"))
        settings = re.findall(r"--set (batch\.\S+)", text)
        recipe = load_recipe(ROOT / re.search(r"jobs/recipes/\S+?\.toml", text).group(), settings)
        derived = derive(recipe, IMAGENET)
        assert derived.slots % (nodes * tasks) == 0 and f"{derived.total_steps:,} steps" in text
        folder = recipe.data.train.split("/")[-2]
        assert f"DATA=${{DATA:-${{SCRATCH:-$HOME}}/{folder}}}" in text
        assert "B:USR1@300" in text and "--requeue" in text and "--open-mode=append" in text


def test_jobs_readme__lists_every_job():
    text = (ROOT / "jobs" / "README.md").read_text()
    assert not [path.name for path in JOBS if path.name not in text]


def test_recipes__crops_of_random_area_come_from_whole_photos():
    kinds = {"imagenet": "scale_aspect", "imagenet-squares": "crop_flip"}
    packed = re.findall(r"/(imagenet\S*)} options=\((.*)\)", (ROOT / "jobs/pack_imagenet.sh").read_text())
    assert dict(packed) == {
        "imagenet": "--encoding jpeg --size 0",
        "imagenet-squares": "--encoding raw --size 256 --fit warp",
    }
    for path in sorted((ROOT / "jobs/recipes").glob("*_[0-9]*.toml")):
        data = load_recipe(path).data
        assert kinds[data.train.split("/")[-2]] == data.augmentation, path.name


@pytest.mark.parametrize("planted", [False, True])
def test_env__unpacks_a_bundle_only_where_nobody_else_can_write(tmp_path, planted):
    tools, local = tmp_path / "tools", tmp_path / "local"
    for folder in (tools, local):
        folder.mkdir()
    skip_options = 'while [ "${1#-}" != "$1" ]; do [ "$1" != -n ] || shift; shift; done'
    (tools / "srun").write_text(f'#!/bin/sh\n{skip_options}\n"$@"\n')
    (tools / "sbcast").write_text('#!/bin/sh\ncp "$2" "$3"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "module.py").write_text("")
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "all.tar"), "module.py"], check=True)
    local.chmod(0o777 if planted else 0o700)
    names = {"BUNDLE": str(tmp_path / "all.tar"), "LOCAL_DIR": str(local), "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    env = os.environ | names | {"PATH": f"{tools}:{os.environ['PATH']}", "KNLTRAIN_ROOT": str(ROOT)}
    script = f'. {ROOT}/jobs/env.sh || exit; echo "$PYTHONPATH"'
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False)
    if planted:
        assert done.returncode == 2 and "others may change" in done.stderr and not list(local.rglob("*.py"))
    else:
        assert done.returncode == 0 and done.stdout == f"{ROOT}:{local}/packages-7\n", done.stderr
        assert [path.name for path in local.rglob("*") if path.is_file()] == ["module.py"]


def test_local__runs_a_job_under_mpiexec(tmp_path):
    write_recipe(tmp_path)
    os.symlink("shards", tmp_path / "train")
    os.symlink("shards", tmp_path / "val")
    names = {"DATA": str(tmp_path), "RUN": str(tmp_path / "run"), "RECIPE": str(tmp_path / "tiny.toml")}
    path = {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"], "MPIEXEC": mpiexec()}
    env = os.environ | names | path | {"KNLTRAIN_VENV": "none", "NUMBA_NUM_THREADS": "1"}
    job = str(ROOT / "jobs" / "alexnet_512knl.sh")
    command = ["bash", str(ROOT / "jobs" / "local.sh"), "-n", "2", job, "--set", "run.checkpoint_every_steps=5"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"status: done step {STEPS}" in result.stdout
    newest_state(tmp_path, "run")
