"""The shape of the project, held: who may import whom, how long a file may be, what the README must name."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("kernels", "knltrain") for path in (ROOT / package).rglob("*.py"))
MAX_LINES, USUAL_LINES, USUAL = 400, 250, 0.9  # of a file; nine in ten have no more than USUAL_LINES
MAX_BODY, MAX_ARGUMENTS = 60, 9  # of a function: lines, and arguments beside self
# A body of LLVM's instructions, or a kernel of Numba, is given arrays and numbers one by one: it knows no objects.
MORE_ARGUMENTS = [
    f"kernels/{name}.py"
    for name in ("adaptive", "affine", "batchnorm", "conv/transform", "image", "microkernel", "tile_amx")
]

# part of the project → the parts that it may import, besides itself and the standard library
MAY_IMPORT = {
    "kernels": {"numpy", "numba", "llvmlite"},  # llvmlite is Numba's own half: an @intrinsic is written with it
    "knltrain.arena": {"knltrain.kernels", "numpy"},
    "knltrain.layers": {"knltrain.kernels", "knltrain.arena", "numpy"},
    "knltrain.models": {"knltrain.kernels", "knltrain.arena", "knltrain.hardware", "knltrain.layers", "numpy"},
    "knltrain.interchange": {
        "knltrain", "knltrain.arena", "knltrain.layers", "knltrain.models", "knltrain.keys", "knltrain.whole", "numpy",
    },
    "knltrain.optim": {"knltrain.kernels", "knltrain.arena", "knltrain.layers", "knltrain.keys", "numpy"},
    "knltrain.comm": {"knltrain.kernels", "knltrain.arena", "knltrain.text", "numpy", "mpi4py"},
    "knltrain.data": {
        "knltrain.kernels", "knltrain.hdf5", "knltrain.keys", "knltrain.text", "knltrain.whole", "numpy",
        "h5py", "PIL", "simplejpeg", "pyarrow",
    },
    "knltrain.checkpoint": {"knltrain.text", "knltrain.whole", "knltrain.hdf5", "knltrain.keys", "numpy", "h5py"},
    "knltrain.accuracy": {"knltrain.kernels", "numpy"},
    "knltrain.balance": {"knltrain.comm", "knltrain.observe"},
    "knltrain.gauge": {"knltrain.layers", "knltrain.observe"},
    "knltrain.background": set(),
    "knltrain.restart": {"knltrain.background", "knltrain.checkpoint", "knltrain.keys", "knltrain.models", "numpy"},
    "knltrain.lifecycle": {"knltrain.lock", "knltrain.whole"},
    "knltrain.keys": set(),
    "knltrain.arguments": {"knltrain", "knltrain.keys", "knltrain.text", "knltrain.toml"},
    "knltrain.text": set(),
    "knltrain.toml": set(),
    "knltrain.errors": {"knltrain.text"},
    "knltrain.hdf5": {"knltrain.keys", "numpy", "h5py"},
    "knltrain.whole": set(),
    "knltrain.observe": set(),
    "knltrain.lock": set(),
    "knltrain.leaks": set(),
    "knltrain.inherit": set(),
    "knltrain.startup": {"knltrain.observe", "knltrain.inherit", "knltrain.kernels", "numpy"},
    "knltrain.doctor": {
        "knltrain.kernels", "knltrain.arena", "knltrain.data", "knltrain.machine", "knltrain.journal",
        "knltrain.hardware",
        "knltrain.screen", "knltrain.leaks", "knltrain.text", "numpy",
    },
    "knltrain.faults": {"knltrain.observe", "knltrain.checkpoint", "knltrain.layers", "knltrain.lifecycle", "numpy"},
    "knltrain.stragglers": {"numpy"},
    "knltrain.trace": {
        "knltrain.observe", "knltrain.layers", "knltrain.stragglers", "knltrain.text", "knltrain.whole", "numpy",
    },
    "knltrain.hardware": set(),
    "knltrain.machine": {"knltrain.kernels", "knltrain.journal", "knltrain.hardware", "numba"},
    "knltrain.board": {"knltrain.text", "rich", "tensorboardX", "mlflow"},
    "knltrain.screen": {"knltrain.board", "knltrain.hardware", "knltrain.text"},
    "knltrain.dashboards": {"knltrain.observe", "knltrain.whole", "numpy", "tensorboardX", "mlflow"},
    "knltrain.watch": {"knltrain.journal", "knltrain.lifecycle", "knltrain.lock", "knltrain.screen", "knltrain.text"},
    "knltrain.journal": {"knltrain.observe", "knltrain.screen", "knltrain", "knltrain.whole"},
    "knltrain.report": {
        "knltrain", "knltrain.data", "knltrain.journal", "knltrain.plots", "knltrain.stragglers", "knltrain.text",
        "knltrain.whole", "numpy", "PIL",
    },
    "knltrain.pictures": {"numpy", "PIL"},
    "knltrain.plots": {"knltrain.text", "numpy", "matplotlib"},
    "knltrain.bench": {
        "knltrain.kernels", "knltrain.arena", "knltrain.comm", "knltrain.data", "knltrain.layers", "knltrain.models",
        "knltrain.optim", "knltrain.demo", "knltrain.plots", "knltrain.journal", "knltrain.restart", "knltrain.trainer",
        "knltrain.balance", "knltrain.gauge", "knltrain.machine", "knltrain.observe", "knltrain.screen",
        "knltrain.trace", "knltrain.whole",
        "numba", "numpy", "torch", "PIL", "simplejpeg",
    },
    "knltrain.plan": {
        "knltrain.kernels", "knltrain.arena", "knltrain.layers", "knltrain.models", "knltrain.comm", "knltrain.keys",
        "knltrain.machine", "knltrain.journal", "knltrain.whole", "knltrain.bench", "knltrain.plots", "numba", "numpy",
    },
    "knltrain": set(),
}
KNOW_ALL = {
    "train", "trainer", "api", "evaluate", "experiment", "cli", "demo", "drill", "starter", "warmup", "config",
    "portable", "show", "__main__", "phases", "lint", "mlperf", "derived", "told",
}  # fmt: skip
ONLY_IN = {
    "mpi4py": {"knltrain/comm/communicator.py"},
    "h5py": {"knltrain/hdf5.py", "knltrain/data/shards.py", "knltrain/checkpoint.py"},
    "torch": {"knltrain/bench/torch_process.py", "knltrain/bench/torch_models.py"},
    "knltrain.config": {
        f"knltrain/{name}.py"
        for name in (
            "train", "trainer", "api", "evaluate", "experiment", "cli", "demo", "starter", "warmup", "show", "portable",
            "phases", "lint", "mlperf", "derived", "told",
        )
    },
}
LAZY = {  # extras: the project must import without them
    "PIL", "simplejpeg", "matplotlib", "pyarrow", "rich", "tensorboardX", "mlflow",
}  # fmt: skip


def imports(path):
    """(dotted name, is it at the top level of the file) of every import; `from a import b` gives a and a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            found = [base] + [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            yield name, node in tree.body


def part_of(name):
    """The part that a dotted name belongs to: `knltrain.layers.conv` → `knltrain.layers`, `numpy.lib` → `numpy`."""
    pieces = name.split(".")
    depth = 2 if pieces[0] == "knltrain" and len(pieces) > 1 and _exists(pieces[:2]) else 1
    return ".".join(pieces[:depth])


def _exists(pieces):
    return ROOT.joinpath(*pieces).is_dir() or ROOT.joinpath(*pieces).with_suffix(".py").exists()


def short(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports__follow_the_table(path):
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name, _ in imports(path):
        part = part_of(name)
        if part in ONLY_IN and part != own:
            assert short(path) in ONLY_IN[part], f"{short(path)} imports {part}, which only {ONLY_IN[part]} may"
        if part == own or part in sys.stdlib_module_names or own.removeprefix("knltrain.") in KNOW_ALL:
            continue
        allowed = MAY_IMPORT.get(own)
        assert allowed is not None, f"{own} is not in the table of {Path(__file__).name}: add what it may import"
        assert part in allowed, f"{short(path)} imports {name}; {own} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports__of_extras_are_lazy_or_guarded(path):
    eager = [name for name, top in imports(path) if top and part_of(name) in LAZY]
    assert not eager, f"{short(path)} imports {eager} on import; extras belong into the function that needs them"


def test_kernels__are_used_through_their_door():
    for path in [*FILES, *(ROOT / "tests").glob("*.py")]:
        if path.is_relative_to(ROOT / "kernels") or path.name.startswith("test_kernels"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = [node.module for node in ast.walk(tree) if _enters_kernels(node)]
        assert not inside, f"{short(path)} imports from {inside}, expected `from knltrain.kernels import name`"


def _enters_kernels(node):
    return isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("knltrain.kernels.")


def test_files__stay_short():
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert sum(lines <= USUAL_LINES for lines in lengths.values()) >= USUAL * len(lengths)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_functions__stay_short_and_take_few_arguments(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            a, lines = node.args, node.end_lineno - node.lineno + 1
            names = [one.arg for one in (*a.posonlyargs, *a.args, *a.kwonlyargs) if one.arg not in ("self", "cls")]
            assert lines <= MAX_BODY, f"{short(path)}: {node.name} has {lines} lines, expected at most {MAX_BODY}"
            few = len(names) <= MAX_ARGUMENTS or short(path) in MORE_ARGUMENTS
            assert few, f"{short(path)}: {node.name} takes {len(names)}, expected at most {MAX_ARGUMENTS}: an object?"


def test_recipes__load():
    from knltrain.config import load_recipe

    recipes = [*(ROOT / "jobs" / "recipes").glob("*.toml"), ROOT / "knltrain" / "demo.toml"]
    for path in recipes:
        load_recipe(path, [])


def test_readme__names_its_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme and "make test" in readme


def test_setup__requires_exactly_five_packages():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    keyword = next(
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword) and node.arg == "install_requires"
    )
    names = {requirement.partition(";")[0] for requirement in ast.literal_eval(keyword.value)}
    assert names == {"numpy", "mpi4py", "numba", "h5py", "intel-openmp"}
