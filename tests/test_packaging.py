"""The wheel: what is in it, and that it trains where nothing else of the project is."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from mpirun import ROOT
from tinyrun import write_recipe


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves folders behind
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("knltrain", "kernels", "jobs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def test_wheel__holds_one_package_with_kernels_and_recipes(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"knltrain"}
    kernels = {path.name for path in (ROOT / "kernels").glob("*.py")}
    assert {name.rpartition("/")[2] for name in names if name.startswith("knltrain/kernels/")} >= kernels
    recipes = {path.name for path in (ROOT / "jobs" / "recipes").glob("*.toml")}
    assert {name.rpartition("/")[2] for name in names if name.startswith("knltrain/recipes/")} == recipes
    assert {"knltrain/py.typed", "knltrain/demo.toml"} <= set(names)


def test_wheel__installed_alone_trains(wheel, tmp_path):
    """In a new environment that sees the libraries of this one, but not this project."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    place = next((tmp_path / "venv" / "lib").glob("python3.*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(place)
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (place / "libraries.pth").write_text(libraries + "\n")
    write_recipe(tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-m", "knltrain"]

    def run(*arguments):
        how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 400}
        result = subprocess.run([*command, *arguments], **how)
        assert result.returncode == 0, result.stderr
        return result

    assert "resnet50_32k_lars" in run("recipes").stdout
    run("train", "tiny.toml", "--run", "run", "--set", "run.max_steps=10")
    assert (tmp_path / "run" / "DONE").exists()
    where = [str(python), "-c", "import knltrain.kernels as k; print(k.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert found.startswith(str(tmp_path / "venv"))
