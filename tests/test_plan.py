"""The planner: arithmetic by hand, machine files as claims, published runs predicted without their own result."""

import json
import math
import time
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from ranks import Rank, on_ranks

from knltrain.cli import main
from knltrain.comm import Curve
from knltrain.kernels import ARCH
from knltrain.models import build
from knltrain.plan import command, measure
from knltrain.plan.cost import Cost, op_cost, step_cost, task_count, training_program, update_cost, waste
from knltrain.plan.exchange import Job, Scheme, _exposed, between, exchange, sum_seconds
from knltrain.plan.machine import KNOWN, RULES, Machine, MachineError, load_machine, machines
from knltrain.plan.published import WITHIN, Published
from knltrain.plan.run import Training, cores_of, predict
from knltrain.recipe.config import Comm

ROUND = dict.fromkeys(KNOWN, 1.0) | {  # a machine to calculate by hand with
    "node.cores": 10.0, "node.core_gflops": 10.0, "node.core_bf16_gflops": 20.0, "node.memory_gb_s": 50.0,
    "node.core_memory_gb_s": 10.0, "node.cache_mb": 0.001, "node.call_us": 0.0, "node.fork_us": 0.0,
    "program.exchange_cycles": 0.0, "program.exchange_us": 0.0, "network.latency_us": 1.0, "network.gb_s": 1.0,
}  # fmt: skip
MACHINE = Machine("round", numbers=ROUND)


@pytest.fixture(scope="module")
def alexnet():
    return training_program(*build("alexnet_bn"), slot_batch=64)


