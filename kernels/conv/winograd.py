"""Convolution with stride 1 by Winograd's method: small products of matrices in place of a large one with 9 or 25 taps.

An image is cut into tiles of m x m outputs, each of which reads n x n inputs, n = m + r - 1. Tiles, channel by channel,
are transformed to n x n points; there the convolution is a product of matrices, tiles by input channels times input by
output channels, at each point alone; the sums are transformed back. That is n x n multiplications in place of
m x m x r x r: with n = 6 a quarter for 3 x 3, with n = 7 22 % for 5 x 5. With tensors of 16 bits n = 8, if few filters
are read: 20 and 16 %.
Matrices and precision: `transform`; edges of an image: `cover`.

A task owns some tiles and a range of output channels. It transforms the inputs of its tiles once, into planes that
stay in L2; then, for each block of output channels, the micro-kernel runs over all points, and the results are
transformed back into C, which is finished when it is whole, as in `rows`. Backward-input is the same with dy for x, and
with filters that are turned around, their channels exchanged.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..ahead import ask
from ..arch import BLOCK, LINE_FLOATS, MR, NV, REST, V
from ..microkernel import tile_rows
from .cover import tile_grids
from .grid import DEPTH, FORM, GROUPS, WIDTH, row_addresses
from .method import Blocks
from .panels import ROW, pack_columns, pack_rows
from .shape import ceil
from .task import F32_BYTES, aligned, finish, place
from .transform import FILTER, INPUT, OUTPUT, transform

TILES = 28  # tiles of a block, two of the micro-kernel; half as many where
PLANES_BYTES = 1000000  # is less than the planes of their inputs have: these are to stay in L2,
FAR_BYTES = 1 << 25  # unless the transformed filters are more than this: fewer blocks then read them
SOON = 2  # the tile that is asked for while one is transformed: so many behind it
FILTER_ROWS = 32  # of the depth of filters that a task transforms


@inlined
def planes(points, floats):
    """Planes of at least `floats` floats, aligned; a line more keeps them in other sets of a cache."""
    plane = floats + LINE_FLOATS
    return aligned(points * plane).reshape(points, plane)


@inlined
def _place_outputs(job, part, pitch, out_rows, c_rows):
    """Where the outputs of a part go: out_rows[i] = address of the i-th pixel inside the image, tile by tile.

    c_rows[j, t]: bytes from the start of C to its row (of `pitch` bytes) for output j of tile t; to one behind the last
    for those outside. Returns how many there are inside.
    """
    outputs, count = c_rows.shape
    places = np.empty((outputs, count), np.int64)
    row_addresses(job.y.ctypes.data, 0, part.y_geometry, part.y_taps, part.first, count, places)
    inside = 0
    for t in range(count):
        for j in range(outputs):
            c_rows[j, t] = outputs * count * pitch
            if places[j, t] != 0:
                out_rows[inside], c_rows[j, t] = places[j, t], inside * pitch
                inside += 1
    return inside


@inlined
def at_points(array, taps):
    """Bytes from the first plane of `array` to those of a grid's points."""
    return taps[:, 2] * array.shape[1] * F32_BYTES


@inlined
def ask_for_tile(sources, t, shift, size):
    """Ask for `size` bytes of every pixel of tile number t, from `shift` bytes on."""
    for i in range(sources.shape[0]):
        ask(sources[i, t] + shift, size)


