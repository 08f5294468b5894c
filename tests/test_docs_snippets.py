"""What the README and docs/python.md show in Python is run, as printed, on small data."""

import re

import numpy as np
from mpirun import ROOT

from knltrain.data.shards import Row, finish_shard, write_shard

SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


def _shards(folder, count):
    rng = np.random.default_rng(3)
    rows = [Row(rng.integers(0, 256, (36, 36, 3), np.uint8), i % 2, f"{i % 2}/{i:03}.png") for i in range(count)]
    folder.mkdir(parents=True)
    write_shard(folder / "part", rows, encoding="raw", size=36, class_names=["cat", "dog"])
    finish_shard(folder / "part", folder / "shard-00000.h5", len(rows), 0)


def test_readme_and_python_page__run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _shards(tmp_path / "shards" / "train", 64)
    _shards(tmp_path / "shards" / "val", 16)
    for page, expected in (("README.md", "Prediction(names=("), ("docs/python.md", "")):
        for snippet in SNIPPET.findall((ROOT / page).read_text(encoding="utf-8")):
            exec(compile(snippet, page, "exec"), {})
            assert expected in capsys.readouterr().out
    assert (tmp_path / "net.h5").exists()
