"""The shape of the project, held: who may import whom, how long a file and a line of a page may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("kernels", "knltrain") for path in (ROOT / package).rglob("*.py"))
MAX_LINES, USUAL_LINES, USUAL = 400, 250, 0.9  # of a file; nine in ten have no more than USUAL_LINES
MAX_BODY, MAX_ARGUMENTS = 60, 9  # of a function: lines, and arguments beside self
# A body of LLVM's instructions, or a kernel of Numba, is given arrays and numbers one by one: it knows no objects.
MORE_ARGUMENTS = [f"kernels/{name}.py" for name in ("affine", "epilogue", "maxpool", "microkernel", "tile_amx")]

ALL = "all"
# part of the project → what it may import besides itself and the standard library: of the project (with a dot) only
# parts that stand above it
MAY_IMPORT = {
    "": "",  # knltrain/__init__.py: lazy names
    "kernels": "numpy numba llvmlite",  # llvmlite is Numba's own half: an @intrinsic is written with it
    "claims": "numpy h5py",
    "node": ".kernels numba",
    "arena": ".kernels numpy",
    "layers": ".kernels .arena numpy",
    "models": ".kernels .arena .node .layers numpy",
    "interchange": ". .claims .arena .layers .models numpy",
    "optim": ".kernels .claims .arena .layers numpy",
    "comm": ".kernels .claims .arena numpy mpi4py",
    "data": ".kernels .claims numpy PIL simplejpeg pyarrow",
    "run": ".claims .layers .models .comm numpy",
    "recipe": ". .kernels .claims .layers .models .optim .comm .data .run numpy numba",
    "tell": ". .kernels .claims .node .layers .optim .run .recipe numpy matplotlib rich tensorboardX mlflow",
    "report": ". .claims .data .tell numpy PIL",
    "trace": ".claims .layers .run .tell numpy",
    "doctor": ".kernels .claims .node .data .tell numpy",
    "trainer": ALL,  # from here on the story itself and the commands around it, which know all that stands above
    "assembly": ALL,
    "evaluate": ALL,
    "train": ALL,
    "startup": ".kernels .run .recipe numpy",
    "warmup": ALL,
    "api": ALL,
    "bench": ".kernels .claims .node .arena .layers .models .optim .comm .data .run .recipe .tell .trace .trainer "
             ".assembly numba numpy torch PIL simplejpeg",
    "plan": ".kernels .claims .node .arena .layers .models .comm .tell .bench numba numpy",
    "tools": ALL,
    "arguments": ". .claims",
    "cli": ALL,
    "__main__": ALL,
}  # fmt: skip
ONLY_IN = {
    "mpi4py": {"knltrain/comm/communicator.py"},
    "h5py": {"knltrain/claims/hdf5.py"},
    "torch": {"knltrain/bench/torch_process.py", "knltrain/bench/torch_models.py"},
}
TELL_OF_RECIPES = {"knltrain/tell/told.py", "knltrain/tell/mlperf.py"}
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
    """The part of the project that a dotted name belongs to, with a dot, as `.layers` of `knltrain.layers.conv`; else
    the package, as `numpy` of `numpy.lib`. The project itself, of which one may ask the version, is `.`."""
    first, *pieces = name.replace("knltrain.kernels", "kernels").split(".")
    if first == "knltrain":
        return "." + (pieces[0] if pieces and _exists(pieces[0]) else "")
    return ".kernels" if first == "kernels" else first


def _exists(part):
    return (ROOT / "knltrain" / part).is_dir() or (ROOT / "knltrain" / f"{part}.py").exists()


def short(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports__follow_the_table(path):
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name, _ in imports(path):
        part = part_of(name)
        assert short(path) in ONLY_IN.get(part, {short(path)}), f"{short(path)} imports {part}: {ONLY_IN[part]} may"
        if part == own or part in sys.stdlib_module_names:
            continue
        allowed = MAY_IMPORT.get(own[1:])
        assert allowed is not None, f"{own} is not in the table of {Path(__file__).name}: add what it may import"
        if allowed == ALL:
            allowed = " ".join([*(f".{above}" for above in _above(own[1:])), *LAZY, "numpy", "numba"])
        assert part in allowed.split(), f"{short(path)} imports {name}; {own} may import {allowed}"
        if (own, part) == (".tell", ".recipe"):
            assert short(path) in TELL_OF_RECIPES, f"{short(path)} imports {name}, which only {TELL_OF_RECIPES} may"


def test_imports__go_one_way():
    for part, allowed in MAY_IMPORT.items():
        assert {name[1:] for name in allowed.split() if name.startswith(".")} <= set(_above(part)), part
    there = {path.relative_to(ROOT / "knltrain").parts[0].removesuffix(".py") for path in FILES if _inside(path)}
    assert there - {"__init__"} == {*MAY_IMPORT} - {"", "kernels"}


def _above(part):
    return list(MAY_IMPORT)[: list(MAY_IMPORT).index(part)]


def _inside(path):
    return path.is_relative_to(ROOT / "knltrain")


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


# A pass that fuses writes ops anew; the others change what is another library's.
ASSIGN_OTHERS = ["layers/fusion.py", "report/markup.py", "run/faults.py", "tell/board.py"]
ASSIGN_OTHERS += [f"bench/torch_{name}.py" for name in ("models", "process")]


@pytest.mark.parametrize("path", [path for path in FILES if _inside(path)], ids=short)
def test_fields__are_assigned_where_their_class_is(path):
    """Or in the function that has made the object."""
    if path.relative_to(ROOT / "knltrain").as_posix() in ASSIGN_OTHERS:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {target.attr for target in _assigned(tree, ast.Attribute) if _is_name(target.value, {"self"})}
    for one in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        own |= {node.target.id for node in one.body if isinstance(node, ast.AnnAssign)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        made = {"self"} | {target.id for target in _assigned(function, ast.Name)}
        for target in _assigned(function, ast.Attribute):
            fine = target.attr in own or _is_name(target.value, made)
            assert fine, f"{short(path)}:{target.lineno} assigns {ast.unparse(target)}; expected a method that does"


def _assigned(tree, kind):
    """The targets of this kind of all assignments; names only where something is called, as one does to make it."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) else ():
            every = target.elts if isinstance(target, ast.Tuple) else [target]
            if kind is ast.Attribute or isinstance(node.value, ast.Call):
                yield from (one for one in every if isinstance(one, kind))


