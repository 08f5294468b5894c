"""`bench compare`: two revisions in turn, ratios of neighbours, rows that are kept with commit and machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from knltrain import cli
from knltrain.bench import compare

SAYS = """
import json, sys
print(json.dumps({{"step_seconds": {seconds}, "by_kind": {{"update": {update}}}, "what": sys.argv[1:]}}))
"""


@pytest.fixture()
def repository(tmp_path, monkeypatch):
    """A checkout whose knltrain is one file, that says other times in each of two commits."""

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "knltrain").mkdir()
    for seconds, update in ((3.0, 0.1), (2.0, 0.2)):
        (tmp_path / "knltrain" / "__main__.py").write_text(SAYS.format(seconds=seconds, update=update))
        git("add", "-A")
        git("commit", "-m", f"{seconds}")
    monkeypatch.setattr(compare, "HERE", tmp_path)
    return tmp_path


def test_compare__runs_both_revisions_and_keeps_what_they_said(repository, tmp_path, capsys):
    kept = tmp_path / "rows.json"
    assert cli.main(["bench", "compare", "--base", "HEAD~1", "--save", str(kept), "step", "--model", "alexnet"]) == 0
    record = json.loads(kept.read_text())
    assert record["ratios"] == {"step_seconds": [3.0, 2.0, 1.5], "by kind update": [0.1, 0.2, 0.5]}
    assert record["rows"]["what"] == ["bench", "step", "--model", "alexnet", "--json"]
    assert record["commit"] == compare.revision("HEAD") and record["base"] == compare.revision("HEAD~1")
    assert record["machine"]["processor"] and record["command"] == "knltrain bench step --model alexnet"
    assert "step_seconds     3000.000 ms   2000.000 ms   1.500" in capsys.readouterr().out
    listed = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True).stdout
    assert len(listed.splitlines()) == 1  # the other checkout is gone


def test_compare__measures_beside_other_options_with_the_same_code(repository, capsys):
    here = ["step", "--precision", "bf16"]
    assert cli.main(["bench", "compare", "--beside", "--precision fp32", "--rounds", "1", "--json", *here]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rows"]["what"] == ["bench", *here, "--json"] and record["ratios"]["step_seconds"] == [2.0, 2.0, 1.0]
    assert record["base_rows"]["what"] == ["bench", *here, "--precision", "fp32", "--json"]
    assert record["base"] == f"{record['commit']} --precision fp32"


def test_compare__without_a_base_measures_and_says_that_files_have_changed(repository, capsys):
    (repository / "knltrain" / "__main__.py").write_text(SAYS.format(seconds=1.0, update=0.1))
    assert cli.main(["bench", "compare", "step"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rows"]["step_seconds"] == 1.0 and record["commit"].endswith("-dirty") and "base" not in record


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "found none"),
        (["--base", "nowhere", "step"], "Needed a single revision; expected a checkout"),
        (["step", "--broken"], "`knltrain bench step --broken --json`"),
    ],
)
def test_compare__says_what_is_wrong(repository, capsys, arguments, says):
    (repository / "knltrain" / "__main__.py").write_text("import sys; sys.exit('no such thing')")
    assert cli.main(["bench", "compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_seconds__are_told_apart_by_what_a_row_is_about():
    rows = [
        {"layer": "conv1", "pass": "forward", "kernel": "conv2d_forward", "seconds": 1.0, "bytes": 8},
        {"layer": "conv1", "pass": "backward_weight", "kernel": "conv2d_backward_weight", "seconds": 2.0, "bytes": 8},
        {"ranks": 2, "bytes": 1024, "algorithm": "auto", "wire": "fp32", "seconds": 3.0},
    ]
    names = [" ".join(name) for name in compare.seconds(rows)]
    assert names[0] == "conv1 forward conv2d_forward seconds"
    assert names[1:] == ["conv1 backward_weight conv2d_backward_weight seconds", "auto fp32 1024 seconds"]


def test_this_checkout__is_found():
    assert (compare.HERE / "setup.py").exists() and Path(sys.modules["knltrain"].__file__).parents[1] == compare.HERE


def test_readme__says_what_its_rows_that_are_kept_say():
    root, count = Path(__file__).parents[1], 0
    for line in (root / "README.md").read_text(encoding="utf-8").splitlines():
        for kept in re.findall(r"\(([^()]*/rows/[^()]*\.json)\)", line):
            record = json.loads((root / kept).read_text())
            rows = record["rows"]
            assert not record["commit"].endswith("-dirty") and len(rows["torch"]) > 1, kept
            said = re.search(r"\| ([\d.]+) images/s \| ([\d.]+)[^|]*\| \*\*([\d.]+)\*\*", line).groups()
            measured = [rows[name] for name in ("images_per_s", "torch_images_per_s", "ratio_to_torch")]
            assert [float(number) for number in said] == pytest.approx(measured, rel=0.01)
            count += 1
    assert count >= 4
