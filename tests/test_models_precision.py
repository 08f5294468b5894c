"""Which tensors of a step hold which Number; a step in 16 bits against one in float32; its bits, however it is cut."""

import numba
import numpy as np
import pytest
from gradcheck import NUMBERS

from knltrain.arena import Parameters
from knltrain.kernels import FP32, number_named, number_of
from knltrain.layers import (
    AvgPool,
    BatchNorm,
    Conv2d,
    Dropout,
    GlobalAvgPool,
    Linear,
    LocalResponseNorm,
    MaxPool,
    Program,
    ReLU,
    Residual,
    Sequential,
    Tensor,
    fuse,
)
from knltrain.layers.memory import Memory
from knltrain.models import Model, build

SHORT = [number.name for number in NUMBERS if number is not FP32]


def layers():
    """Every kind of layer, and every method of a convolution."""
    block = Residual(
        "r",
        Sequential("r.main", Conv2d("r.1", 32, 1), BatchNorm("r.1.bn", relu=True), Conv2d("r.2", 32, 3, pad=1)),
        BatchNorm("r.2.bn", relu=True),
    )
    return Sequential(
        "net",
        Conv2d("stem", 16, 3, pad=1, bias=0.1),
        LocalResponseNorm("lrn", alpha=0.1),
        ReLU("relu"),
        Conv2d("down", 32, 3, stride=2, pad=1, groups=2),
        BatchNorm("down.bn", relu=True),
        block,
        MaxPool("max", 2, 2),
        AvgPool("mean", 2, 1),
        Dropout("drop", 0.3),
        Conv2d("wide", 48, 1, bias=0.0),
        GlobalAvgPool("pool"),
        Linear("fc", 10),
    )


def step(precision, batch=6):
    model = Model(layers(), (16, 16, 3), batch, precision=precision, seed=3)
    rng = np.random.default_rng(5)
    images = rng.standard_normal((batch, 16, 16, 3), dtype=np.float32)
    model.feed(images, rng.integers(0, 10, batch), np.arange(batch, dtype=np.uint64))
    model.forward()
    model.backward()
    return model


def program_of(name, batch, precision):
    """A training step's program, planned but without memory."""
    network, shape = build(name)
    images = Tensor("images", (batch, *shape), number_named(precision).dtype)
    images.lie_in(np.zeros(0, np.uint8))
    program = Program(images, Parameters(), True, np.zeros(batch, np.uint64), network.last)
    logits = network.forward(program, images)
    network.backward(program, Tensor("dlogits", logits.shape, images.dtype))
    fuse(program)
    return program


@pytest.mark.parametrize(
    "last", [LocalResponseNorm("last"), MaxPool("last", 1, 1), Residual("r", ReLU("m"), BatchNorm("last", relu=True))]
)
def test_model__whose_last_layer_gives_no_float32_is_refused_in_16_bits(last):
    layers = Sequential("n", Conv2d("c", 5, 3), GlobalAvgPool("pool"), last)
    with pytest.raises(ValueError, match="layer 'last' is the last one and gives bf16; expected one that"):
        Model(layers, (9, 8, 3), 4, precision="bf16")
    assert Model(layers, (9, 8, 3), 4).logits.dtype == np.float32


@pytest.mark.parametrize("precision", SHORT)
def test_step__in_16_bits_is_near_that_in_float32(precision):
    """Losses to the round-off; gradients to a few of it, which add up from layer to layer."""
    exact, model = step("fp32"), step(precision)
    round_off = model.number.round_off
    assert np.abs(model.loss.losses - exact.loss.losses).max() < 4 * round_off * exact.loss.losses.max()
    assert not np.array_equal(model.loss.losses, exact.loss.losses)
    for p, q in zip(model.parameters.parameters, exact.parameters.parameters, strict=True):
        difference = np.linalg.norm(p.dw - q.dw) / np.linalg.norm(q.dw)
        assert difference < 60 * round_off, p.name
    logits = exact.infer().copy()
    assert 0 < np.abs(model.infer() - logits).max() < 4 * round_off * np.abs(logits).max()


@pytest.mark.parametrize("precision", SHORT)
def test_step__holds_activations_and_their_gradients_in_16_bits_and_all_else_in_32(precision):
    model = step(precision)
    number = model.number
    activations = ("x", "y", "dx", "dy", "a", "b", "residual", "dresidual", "dlogits")
    for op in model.training.ops:
        for name, array in op.arguments.items():
            if not isinstance(array, np.ndarray) or array.dtype in (np.uint8, np.int64, np.uint64):
                continue
            logits = op.owner.name == "fc" and name == "y" and op in model.training.forward
            if name in activations and not logits:
                assert array.dtype == number.dtype, (op.owner.name, op.name, name)
            elif name not in ("packed", "packed_t"):
                assert array.dtype == np.float32, (op.owner.name, op.name, name)
            else:
                assert number_of(array.dtype) in (number, FP32)
    blocks = model.parameters
    assert {block.dtype for block in (blocks.value, blocks.gradient, blocks.momentum, model.logits)} == {FP32.dtype}


@pytest.mark.parametrize("precision", SHORT)
def test_step__gives_the_same_bits_on_any_number_of_threads_and_with_neighbours(precision):
    """An image's logits do not depend on the others of its slot: inference with one image changed, all others equal."""
    before = numba.get_num_threads()
    found = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        model = step(precision)
        found.append((model.loss.losses.copy(), model.parameters.gradient.copy(), model.infer().copy()))
    numba.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    model.feed(np.ones((1, 16, 16, 3), np.float32))
    np.testing.assert_array_equal(model.infer()[1:], found[0][2][1:])


def test_program__of_resnet50_in_bf16_moves_and_keeps_little_more_than_half():
    bytes_moved, kept = {}, {}
    for precision in ("fp32", "bf16"):
        program = program_of("resnet50", 32, precision)
        bytes_moved[precision] = sum(op.nbytes for op in program.ops)
        kept[precision] = Memory(program).nbytes
    assert bytes_moved["fp32"] < 20.6e9  # 22.2 before batch norm's sums were told
    assert bytes_moved["bf16"] <= 0.55 * bytes_moved["fp32"]
    assert kept["bf16"] <= 0.55 * kept["fp32"]


def test_model__refuses_an_unknown_precision():
    with pytest.raises(ValueError, match="found precision 'int8', expected one of fp32, bf16, fp16"):
        Model(layers(), (16, 16, 3), 2, precision="int8")