# ---- machine files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", machines())
def test_machines__every_number_has_a_source(name):
    machine = load_machine(name)
    assert set(machine.numbers) == set(KNOWN)
    assert all(len(source) > 3 for source in machine.sources.values())
    assert machine.processor and machine.fabric


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[node]\ncoers = [68, 's']", "unknown key node.coers; the nearest known one is node.cores"),
        ("[node]\ncores = 68", 'node.cores is 68; expected [number, "where it is from"]'),
        ("[node]\ncores = [68, '']", "expected [number"),
        ("[node]\ncores = [true, 's']", "expected [number"),
        ("[node]\ncores = [0, 's']", "node.cores is 0; expected 1 or more"),
        ("[node]\ncores = [nan, 's']", "expected a finite number"),
        ("[node]\ncores = [inf, 's']", "expected a finite number"),
        (f"[node]\ncores = [{10**400}, 's']", "expected a finite number"),
        ("[shares]\nupdate = [3.0, 's']", "shares.update is 3.0; expected at most 2.0"),
        ("cores = [68, 's']", "cores stands outside a section"),
        ("extends = 'nobody'", "extends is 'nobody'"),
        ("extends = '../machines/epyc'", "expected a shipped machine"),
        ("extends = 7", "extends is 7"),
        ("[node]\ncores = [68, 's']", "is missing"),
        ("[node", "no TOML"),
    ],
)
def test_machines__a_wrong_file_is_one_line(tmp_path, text, expected):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(MachineError) as error:
        load_machine(path)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_machines__a_file_may_extend_a_shipped_one(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("extends = 'skx8160'\n[network]\ngb_s = [1.11, 'ours']")
    assert load_machine(path).gb_s == 1.11
    assert load_machine(path).cores == load_machine("skx8160").cores


def test_machines__part_of_a_name_serves_where_one_has_it():
    assert load_machine("knl7250").name == "stampede2_knl7250"
    with pytest.raises(MachineError, match="did you mean skx8160"):
        load_machine("skx816O")


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_cost__is_the_roofline_of_the_busy_cores():
    # 12 tasks on 10 cores take two waves: 6 cores' worth. 12 x 65,536 numbers, 9 passes of 4 bytes, min(60, 50) GB/s
    one = update_cost(12 << 16, MACHINE, 10, lars=True)
    assert (one.tasks, one.bound) == (12, "memory") and one.idle == pytest.approx(0.4)
    assert one.seconds == pytest.approx(9 * 4 * (12 << 16) / 50e9)


def test_cost__flops_made_count_and_shares_divide(alexnet):
    op = next(op for op in alexnet.forward if op.flops and op.arithmetic == op.flops)
    half = Machine(
        "half", numbers=ROUND | {f"shares.{op.kind}": 0.5, "node.core_memory_gb_s": 1e4, "node.memory_gb_s": 1e5}
    )
    busy = 10 * (1 - op_cost(op, half, 10).idle) / waste(op)
    assert op_cost(op, half, 10).seconds == pytest.approx(op.arithmetic / (busy * 10e9) / 0.5)
    assert op_cost(op, half, 10, "bf16").seconds == pytest.approx(op.arithmetic / (busy * 20e9) / 0.5)


def test_cost__waste_of_tiles(alexnet):
    by = {(op.owner.name, op.kind): waste(op) for op in alexnet.ops if op.flops}
    assert by["conv1", "forward"] == pytest.approx(1 + 48 / 363)  # 11 x 11 x 3 steps, 96 channels are three tiles
    filters = 1 + 120 / (64 * 27 * 27)
    assert by["conv2", "backward_input"] == pytest.approx(64 / 48 * (1 + 10 * (1 / 48 + 1 / 128)) * filters)  # 2 groups
    assert by["fc8", "forward"] == pytest.approx(1024 / 1000 * 70 / 64)  # 64 images are five tiles of 14 rows


class Asked(Exception):
    """Tasks that a kernel was about to run."""


@pytest.mark.skipif(ARCH.name != "avx512", reason="described machines have the tiles of AVX-512, 32 channels wide")
@pytest.mark.parametrize("network", ["resnet_cifar20", "alexnet_bn"])
def test_cost__tasks_are_those_of_the_kernels(network, monkeypatch):
    def ask(tasks, job):
        raise Asked(tasks)

    checked = 0
    for op in training_program(*build(network), slot_batch=4).ops:
        plan = op.others.get("plan")
        if plan is None or op.kind == "packing" or plan.x_shape[3] == 3:  # the stem makes a padded copy first
            continue
        method = getattr(plan, op.kind)
        monkeypatch.setattr(method, "nest", ask, raising=False)
        x, y, w = (np.zeros(shape, np.float32) for shape in (plan.x_shape, plan.y_shape, plan.w_shape))
        scratch = np.zeros(max(plan.workspace_size, getattr(method, "packed_size", 0), w.size), np.float32)
        arrays = {"forward": (x, scratch, y, w[:0, 0, 0, 0]), "backward_input": (y, scratch, x, w[:0, 0, 0, 0])}
        with pytest.raises(Asked) as asked:
            method.run(*arrays.get(op.kind, (x, y, w)), scratch)
        assert asked.value.args[0] == task_count(op, numba.get_num_threads()), (op.owner.name, op.kind)
        checked += 1
    assert checked > 20


# ---- exchange ------------------------------------------------------------------------------------------------------


def test_exchange__is_the_formula_of_the_algorithm():
    n = 1 << 24
    assert sum_seconds(n, MACHINE, Scheme(8)) == (0.0, pytest.approx(2 * 3 * 1e-6 + 2 * 7 / 8 * n / 1e9))
    assert sum_seconds(n, MACHINE, Scheme(6))[1] == pytest.approx((5 + 3) * 1e-6 + 2 * 5 / 6 * n / 1e9)
    assert sum_seconds(1 << 12, MACHINE, Scheme(8))[1] == pytest.approx(3 * (1e-6 + (1 << 12) / 1e9))
    assert sum_seconds(n, MACHINE, Scheme(1, 4)) == (pytest.approx(5 * n / 50e9), 0.0)
    four = sum_seconds(n, MACHINE, Scheme(8, 4, "bf16"))[1]  # a quarter of the bytes on a quarter of the link, halved
    assert four == pytest.approx(2 * 3 * 1e-6 + 2 * 7 / 8 * n / 2 / 1e9)


@pytest.mark.parametrize(
    ("nodes", "fc", "megabytes"),
    [(8, "sum", 427), (8, "factors", 64), (512, "sum", 487), (512, "split", 118)],
)
def test_exchange__bytes_of_fully_connected_layers(alexnet, nodes, fc, megabytes):
    step = step_cost(alexnet, MACHINE, 8)
    sent = exchange(alexnet, step, MACHINE, Scheme(nodes, fc=fc), 64 * nodes, reserved=True).sent
    assert sent / 1e6 == pytest.approx(megabytes, rel=0.01)


@pytest.mark.parametrize(
    ("jobs", "reserved", "exposed"),
    [
        ([(0, 0, 1)], True, 0),  # hides behind the ten seconds of backward
        ([(10, 0, 1)], True, 1),  # what is ready last does not
        ([(8, 0, 3), (9, 0, 3)], True, 4),  # one after the other
        ([(0, 2, 0)], False, 2),  # without a core of its own it takes backward's
        ([(0, 2, 20)], False, 12),
    ],
)
def test_exchange__exposed_is_what_backward_does_not_hide(jobs, reserved, exposed):
    assert _exposed([Job(*job) for job in jobs], 10.0, reserved) == pytest.approx(exposed)


# ---- runs ----------------------------------------------------------------------------------------------------------


def training(program, **changes) -> Training:
    facts = {"steps": 100, "evaluations": 0, "val_images": 1, "checkpoints": 0, "image_bytes": 1, "decoded": False}
    return Training("t", lambda slot: program, 1.0, 512, 64, **(facts | changes))


def test_predict__minutes_are_steps_and_node_hours_are_nodes(alexnet):
    one = predict(training(alexnet), MACHINE, Scheme(4))
    saving = 8 * sum(p.size for p in alexnet.parameters.parameters) / 1e9
    assert (one.slots_a_rank, one.compute_cores) == (2, 8)
    assert one.minutes * 60 == pytest.approx(100 * one.step_s + saving)
    assert one.node_hours == pytest.approx(one.minutes / 60 * 4)
    assert one.step_s == pytest.approx(one.compute_s + one.exposed_s)


def test_predict__waits_for_pictures_where_they_come_slowly(alexnet):
    slow = predict(training(alexnet, image_bytes=10**9), MACHINE, Scheme(4))
    assert slow.step_s == slow.input_s == pytest.approx(128.0)


def test_predict__nobody_without_a_slot(alexnet):
    assert predict(training(alexnet), MACHINE, Scheme(16)) is None


def test_predict__int8_sends_a_byte_for_each_worker_of_a_node_and_one_for_the_total(alexnet):
    fp32, one, two = (
        predict(training(alexnet, workers=workers), MACHINE, Scheme(4, wire=wire))
        for wire, workers in (("fp32", 0), ("int8", 4), ("int8", 8))
    )
    assert one.sent_bytes == pytest.approx(fp32.sent_bytes / 4 * 257 / 256)
    assert two.sent_bytes == pytest.approx(1.5 * one.sent_bytes) and one.exchange_s < two.exchange_s < fp32.exchange_s
    assert predict(training(alexnet, workers=2), MACHINE, Scheme(4, wire="int8")) is None


def test_cores__as_a_node_is_divided():
    knl = load_machine("knl7250")
    assert [cores_of(knl, ranks) for ranks in (1, 4, 16)] == [(64, 2), (15, 1), (4, 0)]


@pytest.mark.parametrize(
    ("text", "counts"), [("64", [64]), ("32,16", [16, 32]), ("1..8", [1, 2, 4, 8]), ("3..9", [3, 4, 8, 9])]
)
def test_nodes__as_they_are_written(text, counts):
    assert command.node_counts(text) == counts


@pytest.mark.parametrize("text", ["", "0", "9..1", "1..", "a", "1e3", "9999999"])
def test_nodes__wrong_ones_are_refused(text):
    with pytest.raises(ValueError, match="--nodes"):
        command.node_counts(text)


# ---- published runs ------------------------------------------------------------------------------------------------


def test_published__nine_of_twelve_within_fifteen_percent():
    rows = Published().predictions()
    assert len(rows) == 12 and sum(abs(row.error) <= WITHIN for row in rows) >= 9
    assert all(row.note for row in rows if abs(row.error) > WITHIN), "each miss is explained"


def test_published__no_prediction_uses_its_own_result():
    before = {row.id: row.predicted for row in Published().predictions()}
    for name in before:
        changed = Published()
        changed.rows[name]["seen"] *= 3
        assert changed._row(changed.rows[name]).predicted == before[name]


def test_published__the_model_reproduces_its_anchors():
    found = Published()
    for anchor in found.anchors.values():
        if "scale" not in anchor:
            row = {"anchor": next(name for name, a in found.anchors.items() if a is anchor), "batch": anchor["images"]}
            assert found.compute(anchor | row, 1) == pytest.approx(anchor["images"] / anchor["rate"])


# ---- the commands --------------------------------------------------------------------------------------------------


def test_plan__as_json(capsys):
    assert main(["plan", "alexnet_bn_32k_lars", "--on", "knl7250", "--nodes", "512,1024", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (row,) = plan["rows"]
    assert (row["nodes"], row["ranks_a_node"], row["slots_a_rank"]) == (512, 1, 1)
    assert plan["choices"][0]["minutes"] < row["minutes"]


def test_plan__draws(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="an extra: pip install knltrain[plots]")
    png = tmp_path / "plan.png"
    assert main(["plan", "alexnet_bn_32k_lars", "--on", "skx8160", "--nodes", "64,128", "--plot", str(png)]) == 0
    assert png.read_bytes()[:4] == b"\x89PNG" and "as the recipe says" in capsys.readouterr().out


def test_simulated_step__sums_to_its_whole(capsys):
    arguments = ["--model", "alexnet_bn", "--slot-batch", "64", "--machine", "knl7250", "--cores", "68", "--json"]
    assert main(["bench", "step", *arguments]) == 0
    step = json.loads(capsys.readouterr().out)
    assert math.isclose(sum(step["by_kind"].values()), step["step_seconds"])
    assert all(0 <= op["idle"] < 1 and op["tasks"] >= 1 for op in step["ops"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan"], "no recipe"),
        (["plan", "alexnet_bn_32k_lars", "--on", "sky8160"], "did you mean skx8160"),
        (["plan", "alexnet_bn_32k_lar"], "did you mean the published alexnet_bn_32k_lars"),
        (["plan", "alexnet_bn_32k_lars", "--nodes", "1024"], "512 slots"),
        (["plan", "--measure", "/nowhere/here.toml"], "found no folder /nowhere"),
        (["bench", "step", "--cores", "68"], "expected --machine"),
        (["bench", "step", "--cores", "99", "--machine", "knl7250"], "has 68 cores"),
    ],
)
def test_plan__wrong_arguments_are_one_line(capsys, arguments, expected):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_rules__are_all_used_by_name():
    assert {MACHINE.__getattr__(name.partition(".")[2]) for name in RULES} <= set(ROUND.values())


def test_between__counts_messages_and_bytes():
    latency, bandwidth, small = Curve(1.0, math.inf), Curve(0.0, 1.0), 1 << 16
    assert [between(8, nbytes, latency, True) for nbytes in (small, small + 1)] == [3, 6]  # doubling, halving
    assert [between(6, nbytes, latency, False) for nbytes in (small, small + 1)] == [6, 8]  # tree, direct
    assert between(6, small + 1, latency, False, parts=2) == 13
    assert [between(8, small, bandwidth, even) / small for even in (True, False)] == [3, 6]
    assert [between(8, 1 << 20, bandwidth, True, parts) / 2**20 for parts in (1, 3)] == [1.75, 1.75]
    assert between(8, 1 << 20, bandwidth, False, parts=3) / 2**20 == 3.5


# ---- measuring -----------------------------------------------------------------------------------------------------


def cost(share="forward", tasks=2, roofline=1e-3) -> Cost:
    return Cost("l", "forward", share, tasks, 0.0, 0.0, roofline, "flops")


def test_measure__a_share_is_ideal_over_taken_without_calls():
    seen = [(cost(), 2.05e-3), (cost(roofline=3e-3), 6.05e-3), (cost("update", tasks=1), 1.05e-3)]
    seen.append((cost(roofline=1e-9), 1.0))  # a call, not counted
    found = measure.shares(seen, call=50.0)
    assert found == {"shares.forward": pytest.approx(0.5), "shares.update": pytest.approx(1.0)}


def test_measure__calls_are_ops_that_do_nothing():
    seen = [(cost(roofline=1e-9), 5e-6), (cost(), 1.0)]
    assert measure.call_us(seen, between=3e-6) == pytest.approx(8)


WIRE = {"gb_s": 0.02, "latency_us": 1000.0}  # on which the ranks below talk


@pytest.fixture
def wire(monkeypatch):
    """Messages take time; what a rank sees of its own node is given, and sums are small."""

    def slow(self, sends, receives, trade=Rank.trade):
        time.sleep(1e-6 * WIRE["latency_us"] + sum(out.nbytes for out, _ in sends) / (1e9 * WIRE["gb_s"]))
        trade(self, sends, receives)

    monkeypatch.setattr(Rank, "trade", slow)
    node = {"core_gflops": 10.0, "memory_gb_s": 50.0, "core_memory_gb_s": 10.0}
    monkeypatch.setattr(measure, "ceilings", lambda near: {f"node.{key}": value for key, value in node.items()})
    monkeypatch.setattr(measure, "usual_ops", lambda name, images: ({}, 0.0))
    monkeypatch.setattr(measure, "Workload", lambda *_: SimpleNamespace(step=lambda: time.sleep(1e-3)))
    for name, value in {"LINKS": (1 << 12, 1 << 20), "BUCKETS": (1 << 17, 1 << 18), "SUMS": 2}.items():
        monkeypatch.setattr(measure, name, value)


def test_measure__of_several_nodes_finds_the_network_between_them(tmp_path, wire):
    path = tmp_path / "here.toml"
    lines = on_ranks(2, lambda comm: measure.measure(path, comm), layout=(1, 1))
    assert lines == [f"{path}: 10 GFLOP/s and 10 GB/s a core"] * 2
    found = load_machine(path)
    assert {found.sources[f"network.{key}"] for key in WIRE} == {"measured here"}
    numbers = {key: found.numbers[f"network.{key}"] for key in WIRE}
    # never better than the wire; worse where the machine is busy, and by the latencies of the buckets
    assert 0.2 * WIRE["gb_s"] < numbers["gb_s"] <= WIRE["gb_s"]
    assert 0.8 * WIRE["latency_us"] < numbers["latency_us"] < 10 * WIRE["latency_us"]


def test_measure__of_one_node_leaves_the_network_as_it_was(tmp_path, wire):
    path = tmp_path / "here.toml"
    on_ranks(2, lambda comm: measure.measure(path, comm))
    found, base = load_machine(path), load_machine(measure.BASE)
    assert all(found.numbers[name] == base.numbers[name] for name in base.numbers if name.startswith("network."))
    assert found.sources["program.exchange_us"] == found.sources["program.node_sum"] == "measured here"


def test_measure__refuses_nodes_with_unequal_ranks_on_all_of_them(tmp_path, wire):
    errors = on_ranks(3, lambda comm: measure.measure(tmp_path / "here.toml", comm), layout=(2, 1), catch=ValueError)
    assert {str(error) for error in errors} == {"found 2 of 3 ranks on a node, expected all, or one: start it so"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({}, ("sum", "factors")),
        ({"fc_shards": 8}, ("sum", "factors", "split")),
        ({"fc_shards": 8, "fc": "split"}, ("split",)),
        ({"fc": "factors"}, ("factors",)),
        ({"fc_shards": 8, "wire": "int8"}, ("sum",)),
    ],
)
def test_plan__fully_connected_layers_travel_as_the_recipe_lets_them(settings, ways):
    assert command.ways_of(Comm(**settings)) == ways
