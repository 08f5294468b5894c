"""Numbers of 16 bits: conversions bit by bit, the dot product of pairs, and every kernel on bf16 and fp16 tensors."""

import functools

import normed
import numba
import numpy as np
import pytest
from gradcheck import NUMBERS, TOLERANCE, randn
from numba import types
from numba.extending import intrinsic

from knltrain import kernels
from knltrain.kernels import BF16, FP16, FP32, number_named, number_of, reference
from knltrain.kernels._ir import literals
from knltrain.kernels.arch import HAS_DOT, HAS_TILES, V
from knltrain.kernels.dot import Dot2
from knltrain.kernels.tile_amx import configure_tiles, release_tiles, tile_block

SHORT = pytest.mark.parametrize("number", [n for n in NUMBERS if n is not FP32], ids=lambda number: number.name)


# ---- conversions ---------------------------------------------------------------------------------------------


def converted(values, number):
    narrow = np.empty(values.shape, number.dtype)
    kernels.convert(values, narrow)
    return narrow


@SHORT
def test_convert__widens_every_bit_pattern_and_back(number):
    stored = np.arange(2**16, dtype=np.uint16).view(number.dtype)
    wide = np.empty(stored.size, np.float32)
    kernels.convert(stored, wide)
    np.testing.assert_array_equal(wide, number.widen(stored))
    back, finite = converted(wide, number), ~np.isnan(wide)
    np.testing.assert_array_equal(back[finite], stored[finite])  # infinities and both zeros too
    assert np.isnan(number.widen(back[~finite])).all()


@SHORT
def test_convert__rounds_to_nearest_even(number):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    bits[::3] = bits[::3] & 0xFFFF0000 | 0x8000  # ties of bf16
    bits[1::3] = bits[1::3] & 0xFFFFE000 | 0x1000  # ties of fp16
    special = np.array([np.inf, -np.inf, np.nan, 3.4e38, -65520.0, 65519.9, 1e-45, -0.0], np.float32)
    values = np.concatenate([bits.view(np.float32), special])
    found = converted(values, number)
    np.testing.assert_array_equal(number.widen(found), number.widen(number.narrow(values)))
    # independently of the twin: no neighbour is nearer, and of two equally near ones the even one was taken
    inside = np.abs(values) < (3e38 if number is BF16 else 65000)
    found, values = found[inside], values[inside].astype(np.float64)
    ordered, distance = found.view(np.int16).astype(np.int64), np.abs(number.widen(found) - values)
    for step in (-1, 1):
        other = number.widen((ordered + step).astype(np.int16).view(number.dtype))
        further = np.nan_to_num(np.abs(other - values), nan=np.inf)  # beside a zero lies the NaN of the other sign
        assert (distance <= further).all()
        assert (ordered[distance == further] % 2 == 0).all()


def test_number__is_known_by_name_and_dtype():
    for name, number in {"fp32": FP32, "bf16": BF16, "fp16": FP16}.items():
        assert number_named(name) is number is number_of(number.dtype) and number.name == name
    with pytest.raises(ValueError, match="found precision 'fp8', expected one of fp32, bf16, fp16"):
        number_named("fp8")


# ---- pairs ---------------------------------------------------------------------------------------------------


class SoftDot2(Dot2):
    has_instruction = False


def _dot_kernel(dot):
    """c = dot(a, b, c) of V pairs, by a strategy."""

    @intrinsic
    def emit(typing, width, a, b, c):
        constants = literals(width)
        if constants is None:
            return None
        (v,) = constants

        def codegen(context, builder, sig, args):
            lanes = dot(builder, v)
            a, b = (lanes.load_units(address) for address in args[1:3])
            lanes.store(lanes.dot(a, b, lanes.load(args[3])), args[3])
            return context.get_dummy_value()

        return types.void(width, types.int64, types.int64, types.int64), codegen

    @numba.njit
    def run(a, b, c):
        for i in range(0, c.size, V):
            emit(V, a.ctypes.data + 4 * i, b.ctypes.data + 4 * i, c.ctypes.data + 4 * i)

    return run


