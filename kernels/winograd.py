"""Convolution with stride 1 by Winograd's method: 36 small products of matrices in place of one with 9 or 25 taps.

An image is cut into tiles of m x m outputs, m = 7 - r, each of which reads 6 x 6 inputs. Tiles, channel by channel, are
transformed to 36 points; there the convolution is a product of matrices, tiles by input channels times input by
output channels, each of the 36 alone; the sums are transformed back. That is 36 multiplications for m x m outputs in
place of m x m x r x r: a quarter for 3 x 3, 36 % for 5 x 5. Matrices and precision: `winograd_transform`.

A task owns a block of tiles and a range of output channels. It transforms the inputs of its tiles once, into an array
that stays in L2; then, for each block of output channels, the micro-kernel runs over the 36 points, and the results
are transformed back into C, which is stored when it is whole, as in `conv`. Backward-input is the same with dy for x,
and with filters that are turned around, their channels exchanged.
"""

import numba
import numpy as np

from ._jit import kernel
from .arch import BLOCK, LINE, LINE_FLOATS, MR, NV, V
from .conv_plan import (
    DEPTH,
    GRID_I,
    GRID_J,
    GROUPS,
    MOST_WIDTH,
    OUT_H,
    OUT_PITCH,
    OUT_W,
    STEP,
    TILES,
    WIDTH,
    block_count,
    ceil,
)
from .conv_rows import row_addresses
from .conv_store import store_c
from .microkernel import tile_rows
from .store import goes_past
from .winograd_transform import INPUT, OUTPUT, POINTS, transform


@kernel
def _pixel_addresses(y, geometry, first, count, nowhere, table, pitch, c_table):
    """Where the outputs of `count` tiles go: table[i] = address of the i-th pixel inside the image, tile by tile.

    c_table[j, t]: bytes from the start of C to its row (of `pitch` bytes) for output j of tile t; `nowhere` outside.
    Returns how many there are inside.
    """
    grid_i, grid_j, m = geometry[GRID_I], geometry[GRID_J], geometry[STEP]
    height, width = geometry[OUT_H], geometry[OUT_W]
    inside = 0
    for t in range(count):
        image, rest = divmod(first + t, grid_i * grid_j)
        i, j = divmod(rest, grid_j)
        for a in range(m):
            for b in range(m):
                h, w = i * m + a, j * m + b
                c_table[a * m + b, t] = nowhere
                if h < height and w < width:
                    table[inside] = y + ((image * height + h) * width + w) * geometry[OUT_PITCH] * 4
                    c_table[a * m + b, t] = inside * pitch
                    inside += 1
    return inside


