"""Parameters and multiply-adds of every published network, and errors for names that do not exist."""

import tracemalloc

import numpy as np
import pytest

from knltrain.models import Among, Model, build, declare, describe, model


def _cifar(n):
    """(parameters, multiply-adds) of a resnet_cifar of depth 6n + 2: stem, stages of 16, 32 and 64 channels, head."""
    count, adds = 9 * 3 * 16 + 2 * 16, 32 * 32 * 9 * 3 * 16
    for side, c_in, c in ((32, 16, 16), (16, 16, 32), (8, 32, 64)):
        weights = 9 * c_in * c + (2 * n - 1) * 9 * c * c + (c_in * c if c_in != c else 0)  # 3x3s, 1x1 shortcut
        batch_norms = 2 * n + (c_in != c)
        count, adds = count + weights + batch_norms * 2 * c, adds + side * side * weights
    return count + 64 * 10 + 10, adds + 64 * 10


def _counts(name, **options):
    program = declare(*build(name, **options))
    return program.parameters, sum(op.flops for op in program.forward) // 2


@pytest.mark.parametrize(
    ("name", "options", "count", "adds"),
    [
        ("alexnet", {}, 60_965_224, 724_406_816),
        ("alexnet", {"groups": 1}, 62_378_344, 1_135_256_096),
        ("alexnet_bn", {}, 60_965_224, 724_406_816),
        ("alexnet_bn", {"norm": "jia"}, 60_967_976, 724_406_816),
        ("alexnet_owt", {}, 61_100_840, 714_188_480),
        ("resnet50", {}, 25_557_032, 4_089_184_256),
        ("resnet50", {"stride_on": "1x1"}, 25_557_032, 3_857_973_248),
        ("resnet18", {}, 11_689_512, 1_814_073_344),
        ("resnet34", {}, 21_797_672, 3_663_761_408),
        ("resnet101", {}, 44_549_160, 7_801_405_440),
        ("resnet_cifar20", {}, 272_474, 40_813_184),
        ("resnet_cifar32", {}, 466_906, 69_124_736),
        ("resnet_cifar56", {}, 855_770, 125_747_840),
        ("davidnet", {}, 6_573_130, 379_261_952),
        ("davidnet", {"early_block": False}, 6_277_706, 303_764_480),
        ("speednet", {}, 1_972_802, 118_147_360),
    ],
    ids=str,
)
def test_build__counts_of_the_literature(name, options, count, adds):
    parameters, multiply_adds = _counts(name, **options)
    assert (parameters.count, multiply_adds) == (count, adds)


def test_resnet50__has_161_tensors_and_53_batch_norms():
    parameters, _ = _counts("resnet50")
    assert len(parameters.parameters) == 161
    assert len(parameters.statistics) == 2 * 53
    assert sum(p.size for p in parameters.parameters if p.name.endswith((".gamma", ".beta"))) == 53_120


def test_alexnet__has_16_tensors_and_jia_26():
    assert len(_counts("alexnet")[0].parameters) == 16
    assert len(_counts("alexnet_bn", norm="jia")[0].parameters) == 26


@pytest.mark.parametrize("zero_gamma", [True, False])
def test_resnet__zero_gamma_is_on_the_last_batch_norm_of_each_block(zero_gamma):
    parameters, _ = _counts("resnet50", zero_gamma=zero_gamma)
    parameters.allocate(seed=0)
    zeros = [p.name for p in parameters.parameters if p.name.endswith(".gamma") and not p.w.any()]
    assert len(zeros) == (16 if zero_gamma else 0)
    assert all(".conv3." in name for name in zeros)


def test_parameters__only_weights_decay_and_adapt():
    parameters, _ = _counts("alexnet_bn", norm="jia")
    for p in parameters.parameters:
        assert p.decay == p.adapt == p.name.endswith(".w")


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (56, 9)])
def test_resnet_cifar__depth_is_6n_plus_2(depth, blocks):
    parameters, _ = _counts(f"resnet_cifar{depth}")
    convolutions = [p for p in parameters.parameters if p.name.endswith(".w") and "shortcut" not in p.name]
    assert len(convolutions) == depth == 6 * blocks + 2


@pytest.mark.parametrize(("depth", "n"), [(20, 3), (32, 5), (56, 9)])
def test_resnet_cifar__counts_follow_from_the_table_of_stages(depth, n):
    parameters, multiply_adds = _counts(f"resnet_cifar{depth}")
    assert (parameters.count, multiply_adds) == _cifar(n)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, "nearest known is 'resnet50'"),
        ("resnet49", {}, "expected one of 18, 34, 50"),
        ("resnet50", {"widht": 32}, "nearest known is 'width'"),
        ("resnet50", {"width": "wide"}, "found str, expected int"),
        ("resnet_cifar21", {}, "expected 6n \\+ 2"),
        ("alexnet", {"norm": "batch"}, "expected one of lrn, bn, jia"),
        ("alexnet_bn", {"groops": 1}, "nearest known is 'groups'"),
    ],
)
def test_build__names_what_is_wrong(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet", {"width": 0}, "option width: found 0, expected 0 < width <= 1048576"),
        ("alexnet", {"width": -4.0}, "option width: found -4.0, expected 0 < width"),
        ("alexnet", {"width": float("nan")}, "option width: found nan, expected 0 < width"),
        ("alexnet", {"width": float("inf")}, "option width: found inf, expected 0 < width"),
        ("alexnet", {"dropout": 1.0}, "option dropout: found 1.0, expected 0 <= dropout < 1"),
        ("alexnet", {"groups": 0}, "option groups: found 0, expected 1 <= groups <= 1048576"),
        ("alexnet", {"stem_stride": 0}, "option stem_stride: found 0, expected 1 <= stem_stride"),
        ("alexnet_bn", {"hidden": 0}, "option hidden: found 0, expected 1 <= hidden"),
        ("resnet50", {"width": -4}, "option width: found -4, expected 1 <= width"),
        ("resnet_cifar20", {"stem_stride": -1}, "option stem_stride: found -1, expected 1 <= stem_stride"),
        ("resnet18", {"classes": 10**20}, "option classes: found 100000000000000000000, expected 1 <= classes"),
    ],
)
def test_build__refuses_sizes_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_build__takes_the_ends_of_the_ranges():
    build("alexnet", dropout=0, width=1, hidden=1, classes=1, groups=1)
    build("resnet_cifar8", zero_gamma=False, width=1, stem_stride=1)
    describe("resnet18", width=2**20, classes=2**20)


