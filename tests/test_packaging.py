"""The wheel, the containers and the Spack package: what is in them, and that it trains where nothing else is."""

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from mpirun import ROOT
from test_docs_commands import blocks
from tinyrun import train, write_recipe

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "kernels", "knltrain", "jobs")  # of a build


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves folders behind
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
        else:
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
    assert {"knltrain/py.typed", "knltrain/tools/demo.toml"} <= set(names)


def dockerfile():
    """Instruction → its arguments, in order; lines that go on are joined."""
    text = (ROOT / "containers" / "Dockerfile").read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found.setdefault(name, []).append(rest)
    return found


def definition():
    """Section → its lines, of the file for Apptainer; the head is section ""."""
    found, section = {"": []}, ""
    for line in (ROOT / "containers" / "knltrain.def").read_text().splitlines():
        if line.startswith("%"):
            section = line.strip()
            assert section not in found, f"{section} twice"
            found[section] = []
        elif line.strip() and not line.startswith("#"):
            found[section].append(line.strip())
    return found


def test_containers__say_what_both_formats_know_and_install_the_same():
    docker, apptainer = dockerfile(), definition()
    assert set(docker) == {"FROM", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert set(apptainer) == {"", "%files", "%post", "%runscript", "%test", "%labels", "%help"}
    head = dict(line.split(": ") for line in apptainer[""])
    assert head == {"Bootstrap": "docker", "From": docker["FROM"][0]}
    assert apptainer["%post"] == docker["RUN"]
    assert json.loads(docker["ENTRYPOINT"][0]) == ["knltrain"] and json.loads(docker["CMD"][0]) == ["--help"]
    lint = ["shellcheck", "-s", "sh", "-"] if shutil.which("shellcheck") else ["sh", "-n"]
    for lines in (docker["RUN"], apptainer["%runscript"], apptainer["%test"]):
        found = subprocess.run(lint, input="\n".join(lines), text=True, capture_output=True)
        assert found.returncode == 0, found.stdout + found.stderr
    assert all(line.split()[0] in ("knltrain", "exec") for line in apptainer["%runscript"] + apptainer["%test"])


def test_containers__copy_what_the_wheel_is_built_from():
    copied = {source for line in dockerfile()["COPY"] for source in line.split()[:-1]}
    assert copied == {line.split()[0] for line in definition()["%files"]} == set(SOURCES)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not copied.intersection(ignored)


def test_spack__names_what_setup_requires(wheel):
    tree = ast.parse((ROOT / "packaging" / "spack" / "packages" / "py_knltrain" / "package.py").read_text())
    (package,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert package.name == "PyKnltrain"
    calls = [node.value for node in package.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    said = {name: [call.args[0].value for call in calls if call.func.id == name] for name in ("version", "depends_on")}
    metadata = metadata_of(wheel)
    assert said["version"] == [metadata["Version"]]
    assert f"python@{metadata['Requires-Python'][2:]}:" in said["depends_on"]
    packages = {spec.split()[0].partition("@")[0].removeprefix("py-") for spec in said["depends_on"]}
    required = {re.split(r"[;\s]", text)[0] for text in metadata.get_all("Requires-Dist") if "extra" not in text}
    assert required - {"intel-openmp"} <= packages  # which Spack has for compilers alone
    assert {call.func.id for call in calls} <= {"license", "version", "variant", "depends_on"}


def test_all__is_every_extra_of_a_user(wheel):
    by_extra = {}
    for text in metadata_of(wheel).get_all("Requires-Dist"):
        package, extra = re.match(r"([\w-]+)", text)[1], re.search(r"extra == [\"'](.+?)[\"']", text)
        by_extra.setdefault(extra and extra[1], set()).add(package)
    others = (None, "all", "dev", "docs", "parity")
    used = set().union(*(some for extra, some in by_extra.items() if extra not in others))
    assert by_extra["all"] == used >= {"simplejpeg", "pillow", "mpich", "matplotlib", "pyarrow"}


def metadata_of(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The libraries of this environment without this project, so that nothing has to be fetched."""
    folder = tmp_path_factory.mktemp("libraries")
    for path in Path(next(path for path in sys.path if path.endswith("site-packages"))).iterdir():
        if "knltrain" not in path.name:
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def python(wheel, libraries, tmp_path_factory):
    """Of a new environment that sees the libraries of this one, not this project; installed by the containers' line."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    place = next((folder / "venv" / "lib").glob("python3.*")) / "site-packages"
    (place / "libraries.pth").write_text(f"{libraries}\n")
    (line,) = [line for line in dockerfile()["RUN"] if "pip install" in line]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PATH": f"{folder / 'venv' / 'bin'}:{env['PATH']}", "PIP_NO_INDEX": "1"}  # what is missing is not fetched
    how = {"env": env, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run(["sh", "-ec", line.replace("/opt/knltrain", str(wheel))], **how)
    if "No matching distribution found" in result.stderr:
        pytest.skip(f"not all extras are here: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    return folder / "venv" / "bin" / "python"


STAND_INS = 'module() { :; }; srun() { command -v "$3"; }\n'  # for what only a cluster has


def test_readme__installs_as_printed(wheel, libraries, tmp_path):
    """Both blocks in the project's folder; what they need is there already, under PYTHONPATH, and none is fetched."""
    source = wheel.parent / "source"
    first, second = (text for kind, _, text in blocks("README.md") if kind == "install")
    base = f"{sys.base_prefix}/bin"  # of the python3 that has no environment
    env = os.environ | {"PYTHONPATH": str(libraries), "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    env |= {"PATH": f"{base}:{os.environ['PATH']}"}
    how = {"cwd": source, "env": env, "capture_output": True, "text": True, "timeout": 600}
    for text in (f"{first}\nknltrain --version", second):
        result = subprocess.run(["bash", "-ec", STAND_INS + text], **how)
        if "No matching distribution found" in result.stderr:
            pytest.skip(f"not all extras are here: {result.stderr.splitlines()[-1]}")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Successfully installed knltrain" in result.stdout
        shutil.rmtree(source / ".venv")


def test_wheel__installed_as_in_the_containers_trains(python, tmp_path):
    write_recipe(tmp_path)
    assert train(tmp_path, "here", "--set", "run.max_steps=1").returncode == 0
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 400}
        result = subprocess.run(list(map(str, command)), **how)
        assert result.returncode == 0, result.stderr
        return result

    knltrain = python.with_name("knltrain")
    for line in definition()["%test"]:
        run(python, "-m", *line.split())
    assert "resnet50_32k_lars" in run(knltrain, "recipes").stdout
    run(knltrain, "train", "tiny.toml", "--run", "run", "--set", "run.max_steps=10")
    assert (tmp_path / "run" / "DONE").exists()
    assert str(python.parents[1]) in run(python, "-c", "import knltrain.kernels as k; print(k.__file__)").stdout