@kernel
def _tiles_task(task, ranges, x, zeros, geometry, taps, weights, bias, y, images, accumulate, relu, moments, past):
    """One task: TILES tiles of the grid times one of `ranges` ranges of output channels, for every group."""
    tiles = images * geometry[GRID_I] * geometry[GRID_J]
    depth, width, groups, m = geometry[DEPTH], geometry[WIDTH], geometry[GROUPS], geometry[STEP]
    blocks = -(-width // BLOCK)
    tile_block, part = divmod(task, ranges)
    first = tile_block * TILES
    count = TILES if tile_block < block_count(tiles, TILES) - 1 else tiles - first
    padded = -(-count // MR) * MR  # the last rows of products read the last tile again, for nobody
    lo, hi = blocks * part // ranges, blocks * (part + 1) // ranges
    valid = min(hi * BLOCK, width) - lo * BLOCK

    # 36 planes each: V (tiles, depth) of inputs, P (tiles, BLOCK) of products; a line more keeps them in other sets
    v_plane, p_plane = count * depth + LINE_FLOATS, padded * BLOCK + LINE_FLOATS
    v = np.empty(POINTS * v_plane + LINE_FLOATS, np.float32)
    p = np.empty(POINTS * p_plane + LINE_FLOATS, np.float32)
    c = np.empty((m * m * count + 1) * valid + LINE_FLOATS, np.float32)
    skip = -c.ctypes.data % LINE // 4  # floats to its first whole line
    v_planes = np.arange(POINTS) * v_plane * 4
    p_planes = np.arange(POINTS) * p_plane * 4
    v_rows = np.minimum(np.arange(padded), count - 1) * depth * 4
    p_rows = np.arange(padded) * BLOCK * 4
    start = np.zeros(BLOCK, np.float32)
    sources = np.empty((POINTS, count), np.int64)
    out_rows = np.empty(m * m * count, np.int64)
    c_rows = np.empty((m * m, count), np.int64)
    row_addresses(x.ctypes.data, zeros.ctypes.data, geometry, taps, first, count, sources)
    nowhere = m * m * count * valid * 4
    inside = _pixel_addresses(y.ctypes.data, geometry, first, count, nowhere, out_rows, valid * 4, c_rows)
    for group in range(groups):
        v_start = v.ctypes.data + -v.ctypes.data % LINE
        p_start = p.ctypes.data + -p.ctypes.data % LINE
        c_start = c.ctypes.data + 4 * skip
        for t in range(count):
            transform(
                INPUT, V, m, x.dtype, sources.ctypes.data + 8 * t, 8 * count, group * depth * 4,
                v_planes.ctypes.data, 8, v_start + v_rows[t], depth // V,
            )  # fmt: skip
        for block in range(lo, hi):
            panel = weights.ctypes.data + (group * blocks + block) * POINTS * depth * BLOCK * 4
            for point in range(POINTS):
                for row in range(0, padded, MR):
                    tile_rows(
                        MR, NV, V, v_rows.ctypes.data + 8 * row, 0, 1, depth, v_start + v_planes[point],
                        panel + point * depth * BLOCK * 4, 0, p_rows.ctypes.data + 8 * row, p_start + p_planes[point],
                        start.ctypes.data, 0, 0,
                    )  # fmt: skip
            along, vectors = (block - lo) * BLOCK * 4, min(BLOCK, width - block * BLOCK) // V
            for t in range(count):
                transform(
                    OUTPUT, V, m, c.dtype, p_planes.ctypes.data, 8, p_start + p_rows[t],
                    c_rows.ctypes.data + 8 * t, 8 * count, c_start + along, vectors,
                )  # fmt: skip
        first_channel = group * width + lo * BLOCK
        if bias.size > 0:
            for row in range(inside):
                for j in range(valid):
                    c[skip + row * valid + j] += bias[first_channel + j]
        store_c(
            c, skip, valid, inside, first_channel, valid, relu, moments, tile_block, y.dtype, out_rows, accumulate, past
        )


@kernel(parallel=True)
def _tiles_nest(tasks, ranges, x, zeros, geometry, taps, weights, bias, y, images, accumulate, relu, moments, past):
    for task in numba.prange(tasks):
        _tiles_task(
            np.int64(task), ranges, x, zeros, geometry, taps, weights, bias, y, images, accumulate, relu, moments, past
        )


def run_tiles(grid, x, zeros, weights, bias, y, accumulate, relu, moments):
    """y = sums over the tiles of a plan's `tiled` grid; weights as `conv2d_pack` made them of filters of 6 x 6."""
    geometry, taps = grid
    width = int(geometry[WIDTH])
    blocks = ceil(width, BLOCK)
    along = block_count(x.shape[0] * int(geometry[GRID_I] * geometry[GRID_J]), TILES)
    # where tiles alone give too few tasks channels are cut too, but each range transforms all of the input again
    ranges = min(blocks, max(ceil(4 * numba.get_num_threads(), along), ceil(width, MOST_WIDTH)))
    _tiles_nest(
        along * ranges, ranges, x.reshape(-1), zeros, geometry, taps, weights, bias, y.reshape(-1), x.shape[0],
        accumulate, relu, moments, goes_past(y, width),
    )  # fmt: skip
