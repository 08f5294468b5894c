"""Shares by measured speeds, decided once and alike on all ranks; a rank that is always slow is named once."""

from threading import get_ident as current
from types import SimpleNamespace

import pytest
from ranks import on_ranks

from knltrain.comm import Shares
from knltrain.run.balance import FIRST, SKIPPED, STEPS, Balance, read_speeds


def _run(slot_s, steps, measured, monkeypatch):
    """(notes, slots) of each rank after steps in which rank r takes slot_s[r] for each of its slots."""
    clocks = {}  # of each thread
    monkeypatch.setattr("knltrain.run.balance.time.perf_counter", lambda: clocks[current()])

    def work(comm):
        balance, notes, clocks[current()] = Balance(comm, measured), [], 0.0
        told = {"note": notes.append, "record": lambda *_: None}
        trainer = SimpleNamespace(parts=None, **told)

        def share(speeds):
            shares = Shares.of(24, speeds)
            reducer = SimpleNamespace(slots=len(shares.ranges[comm.rank]))
            trainer.parts = SimpleNamespace(shares=shares, reducer=reducer)

        trainer.share = share
        share([1.0] * comm.size)
        for _ in range(steps):
            balance.begin_step(trainer)
            clocks[current()] += trainer.parts.reducer.slots * slot_s[comm.rank] + 0.5
            balance.end_step(trainer, SimpleNamespace(waits={"exchange_exposed_s": 0.5}))
        return notes, trainer.parts.reducer.slots

    return on_ranks(len(slot_s), work)


def test_balance__slower_ranks_get_fewer_slots(monkeypatch):
    results = _run([0.1, 0.1, 0.2, 0.2], SKIPPED + FIRST, True, monkeypatch)
    assert [slots for _, slots in results] == [8, 8, 4, 4]
    assert all(notes[0].endswith("a step computes 800 ms, not 1200") for notes, _ in results)


def test_balance__equal_ranks_stay_as_they_are(monkeypatch):
    results = _run([0.1, 0.101, 0.1, 0.1], 2 * STEPS, True, monkeypatch)
    assert [slots for _, slots in results] == [6, 6, 6, 6]
    assert [len(notes) for notes, _ in results] == [1] * 4 and "shares stay" in results[0][0][0]


def test_balance__a_slow_rank_is_named_once(monkeypatch):
    notes = _run([0.1, 0.1, 0.11, 0.1], SKIPPED + 3 * STEPS, False, monkeypatch)[0][0]
    assert len(notes) == 1
    assert "rank 2 (" in notes[0] and "10% longer" in notes[0] and "waits 60 ms" in notes[0] and "measured" in notes[0]


def test_read_speeds__says_which_line_is_wrong(tmp_path):
    path = tmp_path / "speeds.txt"
    path.write_text("# of the old rack\nnode07 0.8\n\nnode08 1  # new\n")
    assert read_speeds(path) == {"node07": 0.8, "node08": 1.0}
    for line in ("node07", "node07 fast", "node07 0", "node07 nan", "node07 1 1"):
        path.write_text(f"node01 1\n{line}\n")
        with pytest.raises(ValueError, match="speeds.txt:2: found .*expected HOST SPEED"):
            read_speeds(path)
