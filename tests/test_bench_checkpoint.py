"""`bench checkpoint`: a state is really written while steps go on, and nothing of it stays."""

import json

from knltrain import cli
from knltrain.bench import checkpoint
from knltrain.bench.workload import Workload
from knltrain.models.state import state

TINY = ["bench", "checkpoint", "--model", "resnet_cifar8", "--slot-batch", "2", "--set", "width=8"]


def test_bench_checkpoint__writes_whole_states_beside_steps(tmp_path, capsys, monkeypatch):
    written = []
    original = checkpoint.Restart._write
    monkeypatch.setattr(checkpoint.Restart, "_write", lambda self, job: (original(self, job), written.append(job[0])))
    assert cli.main([*TINY, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tensors = state(Workload("resnet_cifar8", 2, {"width": 8}).model.parameters)
    assert found["bytes"] == sum(array.nbytes for array in tensors.values())
    assert found["step_seconds"] > 0 and 0 < found["copy_seconds"]
    assert written == list(range(1, 2 * checkpoint.BLOCKS + 2))
    assert list(tmp_path.iterdir()) == []


def test_bench_checkpoint__prints_a_table(tmp_path, capsys):
    assert cli.main([*TINY, "--out", str(tmp_path)]) == 0
    assert "training waits" in capsys.readouterr().out