def test_model__too_little_memory_is_said_before_any_is_taken(monkeypatch):
    monkeypatch.setattr(model, "memory_free", lambda: 6 << 30)
    network = build("alexnet")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="GiB, this machine has 6.0 GiB free: choose a smaller slot_batch$"):
            Model(*network, 1024, among=Among(gradient_copies=64))
        message = "this machine has 3.0 GiB free for each of its 2 ranks: choose .* or fewer ranks on this node"
        with pytest.raises(ValueError, match=message):
            Model(*network, 1024, among=Among(2))
        describe("alexnet")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_model__takes_what_it_says(monkeypatch):
    network = build("alexnet_bn", input_size=67, width=0.25, hidden=256, classes=10)
    tracemalloc.start()
    try:
        made = Model(*network, 8)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    need = made.memory_bytes + made.parameters.total_bytes
    assert need <= taken < need + (1 << 20)
    monkeypatch.setattr(model, "memory_free", lambda: need)
    Model(*network, 8)
    with pytest.raises(ValueError, match="slot_batch 8 needs"):
        Model(*network, 8, among=Among(gradient_copies=1))
    monkeypatch.undo()
    made = Model(*network, 8, among=Among(fc_shards=4))
    split = 4 * sum(made.parameters.named[name].size for name in made.sharded)
    need = made.memory_bytes + made.parameters.total_bytes + made.parameters.gradient_bytes
    monkeypatch.setattr(model, "memory_free", lambda: need - 3 * split // 2)
    Model(*network, 8, among=Among(gradient_copies=1, fc_shards=4, fc_group=2))
    with pytest.raises(ValueError, match="slot_batch 8 needs"):
        Model(*network, 8, among=Among(gradient_copies=1, fc_shards=4))


def test_describe__ends_with_the_sums_and_the_batch_of_factors():
    *lines, last = describe("resnet50").splitlines()
    assert lines[0].split()[:2] == ["layer", "kind"]
    assert "25,557,032" in lines[-1] and "4,089,184,256" in lines[-1]
    assert last.endswith("below a global batch of  fc 1,344")
    assert describe("alexnet").endswith("fc6 5,671  fc7 4,096  fc8 1,608")


@pytest.mark.parametrize(("options", "fan"), [({}, "out"), ({"init": "fan_out"}, "out"), ({"init": "fan_in"}, "in")])
def test_resnet__init_scales_with_the_fan_that_is_named(options, fan):
    parameters, _ = _counts("resnet18", width=32, **options)
    parameters.allocate(seed=0)
    w = {p.name: p.w for p in parameters.parameters}
    for name, fans in {"conv1.w": (147, 7 * 7 * 32), "stage2.0.conv1.w": (9 * 32, 9 * 64)}.items():
        expected = 2 / fans[fan == "out"]
        assert w[name].var() == pytest.approx(expected, rel=0.06), name


def test_speednet__begins_with_whitened_patches_that_are_handed_on():
    parameters, _ = _counts("speednet", beta_rate=5.0)
    parameters.allocate(seed=0)
    w = {p.name: p.w for p in parameters.parameters}
    white = w["whiten.w"].reshape(12, 24)
    assert np.array_equal(white[:, :12], -white[:, 12:])
    products = white[:, :12].T @ white[:, :12]
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-4 * products.max()
    # pictures whose neighbours and colours resemble each other, as photographs': 0.93 and the components of init.py
    along = np.array([[1, 0.93], [0.93, 1]])
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    covariance = np.kron(np.kron(along, along), axes.T @ np.diag([2.8, 0.16, 0.04]) @ axes)
    seen = np.diag(white.T @ covariance @ white)
    assert np.median(seen) > 0.95 and 0.2 < seen.min() < seen.max() < 1.001  # the smallest are enlarged less
    conv = w["stage2.conv1.w"]
    assert np.array_equal(conv[1, 1, :, :64], np.eye(64)) and np.count_nonzero(conv[..., :64]) == 64
    assert conv[..., 64:].std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    rates = {p.name: p.rate for p in parameters.parameters}
    assert rates["whiten.w"] == 0 and rates["stage1.conv1.bn.beta"] == 5 and rates["stage1.conv1.bn.gamma"] == 1


@pytest.mark.parametrize("name", ["resnet50", "resnet_cifar20", "davidnet", "alexnet_bn", "alexnet_owt"])
def test_build__an_unknown_init_names_the_known_ones(name):
    with pytest.raises(ValueError, match="init is 'he'; expected one of .*fan_in, fan_out"):
        declare(*build(name, init="he"))