def _is_name(node, names):
    return isinstance(node, ast.Name) and node.id in names


def test_recipes__load():
    from knltrain.recipe.config import load_recipe

    recipes = [*(ROOT / "jobs" / "recipes").glob("*.toml"), ROOT / "knltrain" / "tools" / "demo.toml"]
    for path in recipes:
        load_recipe(path, [])


def test_readme__names_its_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme and "make test" in readme


def test_tests__are_named_by_the_part_they_test():
    parts = {path.name for path in (ROOT / "knltrain").iterdir() if path.is_dir()}
    parts |= {"kernels", "knltrain", "jobs", "docs", "packaging"}
    parts |= {"architecture", "fuzz"}  # what concerns all
    for path in (ROOT / "tests").glob("test_*.py"):
        part = path.stem.split("_")[1]
        assert part in parts, f"tests/{path.name}: found part {part}, expected one of {', '.join(sorted(parts))}"


PAGES = [path for folder in (".", "docs", "docs/*", "jobs") for path in sorted(ROOT.glob(f"{folder}/*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page__its_prose_has_lines_of_at_most_120(path):
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        code = fenced or line.startswith("    ") and not line.lstrip().startswith("- ")
        whole = len(line.split()) <= 2  # a long link, which no line can hold
        assert code or whole or line.startswith("|") or len(line) <= 120, f"line {number}: {len(line)} characters"


def test_setup__requires_exactly_five_packages():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    keyword = next(
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword) and node.arg == "install_requires"
    )
    names = {requirement.partition(";")[0] for requirement in ast.literal_eval(keyword.value)}
    assert names == {"numpy", "mpi4py", "numba", "h5py", "intel-openmp"}


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "kernels")], ids=short)
def test_kernels__take_no_address_of_an_array_that_nobody_holds(path):
    """Numba frees an array behind its last use, and an address is none."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    assert not [node.lineno for node in nodes if node.attr == "ctypes" and isinstance(node.value, ast.Call)]
