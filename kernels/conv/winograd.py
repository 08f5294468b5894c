"""Convolution with stride 1 by Winograd's method: 36 small products of matrices in place of one with 9 or 25 taps.

An image is cut into tiles of m x m outputs, m = 7 - r, each of which reads 6 x 6 inputs. Tiles, channel by channel, are
transformed to 36 points; there the convolution is a product of matrices, tiles by input channels times input by
output channels, each of the 36 alone; the sums are transformed back. That is 36 multiplications for m x m outputs in
place of m x m x r x r: a quarter for 3 x 3, 36 % for 5 x 5. Matrices and precision: `transform`.

A task owns TILES tiles and a range of output channels. It transforms the inputs of its tiles once, into planes that
stay in L2; then, for each block of output channels, the micro-kernel runs over the 36 points, and the results are
transformed back into C, which is finished when it is whole, as in `rows`. Backward-input is the same with dy for x, and
with filters that are turned around, their channels exchanged.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, LINE_FLOATS, MR, NV, V
from ..microkernel import tile_rows
from .grid import DEPTH, GRID_I, GRID_J, GROUPS, OUT_H, OUT_PITCH, OUT_W, STEP, WIDTH, row_addresses, tile_grid
from .method import Blocks
from .panels import ROW, pack_columns, pack_rows
from .shape import TILE, ceil
from .task import F32_BYTES, aligned, finish, place
from .transform import FILTER, INPUT, OUTPUT, POINTS, transform

TILES = 28  # tiles of a block: two of the micro-kernel; their 36 planes of inputs stay in L2
FILTER_ROWS = 32  # of the depth of filters that a task transforms


@inlined
def planes(floats):
    """POINTS planes of at least `floats` floats, aligned; a line more keeps them in other sets of a cache."""
    plane = floats + LINE_FLOATS
    return aligned(POINTS * plane).reshape(POINTS, plane)


@inlined
def plane_offsets(array):
    """Bytes from the first to each plane."""
    return np.arange(POINTS) * array.shape[1] * F32_BYTES


@inlined
def _place_outputs(job, part, pitch, out_rows, c_rows):
    """Where the outputs of a part go: out_rows[i] = address of the i-th pixel inside the image, tile by tile.

    c_rows[j, t]: bytes from the start of C to its row (of `pitch` bytes) for output j of tile t; to one behind the last
    for those outside. Returns how many there are inside.
    """
    geometry, y = part.geometry, job.y.ctypes.data
    grid_i, grid_j, m = geometry[GRID_I], geometry[GRID_J], geometry[STEP]
    height, width = geometry[OUT_H], geometry[OUT_W]
    inside = 0
    for t in range(part.count):
        image, rest = divmod(part.first + t, grid_i * grid_j)
        i, j = divmod(rest, grid_j)
        for a in range(m):
            for b in range(m):
                h, w = i * m + a, j * m + b
                c_rows[a * m + b, t] = m * m * part.count * pitch
                if h < height and w < width:
                    out_rows[inside] = y + ((image * height + h) * width + w) * geometry[OUT_PITCH]
                    c_rows[a * m + b, t] = inside * pitch
                    inside += 1
    return inside


@inlined
def _transform_inputs(group, job, part, sources, v):
    """v (36 planes, tiles x depth) = B^T x B of the tiles whose pixels stand at sources (36, tiles)."""
    depth, m, count, to = part.geometry[DEPTH], part.geometry[STEP], part.count, plane_offsets(v)
    shift, start = group * depth * job.x.itemsize, v.ctypes.data
    for t in range(count):
        transform(
            INPUT, V, m, job.x.dtype, sources.ctypes.data + 8 * t, 8 * count, shift,
            to.ctypes.data, 8, start + t * depth * F32_BYTES, depth // V,
        )  # fmt: skip


@inlined
def _multiply(panel, depth, count, v, p):
    """p = v times a panel of filters (36, depth, BLOCK) at each point; p is padded with tiles that nobody reads."""
    padded = p.shape[1] // BLOCK // MR * MR
    v_rows, p_rows = np.minimum(np.arange(padded), count - 1) * depth * F32_BYTES, np.arange(padded) * ROW
    start = np.zeros(BLOCK, np.float32)
    for point in range(POINTS):
        v_plane = v.ctypes.data + point * v.shape[1] * F32_BYTES
        p_plane = p.ctypes.data + point * p.shape[1] * F32_BYTES
        for row in range(0, padded, MR):
            tile_rows(
                MR, NV, V, np.float32, v_rows.ctypes.data + 8 * row, 0, 1, depth, v_plane,
                panel + point * depth * ROW, 0, p_rows.ctypes.data + 8 * row, p_plane, start.ctypes.data, 0, 0,
            )  # fmt: skip


@inlined
def _transform_outputs(m, p, c_rows, target, vectors):
    """Rows of C from `target` on = A^T p A."""
    count, sources, start = c_rows.shape[1], plane_offsets(p), p.ctypes.data
    for t in range(count):
        transform(
            OUTPUT, V, m, p.dtype, sources.ctypes.data, 8, start + t * ROW,
            c_rows.ctypes.data + 8 * t, 8 * count, target, vectors,
        )  # fmt: skip


@inlined
def _add_bias(job, channel, c, pitch, count):
    for row in range(count):
        for j in range(pitch):
            c[row * pitch + j] += job.bias[channel + j]


@inlined
def _tiles_task(task, job):
    """TILES tiles of the grid times one of the ranges of output channels, for every group."""
    part = place(task, job, TILES)
    geometry = part.geometry
    depth, width, m, count = geometry[DEPTH], geometry[WIDTH], geometry[STEP], part.count
    blocks, pitch = -(-width // BLOCK), part.valid
    sources = np.empty((POINTS, count), np.int64)
    row_addresses(job.x.ctypes.data, job.zeros.ctypes.data, geometry, part.taps, part.first, count, sources)
    out_rows, c_rows = np.empty(m * m * count, np.int64), np.empty((m * m, count), np.int64)
    inside = _place_outputs(job, part, pitch * F32_BYTES, out_rows, c_rows)
    v, p, c = planes(count * depth), planes(-(-count // MR) * MR * BLOCK), aligned((m * m * count + 1) * pitch)
    for group in range(geometry[GROUPS]):
        _transform_inputs(group, job, part, sources, v)
        for block in range(part.lo, part.hi):
            panel = job.weights.ctypes.data + (group * blocks + block) * POINTS * depth * ROW
            _multiply(panel, depth, count, v, p)
            target, vectors = c.ctypes.data + (block - part.lo) * ROW, min(BLOCK, width - block * BLOCK) // V
            _transform_outputs(m, p, c_rows, target, vectors)
        if job.bias.size > 0:
            _add_bias(job, group * width + part.lo * BLOCK, c, pitch, inside)
        finish(job, part, group, c, pitch, inside, out_rows)


@kernel(parallel=True)
def _tiles_nest(tasks, job):
    for task in numba.prange(tasks):
        _tiles_task(np.int64(task), job)


# ---- filters -------------------------------------------------------------------------------------------------


@inlined
def _filter_task(task, w, groups, transposed, out):
    """A block of channels of w (taps, C/groups, K), some rows of its depth, as transformed filters (36, depth, BLOCK).

    transposed: for backward-input, with filters turned around and C and K exchanged.
    """
    taps, depth, width = w.shape
    k_group, pitch = width // groups, width * w.itemsize
    rows, columns = (k_group, depth) if transposed else (depth, k_group)
    index, part = divmod(task, -(-rows // FILTER_ROWS))
    group, block = divmod(index, -(-columns // BLOCK))
    first, channel = part * FILTER_ROWS, block * BLOCK
    count, valid = min(FILTER_ROWS, rows - first), min(BLOCK, columns - channel)
    panels, sources = np.empty((taps, FILTER_ROWS, BLOCK), np.float32), np.empty(taps, np.int64)
    targets = ROW * ((index * POINTS + np.arange(POINTS)) * rows + first)
    for t in range(taps):
        panel = panels[t].ctypes.data
        if transposed:
            source = w.ctypes.data + ((t * depth + channel) * width + group * k_group + first) * w.itemsize
            pack_columns(w.dtype, np.float32, source, pitch, count, valid, panel)
        else:
            source = w.ctypes.data + ((t * depth + first) * width + group * k_group + channel) * w.itemsize
            pack_rows(w.dtype, np.float32, source, pitch, count, valid, panel, 0)
        sources[taps - 1 - t if transposed else t] = t * FILTER_ROWS * ROW
    m = 4 if taps == 9 else 2
    for row in range(count):
        here, there = panels.ctypes.data + row * ROW, out.ctypes.data + row * ROW
        transform(FILTER, V, m, panels.dtype, sources.ctypes.data, 8, here, targets.ctypes.data, 8, there, NV)


@kernel(parallel=True)
def _transform_filters(tasks, w, groups, transposed, out):
    for task in numba.prange(tasks):
        _filter_task(np.int64(task), w, groups, transposed, out)


# ---- method --------------------------------------------------------------------------------------------------


def tiles_save(shape) -> bool:
    """Whether tiles are of use: a square filter of 3 or 5, whole lines of channels, and not too small an image.

    The batch does not matter: what is computed for an image does not depend on how many others there are.
    """
    _, p, q, _ = shape.y
    r, s, depth, _ = shape.w
    if r != s or r not in (3, 5) or shape.stride > 1 or depth % LINE_FLOATS or shape.k_group % LINE_FLOATS:
        return False
    m = TILE + 1 - r
    return r * r * p * q >= 2 * POINTS * ceil(p, m) * ceil(q, m)


def tile_products(shape, grid) -> int:
    """Multiply-adds of the products at all points, for the tiles of a grid."""
    return shape.y[0] * grid.pixels * POINTS * shape.w[2] * shape.w[3]


class Winograd(Blocks):
    """Filters of 3 x 3 and 5 x 5, transformed once a step."""

    size, nest = TILES, staticmethod(_tiles_nest)

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        depth, pad = shape.w[2], shape.pad
        if transposed:
            grid = tile_grid(shape, shape.y, shape.x, shape.number, shape.w[0] - 1 - pad, TILE, (shape.k_group, depth))
        else:
            grid = tile_grid(shape, shape.x, shape.y, shape.y_number, pad, TILE, (depth, shape.k_group))
        self.grids = [grid]

    @classmethod
    def suits(cls, shape):
        return tiles_save(shape)

    def points(self):
        return POINTS

    def inside(self, grid):
        rows, columns, m, height, width = (int(grid.geometry[i]) for i in (GRID_I, GRID_J, STEP, OUT_H, OUT_W))
        sides = [np.minimum(m, side - m * np.arange(count)) for count, side in ((rows, height), (columns, width))]
        return np.outer(*sides).ravel()

    @property
    def multiply_adds(self):
        return tile_products(self.shape, self.grids[0])

    def pack(self, w, packed):
        shape, (r, s, depth, k) = self.shape, self.shape.w
        rows, columns = (shape.k_group, depth) if self.transposed else (depth, shape.k_group)
        tasks = shape.groups * ceil(columns, BLOCK) * ceil(rows, FILTER_ROWS)
        _transform_filters(tasks, w.reshape(r * s, depth, k), shape.groups, self.transposed, packed)