def _flush(x):
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x).astype(np.float32)


def _dot_model(a, b, c):
    """What Intel documents of VDPBF16PS, on pairs (n, 2): the odd element first, denormals as zeros."""
    c = _flush(c)
    for place in (1, 0):
        product = _flush(BF16.widen(a[:, place])).astype(np.longdouble) * _flush(BF16.widen(b[:, place]))
        c = _flush((product + c).astype(np.float32))  # the product is exact, and so is the sum of both in 64 bits
    return c


@pytest.mark.parametrize("dot", [Dot2, SoftDot2])
def test_dot2__follows_its_definition_to_the_bit(dot):
    """Says which: Dot2 is the instruction where the CPU has it."""
    rng = np.random.default_rng(1)
    n = 64 * V
    a, b = (BF16.narrow(rng.standard_normal((n, 2)).astype(np.float32)) for _ in range(2))
    c = rng.standard_normal(n).astype(np.float32)
    tiny = slice(0, 16 * V)  # sums and factors around the smallest normal number
    a[tiny] = BF16.narrow(BF16.widen(a[tiny]) * np.float32(2.0**-64))
    b[tiny] = BF16.narrow(BF16.widen(b[tiny]) * np.float32(2.0**-62))
    c[tiny] *= np.float32(2.0**-126)
    a[16 * V : 20 * V] = 1  # the smallest denormal
    expected = _dot_model(a, b, c)
    _dot_kernel(dot)(a, b, c)
    np.testing.assert_array_equal(c.view(np.uint32), expected.view(np.uint32))
    assert (expected[tiny] == 0).any() and (expected[tiny] != 0).any()
    if dot is Dot2:
        print("by the instruction" if HAS_DOT and V == 16 else "spelled out: this CPU has no AVX512_BF16")


