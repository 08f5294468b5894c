"""Fully connected layers by factors: the same weights to the bit as by sums, and the bytes that the formula says."""

from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from mpirun import ROOT, run_mpi
from ranks import ALONE, learned, on_ranks
from rehearsal_ranks import RECIPE

from knltrain.assembly import make_trainer
from knltrain.comm import FullyConnected, Serial
from knltrain.comm.choice import choose
from knltrain.comm.curve import Curve
from knltrain.data.synthetic import Synthetic
from knltrain.kernels import conv2d_plan, number_named
from knltrain.layers import DenseGradient, Linear, ReLU, Sequential, dense_ops
from knltrain.models import Model
from knltrain.recipe.config import parse_recipe

SLOTS, STEPS, SIDE, WIDTHS, CLASSES = 7, 3, 12, (70, 33), 5
SIZES = ["data.crop=12", "batch.global_batch=21", "batch.slot_batch=3"]


def layers(widths=WIDTHS, classes=CLASSES):
    """Fully connected layers alone; of several parts, of odd width, and the logits."""
    some = [layer for i, width in enumerate(widths) for layer in (Linear(f"fc{i}", width), ReLU(f"relu{i}"))]
    return Sequential("net", *some, Linear("out", classes)), (SIDE, SIDE, 3)


def train(comm, *settings, speeds=(), steps=STEPS):
    """What is learned, with the losses, and the trainer's facts; speeds: by which slots are shared after a step."""
    recipe, data = parse_recipe(RECIPE, [*SIZES, *settings]), Synthetic(3 * SLOTS * steps, SIDE, CLASSES)
    with closing(make_trainer(recipe, data, comm, ALONE, layers=layers())) as trainer:
        return learned(trainer, steps, speeds), trainer.parts.reducer.travel.facts()["factors"]


@pytest.fixture(scope="module")
def alone():
    """What one rank learns in some precision, once."""
    found = {}

    def of(*settings):
        if settings not in found:
            found[settings] = train(Serial(), *settings)[0]
        return found[settings]

    return of


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Layers of a test are cut into several parts, too."""
    monkeypatch.setattr("knltrain.layers.dense.PART", 2000)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, ["comm.overlap=false"]),
        (3, ["comm.algorithm=direct"]),
        (4, ["comm.algorithm=tree", "comm.bucket_bytes=4000"]),
        (4, ["comm.pretended_nodes=2"]),
        (5, ["comm.pretended_nodes=2"]),
        (6, ["comm.pretended_nodes=3", "comm.shard_update=true"]),
        (7, ["comm.shard_update=true", "comm.algorithm=direct"]),
        (7, ["comm.cut_before=['fc1.w']"]),
    ],
)
def test_factors__any_ranks_train_the_same(alone, ranks, settings):
    for found, factors in on_ranks(ranks, lambda comm: train(comm, "comm.fc=factors", *settings)):
        assert factors["layers"] == ["fc0.w", "fc1.w", "out.w"]
        same(found, alone())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("ranks", "settings"), [(3, ["comm.pretended_nodes=2"]), (2, ["comm.algorithm=direct"])])
def test_factors__of_16_bits_train_the_same(alone, precision, ranks, settings):
    precision = f"compute.precision={precision}"
    for found, _ in on_ranks(ranks, lambda comm: train(comm, precision, "comm.fc=factors", *settings)):
        same(found, alone(precision))


@pytest.mark.parametrize("settings", [[], ["comm.algorithm=direct", "comm.shard_update=true"]])
def test_factors__with_shares_that_change_train_the_same(alone, settings):
    for found, _ in on_ranks(3, lambda comm: train(comm, "comm.fc=factors", *settings, speeds=[1.0, 0.2, 0.4])):
        same(found, alone())


def test_factors__nodes_of_different_sizes_train_the_same(alone):
    for found, _ in on_ranks(6, lambda comm: train(comm, "comm.fc=factors"), layout=(1, 3, 2)):
        same(found, alone())


def test_factors__are_the_bytes_of_the_formula():
    """(P-1)/P B (C + K) numbers a rank for each layer, slots of whole cache lines."""

    def sent(comm, fc):
        before = comm.sent_bytes
        recipe = parse_recipe(RECIPE, [*SIZES, "comm.algorithm=direct", "batch.global_batch=12", f"comm.fc={fc}"])
        with closing(make_trainer(recipe, Synthetic(48, SIDE, CLASSES), comm, ALONE, layers=layers())) as trainer:
            trainer.seek(0)
            trainer.step()
            before = comm.sent_bytes
            trainer.step()
            return comm.sent_bytes - before

    by_sum, by_factors = (on_ranks(4, lambda comm, fc=fc: sent(comm, fc)) for fc in ("sum", "factors"))
    depths, widths = (SIDE * SIDE * 3, *WIDTHS), (*WIDTHS, CLASSES)
    lines = sum(-(-4 * 3 * count // 64) * 64 for count in (*depths, *widths))
    weights = sum(-(-4 * c * k // 64) * 64 for c, k in zip(depths, widths, strict=True))
    assert sum(by_factors) == sum(by_sum) - 2 * 3 * weights + 3 * 4 * lines
    assert max(by_factors) - min(by_factors) <= 4 * 64 * 10  # of what is left of sums


SHAPES = [(100, 40, 5), (101, 40, 5), (9, 3, 4), (64, 64, 200), (65, 7, 1)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("depth", "width", "images"), SHAPES)
def test_dense__parts_have_the_bits_of_the_whole(monkeypatch, precision, depth, width, images):
    monkeypatch.setattr("knltrain.layers.dense.PART", 32 * width)
    model = Model(Sequential("net", Linear("fc", width)), (1, 1, depth), images, precision=precision)
    op = dense_ops(model.training)[0]
    rng, dtype = np.random.default_rng(depth), number_named(precision).dtype
    for name in ("x", "dy"):
        bits = rng.standard_normal(op.arguments[name].shape).astype(np.float32)
        op.arguments[name][...] = bits if precision == "fp32" else (bits.view(np.uint32) >> 17).astype(dtype)
    op.kernel(**op.arguments)
    layer, (x, dy) = DenseGradient(model.training, op, lambda: None), (op.arguments[name] for name in ("x", "dy"))
    assert len(layer.rows) > 1 or depth < 64
    whole, x = op.arguments["dw"].reshape(depth, width), x.reshape(images, depth)
    for rows in layer.rows:
        part = np.empty(len(rows) * width, np.float32)
        layer.make(np.ascontiguousarray(x[:, rows.start : rows.stop]), dy, part)
        assert np.array_equal(part.reshape(-1, width), whole[rows.start : rows.stop], equal_nan=True)


@pytest.mark.parametrize("dot", ["amx", "dot2", "widen"])
@pytest.mark.parametrize(("depth", "width"), [(128, 64), (100, 64), (101, 64), (128, 33), (128, 40)])
def test_dense__parts_are_made_by_the_method_of_the_whole(monkeypatch, dot, depth, width):
    monkeypatch.setattr("knltrain.layers.dense.PART", 32 * width)
    plan = conv2d_plan((4, 1, 1, depth), (1, 1, depth, width), number=number_named("bf16"), dot=dot)
    op = SimpleNamespace(others={"plan": plan}, writes={"dw": SimpleNamespace(owner=None)}, flops=0)
    parts = DenseGradient(None, op, None)._plans.values()
    for part in parts:
        assert type(part.backward_weight) is type(plan.backward_weight)
        assert part.shape.pairs == plan.shape.pairs


class _Layer:
    """AlexNet's fc6 on slots of 64."""

    name, images, depth, width, dtype, flops = "fc6.w", 64, 9216, 4096, np.dtype(np.float32), 2 * 64 * 9216 * 4096
    sharded = object()


