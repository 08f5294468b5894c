"""`bench records`: steps are really logged, timed and traced, and the bare ones are not."""

import json

from knltrain import cli
from knltrain.bench import records

TINY = ["bench", "records", "--model", "resnet_cifar8", "--slot-batch", "2", "--set", "width=8", "--turns", "3"]


def test_bench_records__prices_what_it_says(capsys, monkeypatch):
    kept = {}
    original = records.tempfile.TemporaryDirectory

    class Folder(original):
        def __exit__(self, *error):
            kept.update((path.name, path.read_text()) for path in records.Path(self.name).rglob("*.jsonl"))
            return super().__exit__(*error)

    monkeypatch.setattr(records.tempfile, "TemporaryDirectory", Folder)
    assert cli.main([*TINY, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step_seconds"] > 0 and set(found["share"]) == {"logged", "timed", "traced"}
    log = [json.loads(line) for line in kept.pop("log.jsonl").splitlines()]
    (trace,) = kept.values()
    steps = [record["step"] for record in log if record["kind"] == "step"]
    assert steps == [turn * 4 + place for turn in range(4) for place in (2, 3, 4)]  # but for the bare first
    assert [record["step"] for record in log if record["kind"] == "ops"] == [3, 7, 11, 15]
    traced = [json.loads(line) for line in trace.splitlines()]
    assert [record["step"] for record in traced if "step" in record] == [4, 8, 12, 16]
    assert found["trace_bytes"] >= len(trace) - 2 * len(traced)


def test_bench_records__prints_a_table(capsys):
    assert cli.main(TINY) == 0
    assert "the log of 4,000 steps, the ops of every 40th of them timed: " in capsys.readouterr().out