@functools.cache
def _narrow_kernel(dot):
    @intrinsic
    def narrow(typing, here, there):
        def codegen(context, builder, sig, args):
            lanes = dot(builder, V)
            values = [lanes.load(args[0], j * lanes.bytes) for j in range(2)]
            lanes.store_bits(lanes.narrow(*values), args[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    @numba.njit
    def run(x, y):
        for i in range(0, x.size, 2 * V):
            narrow(x.ctypes.data + 4 * i, y.ctypes.data + 2 * i)

    return run


@pytest.mark.parametrize("dot", [Dot2, SoftDot2])
def test_narrow__rounds_pairs_of_vectors_and_makes_zeros_of_denormals(dot):
    """By the instruction where the CPU has it."""
    bits = np.random.default_rng(3).integers(0, 1 << 32, 4096 * V, np.uint32)
    bits[: 64 * V] &= 0x80FFFFFF  # around the denormals
    bits[64 * V : 66 * V] = bits[64 * V : 66 * V] & 0xFFFF0000 | 0x8000  # ties
    bits[66 * V : 66 * V + 6] = 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x007FFFFF, 0x007F8000
    x, found = bits.view(np.float32), np.empty(bits.size, np.uint16)
    expected = BF16.narrow(_flush(x))
    expected = np.where(expected & 0x7F80 == 0, expected & 0x8000, expected)
    _narrow_kernel(dot)(x, found)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(found[numbers], expected[numbers])
    assert np.isnan(BF16.widen(found[~numbers])).all() and (~numbers).any()


@numba.njit
def _multiply_block(fresh, a, b, walks, c):
    configure_tiles()
    steps, there, pitch = walks.ctypes.data, c.ctypes.data, c.strides[0]
    tile_block(V, fresh, a.ctypes.data, a.strides[1], b.ctypes.data, steps, walks.shape[0], there, pitch)
    release_tiles()


@pytest.mark.parametrize("fresh", [0, 1])
def test_tile_block__follows_its_definition_to_the_bit(fresh):
    """By AMX where the CPU has it, else spelled out."""
    rng = np.random.default_rng(2)
    taps, steps = 2, 3
    a = BF16.narrow(rng.standard_normal((taps, 32, steps * 32 + 8)).astype(np.float32))
    b = BF16.narrow(rng.standard_normal((taps, steps * 16, 32, 2)).astype(np.float32))
    a[:, 3] = BF16.narrow(BF16.widen(a[:, 3]) * np.float32(2.0**-126))  # a row around the smallest normal number
    a[0, 4, :9] = 1  # denormals
    found = np.zeros((32, 40), np.float32)
    found[:, :32] = rng.standard_normal((32, 32))
    c = found[:, :32] * np.float32(1 - fresh)
    for tap in range(taps):
        for step in range(steps):
            sums = np.zeros((2, 32, 32), np.float32)  # of even and of odd places
            for k in range(16):
                for place in range(2):
                    left = _flush(BF16.widen(a[tap, :, step * 32 + 2 * k + place])).astype(np.longdouble)
                    right = _flush(BF16.widen(b[tap, step * 16 + k, :, place]))
                    sums[place] = _flush((np.outer(left, right) + sums[place]).astype(np.float32))
            c = _flush(_flush(c) + _flush(sums[0] + sums[1]))
    walks = np.array([(tap * a.strides[0], tap * b.strides[0], steps) for tap in range(taps)])
    _multiply_block(fresh, a, b, walks, found)
    np.testing.assert_array_equal(found[:, :32].view(np.uint32), c.view(np.uint32))
    assert not found[:, 32:].any()
    print("by AMX" if HAS_TILES else "spelled out: this CPU has no AMX")


# ---- kernels on tensors of 16 bits ---------------------------------------------------------------------------


def tensors(number, *shapes, seed=0):
    """Random tensors as they are stored, and the same numbers in float64."""
    stored = [number.narrow(randn(*shape, seed=seed + i)) for i, shape in enumerate(shapes)]
    return stored, [number.widen(one).astype(np.float64) for one in stored]


def close(found, expected, number=FP32, factor=4):
    """Within the rounding of what is stored and `factor` times the tolerance of float32 sums."""
    wide = number.widen(found).astype(np.float64)
    scale = np.abs(expected).max()
    limit = number.round_off * np.abs(expected) if number is not FP32 else 0
    smallest = 2.0**-25 if number is FP16 else 0
    assert (np.abs(wide - expected) <= limit * 1.01 + factor * TOLERANCE[np.dtype(np.float32)] * scale + smallest).all()


@SHORT
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_batchnorm__on_16_bits(number, relu, with_residual):
    shape, c = (2, 5, 7, 19), 19
    (x, residual, dy), (x64, residual64, dy64) = tensors(number, shape, shape, shape)
    gamma, beta = randn(c, seed=5, offset=1), randn(c, seed=6)
    mean, var, dgamma, dbeta = (np.empty(c, np.float32) for _ in range(4))
    y, dx = np.empty(shape, number.dtype), np.empty(shape, number.dtype)
    table = normed.forward(x, gamma, beta, 1e-5, y, mean, var, residual if with_residual else None, relu)
    vectors = gamma.astype(np.float64), beta.astype(np.float64)
    residual64 = residual64 if with_residual else None
    y64, mean64, var64 = reference.batchnorm_forward(x64, *vectors, 1e-5, residual64, relu)
    close(y, y64, number, factor=20)
    close(mean, mean64)
    close(var, var64)
    dresidual = np.empty(shape, number.dtype) if with_residual else None
    above = y if with_residual else None
    normed.backward(x, above, dy, gamma, var, 1e-5, table, dx, dgamma, dbeta, relu, dresidual)
    wide = number.widen(y).astype(np.float64)  # the mask is that of what was stored
    statistics = mean.astype(np.float64), var.astype(np.float64)
    dx64, dgamma64, dbeta64, g64 = reference.batchnorm_backward(x64, wide, dy64, gamma, *statistics, 1e-5, relu)
    close(dx, dx64, number, factor=20)
    close(dgamma, dgamma64, factor=20)
    close(dbeta, dbeta64, factor=20)
    if with_residual:
        np.testing.assert_array_equal(number.widen(dresidual), g64)  # nothing is rounded


@SHORT
def test_pools__on_16_bits(number):
    (x, dy, row), (x64, dy64, row64) = tensors(number, (2, 9, 8, 21), (2, 4, 3, 21), (2, 21))
    y, dx, argmax = np.empty(dy.shape, number.dtype), np.empty(x.shape, number.dtype), np.empty(dy.shape, np.uint8)
    kernels.maxpool_forward(x, 3, 2, 0, y, argmax)
    expected, places = reference.maxpool_forward(x64, 3, 2, 0)
    np.testing.assert_array_equal(number.widen(y), expected)
    kernels.maxpool_backward(dy, argmax, 3, 2, 0, dx)
    close(dx, reference.maxpool_backward(dy64, places, x.shape, 3, 2, 0), number)
    kernels.avgpool_forward(x, 3, 2, 0, y)
    close(y, reference.avgpool_forward(x64, 3, 2, 0), number)
    kernels.avgpool_backward(dy, 3, 2, 0, dx)
    close(dx, reference.avgpool_backward(dy64, x.shape, 3, 2, 0), number)
    mean = np.empty((2, 21), number.dtype)
    kernels.global_avgpool_forward(x, mean)
    close(mean, reference.global_avgpool_forward(x64), number)
    kernels.global_avgpool_backward(row, dx)
    close(dx, reference.global_avgpool_backward(row64, x.shape), number)


@SHORT
def test_pointwise__on_16_bits(number):
    shape = (3, 5, 7, 11)
    (a, b), (a64, b64) = tensors(number, shape, shape)
    y, keys, db = np.empty(shape, number.dtype), np.arange(3, dtype=np.uint64), np.empty(11, np.float32)
    kernels.relu_forward(a, y)
    np.testing.assert_array_equal(number.widen(y), np.maximum(a64, 0))
    kernels.relu_backward(y, b, y)
    np.testing.assert_array_equal(number.widen(y), np.where(a64 > 0, b64, 0))
    kernels.add_forward(a, b, y, relu=True)
    np.testing.assert_array_equal(y, number.narrow(np.maximum(a64 + b64, 0)))
    kernels.dropout_forward(a, 0.3, keys, y, 7)
    close(y, reference.dropout_forward(a64, 0.3, keys ^ np.uint64(7)), number)
    workspace = np.empty(kernels.bias_gradient_workspace(105, 11), np.float32)
    kernels.bias_gradient(a, db, workspace)
    close(db, a64.sum((0, 1, 2)))


@SHORT
def test_lrn_and_softmax__on_16_bits(number):
    shape = (2, 3, 4, 19)
    (x, dy), (x64, dy64) = tensors(number, shape, shape)
    setting, (y, dx) = (5, 0.1, 0.75, 1.0), np.empty((2, *shape), number.dtype)
    kernels.lrn_forward(x, *setting, y)
    close(y, reference.lrn_forward(x64, *setting), number)
    kernels.lrn_backward(x, dy, *setting, dx)
    close(dx, reference.lrn_backward(x64, dy64, *setting), number)
    logits, labels = randn(4, 10), np.array([0, 3, 9, 3])
    losses, dlogits = np.empty(4, np.float32), np.empty((4, 10), number.dtype)
    kernels.softmax_cross_entropy(logits, labels, 0.1, 0.25, losses, dlogits)
    losses64, dlogits64 = reference.softmax_cross_entropy(logits.astype(np.float64), labels, 0.1, 0.25)
    close(losses, losses64)
    close(dlogits, dlogits64, number)


def test_kernels__refuse_what_holds_no_number():
    with pytest.raises(TypeError, match="relu_forward: x: found float16, expected float32, uint16"):
        kernels.relu_forward(np.zeros(4, np.float16), np.zeros(4, np.float16))
