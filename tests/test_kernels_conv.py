"""Convolution kernels against their twins, at friendly, odd and tiny shapes."""

import itertools
import os

import numba
import numpy as np
import pytest
from gradcheck import NUMBERS, aligned

from knltrain.kernels import (
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_pack,
    conv2d_pack_transposed,
    conv2d_plan,
    reference,
)
from knltrain.kernels.arch import BLOCK
from knltrain.kernels.conv.grid import (
    backward_grids,
    forward_grid,
    next_input,
    row_addresses,
)
from knltrain.kernels.conv.winograd import Winograd
from knltrain.kernels.conv.winograd_weight import WinogradWeight
from knltrain.kernels.number import BF16, FP16, FP32, number_of

RELATIVE = 5e-6  # of the largest element: float32 sums of up to 4,608 products of standard normals
LARGE_TILES = 1e-5  # the same by Winograd's method for numbers of 16 bits, in tiles of 8 x 8

# N, H, W, C, K, R, S, stride, pad, groups
SHAPES = [
    (1, 7, 103, 3, 17, 3, 3, 1, 1, 1),  # merged taps, odd image
    (2, 12, 13, 3, 24, 7, 7, 2, 3, 1),  # the ResNet stem, small
    (2, 23, 23, 3, 8, 11, 11, 4, 0, 1),  # the AlexNet stem, small
    (2, 9, 11, 5, 7, 3, 2, 2, 1, 1),  # rectangular filter at stride 2
    (2, 9, 8, 10, 6, 5, 5, 2, 2, 2),  # groups that fill no tile
    (2, 8, 8, 12, 12, 3, 3, 3, 1, 4),  # stride 3: residue classes of unequal size
    (1, 5, 5, 33, 40, 1, 1, 2, 0, 1),  # classes that no tap reaches
    (3, 1, 1, 37, 50, 1, 1, 1, 0, 1),  # fully connected
    (188, 1, 1, 420, 70, 1, 1, 1, 0, 1),  # the most pixels of one block; weights packed in parts of their depth
    (190, 1, 1, 35, 500, 1, 1, 1, 0, 1),  # two blocks, squares of weights and what they leave
    (1, 1, 1, 1, 1, 1, 1, 1, 0, 1),
    (1, 14, 14, 1024, 32, 1, 1, 1, 0, 1),  # rows of x in one set of L1
    (2, 9, 9, 96, 64, 5, 5, 1, 2, 2),  # AlexNet conv2
    (4, 20, 20, 17, 16, 3, 3, 1, 1, 1),  # several shares of the pixels
    (2, 9, 10, 16, 20, 3, 3, 2, 1, 1),  # the most channels of which taps are merged, at stride 2
    (1, 6, 6, 64, 512, 3, 3, 1, 0, 1),
    (2, 5, 4, 700, 20, 1, 1, 1, 0, 1),  # depth in several panels
    (2, 7, 7, 28, 40, 3, 3, 1, 1, 2),  # more channels than a tile has columns, fewer than a cache line holds
    (1, 6, 5, 540, 20, 3, 3, 1, 1, 1),  # columns of x in two strips, shared by nine taps
    (2, 5, 6, 20, 20, 2, 2, 1, 5, 1),  # padding wider than the filter: outputs that read nothing
    (3, 15, 15, 20, 36, 3, 3, 2, 1, 1),  # chunks that begin and end in the middle of an image, at stride 2
    (5, 19, 17, 64, 64, 3, 3, 2, 1, 2),  # by tiles: two chunks, the last with an odd number of pixels
    (1, 5, 7, 288, 32, 1, 1, 1, 0, 1),  # by tiles: a strip of channels and a part of one
    (3, 21, 30, 3, 64, 7, 7, 2, 3, 1),  # by tiles: merged taps, a step each, and several strips
    (2, 47, 27, 3, 96, 11, 11, 4, 0, 1),  # merged taps of two steps
    (1, 8, 75, 3, 32, 3, 3, 1, 1, 1),  # by tiles: rows of several tiles, a filter row shorter than a line
    (3, 9, 14, 32, 64, 3, 3, 2, 1, 1),  # by tiles: four planes of unequal size
    (2, 12, 13, 64, 64, 5, 5, 3, 2, 2),  # nine, in groups
    (2, 9, 10, 96, 80, 3, 3, 2, 1, 2),  # half a step of depth, half a block of channels and a part of one
    (38, 1, 1, 144, 200, 1, 1, 1, 0, 1),  # the same, fully connected
    (40, 5, 4, 48, 36, 1, 1, 1, 0, 1),  # two chunks
    (266, 1, 1, 288, 1056, 1, 1, 1, 0, 1),  # panels of the weights packed in parts, several side by side
]