@pytest.mark.parametrize(
    ("fc", "slots", "bytes_per_s", "hides", "layers", "group"),
    [
        (FullyConnected("auto", [_Layer]), 8, 1e8, False, ["fc6.w"], 1),
        (FullyConnected("auto", [_Layer]), 8, 1e11, False, [], 1),  # eight times the flops take longer
        (FullyConnected("auto", [_Layer], backward_flops=1e13), 8, 1e9, True, [], 1),  # backward hides the sum
        (FullyConnected("auto", [_Layer], backward_flops=1e13), 8, 1e9, False, ["fc6.w"], 1),
        (FullyConnected("auto", [_Layer], rounded=True, shards=8), 64, 1e8, False, [], 1),
        (FullyConnected("auto", [_Layer], shards=8), 8, 1e8, False, [], 8),  # 19 MB, not 27
        (FullyConnected("auto", [_Layer], shards=8), 64, 1e8, False, [], 4),  # 116 MB leave a node, not 264 nor 190
        (FullyConnected("auto", [_Layer], shards=8, group=3), 64, 1e8, False, [], 2),
        (FullyConnected("auto", [_Layer], 1e14, shards=8), 64, 1e8, True, [], 1),  # nothing hides what a group sends
    ],
)
def test_choice__is_what_takes_less_time(fc, slots, bytes_per_s, hides, layers, group):
    from knltrain.comm import Links, Shares, make_block

    def chosen(comm):
        block = make_block(Links(comm, "halving", shares=Shares.equal(slots, 8)), 64)
        block.mine = np.broadcast_to(np.float32(0), _Layer.depth * _Layer.width)
        choice = choose(fc, block, Curve(50e-6, bytes_per_s), 1 << 24, hides, 1 / 4e11)
        return [layer.name for layer in choice.layers], choice.group if choice.split else 1, choice

    for names, size, choice in on_ranks(8, chosen):
        assert (names, size) == (layers, group)
        how = f"split over groups of {group} ranks: " if group > 1 else "travel as"
        assert f"fc6.w {how}" in choice.why or fc.rounded
        assert choice.usual == ("travel as sums" in choice.why)


def test_factors__do_the_same_under_mpi(alone):
    run = run_mpi(3, str(ROOT / "tests" / "factor_ranks.py"))
    assert run.returncode == 0, run.stderr
    losses = [float.fromhex(word) for word in run.stdout.split()]
    assert losses == alone()["loss"]
