"""What a hundredth of the steps is asked: where time went by op and by rank, and how far LARS trusts each tensor."""

from types import SimpleNamespace

import pytest

from knltrain.comm.communicator import Serial
from knltrain.run.observe import Step
from knltrain.tell import gauge
from knltrain.tell.gauge import SAMPLES, Gauge


class Clock:
    now = 5.0

    def perf_counter(self):
        return self.now


class Two(Serial):
    """This rank and another one that computes twice as long."""

    size = 2

    def gather(self, value):
        return [value, [2 * value[0], *value[1:]]]


class Trainer:
    """A training whose steps take a second and have two ops."""

    def __init__(self, observer, total, ratios):
        self.model = SimpleNamespace(observer=None)
        parameters = [SimpleNamespace(name=name) for name in ("conv.w", "conv.b", "fc.w")]
        self.parts = SimpleNamespace(optimizer=SimpleNamespace(trust_ratios=ratios, parameters=parameters))
        self.gauge, self.total, self.done, self.records = observer, total, 0, []

    def observe(self, observer):
        self.model.observer = observer

    def record(self, kind, facts):
        self.records.append((self.done, kind, facts))

    def step(self, clock):
        self.gauge.begin_step(self)
        if self.model.observer:
            for kernel, seconds in (("conv2d_forward", 0.25), ("conv2d_forward", 0.125), ("conv2d_pack", 0.5)):
                kind = "packing" if kernel == "conv2d_pack" else "forward"
                self.model.observer.end(SimpleNamespace(kind=kind, name=kernel), seconds)
        clock.now += 1.0
        self.done += 1
        waits = {"data_wait_s": 0.125 * self.done, "exchange_exposed_s": 0.25}
        self.gauge.end_step(self, Step(self.done, 0, 0.1, 1.0, 0.5, 64, 0.5, True, False, False, waits))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gauge, "time", clock)
    return clock


def trained(clock, total, comm, ratios=()):
    trainer = Trainer(Gauge(comm, total), total, dict(ratios))
    for _ in range(total):
        trainer.step(clock)
    return trainer


def test_gauge__samples_a_hundredth_of_a_long_run_and_every_step_of_a_short_one(clock):
    steps = [step for step, _, _ in trained(clock, 4 * SAMPLES, Serial()).records]
    assert steps == list(range(4, 4 * SAMPLES + 1, 4))
    assert len(trained(clock, 7, Serial()).records) == 7


def test_gauge__says_where_the_time_of_ops_and_ranks_went(clock):
    records = trained(clock, 2 * SAMPLES, Two(), {"fc.w": 2.0, "conv.w": 0.0123456}).records
    assert records[:3] == [
        (2, "ops", {
            "step_s": 1.0, "data_wait_s": 0.125, "exchange_exposed_s": 0.25,
            "seconds": {"forward": {"conv2d_forward": 0.375}, "packing": {"conv2d_pack": 0.5}},
        }),
        (2, "trust", {"ratios": {"conv.w": 0.01235, "fc.w": 2.0}}),
        (2, "ranks", {
            "steps": 2, "compute_s": [0.625, 1.25], "data_wait_s": [0.125] * 2, "exchange_exposed_s": [0.25] * 2,
        }),
    ]  # fmt: skip
    assert [*records[1][2]["ratios"]] == ["conv.w", "fc.w"]  # as in the network
    assert records[3][0] == 4  # nothing between


def test_gauge__leaves_the_ops_to_another_observer(clock):
    trainer = Trainer(Gauge(Serial(), 2), 2, {})
    other = SimpleNamespace(end=lambda op, seconds: None)
    trainer.observe(other)
    trainer.step(clock)
    assert trainer.model.observer is other and trainer.records == []