# by Winograd's method; the images are no multiples of a tile
WINOGRAD = [
    (5, 13, 15, 16, 48, 3, 3, 1, 1, 1),  # few channels, a block of outputs half filled
    (6, 14, 14, 32, 96, 3, 3, 1, 1, 2),  # groups
    (4, 21, 18, 80, 144, 3, 3, 1, 0, 1),  # no padding; ranges of unequal size in backward-weight
    (4, 12, 12, 16, 16, 3, 3, 1, 2, 1),  # an output larger than the input
    (4, 9, 10, 16, 16, 3, 3, 1, 5, 1),  # padding wider than the filter
    (70, 4, 4, 32, 32, 3, 3, 1, 1, 1),  # one tile an image
    (3, 11, 13, 32, 160, 5, 5, 1, 2, 2),  # 5 x 5 in groups: AlexNet conv2, small
    (4, 13, 12, 16, 32, 5, 5, 1, 0, 1),
    (16, 7, 7, 416, 448, 3, 3, 1, 1, 1),  # filters larger than a cache
    (5, 3, 9, 32, 16, 3, 3, 1, 1, 1),  # lower than a whole tile
]
SHAPES += WINOGRAD

# at least two shares of 768 output pixels, so several tasks in every direction
THREADED = [
    (4, 40, 41, 3, 24, 7, 7, 2, 3, 1),  # merged taps
    (4, 20, 20, 18, 16, 3, 3, 1, 1, 1),
    (5, 21, 20, 24, 40, 3, 3, 1, 1, 2),  # groups
    (4, 40, 40, 18, 20, 3, 3, 2, 1, 1),  # four residue classes of 1600 pixels
    (1, 40, 40, 700, 20, 1, 1, 1, 0, 1),  # depth in several panels
    (12, 29, 30, 48, 80, 3, 3, 1, 1, 1),  # by Winograd's method
    (5, 29, 30, 32, 32, 5, 5, 1, 2, 2),
]


# what x, dx, dy and y hold, and how it is multiplied
KINDS = {
    "fp32": (FP32, "widen"),
    "bf16 in tiles": (BF16, "amx"),
    "bf16 in pairs": (BF16, "dot2"),
    "bf16 widened": (BF16, "widen"),
    "fp16 widened": (FP16, "widen"),
}
DOTS = os.environ.get("TEST_DOTS", "amx dot2 widen").split()  # spelled out where the CPU has no instruction for one
KINDS_HERE = [name for name, (number, dot) in KINDS.items() if number in NUMBERS and dot in DOTS]
TRANSFORMED = os.environ.get("TEST_WINOGRAD", "fp32 bf16 fp16").split()  # or copied, for taps that are merged