@inlined
def _transform_inputs(group, job, part, sources, v):
    """v (planes, tiles x depth) = B^T x B of the tiles whose pixels stand at sources (points, tiles)."""
    depth, form, count, to = part.geometry[DEPTH], part.geometry[FORM], part.count, at_points(v, part.taps)
    shift, start = group * depth * job.x.itemsize, v.ctypes.data
    for t in range(count):
        ask_for_tile(sources, min(t + SOON, count - 1), shift, depth * job.x.itemsize)
        pixels = sources.ctypes.data + 8 * t, 8 * count, shift
        points = to.ctypes.data, 8, start + t * depth * F32_BYTES
        transform(INPUT, V, form, job.x.dtype, job.x.dtype, pixels, points, depth // V)


@inlined
def _multiply(panel, taps, depth, count, v, p):
    """p = v times a panel of filters (points, depth, BLOCK) at its points; p is padded with tiles that nobody reads."""
    padded, rest = p.shape[1] // BLOCK // MR * MR, count % MR
    v_rows, p_rows = np.minimum(np.arange(padded), count - 1) * depth * F32_BYTES, np.arange(padded) * ROW
    start, whole = np.zeros(BLOCK, np.float32), count - rest if rest <= REST else padded
    for point in taps[:, 2]:
        v_plane = v.ctypes.data + point * v.shape[1] * F32_BYTES
        p_plane = p.ctypes.data + point * p.shape[1] * F32_BYTES
        for row in range(0, whole, MR):
            tile_rows(
                MR, NV, V, np.float32, v_rows.ctypes.data + 8 * row, 0, 1, depth, v_plane,
                panel + point * depth * ROW, 0, p_rows.ctypes.data + 8 * row, p_plane, start.ctypes.data, 0, 0,
            )  # fmt: skip
        if whole < count:
            tile_rows(
                REST, NV, V, np.float32, v_rows.ctypes.data + 8 * whole, 0, 1, depth, v_plane,
                panel + point * depth * ROW, 0, p_rows.ctypes.data + 8 * whole, p_plane, start.ctypes.data, 0, 0,
            )  # fmt: skip


@inlined
def _transform_outputs(job, part, p, c_rows, target, vectors):
    """Rows of C from `target` on = A^T p A."""
    count, sources, start, form = c_rows.shape[1], at_points(p, part.taps), p.ctypes.data, part.geometry[FORM]
    for t in range(count):
        points, pixels = (sources.ctypes.data, 8, start + t * ROW), (c_rows.ctypes.data + 8 * t, 8 * count, target)
        transform(OUTPUT, V, form, job.x.dtype, p.dtype, points, pixels, vectors)


@inlined
def _add_bias(job, channel, c, pitch, count):
    for row in range(count):
        for j in range(pitch):
            c[row * pitch + j] += job.bias[channel + j]


@inlined
def _winograd_task(task, job):
    """The tiles of a block times one of the ranges of output channels, for every group."""
    part = place(task, job)
    geometry, count, outputs = part.geometry, part.count, part.y_taps.shape[0]
    depth, width = geometry[DEPTH], geometry[WIDTH]
    blocks, pitch = -(-width // BLOCK), part.valid
    sources = np.empty((part.taps.shape[0], count), np.int64)
    row_addresses(job.x.ctypes.data, job.zeros.ctypes.data, geometry, part.taps, part.first, count, sources)
    out_rows, c_rows = np.empty(outputs * count, np.int64), np.empty((outputs, count), np.int64)
    inside = _place_outputs(job, part, pitch * F32_BYTES, out_rows, c_rows)
    v, p = planes(job.all_taps, count * depth), planes(job.all_taps, -(-count // MR) * MR * BLOCK)
    c = aligned((outputs * count + 1) * pitch)
    for group in range(geometry[GROUPS]):
        _transform_inputs(group, job, part, sources, v)
        for block in range(part.lo, part.hi):
            panel = job.weights.ctypes.data + (group * blocks + block) * job.all_taps * depth * ROW
            _multiply(panel, part.taps, depth, count, v, p)
            target, vectors = c.ctypes.data + (block - part.lo) * ROW, min(BLOCK, width - block * BLOCK) // V
            _transform_outputs(job, part, p, c_rows, target, vectors)
        if job.bias.size > 0:
            _add_bias(job, group * width + part.lo * BLOCK, c, pitch, inside)
        finish(job, part, group, c, pitch, inside, out_rows)


@kernel(parallel=True)
def _winograd_nest(tasks, job):
    for task in numba.prange(tasks):
        _winograd_task(np.int64(task), job)


# ---- filters -------------------------------------------------------------------------------------------------


@inlined
def _filter_task(task, w, groups, transposed, form, points, like, out):
    """A block of channels of w (taps, C/groups, K), some rows of its depth, as transformed filters.

    transposed: for backward-input, with filters turned around and C and K exchanged. out: (points, depth, BLOCK) each;
    form: of whole tiles; like: an array of what is convolved.
    """
    taps, depth, width = w.shape
    k_group, pitch = width // groups, width * w.itemsize
    rows, columns = (k_group, depth) if transposed else (depth, k_group)
    index, part = divmod(task, -(-rows // FILTER_ROWS))
    group, block = divmod(index, -(-columns // BLOCK))
    first, channel = part * FILTER_ROWS, block * BLOCK
    count, valid = min(FILTER_ROWS, rows - first), min(BLOCK, columns - channel)
    panels, sources = np.empty((taps, FILTER_ROWS, BLOCK), np.float32), np.empty(taps, np.int64)
    targets = ROW * ((index * points + np.arange(points)) * rows + first)
    for t in range(taps):
        panel = panels[t].ctypes.data
        if transposed:
            source = w.ctypes.data + ((t * depth + channel) * width + group * k_group + first) * w.itemsize
            pack_columns(w.dtype, np.float32, source, pitch, count, valid, panel)
        else:
            source = w.ctypes.data + ((t * depth + first) * width + group * k_group + channel) * w.itemsize
            pack_rows(w.dtype, np.float32, source, pitch, count, valid, panel, 0)
        sources[taps - 1 - t if transposed else t] = t * FILTER_ROWS * ROW
    for row in range(count):
        taps = sources.ctypes.data, 8, panels.ctypes.data + row * ROW
        places = targets.ctypes.data, 8, out.ctypes.data + row * ROW
        transform(FILTER, V, form, like.dtype, panels.dtype, taps, places, NV)


@kernel(parallel=True)
def _transform_filters(tasks, w, groups, transposed, form, points, like, out):
    for task in numba.prange(tasks):
        _filter_task(np.int64(task), w, groups, transposed, form, points, like, out)


# ---- method --------------------------------------------------------------------------------------------------


def tiles_save(shape) -> bool:
    """Whether tiles are of use: a square filter of 3 or 5, whole lines of channels, and not too small an image.

    The batch does not matter: what is computed for an image does not depend on how many others there are.
    """
    n, p, q, k = shape.y
    r, s, depth, _ = shape.w
    if r != s or r not in (3, 5) or shape.stride > 1 or depth % LINE_FLOATS or shape.k_group % LINE_FLOATS:
        return False
    return shape.multiply_adds >= 2 * tile_products(shape, forward_tiles(shape))


def forward_tiles(shape) -> list:
    """Grids of the tiles of y, and of x."""
    return tile_grids(shape, (shape.x, shape.number), (shape.y, shape.y_number), shape.pad, (shape.w[2], shape.k_group))


def tile_products(shape, grids) -> int:
    """Multiply-adds of the products at the points of all tiles."""
    return shape.y[0] * sum(grid.pixels * len(grid.taps) for grid, _ in grids) * shape.w[2] * shape.w[3]


class Winograd(Blocks):
    """Filters of 3 x 3 and 5 x 5, transformed once a step."""

    nest = staticmethod(_winograd_nest)

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        inputs, filters = TILES * self.depth * F32_BYTES, self.packed_size * F32_BYTES
        self.size = TILES // 2 if self.all_taps * inputs > PLANES_BYTES and filters <= FAR_BYTES else TILES
        self.grids = forward_tiles(shape)
        if transposed:
            dy, dx, channels = (shape.y, shape.number), (shape.x, shape.number), (shape.k_group, shape.w[2])
            self.grids = tile_grids(shape, dy, dx, shape.w[0] - 1 - shape.pad, channels)

    @classmethod
    def suits(cls, shape):
        return tiles_save(shape)

    def points(self):
        return self.shape.side**2

    @property
    def multiply_adds(self):
        return tile_products(self.shape, self.grids)

    def pack(self, w, packed):
        shape, (r, s, depth, k) = self.shape, self.shape.w
        rows, columns = (shape.k_group, depth) if self.transposed else (depth, shape.k_group)
        tasks = shape.groups * ceil(columns, BLOCK) * ceil(rows, FILTER_ROWS)
        form, like = self.grids[0][0].geometry[FORM], np.empty(0, shape.number.dtype)
        w = w.reshape(r * s, depth, k)
        _transform_filters(tasks, w, shape.groups, self.transposed, form, self.all_taps, like, packed)
