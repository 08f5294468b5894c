"""Schedules at numbers worked by hand or printed in the papers."""

import doctest
import math

import pytest

import knltrain.optim.schedule as schedule
from knltrain.optim.schedule import LearningRate, Schedule

ALEXNET_32K = {"policy": "poly", "base_lr": 32, "total_steps": 4000, "warmup_epochs": 10, "start_lr": 1}


def learning_rate(step, total_steps, steps_per_epoch=40, **schedule):
    return LearningRate(Schedule(**schedule), total_steps, steps_per_epoch)(step)




def test_schedule__docstring_examples_run():
    results = doctest.testmod(schedule)
    assert results.attempted >= 2 and results.failed == 0


def test_poly__from_zero_drops_where_warm_up_ends():
    assert learning_rate(0, **ALEXNET_32K) == 1
    assert learning_rate(200, **ALEXNET_32K) == 16.5  # half way from 1 to 32
    assert learning_rate(399, **ALEXNET_32K) == pytest.approx(32 - 31 / 400)
    assert learning_rate(400, **ALEXNET_32K) == pytest.approx(25.92)  # 32 * 0.9^2
    assert learning_rate(2000, **ALEXNET_32K) == 8
    assert learning_rate(4000, **ALEXNET_32K) == 0


def test_poly__from_warmup_is_continuous_and_counts_as_mlperf():
    recipe = {**ALEXNET_32K, "origin": "warmup", "end_lr": 0.5}
    assert learning_rate(400, **recipe) == 32
    # MLPerf: decay_steps = total - warmup + 1 = 3601, so step 4001 is the first at end_lr
    assert learning_rate(2200, **recipe) == pytest.approx(31.5 * (1 - 1800 / 3601) ** 2 + 0.5)
    assert learning_rate(4001, **recipe) == 0.5
    assert learning_rate(9999, **recipe) == 0.5


def test_poly__the_two_origins_differ_by_19_percent_after_warm_up():
    late = learning_rate(400, **ALEXNET_32K, origin="warmup")
    assert learning_rate(400, **ALEXNET_32K) / late == pytest.approx(0.81)


def test_warm_up__quadratic_as_nvidia():
    # start + (base - start) * (i / W)^2 = 1 + 31 / 4
    assert learning_rate(200, **ALEXNET_32K, warmup="quadratic") == 8.75


@pytest.mark.parametrize("warmup", ["linear", "quadratic"])
def test_warm_up__step_zero_is_not_lost_unless_asked(warmup):
    recipe = {"policy": "constant", "base_lr": 0.8, "total_steps": 100, "warmup_epochs": 0.2, "warmup": warmup}
    assert learning_rate(0, **recipe) == pytest.approx(0.1)
    assert learning_rate(0, **recipe, start_lr=0.0) == 0
    assert learning_rate(8, **recipe) == 0.8


def test_step__divides_at_each_milestone():
    recipe = {"policy": "step", "base_lr": 3.2, "total_steps": 90, "milestones": (0.75, 1.5, 2), "factor": 0.1}
    found = [learning_rate(t, **recipe) for t in (0, 29, 30, 59, 60, 80, 89)]
    assert found == pytest.approx([3.2, 3.2, 0.32, 0.32, 0.032, 0.0032, 0.0032])


def test_cosine__half_way_is_the_mean():
    recipe = {"policy": "cosine", "base_lr": 0.5, "total_steps": 100, "end_lr": 0.1}
    assert learning_rate(0, **recipe) == 0.5
    assert learning_rate(50, **recipe) == pytest.approx(0.3)
    assert learning_rate(25, **recipe) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2 + 0.1)
    assert learning_rate(100, **recipe) == pytest.approx(0.1)


@pytest.mark.parametrize("policy", ["poly", "step", "cosine", "constant"])
@pytest.mark.parametrize("origin", ["zero", "warmup"])
def test_schedule__rises_in_warm_up_and_then_never(policy, origin):
    recipe = {"policy": policy, "base_lr": 2.0, "total_steps": 60, "warmup_epochs": 0.7, "milestones": (2, 4)}
    recipe |= {"steps_per_epoch": 10}
    rates = [learning_rate(t, **recipe, origin=origin) for t in range(60)]
    assert all(0 < rate <= 2 for rate in rates)
    assert rates[:7] == sorted(rates[:7])
    assert rates[7:] == sorted(rates[7:], reverse=True)