def _plan(shape, kind, **options):
    n, h, w, c, k, r, s, stride, pad, groups = shape
    number, dot = KINDS[kind]
    return conv2d_plan((n, h, w, c), (r, s, c // groups, k), stride, pad, groups, number, dot=dot, **options)


def _case(shape, kind="fp32", **options):
    plan, rng = _plan(shape, kind, **options), np.random.default_rng(sum(shape))
    shapes = (plan.x_shape, plan.w_shape, plan.y_shape[-1:], plan.y_shape)
    return plan, [rng.standard_normal(s).astype(np.float32) for s in shapes], shape[7:]


def _pairs(shapes):
    """Each shape in each kind; but by Winograd's method, or in 16 bits with merged taps, only what does so here."""

    def goes(shape, kind):
        plan, number = _plan(shape, kind), KINDS[kind][0]
        methods = [type(method).__name__ for method in (plan.forward, plan.backward_input, plan.backward_weight)]
        compiled = ("Winograd",) if number is FP32 else ("Winograd", "Merged")
        return number.name in TRANSFORMED or not any(name.startswith(compiled) for name in methods)

    inside = [(s, k) for s in shapes for k in KINDS_HERE if goes(s, k)]
    return pytest.mark.parametrize(("shape", "kind"), inside, ids=str)


def _empty(shape, number=FP32):
    """An array of NaN."""
    return number.narrow(np.full(shape, np.nan, np.float32))


def _close(found, expected, number=FP32, sums=1, relative=RELATIVE):
    """number: what was rounded to, once for each of `sums`, after sums that are off by `relative`."""
    wide = number.widen(found) if number is not FP32 else found
    rounded = sums * number.round_off if number is not FP32 else 0
    assert np.abs(wide - expected).max() <= (relative + rounded) * np.abs(expected).max()


def _scratch(plan):
    return np.full(plan.workspace_size, np.nan, np.float32)


def _packed(plan, w):
    if plan.unpacked:
        return w, w
    packed = _empty(plan.packed_size, plan.forward.panels)
    packed_t = _empty(plan.packed_t_size, plan.backward_input.panels)
    conv2d_pack(plan, w, packed)
    conv2d_pack_transposed(plan, w, packed_t)
    return packed, packed_t


def _order(plan):
    """The pixels of y in the order in which forward computes them."""
    n, p, q, _ = plan.y_shape
    order = []
    for _, (geometry, taps) in plan.forward.grids:
        rows, columns, step = geometry[:3]
        for image, i, j in itertools.product(range(n), range(rows), range(columns)):
            pixels = taps[:, :2] + step * np.array([i, j])
            order += [image * p * q + h * q + w for h, w in pixels if h < p and w < q]
    assert sorted(order) == list(range(n * p * q))
    return order


def _wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


@_pairs(SHAPES)
def test_conv2d__equals_its_twin(shape, kind):
    plan, (x, w, b, dy), options = _case(shape, kind)
    number = plan.shape.number
    relative = LARGE_TILES if number is not FP32 and isinstance(plan.forward, Winograd) else RELATIVE
    x, dy = number.narrow(x), number.narrow(dy)
    packed, packed_t = _packed(plan, w)
    y, dx, dw = _empty(plan.y_shape, number), _empty(plan.x_shape, number), _empty(plan.w_shape)
    conv2d_forward(plan, x, packed, b, y, _scratch(plan))
    conv2d_backward_input(plan, dy, packed_t, dx)
    conv2d_backward_weight(plan, x, dy, dw, _scratch(plan))
    x64, b64, dy64 = _wide(number.widen(x), b, number.widen(dy))
    w64, w64_t = (  # rounded as they were packed
        number.widen(number.narrow(w)).astype(np.float64)
        for number in (plan.forward.panels, plan.backward_input.panels)
    )
    _close(y, reference.conv2d_forward(x64, w64, b64, *options), number)
    expected_dx = reference.conv2d_backward_input(dy64, w64_t, x.shape, *options)
    _close(dx, expected_dx, number)
    _close(dw, reference.conv2d_backward_weight(x64, dy64, w.shape[:2], *options), relative=relative)
    moments = np.full(plan.moments_shape, np.nan, np.float32)
    conv2d_forward(plan, x, packed, None, y, _scratch(plan), moments)
    expected_y = reference.conv2d_forward(x64, w64, None, *options)
    _close(y, expected_y, number)
    rows = expected_y.reshape(-1, y.shape[-1])[_order(plan)]
    ends = np.cumsum(plan.moments_counts)
    for start, end, found in zip([0, *ends], ends, moments, strict=False):
        assert np.abs(found[0] - rows[start:end].mean(0)).max() <= RELATIVE * np.abs(rows).max()
        _close(found[1], rows[start:end].var(0) * (end - start), relative=relative)
    conv2d_forward(plan, x, packed, b, y, _scratch(plan), relu=True)
    _close(y, np.maximum(reference.conv2d_forward(x64, w64, b64, *options), 0), number)
    conv2d_backward_input(plan, dy, packed_t, dx, accumulate=True)
    _close(dx, 2 * expected_dx, number, sums=2)


# stride 2 with classes that no tap reaches, Winograd's method in groups, tiles, a channel more than a vector has
PASSED = [SHAPES[4], SHAPES[6], SHAPES[16], WINOGRAD[1]]
PASSED += [(3, 9, 7, 64, 32, 1, 1, 1, 0, 1), (2, 7, 9, 17, 24, 3, 3, 2, 1, 1), (2, 9, 10, 96, 80, 3, 3, 2, 1, 2)]


@_pairs(PASSED)
def test_conv2d_backward_input__passes_on_what_the_relu_of_a_batch_norm_does_and_sums_it(shape, kind):
    plan, (x, w, _, dy), options = _case(shape, kind)
    number, panels, rng = plan.shape.number, plan.backward_input.panels, np.random.default_rng(7)
    mean, var, gamma, beta = (rng.uniform(0.5, 1.5, x.shape[-1]).astype(np.float32) for _ in range(4))
    table = np.tile([mean, gamma / np.sqrt(var + 1e-5), beta], 2).astype(np.float32)
    x, dy, y, before = (number.narrow(a) for a in (x, dy, *rng.standard_normal((2, *x.shape))))
    wide = _wide(number.widen(dy), panels.widen(panels.narrow(w)))
    whole = reference.conv2d_backward_input(*wide, x.shape, *options)
    for output, accumulate in itertools.product((None, y), (False, True)):
        dx, sums = before.copy() if accumulate else _empty(x.shape, number), _empty(plan.sums_shape)
        conv2d_backward_input(plan, dy, _packed(plan, w)[1], dx, accumulate, x, output, table, sums)
        behind = output if output is None else number.widen(output)
        all_of_it = whole + number.widen(before) if accumulate else whole
        expected = reference.batchnorm_passed(all_of_it, *_wide(number.widen(x)), behind, table)
        _close(dx, expected, number)
        rows, centred = expected.reshape(-1, x.shape[-1]), (number.widen(x) - mean).reshape(-1, x.shape[-1])
        _close(sums[:, 0].sum(0), rows.sum(0))
        _close(sums[:, 1].sum(0), (rows * centred).sum(0))
    with pytest.raises(ValueError, match="found sums and no x"):
        conv2d_backward_input(plan, dy, _packed(plan, w)[1], dx, sums=sums)


@pytest.mark.parametrize("kind", [kind for kind in KINDS_HERE if kind in ("bf16 in pairs", "fp16 widened")])
@pytest.mark.parametrize("shape", [SHAPES[7], SHAPES[8]], ids=str)  # fully connected, as what logits come from
def test_conv2d__stores_logits_as_float32(shape, kind):
    plan, (x, w, b, _), options = _case(shape, kind, y_number=FP32)
    x, y = plan.shape.number.narrow(x), _empty(plan.y_shape)
    conv2d_forward(plan, x, _packed(plan, w)[0], b, y, _scratch(plan))
    panels = plan.forward.panels
    wide = _wide(plan.shape.number.widen(x), panels.widen(panels.narrow(w)), b)
    _close(y, reference.conv2d_forward(*wide, *options))


@pytest.mark.parametrize("shape", [SHAPES[0], WINOGRAD[0]], ids=str)
def test_conv2d__rectifies_as_it_stores_and_lets_a_nan_through(shape):
    plan, (x, w, _, _), _ = _case(shape)
    packed, y = _packed(plan, w)[0], np.empty(plan.y_shape, np.float32)
    x[0, 0, 0, 0] = np.nan
    conv2d_forward(plan, x, packed, None, y, _scratch(plan), relu=True)
    assert np.isnan(y[0, 0, 0]).all() and not np.isnan(y[1:]).any() and np.nanmin(y) == 0


@pytest.mark.parametrize(
    ("height", "width", "r", "products"),
    [
        (12, 12, 3, 9 * 36),
        (13, 13, 3, 9 * 36 + 6 * 18 + 9),
        (14, 14, 3, 9 * 36 + 6 * 24 + 16),
        (7, 7, 3, 36 + 2 * 30 + 25),
        (3, 9, 3, 2 * 30 + 25),  # lower than a whole tile; the corner is as wide as it is high
        (9, 11, 5, 3 * 4 * 49),
    ],
)
def test_winograd__tiles_at_the_edges_have_as_few_products_as_their_outputs_need(height, width, r, products):
    plan = conv2d_plan((2, height, width, 32), (r, r, 32, 32), 1, r // 2)
    assert all(plan.arithmetic(d) == 2 * products * 32 * 32 for d in ("forward", "backward_input", "backward_weight"))


@pytest.mark.parametrize("shape", [*WINOGRAD[:-2], WINOGRAD[-1]], ids=str)
def test_winograd__is_off_by_five_times_what_direct_sums_are_at_most(shape):
    """The root mean square of the error, of the products that a trained layer sees: no negative x, forward."""
    n, h, w, c, k, r, s, stride, pad, groups = shape
    errors = []
    for without in ((), (Winograd, WinogradWeight)):
        plan = conv2d_plan((n, h, w, c), (r, s, c // groups, k), stride, pad, groups, without=without)
        methods = plan.forward, plan.backward_input, plan.backward_weight
        assert {isinstance(method, (Winograd, WinogradWeight)) for method in methods} == {not without}
        rng = np.random.default_rng(1)
        x = np.maximum(rng.standard_normal(plan.x_shape), 0).astype(np.float32)
        weights = rng.standard_normal(plan.w_shape).astype(np.float32)
        y = np.empty(plan.y_shape, np.float32)
        conv2d_forward(plan, x, _packed(plan, weights)[0], None, y, _scratch(plan))
        exact = reference.conv2d_forward(x.astype(np.float64), weights.astype(np.float64), None, stride, pad, groups)
        errors.append(np.sqrt(np.mean((y - exact) ** 2)))
    assert errors[0] < 5 * errors[1]


PAST = [(2, 12, 13, 64, 96, 3, 3, 2, 1, 2), WINOGRAD[1], (70, 1, 1, 320, 96, 1, 1, 1, 0, 1)]


@_pairs(PAST)
def test_conv2d__stores_past_the_caches_what_it_stores_otherwise(shape, kind, monkeypatch):
    plan, (x, w, b, dy), _ = _case(shape, kind)
    number, (packed, packed_t) = plan.shape.number, _packed(plan, w)
    x, dy = number.narrow(x), number.narrow(dy)

    def results():
        y, dx = (aligned(_empty(shape, number)) for shape in (plan.y_shape, plan.x_shape))
        dw = aligned(_empty(plan.w_shape))
        conv2d_forward(plan, x, packed, b, y, _scratch(plan))
        conv2d_backward_input(plan, dy, packed_t, dx)
        conv2d_backward_weight(plan, x, dy, dw, _scratch(plan))
        return y, dx, dw

    ordinary = results()
    monkeypatch.setattr("knltrain.kernels.store.PAST_BYTES", 0)
    for have, want in zip(results(), ordinary, strict=True):
        np.testing.assert_array_equal(have, want)


@_pairs(THREADED)
def test_conv2d__same_bits_with_one_and_two_threads(shape, kind):
    plan, (x, w, b, dy), _ = _case(shape, kind)
    number = plan.shape.number
    x, dy = number.narrow(x), number.narrow(dy)
    assert plan.backward_weight.splits > 1
    packed, packed_t = _packed(plan, w)
    before = numba.get_num_threads()
    results = []
    for threads in (1, 2):
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        y, dx, dw = _empty(plan.y_shape, number), _empty(plan.x_shape, number), _empty(plan.w_shape)
        conv2d_forward(plan, x, packed, b, y, _scratch(plan))
        conv2d_backward_input(plan, dy, packed_t, dx)
        conv2d_backward_weight(plan, x, dy, dw, _scratch(plan))
        results.append((y, dx, dw))
    numba.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)


CUT = [(3, 20, 20, 18, 300, 3, 3, 2, 1, 1), (4, 13, 11, 64, 288, 3, 3, 1, 1, 1)]  # by channels
CUT += [(2, 57, 57, 20, 24, 1, 1, 1, 0, 1), (8, 61, 62, 16, 16, 3, 3, 1, 1, 1)]  # by shares, some in a row


@pytest.mark.parametrize("kind", KINDS_HERE)
@pytest.mark.parametrize("shape", CUT, ids=str)
def test_conv2d_backward_weight__same_bits_however_its_channels_and_shares_are_dealt(shape, kind):
    plan, (x, _, _, dy), _ = _case(shape, kind)
    method, number, results = plan.backward_weight, plan.shape.number, {}
    for wide, taken, tasks in [method.tasks(threads) for threads in (1, 2, 5, 1000)]:
        at_once = tasks * taken // method.splits
        for run in (1 << i for i in range(method.splits.bit_length())):
            method.tasks = lambda _, cut=(wide, run, method.splits // run * at_once): cut
            dw = _empty(plan.w_shape)
            conv2d_backward_weight(plan, number.narrow(x), number.narrow(dy), dw, _scratch(plan))
            results[wide, run] = dw
            del method.tasks
    assert len(results) >= 2 and (1, 1) in results
    assert all(np.array_equal(dw, results[1, 1]) for dw in results.values())


def test_row_addresses__are_those_of_the_pixels_and_every_output_is_written_once():
    """Forward, and every residue class of backward-input, with x at address 10**6 and the pixel outside at 7.

    Numbers of four and of two bytes: geometry is in bytes, and knows nothing else of them.
    """
    for h, w, r, s, stride, pad in itertools.product((3, 8), (2, 7), (1, 3), (2, 3), (1, 2, 3), (0, 1, 2, 5)):
        if h + 2 * pad < r or w + 2 * pad < s:
            continue
        element = (FP32, BF16)[pad % 2]
        plan = conv2d_plan((2, h, w, 17), (r, s, 17, 24), stride, pad, number=element)
        _, p, q, _ = plan.y_shape
        written = np.zeros((2, h, w), int)
        pairs = [forward_grid(plan.shape), *backward_grids(plan.shape)]
        for number, ((geometry, taps), writes) in enumerate(pairs):
            rows, columns, step = geometry[:3]
            image, i, j = np.unravel_index(np.arange(2 * rows * columns), (2, rows, columns))
            y, x = i * step + taps[:, :1], j * step + taps[:, 1:2]  # (taps, pixels)
            height, width, depth = (h, w, 17) if number == 0 else (p, q, 24)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            expected = np.where(inside, 10**6 + ((image * height + y) * width + x) * depth * element.bytes, 7)
            for first, count in [(0, len(image)), (1, len(image) - 1), (len(image) // 2, 1)]:
                table = np.zeros((len(taps), count), np.int64)
                row_addresses.py_func(10**6, 7, geometry, taps, first, count, table)
                assert np.array_equal(table, expected[:, first : first + count])
                if len(taps) and inside[-1, first]:
                    assert next_input.py_func(10**6, geometry, taps, first) == expected[-1, first]
            if number > 0:
                table = np.zeros((1, len(image)), np.int64)
                row_addresses.py_func(0, -1, *writes, 0, len(image), table)
                np.add.at(written.reshape(-1), table // (17 * element.bytes), 1)
        assert (written == 1).all()


@pytest.mark.parametrize(
    ("shape", "methods"),
    [
        ((2, 14, 14, 64, 96, 3, 3, 1, 1, 1), ["Winograd", "Winograd", "WinogradWeight"]),
        ((2, 14, 14, 64, 96, 3, 3, 2, 1, 1), ["Rows", "Rows", "Outer"]),
        ((2, 23, 23, 3, 8, 7, 7, 2, 3, 1), ["MergedRows", "Rows", "MergedOuter"]),
        ((8, 1, 1, 64, 10, 1, 1, 1, 0, 1), ["Unpacked", "Unpacked", "Outer"]),
    ],
    ids=str,
)
def test_conv2d_plan__picks_the_method_of_a_shape(shape, methods):
    plan = _case(shape)[0]
    for direction, method in zip(("forward", "backward_input", "backward_weight"), methods, strict=True):
        assert type(getattr(plan, direction)).__name__ == method
        assert (plan.arithmetic(direction) < plan.multiply_adds) == ("Winograd" in method)


@pytest.mark.parametrize(
    ("shape", "kind", "methods"),
    [
        ((2, 14, 14, 64, 96, 3, 3, 1, 1, 1), "bf16 in tiles", ["Tiles", "Tiles", "TilesWeight"]),
        ((2, 14, 14, 64, 96, 3, 3, 1, 1, 1), "bf16 in pairs", ["Winograd", "Winograd", "WinogradWeight"]),
        ((2, 14, 14, 48, 40, 1, 1, 1, 0, 1), "bf16 in tiles", ["Tiles", "Tiles", "TilesWeight"]),  # no whole tiles
        ((2, 14, 14, 64, 24, 1, 1, 1, 0, 1), "bf16 in tiles", ["Rows", "Rows", "Outer"]),  # too few channels
        ((8, 1, 1, 64, 100, 1, 1, 1, 0, 1), "bf16 in tiles", ["UnpackedTiles", "UnpackedTiles", "TilesWeight"]),
        ((8, 1, 1, 64, 10, 1, 1, 1, 0, 1), "bf16 in pairs", ["Unpacked", "Unpacked", "Outer"]),
        ((8, 1, 1, 64, 10, 1, 1, 1, 0, 1), "fp16 widened", ["Unpacked", "Unpacked", "Outer"]),
        ((8, 1, 1, 64, 11, 1, 1, 1, 0, 1), "bf16 in pairs", ["Unpacked", "Unpacked", "Outer"]),  # an odd depth
    ],
    ids=str,
)
def test_conv2d_plan__multiplies_16_bits_in_tiles_or_pairs_where_they_are_whole(shape, kind, methods):
    if "Tiles" in methods[0] and BLOCK != 32:
        pytest.skip(f"a register tile has {BLOCK} channels on this CPU, and AMX's 32")
    plan = _case(shape, kind)[0]
    found = plan.forward, plan.backward_input, plan.backward_weight
    assert [type(method).__name__ for method in found] == methods
    pairs = plan.shape.pairs and methods[0] != "Winograd"
    assert (plan.forward.panels is BF16) == pairs and (plan.backward_input.panels is BF16) == pairs


def test_number_of__knows_what_kernels_take():
    assert number_of(np.float32) is FP32 and FP32.bytes == 4 and FP32.round_off == np.finfo(np.float32).epsneg
    with pytest.raises(TypeError, match="found float64, expected float32, uint16"):
        number_of(np.float64)


def test_conv2d_plan__rejects_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="x has 8 channels"):
        conv2d_plan((1, 5, 5, 8), (3, 3, 8, 16), groups=2)
    with pytest.raises(ValueError, match="at least the kernel 3"):
        conv2d_plan((1, 2, 2, 8), (3, 3, 8, 16))


def test_conv2d_forward__rejects_a_wrong_output():
    plan, (x, w, b, _), _ = _case(SHAPES[0])
    packed, _ = _packed(plan, w)
    with pytest.raises(ValueError, match="conv2d: y: found shape"):
        conv2d_forward(plan, x, packed, b, np.empty((1, 2, 3, 17), np.float32), _scratch(plan))
