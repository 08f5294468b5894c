"""A program: what is fused and what is not, that results do not depend on it, and where its tensors lie."""

import math
import re

import numpy as np
import pytest
from costs import check_passes

from knltrain.arena import Parameters
from knltrain.layers import (
    BatchNorm,
    Conv2d,
    Dropout,
    GlobalAvgPool,
    Linear,
    LocalResponseNorm,
    MaxPool,
    Memory,
    Observer,
    Program,
    ReLU,
    Residual,
    Sequential,
    SoftmaxCrossEntropy,
    Tensor,
    fuse,
)
from knltrain.layers.program import CONVOLUTION, MEMORY, PACKING
from knltrain.models import Model, build, declare, model

BATCH, SHAPE = 4, (9, 8, 3)


def _network(between):
    """Every fusion there is; with a layer `between`, none of them is possible."""

    def apart(name):
        return [Dropout(name, 0.0)] if between else []  # changes nothing, and is in the way

    main = [*apart("before")]
    for name, size in (("a", 3), ("b", 1)):
        main += [Conv2d(name, 12, size, pad=size // 2), *apart(f"{name}.between")]
        main += [BatchNorm(f"{name}.bn", relu=True), *apart(f"{name}.behind")]
    main += [Conv2d("c", 12, 1), *apart("c.between")]
    short = Sequential("short", Conv2d("s", 12, 1), *apart("s.between"), BatchNorm("s.bn"), *apart("s.behind"))
    return Sequential(
        "net",
        *[Conv2d("stem", 12, 3, bias=0.1), *apart("stem.between"), ReLU("relu"), Conv2d("wide", 12, 1)],
        Residual("block", Sequential("main", *main), BatchNorm("join", relu=True), short),
        *[*apart("join.behind"), Conv2d("last", 9, 2, stride=2), GlobalAvgPool("pool"), Linear("fc", 5)],
    )


def _made(layers, monkeypatch=None, batch=5):
    """The model after one step on fixed numbers."""
    if monkeypatch:
        monkeypatch.setattr(model, "fuse", lambda program: None)
    made = Model(layers, SHAPE, BATCH, seed=3)
    rng = np.random.default_rng(batch)
    made.feed(rng.standard_normal((BATCH, *SHAPE)), rng.integers(0, 5, BATCH), np.arange(BATCH, dtype=np.uint64))
    made.forward()
    made.backward()
    return made


def _kernels(made):
    return [op.name for op in made.training.ops]


def test_fuse__makes_every_fusion_it_can():
    made = _made(_network(between=False))
    ops = made.training.ops
    assert "relu_forward" not in _kernels(made) and "add_forward" not in _kernels(made)
    by_layer = {(op.owner.name, op.name): op for op in ops}
    assert by_layer["stem", "conv2d_forward"].arguments["relu"]
    assert by_layer["a", "conv2d_backward_input"].arguments["accumulate"]
    assert ("s.bn", "batchnorm_normalize") not in by_layer  # its output is worked out where it is added
    assert by_layer["join", "batchnorm_normalize"].arguments["residual_table"] is not None
    assert ("stem", "conv2d_backward_input") not in by_layer  # nobody reads the gradient of the images
    told = [op.owner.name for op in ops if op.name == "conv2d_forward" and "moments" in op.others]
    assert told == ["s", "a", "b", "c"] and "batchnorm_moments" not in _kernels(made)
    summed = [op.owner.name for op in ops if op.name == "conv2d_backward_input" and "sums" in op.others]
    assert summed == ["last", "c", "b"]
    assert [op.owner.name for op in ops if op.name == "batchnorm_sums"] == ["s.bn"]  # no ReLU behind it
    assert [op.owner.name for op in ops if op.name == "batchnorm_backward" and op.others["relu"]] == []
    assert by_layer["last", "conv2d_backward_input"].arguments["y"] is not None  # behind a residual


def test_fuse__is_not_made_across_a_layer_between_and_the_result_stays_right():
    fused, apart = _made(_network(between=False)), _made(_network(between=True))
    kernels = _kernels(apart)
    assert "relu_forward" in kernels and "add_forward" in kernels
    assert kernels.count("batchnorm_moments") == kernels.count("batchnorm_sums") == 4
    np.testing.assert_allclose(fused.loss.losses, apart.loss.losses, rtol=2e-6)
    for p in fused.parameters.parameters:
        other = apart.parameters.named[p.name].dw
        np.testing.assert_allclose(p.dw, other, rtol=1e-4, atol=2e-5 * np.abs(other).max())


def test_fuse__changes_no_bit_but_for_moments(monkeypatch):
    layers = [Conv2d("a", 7, 3, bias=0.1), ReLU("r"), LocalResponseNorm("n"), MaxPool("p", 2, 1)]
    layers += [Conv2d("b", 6, 1), ReLU("s"), MaxPool("q", 2, 2), Dropout("d", 0.4), Linear("fc", 5)]
    fused = _made(Sequential("n", *layers))
    plain = _made(Sequential("n", *layers), monkeypatch)
    assert "relu_backward" in _kernels(plain) and "relu_backward" not in _kernels(fused)
    assert len(plain.training.ops) > len(fused.training.ops)
    assert np.array_equal(fused.parameters.gradient, plain.parameters.gradient)
    assert np.array_equal(fused.loss.losses, plain.loss.losses)


def test_fuse__normalizes_where_it_pools(monkeypatch):
    """With the same bits, here where no convolution tells moments; not where somebody else reads the batch norm."""
    layers = [Conv2d("a", 12, 3), Dropout("d", 0.0), BatchNorm("n", relu=True), MaxPool("p", 3, 2, 1), Linear("fc", 5)]
    fused, plain = _made(Sequential("n", *layers)), _made(Sequential("n", *layers), monkeypatch)
    assert "batchnorm_normalize" in _kernels(plain) and "batchnorm_normalize" not in _kernels(fused)
    assert np.array_equal(fused.parameters.gradient, plain.parameters.gradient)
    monkeypatch.undo()
    two = Residual("block", Sequential("main", MaxPool("p", 3, 1, 1)), BatchNorm("join"))
    read_twice = _made(Sequential("n", Conv2d("a", 12, 3), BatchNorm("n"), two, Linear("fc", 5)))
    assert _kernels(read_twice).count("batchnorm_normalize") == 2


def test_fuse__leaves_a_relu_whose_input_somebody_else_reads():
    conv = Conv2d("c", 12, 3, pad=1)
    block = Residual("block", Sequential("main", ReLU("r"), Conv2d("d", 12, 1)), BatchNorm("join"))
    made = _made(Sequential("n", conv, block, Linear("fc", 5)))
    assert "relu_forward" in _kernels(made)


class _Random:
    """Networks nobody would build, of layers that keep 12 channels and the size of an image."""

    def __init__(self, seed):
        self.rng, self.made = np.random.default_rng(seed), 0

    def network(self):
        first = [self.norm()] * int(self.rng.integers(2))
        size = int(self.rng.integers(1, 3))
        middle = self.layers(2, 6)
        last = [[MaxPool("last", 3, 2, 1)], [GlobalAvgPool("last")], []][self.rng.integers(3)]
        return Sequential("net", *first, Conv2d("first", 12, size), *middle, *last, Linear("fc", 5))

    def layers(self, depth, most):
        return [self.layer(depth) for _ in range(self.rng.integers(most + 1))]

    def layer(self, depth):
        self.made += 1
        name, kind = f"l{self.made}", self.rng.integers(9 if depth else 7)
        if kind < 3:
            return Conv2d(name, 12, 1 + 2 * int(kind == 2), pad=int(kind == 2), bias=[None, 0.1][self.rng.integers(2)])
        if kind < 5:
            return self.norm()
        if kind < 7:
            return ReLU(name) if kind == 5 else MaxPool(name, 3, 1, 1)
        shortcut = [None, Sequential(f"{name}.short", *self.layers(depth - 1, 2)), self.norm()][self.rng.integers(3)]
        return Residual(name, Sequential(f"{name}.main", *self.layers(depth - 1, 4)), self.norm(), shortcut)

    def norm(self):
        self.made += 1
        relu, affine = (bool(bit) for bit in self.rng.integers(2, size=2))
        return BatchNorm(f"n{self.made}", relu=relu, affine=affine)


@pytest.mark.parametrize("seed", range(60))
def test_fuse__changes_no_result_of_a_random_network(seed, monkeypatch):
    """A ReLU may see another sign of almost 0, a maximum be found elsewhere: in one batch, but not in both."""
    networks, apart = [_Random(seed).network() for _ in range(2)], []
    for batch in (5, 6):
        with monkeypatch.context() as patch:
            plain = _made(networks[0], patch, batch)
        fused = _made(networks[1], batch=batch)
        np.testing.assert_allclose(fused.loss.losses, plain.loss.losses, rtol=1e-4)
        found, expected = fused.parameters.gradient, plain.parameters.gradient
        apart.append(np.abs(found - expected).max() / np.abs(expected).max())
    assert min(apart) <= 2e-3


@pytest.mark.parametrize("residual", [False, True])
def test_fuse__leaves_a_batch_norm_whose_output_is_read_flat(monkeypatch, residual):
    """By a fully connected layer, whose channels are all numbers of an image."""
    layers = [Conv2d("a", 12, 3, pad=1), BatchNorm("n", relu=True), Linear("fc", 5)]
    if residual:
        layers[1] = Residual("block", Conv2d("b", 12, 1), BatchNorm("n", relu=True))
    fused, plain = _made(Sequential("n", *layers)), _made(Sequential("n", *layers), monkeypatch)
    assert "batchnorm_sums" in _kernels(fused)
    np.testing.assert_allclose(fused.parameters.gradient, plain.parameters.gradient, rtol=1e-4, atol=1e-6)


def test_layers__may_serve_two_models_at_once():
    layers = _network(between=False)
    one, two = _made(layers), Model(layers, SHAPE, BATCH, seed=4)
    before = one.parameters.value.copy()
    two.parameters.value[...] = 0
    one.forward()
    assert np.array_equal(one.parameters.value, before) and one.loss.losses.any()


def test_program__refuses_two_layers_of_one_name():
    with pytest.raises(ValueError, match="two tensors are named 'c.w'"):
        Model(Sequential("n", Conv2d("c", 3, 1), Conv2d("c", 3, 1), Linear("fc", 2)), SHAPE, BATCH)


def test_observer__is_told_of_every_op_in_order():
    class Names(Observer):
        def __init__(self):
            self.begun, self.ended = [], []

        def begin(self, op):
            self.begun.append(op)

        def end(self, op, seconds):
            self.ended.append(op)
            assert seconds >= 0

    made = _made(_network(between=False))
    names = Names()
    made.observe(names)
    made.forward()
    made.backward()
    assert names.begun == names.ended == made.training.ops


def test_infer__reads_running_statistics_and_drops_nothing():
    made = _made(Sequential("n", Conv2d("c", 8, 3), BatchNorm("b"), Dropout("d", 0.9), Linear("fc", 5)))
    logits = made.infer().copy()
    assert np.array_equal(made.infer(), logits)
    made.parameters.named["b.mean"].running[...] = 1
    assert not np.array_equal(made.infer(), logits)


# ---- memory --------------------------------------------------------------------------------------------------


def _planned(name, batch, **options):
    layers, shape = build(name, **options)
    images = Tensor("images", (batch, *shape))
    images.lie_in(np.zeros(images.nbytes, np.uint8))  # has one already
    program = Program(images, Parameters(), True, np.zeros(batch, np.uint64))
    loss = SoftmaxCrossEntropy(batch, batch)
    layers.backward(program, loss.forward(program, layers.forward(program, images)))
    fuse(program)
    return program, Memory(program)


@pytest.mark.parametrize("name", ["resnet18", "alexnet_bn", "alexnet", "resnet_cifar8", "davidnet"])
def test_memory__tensors_in_use_at_once_never_overlap(name):
    program, memory = _planned(name, 2)
    block = np.zeros(memory.nbytes, np.uint8)
    assert max(storage.stop for storage in memory.storages) == memory.nbytes
    for index in range(len(program.ops)):
        together = [storage for storage in memory.storages if storage.first <= index <= storage.last]
        together = [storage for storage in together if storage.size]
        together.sort(key=lambda storage: storage.offset)
        for one, next_ in zip(together, together[1:], strict=False):
            assert one.stop <= next_.offset
    memory.bind(block)
    for op in program.ops:
        for tensor in op.tensors():
            assert tensor.array.shape == tensor.shape and tensor.array.ctypes.data % 4 == 0


# MiB of activations, their gradients and scratch at these slot batches, images included: what layers that gave their
# buffers back by hand needed; the planner must not need more
BY_HAND = [("resnet50", 32, 2538), ("alexnet_bn", 128, 743), ("alexnet", 128, 1175), ("resnet_cifar20", 64, 103)]


@pytest.mark.parametrize(("name", "batch", "mebibytes"), BY_HAND)
def test_memory__is_not_above_what_it_was_by_hand_and_near_what_is_alive(name, batch, mebibytes):
    program, memory = _planned(name, batch)
    assert memory.nbytes + program.images.nbytes <= mebibytes * 2**20
    kept = [storage for storage in memory.storages if not storage.scratch]
    alive = [sum(s.size for s in kept if s.first <= i <= s.last) for i in range(len(program.ops))]
    assert memory.kept <= 1.05 * max(alive)


def test_models__of_the_same_layers_do_not_disturb_each_other():
    layers = _network(between=False)
    one, two = _made(layers), _made(layers)
    before = [p.dw.copy() for p in one.parameters.parameters]
    two.parameters.value[:] = 0
    one.forward()
    one.backward()
    assert all((p.dw == b).all() for p, b in zip(one.parameters.parameters, before, strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["alexnet", "resnet50", "every layer"])
def test_kernels__say_in_their_docstrings_what_programs_count(name, fused):
    program = declare(*((_network(between=not fused), SHAPE) if name == "every layer" else build(name)))
    if fused:
        fuse(program)
    for op in program.ops:
        check_passes(op)
        assert op.flops == (_flops_of_formula(op) if op.kind in CONVOLUTION else 0)
    kinds = {op.kind for op in program.ops}
    assert len({op.name for op in program.ops if op.kind == MEMORY}) > 3 and kinds >= {PACKING, *CONVOLUTION}


def _flops_of_formula(op):
    """What the docstring of the op's kernel gives for its shapes."""
    (formula,) = re.findall(r"Cost: (2(?:\*[A-Z])+/groups) flops;", op.kernel.__doc__)
    plan = op.others["plan"]
    sizes = dict(zip("NHWC", plan.x_shape, strict=True)) | dict(zip("NPQK", plan.y_shape, strict=True))
    sizes |= dict(zip("RS", plan.w_shape, strict=False)) | {"2": 2}
    product = math.prod(sizes[letter] for letter in formula.removesuffix("/groups").split("*"))
    return product // (sizes["C"] // plan.w_shape[2])
