"""The documentation as a site, its figures and its notebook."""

import re
import subprocess
import sys

import pytest
from mpirun import ROOT

from knltrain.data.shards import METADATA

sys.path.insert(0, str(ROOT / "docs"))


def test_notebook__runs():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(ROOT / "docs" / "first_steps.ipynb", as_version=4)
    nbformat.validate(notebook)
    kept = [_printed(cell) for cell in notebook.cells]
    client = nbclient.NotebookClient(
        notebook, timeout=400, startup_timeout=300, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    found = [_printed(cell) for cell in notebook.cells]
    assert sum(map(bool, found)) >= 5 and [bool(text) for text in found] == [bool(text) for text in kept]
    top1 = float(re.search(r"top-1 ([\d.]+)%", "".join(found))[1])
    assert top1 > 50  # of eight classes


def _printed(cell):
    """What a cell printed or returned, without pictures."""
    outputs = cell.get("outputs", ())
    return "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in outputs)


def test_figures__show_what_the_program_has(tmp_path):
    pytest.importorskip("matplotlib")
    import figures

    figures.draw(tmp_path)
    texts = {name: (tmp_path / name).read_text(encoding="utf-8") for name in figures.FIGURES}
    assert all((ROOT / "docs" / "figures" / name).exists() for name in texts)
    assert all(name in texts["program.svg"] for name in ("conv1.y", "forward", "backward", figures.NETWORK))
    needed, placed = map(
        int, re.search(r"memory, (\d+) MiB if each had its own, (\d+) MiB", texts["program.svg"]).groups()
    )
    assert needed > placed > 0
    assert texts["sums.svg"].count(">+<") == 11 and "or any number of them" in texts["sums.svg"]
    assert all(f">{name}<" in texts["shard.svg"] for name in METADATA["jpeg"])


def test_docstrings__become_text_whatever_they_hold():
    generated = pytest.importorskip("generated", reason="needs docutils, of the extra docs", exc_type=ImportError)
    lines = ["Sums a*b over |x| of `f(x)`s, x_ too.", "", "Where:", "  a  one", "  b  two", "", "- no list"]
    generated.as_restructured(None, "function", "f", None, None, lines)
    first, where, literal, *block = filter(None, lines)
    assert first == r"Sums a\*b over \|x\| of ``f(x)``\ s, x\_ too." and (where, literal) == ("Where:", "::")
    assert [line.strip() for line in block] == ["a  one", "b  two", r"\- no list"] and block[0].startswith("    ")


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import sphinx, myst_nb, furo"], capture_output=True).returncode != 0,
    reason="needs pip install knltrain[docs]; CI runs make docs",
)
def test_site__is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"docs/index.html", "README.html", "docs/first_steps.html", "docs/api/knltrain.html"} <= pages
    page = (tmp_path / "site" / "docs" / "recipe_keys.html").read_text(encoding="utf-8")
    keys = re.sub("<[^>]+>", "", page)
    assert "global_batch = 256" in keys and "images per update, over all ranks" in keys
