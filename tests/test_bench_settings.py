"""knltrain/bench/settings.py: settings take turns, slowed ranks get fewer slots where that is measured."""

import json

from mpirun import run_mpi
from tinyrun import RECIPE


def test_settings__slowed_ranks_and_shares_that_follow(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("global_batch = 16", "global_batch = 24"))
    ways = ["--try", "run.shares=equal comm.fc=sum", "--try", "run.shares=measured"]
    command = ["bench", "settings", str(tmp_path / "tiny.toml"), *ways, "--slow", "1", "--by", "20", "--steps", "3"]
    result = run_mpi(2, "-m", "knltrain", *command, "--set", "model.classes=3", "--json")
    assert result.returncode == 0, result.stderr
    equal, measured = json.loads(result.stdout)
    assert equal["slots"] == [3, 3] and measured["slots"][1] < 3 < measured["slots"][0]
    assert equal["slot_s"][1] > equal["slot_s"][0] and equal["step_s"] > equal["ideal_s"] > 0
    refused = run_mpi(2, "-m", "knltrain", *command[:-4], "--slow", "2")
    assert refused.returncode == 2 and "found --slow 2, expected ranks from 0 to 1" in refused.stderr
