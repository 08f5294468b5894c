"""The trace of a job: clocks, what is written and read back, who was late, and what a step's time hung on."""

import json
import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tinyrun

from knltrain import cli
from knltrain.claims.keys import traced_steps
from knltrain.comm import Serial
from knltrain.recipe.config import RecipeError, load_recipe
from knltrain.tell.stragglers import stragglers
from knltrain.trace import FOLDER, chrome, clocks, tracer
from knltrain.trace.critical import by_kind, critical_path
from knltrain.trace.entries import clock_error, common_steps, entries
from knltrain.trace.reading import Span, read_trace

MS = 1_000_000  # nanoseconds


class Pair:
    """Two ranks in two threads: messages through queues."""

    size = 2

    def __init__(self, rank, queues):
        self.rank, self.queues = rank, queues

    def exchange(self, out, to, into, source):
        if out is not None:
            self.queues[to].put(out.copy())
        if into is not None:
            into[:] = self.queues[self.rank].get(timeout=10)


def test_clocks__that_differ_are_found_within_the_error(monkeypatch):
    ahead = 1234.5
    shifted = SimpleNamespace(
        perf_counter=lambda: time.perf_counter() + ahead * (threading.current_thread().name == "1")
    )
    monkeypatch.setattr(clocks, "time", shifted)
    queues, found = [queue.Queue(), queue.Queue()], {}

    def measure(rank):
        found[rank] = clocks.clock_offset(Pair(rank, queues))

    threads = [threading.Thread(target=measure, args=[rank], name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found[0]["offset_s"] == found[0]["error_s"] == 0
    assert abs(found[1]["offset_s"] - ahead) <= found[1]["error_s"] < 1
    assert abs(found[1]["at"] - time.perf_counter() - ahead) < 10


def write_rank(folder, rank, spans, offset=0.0, session=1.0, steps=(7,), ranks=2):
    """The file of a rank whose clock is ahead by `offset`: spans by row, (name, kind, begin ms, ms, facts)."""
    names, rows = [], {}
    for row, inside in spans.items():
        for name, kind, begin, length, *facts in inside:
            if (name, kind) not in names:
                names.append((name, kind))
            rows.setdefault(row, []).append([names.index((name, kind)), round(begin * MS), length * MS, *facts])
    head = {"knltrain_trace": 1, "session": session, "rank": rank, "ranks": ranks, "host": f"node{rank}", "process": 9}
    lines = [head, {"at": offset, "offset_s": offset, "error_s": 1e-5}]
    for i, step in enumerate(steps):
        told = [[*name, 1000] for name in names] if i == 0 else []
        times = {"begin": 50 + i + offset, "ns": 100 * MS + 1000 * (rank == 0)}  # rank 0 is the last to end
        lines.append({"step": step, **times, "left_out": 0, "names": told, "rows": rows})
    path = folder / FOLDER / f"{steps[0]:08}-{rank:05}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def late_rank(folder, **more):
    """Rank 1 needs 60 ms for backward where rank 0 needs 30; then come an exchange of 10 ms and an update."""

    def rank(backward, exchange, wait):
        done = 20 + backward
        compute = [("conv forward", "forward", 0, 20), ("conv backward", "backward_weight", 20, backward)]
        compute += [("wait for bucket 0", "wait for exchange", done, wait), ("update", "update", 91, 9)]
        times = {"queued": done * MS, "wanted": done * MS}
        reads = [("read", "read", -5, 30, {"bytes": 1000, "read": 0.01})]
        return {"compute": compute, "exchange": [("bucket 0", "exchange", done, exchange, times)], "reader_0": reads}

    write_rank(folder, 0, rank(30, 40, 40), **more)
    return write_rank(folder, 1, rank(60, 10, 10), offset=1e4, **more)


def test_stragglers__are_who_was_last_and_by_how_much(tmp_path):
    late_rank(tmp_path, steps=(7, 8, 9))
    entered, names = entries(read_trace(tmp_path))
    (late,) = stragglers(entered)
    assert (late.rank, late.when.tolist(), names) == (1, [0, 1, 2], ["bucket 0"] * 3)
    assert late.behind == pytest.approx([0.03] * 3, abs=1e-6)


def test_stragglers__come_by_what_they_cost():
    ready = np.array([[1.0, 2.0, 3.0, 1.0], [1.1, 1.0, 1.0, 1.0], [1.0, 1.5, 2.0, 1.0]])
    first, second = stragglers(ready)
    assert (first.rank, first.when.tolist()) == (0, [1, 2]) and first.behind == pytest.approx([0.75, 1.5])
    assert second.row("node7") == ["1", "node7", "1", "100.00", "100.00"]
    assert [one.rank for one in stragglers(ready, error=0.5)] == [0] and stragglers(ready[:1]) == []


def test_stragglers__within_the_clocks_error_are_none(tmp_path):
    for rank in range(2):
        times = {"queued": 50 * MS, "wanted": 50 * MS}
        write_rank(tmp_path, rank, {"exchange": [("bucket 0", "exchange", 50 + rank * 0.005, 10, times)]})
    ranks = read_trace(tmp_path)
    entered, names = entries(ranks)
    assert stragglers(entered) and names == ["bucket 0"]
    assert stragglers(entered, clock_error(ranks)) == []


def test_critical_path__goes_to_the_late_rank_and_has_no_gaps(tmp_path):
    late_rank(tmp_path)
    path = critical_path(read_trace(tmp_path), 7)
    assert [(link.rank, link.name) for link in reversed(path) if link.end - link.begin > 1e-4] == [
        (1, "conv forward"), (1, "conv backward"), (0, "bucket 0"), (0, "between ops"), (0, "update"),
    ]  # fmt: skip
    assert path[-1].begin == pytest.approx(0, abs=1e-6) and path[0].end == pytest.approx(0.1, abs=2e-6)
    assert all(later.begin == before.end for later, before in zip(path, path[1:], strict=False))
    kinds = by_kind(path)
    assert kinds["backward_weight"] == pytest.approx(0.06, abs=1e-5) and sum(kinds.values()) == pytest.approx(
        0.1, abs=2e-6
    )


def test_critical_path__counts_a_late_begin(tmp_path):
    late = late_rank(tmp_path)
    late.write_text(late.read_text().replace('"begin": 10050.0', '"begin": 10050.2'))
    path = critical_path(read_trace(tmp_path), 7)
    assert (path[-1].rank, path[-1].name) == (1, "before the step")
    assert path[-1].begin == pytest.approx(0, abs=1e-6) and path[-1].end == pytest.approx(0.2, abs=1e-6)


def test_critical_path__goes_through_the_exchange_before_where_that_kept_the_thread(tmp_path):
    def rank(first):
        compute = [("a", "forward", 0, first), ("b", "forward", first, 10)]
        compute += [("wait for two", "wait for exchange", 40, 50)]
        times = [{"queued": at * MS, "wanted": 40 * MS} for at in (first, first + 10)]
        jobs = [("one", "exchange", first, 60 - first, times[0]), ("two", "exchange", 60, 30, times[1])]
        return {"compute": compute, "exchange": jobs}

    write_rank(tmp_path, 0, rank(10))
    write_rank(tmp_path, 1, rank(25))
    path = critical_path(read_trace(tmp_path), 7)
    names = [(link.rank, link.name) for link in path if link.end - link.begin > 1e-4]
    assert names == [(0, "between ops"), (0, "two"), (0, "one"), (1, "a")]


def test_trace__survives_cut_lines_nonsense_and_older_traces(tmp_path):
    cut = late_rank(tmp_path, steps=(7, 8))
    text = cut.read_text()
    nonsense = ["[1, 2", "null", "[]", '{"step": {}}', '{"step": 9, "begin": 1, "rows": {"compute": [[99, 0, 1]]}}']
    whole = '{"step": 9, "begin": 60, "ns": 5, "left_out": 0, "names": [], "rows": {"exchange": [[0, 1, 2]]}}'
    nonsense += [
        whole.replace(a, b) for a, b in (("60", "NaN"), ("5", "1e999"), ("[0, 1", "[-9, 1"), ("1, 2", "NaN, 2"))
    ]
    cut.write_text(text[: text.rindex("\n", 0, -1) + 40] + "\n" + "\n".join(nonsense) + "\n")
    write_rank(tmp_path, 0, {}, session=0.5, steps=(3,))
    write_rank(tmp_path, 1, {}, session=0.5, steps=(3,))
    ranks = read_trace(tmp_path)
    assert [sorted(rank.steps) for rank in ranks] == [[7, 8], [7]]
    entered, names = entries(ranks)
    assert [late.rank for late in stragglers(entered)] == [1] and len(names) == 1


def test_command__writes_what_a_viewer_reads(tmp_path, capsys):
    late_rank(tmp_path)
    assert cli.main(["trace", str(tmp_path), "--out", str(tmp_path / "t.json")]) == 0
    out = capsys.readouterr().out
    assert "on 2 ranks, clocks within 10.0 us" in out and "critical path of step 7: 100.00 ms, 1 change" in out
    assert [line.split()[:5] for line in out.splitlines() if "node1" in line] == [["1", "node1", "1", "30.00", "30.00"]]
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {1: "rank 0 (node0 process 9)", 2: "rank 1 (node1 process 9)", 3: "critical path"}
    slices, flows = load(events)
    assert flows == [((2, 2, "bucket 0"), (1, 2, "bucket 0"))]  # from the rank that was late
    assert slices[1, 3] == [(0, 30_000_000, 1, "read")] and slices[1, 1][0][0] == 5_000_000  # began before the step
    assert [one[2] for one in slices[1, 1]] == [1, 2, 2, 2, 2]


def load(events):
    """(slices by process and row, flows) as Perfetto's importer makes them of JSON; fails where it would drop one."""
    names = {kind: {} for kind in ("process_name", "thread_name")}
    timed, stacks, slices, flows, begun = [], {}, {}, [], {}
    for event in events:
        assert event["pid"] > 0 and event["tid"] > 0 and event["name"]  # 0 is the system's idle process
        if event["ph"] == "M":
            place = (event["pid"],) if event["name"].startswith("process") else (event["pid"], event["tid"])
            if event["name"] in names:
                assert names[event["name"]].setdefault(place, event["args"]["name"]) == event["args"]["name"]
        else:
            timed.append((int(event["ts"] * 1000.0), event))  # whole nanoseconds, what is behind them is cut off
            assert timed[-1][0] >= 0
    for ts, event in sorted(timed, key=lambda one: one[0]):
        place = event["pid"], event["tid"]
        assert place in names["thread_name"] and place[:1] in names["process_name"]
        stack = stacks.setdefault(place, [])
        if event["ph"] == "X":
            end = ts + int(event["dur"] * 1000.0)
            assert end >= ts
            while stack and (stack[-1][0] < ts or stack[-1][0] == ts and not ts == end == stack[-1][1]):
                stack.pop()
            assert not stack or end <= stack[-1][0], (event, stack)
            stack.append((end, ts, event["name"]))
            slices.setdefault(place, []).append((ts, end, len(stack), event["name"]))
        elif event["ph"] == "s":
            assert stack and stack[-1][1] <= ts <= stack[-1][0] and event["id"] not in begun
            begun[event["id"]] = (*place, stack[-1][2])
        else:
            assert (event["ph"], event["bp"]) == ("f", "e") and stack and stack[-1][1] <= ts <= stack[-1][0]
            flows.append((begun.pop(event["id"]), (*place, stack[-1][2])))
    assert not begun
    return slices, flows


@pytest.mark.parametrize(
    "wrong",
    [
        {"ts": 5.5, "dur": 5},  # reaches over the end of the one around it
        {"ts": -1, "dur": 5},
        {"ts": 30, "dur": -1},
        {"ts": 30, "dur": 1, "tid": 9},  # a row without a name
        {"ph": "f", "bp": "e", "ts": 5, "id": 1},  # an arrow that begins nowhere
        {"ph": "s", "ts": 25, "id": 1},  # or in no slice
    ],
)
def test_load__refuses_what_a_viewer_drops(wrong):
    place = {"pid": 1, "tid": 1, "name": "a"}
    events = [place | {"ph": "M", "name": f"{kind}_name", "args": {"name": kind}} for kind in ("process", "thread")]
    events += [place | {"ph": "X", "ts": 0, "dur": 10}, place | {"ph": "X", "ts": 20, "dur": 1}]
    assert load(events) == ({(1, 1): [(0, 10_000, 1, "a"), (20_000, 21_000, 1, "a")]}, [])
    with pytest.raises((AssertionError, KeyError)):
        load([*events, place | {"ph": "X"} | wrong])


def test_slices__that_overlap_are_cut_and_keep_their_nanoseconds():
    """Decimal microseconds are no binary numbers: cut off after the third place, one in 160 is one too small."""
    rng = np.random.default_rng(2)
    edges = np.sort(rng.integers(0, 10**12, 4000)) * 1e-9
    spans = [(Span(a, b, "op", "forward", 0, {}), {}) for a, b in zip(edges, edges[1:], strict=False)]
    spans += [(Span(edges[0], edges[-1], "step", "step", 0, {}), {}), (Span(edges[-2], 2000.0, "late", "", 0, {}), {})]
    made = list(chrome._slices({"pid": 1, "tid": 1}, spans, 0.0))
    whole = [(int(one["ts"] * 1000.0), int(one["ts"] * 1000.0) + int(one["dur"] * 1000.0)) for one in made]
    assert {(round(a * 1e9), round(b * 1e9)) for a, b in zip(edges, edges[1:], strict=False)} <= set(whole)
    place = {"ph": "M", "pid": 1, "tid": 1, "args": {"name": "x"}}
    (slices,) = load([*(place | {"name": f"{kind}_name"} for kind in ("process", "thread")), *made])[0].values()
    assert len(slices) == len(spans)


def test_command__says_what_is_missing(tmp_path, capsys):
    assert cli.main(["trace", str(tmp_path / "no")]) == 2
    assert "there is no such folder; expected the trace of a run" in capsys.readouterr().err
    late_rank(tmp_path)
    assert cli.main(["trace", str(tmp_path), "--step", "3"]) == 2
    assert "step 3 is not in the trace of all ranks; found [7]" in capsys.readouterr().err


def test_steps__are_named_in_the_recipe(tmp_path):
    assert traced_steps("steps 100..104") == range(100, 105) and traced_steps("7") == range(7, 8)
    assert not traced_steps("")
    tinyrun.write_recipe(tmp_path)
    for text in ("steps 5..1", "0..3", "1..5000", "all", "steps 1..2x"):
        with pytest.raises(RecipeError, match=r"run\.trace is .*expected \"steps FIRST\.\.LAST\""):
            load_recipe(tmp_path / "tiny.toml", [f"run.trace={text}"])


def test_trace__of_a_run_that_is_killed_holds_the_steps_before(tmp_path):
    """Two ranks: what is told agrees with itself, and one machine's clocks are found equal."""
    tinyrun.write_recipe(tmp_path)
    settings = ["--set", "run.trace=steps 2..9", "--inject", "kill:rank=1@step=6"]
    result = tinyrun.train(tmp_path, "run", *settings, ranks=2)
    assert result.returncode != 0
    ranks = read_trace(tmp_path / "run")
    assert [rank.rank for rank in ranks] == [0, 1], result.stderr
    assert all({2, 3, 4} <= set(rank.steps) for rank in ranks)
    assert all(abs(offset) <= error for rank in ranks for _, offset, error in rank.clocks)
    for rank in ranks:
        step = rank.steps[3]
        kinds = {span.kind for span in step.compute}
        assert kinds >= {"forward", "backward_input", "backward_weight", "update", "wait for exchange"}
        names = [span.name.partition(" (")[0] for span in step.exchanges]
        assert len(names) > 1 and names == [f"bucket {number}" for number in range(len(names))]
        assert any(row.startswith("reader") for one in rank.steps.values() for row in one.rows)
        ops = [span for span in step.compute if not span.kind.startswith("wait")]
        assert all(a.end <= b.begin + 1e-6 for a, b in zip(ops, ops[1:], strict=False))
        assert step.begin <= ops[0].begin and ops[-1].end <= step.end
        path = critical_path(ranks, 3)
        assert sum(by_kind(path).values()) == pytest.approx(path[0].end - path[-1].begin)
    paths = [critical_path(ranks, number) for number in common_steps(ranks)]
    assert cli.main(["trace", str(tmp_path / "run")]) == 0
    slices, flows = load(json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"])
    changes = sum(a.rank != b.rank for path in paths for a, b in zip(path, path[1:], strict=False))
    assert len(flows) == changes and all(name.startswith("bucket") for ends in flows for _, _, name in ends)
    told = sum(len(spans) for rank in ranks for step in rank.steps.values() for spans in step.rows.values())
    assert sum(len(row) for (pid, _), row in slices.items() if pid < 3) == told + sum(len(r.steps) for r in ranks)


def test_tracer__is_bounded_and_says_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(tracer, "MOST_SPANS", 40)
    monkeypatch.setattr(tracer, "MOST_BYTES", 5000)
    notes = []
    parts = SimpleNamespace(reducer=SimpleNamespace(worker=SimpleNamespace(finished=[])))
    trainer = SimpleNamespace(done=0, total=50, note=notes.append, parts=parts)
    trainer.observe = lambda *_: None
    made = tracer.Tracer(tmp_path, Serial(), range(1, 10))
    op = SimpleNamespace(owner=SimpleNamespace(name="conv"), name="forward", kind="forward", flops=5)
    for number in range(1, 10):
        made.begin_step(trainer)
        for _ in range(50):
            made.begin(op)
            made.end(op, 1e-6)
        made.end_step(trainer, SimpleNamespace(number=number, stop=False))
        trainer.done = number
    (rank,) = read_trace(tmp_path)
    last = max(rank.steps)
    assert 3 <= last < 9 and {step.left_out for step in rank.steps.values()} == {10}
    assert notes == [f"steps 1..{last} are traced (more do not fit): knltrain trace {tmp_path}"]
    assert (tmp_path / FOLDER / "00000001-00000.jsonl").stat().st_size < 5200 and len(rank.clocks) == 2
