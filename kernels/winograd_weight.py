"""Gradient of a convolution's weights by Winograd's method: see `winograd` for tiles and points.

With y = A^T ((G w G^T) * (B^T x B)) A, dw = G^T (sum over tiles of (B^T x B) * (A dy A^T)) G: at each of the 36
points a product of matrices again, input channels by tiles times tiles by output channels. A task owns a range of
input and one of output channels and a share of the tiles; the sums of its 36 points stay in L2 with the transformed
inputs and gradients of some tiles at a time, and are transformed to a gradient of weights once, at the end.
"""

import numba
import numpy as np

from ._jit import kernel
from .arch import BLOCK, LINE, LINE_FLOATS, MC, NV, V
from .conv_plan import (
    CHANNELS,
    DEPTH,
    GRID_I,
    GRID_J,
    GROUPS,
    STEP,
    TILE,
    TILES,
    WIDTH,
    ceil,
)
from .conv_rows import row_addresses
from .microkernel import tile_outer
from .winograd_transform import GRADIENT, INPUT, POINTS, WEIGHT, transform


@kernel
def _channels(part, parts, channels, unit):
    """First and last + 1 of a part of the channels, in whole units."""
    units = -(-channels // unit)
    return units * part // parts * unit, min(units * (part + 1) // parts * unit, channels)


@kernel
def _tiles_weight_task(task, x, zeros, inputs, input_taps, dy, gradients, gradient_taps, dw, partial, images, splits):
    """One task: CHANNELS input and CHANNELS output channels of one group, over one share of the tiles.

    inputs, gradients: the grids of tiles of x and of dy, with their taps.
    """
    tiles = images * inputs[GRID_I] * inputs[GRID_J]
    depth, width, groups, m = inputs[DEPTH], inputs[WIDTH], inputs[GROUPS], inputs[STEP]
    c_parts, k_parts = -(-depth // CHANNELS), -(-width // CHANNELS)
    split, rest = divmod(task, groups * c_parts * k_parts)
    rest, k_part = divmod(rest, k_parts)
    group, c_part = divmod(rest, c_parts)
    c_lo, c_hi = _channels(c_part, c_parts, depth, LINE_FLOATS)
    k_lo, k_hi = _channels(k_part, k_parts, width, BLOCK)
    channels, blocks = c_hi - c_lo, -(-(k_hi - k_lo) // BLOCK)
    first_tile, last_tile = tiles * split // splits, tiles * (split + 1) // splits

    # 36 planes each: v (tiles, channels), g (blocks, tiles, BLOCK), sums (blocks, channels, BLOCK)
    most = min(TILES, last_tile - first_tile)
    v_plane = most * channels + LINE_FLOATS
    g_plane = blocks * most * BLOCK + LINE_FLOATS
    sums_plane = blocks * channels * BLOCK + LINE_FLOATS
    v = np.empty(POINTS * v_plane + LINE_FLOATS, np.float32)
    g = np.zeros(POINTS * g_plane + LINE_FLOATS, np.float32)
    sums = np.empty(POINTS * sums_plane + LINE_FLOATS, np.float32)
    v_planes, g_planes, sums_planes = (
        np.arange(POINTS) * v_plane * 4, np.arange(POINTS) * g_plane * 4, np.arange(POINTS) * sums_plane * 4
    )  # fmt: skip
    v_rows = np.arange(most) * channels * 4
    nowhere = np.empty(BLOCK, np.float32)
    sources = np.empty((POINTS, most), np.int64)
    dy_sources = np.empty((m * m, most), np.int64)
    for first in range(first_tile, last_tile, TILES):
        count = min(TILES, last_tile - first)
        row_addresses(x.ctypes.data, zeros.ctypes.data, inputs, input_taps, first, count, sources)
        row_addresses(dy.ctypes.data, zeros.ctypes.data, gradients, gradient_taps, first, count, dy_sources)
        v_start = v.ctypes.data + -v.ctypes.data % LINE
        g_start = g.ctypes.data + -g.ctypes.data % LINE
        sums_start = sums.ctypes.data + -sums.ctypes.data % LINE
        for t in range(count):
            transform(
                INPUT, V, m, x.dtype, sources.ctypes.data + 8 * t, 8 * most, (group * depth + c_lo) * 4,
                v_planes.ctypes.data, 8, v_start + v_rows[t], channels // V,
            )  # fmt: skip
            for block in range(blocks):
                k = k_lo + block * BLOCK
                there = g_start + (block * most + t) * BLOCK * 4
                vectors = min(BLOCK, k_hi - k) // V
                transform(
                    GRADIENT, V, m, dy.dtype, dy_sources.ctypes.data + 8 * t, 8 * most, (group * width + k) * 4,
                    g_planes.ctypes.data, 8, there, vectors,
                )  # fmt: skip
        for point in range(POINTS):
            for block in range(blocks):
                b = g_start + g_planes[point] + block * most * BLOCK * 4
                for c in range(0, channels, MC):
                    skip = max(0, c + MC - channels)  # the last tile reaches back over its neighbour's rows
                    tile_outer(
                        MC, NV, V, v_rows.ctypes.data, count, v_start + v_planes[point] + (c - skip) * 4, b,
                        sums_start + sums_planes[point] + (block * channels + c - skip) * BLOCK * 4, BLOCK * 4, skip,
                        nowhere.ctypes.data, first == first_tile, 0, 0,
                    )  # fmt: skip
    side = TILE + 1 - m  # of the filter
    targets = np.arange(side * side) * depth * groups * width * 4
    out = dw.ctypes.data if split == 0 else partial.ctypes.data + (split - 1) * dw.size * 4
    for block in range(blocks):
        k = k_lo + block * BLOCK
        vectors = min(BLOCK, k_hi - k) // V
        for c in range(channels):
            here = sums.ctypes.data + -sums.ctypes.data % LINE + (block * channels + c) * BLOCK * 4
            there = out + 4 * ((c_lo + c) * groups * width + group * width + k)
            transform(
                WEIGHT, V, m, sums.dtype, sums_planes.ctypes.data, 8, here, targets.ctypes.data, 8, there, vectors
            )


@kernel(parallel=True)
def _tiles_weight_nest(
    tasks, x, zeros, inputs, input_taps, dy, gradients, gradient_taps, dw, partial, images, splits
):  # fmt: skip
    for task in numba.prange(tasks):
        _tiles_weight_task(
            np.int64(task), x, zeros, inputs, input_taps, dy, gradients, gradient_taps, dw, partial, images, splits
        )


def run_tiles_weight(plan, x, dy, dw, partial):
    """dw, share 0 of the tiles; the other shares (splits - 1, weights) into partial."""
    (inputs, input_taps), _, (gradients, gradient_taps) = plan.tiled
    parts = ceil(int(inputs[DEPTH]), CHANNELS) * ceil(int(inputs[WIDTH]), CHANNELS)
    _tiles_weight_nest(
        plan.splits * plan.groups * parts, x.reshape(-1), plan.zeros, inputs, input_taps, dy.reshape(-1), gradients,
        gradient_taps, dw.reshape(-1), partial, x.shape[0], plan.splits,
    )  # fmt: skip
