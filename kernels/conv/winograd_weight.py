"""Gradient of a convolution's weights by Winograd's method: see `winograd` for tiles and points.

With y = A^T ((G w G^T) * (B^T x B)) A, dw = G^T (sum over tiles of (B^T x B) * (A dy A^T)) G: at each of the 36
points a product of matrices again, input channels by tiles times tiles by output channels. A task owns a range of
input and one of output channels and a share of the tiles; the sums of its 36 points stay in L2 with the transformed
inputs and gradients of some tiles at a time, and are transformed to a gradient of weights once, at the end.
"""

from typing import NamedTuple

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, LINE_FLOATS, MC, NV, V
from ..microkernel import tile_outer
from .grid import DEPTH, GRID_I, GRID_J, GROUPS, STEP, WIDTH, row_addresses, tile_grid
from .method import Gradient
from .panels import ROW
from .shape import TILE, ceil
from .task import F32_BYTES, share
from .transform import GRADIENT, INPUT, POINTS, WEIGHT, transform
from .winograd import TILES, plane_offsets, planes, tile_products, tiles_save

CHANNELS = 64  # of inputs and, at most, of outputs of a task: the sums of 36 points, 590 KB, stay in L2


class _Part(NamedTuple):
    """What a task owns: input channels c_lo.. and output channels k_lo.. of a group, a share of the tiles."""

    group: int
    c_lo: int
    channels: int
    k_lo: int
    k_hi: int
    first: int
    last: int
    out: int  # where its sums go


@inlined
def _channels(part, parts, channels, unit):
    """First and last + 1 of a part of the channels, in whole units."""
    units = -(-channels // unit)
    return units * part // parts * unit, min(units * (part + 1) // parts * unit, channels)


@inlined
def _place(task, job):
    geometry = job.geometry
    depth, width, groups = geometry[DEPTH], geometry[WIDTH], geometry[GROUPS]
    c_parts, k_parts = -(-depth // CHANNELS), -(-width // (job.wide * BLOCK))
    split, rest = divmod(task, groups * c_parts * k_parts)
    rest, k_part = divmod(rest, k_parts)
    group, c_part = divmod(rest, c_parts)
    c_lo, c_hi = _channels(c_part, c_parts, depth, LINE_FLOATS)
    k_lo, k_hi = _channels(k_part, k_parts, width, BLOCK)
    tiles = job.images * geometry[GRID_I] * geometry[GRID_J]
    first, last = tiles * split // job.splits, tiles * (split + 1) // job.splits
    return _Part(group, c_lo, c_hi - c_lo, k_lo, k_hi, first, last, share(job, split))


@inlined
def _transform_inputs(job, part, count, sources, v):
    """v (36 planes, tiles x channels) = B^T x B of `count` tiles, whose pixels stand at sources (36, tiles)."""
    to, m, pitch = plane_offsets(v), job.geometry[STEP], sources.strides[0]
    shift, start = (part.group * job.geometry[DEPTH] + part.c_lo) * job.x.itemsize, v.ctypes.data
    for t in range(count):
        transform(
            INPUT, V, m, job.x.dtype, sources.ctypes.data + 8 * t, pitch, shift,
            to.ctypes.data, 8, start + t * part.channels * F32_BYTES, part.channels // V,
        )  # fmt: skip


@inlined
def _transform_gradients(job, part, count, sources, g):
    """g (36 planes, blocks x tiles x BLOCK) = A dy A^T of `count` tiles; sources (m * m, tiles)."""
    to, m, pitch, most = plane_offsets(g), job.geometry[STEP], sources.strides[0], sources.shape[1]
    first, start = part.group * job.geometry[WIDTH], g.ctypes.data
    for t in range(count):
        for k in range(part.k_lo, part.k_hi, BLOCK):
            there = start + ((k - part.k_lo) // BLOCK * most + t) * ROW
            transform(
                GRADIENT, V, m, job.dy.dtype, sources.ctypes.data + 8 * t, pitch, (first + k) * job.dy.itemsize,
                to.ctypes.data, 8, there, min(BLOCK, part.k_hi - k) // V,
            )  # fmt: skip


@inlined
def _multiply(channels, count, most, v, g, sums, fresh):
    """sums (36 planes, blocks x channels x BLOCK) = or += v^T g at each point, over `count` of `most` tiles."""
    v_rows, nowhere = np.arange(count) * channels * F32_BYTES, np.empty(BLOCK, np.float32)
    blocks = sums.shape[1] // (channels * BLOCK)
    for point in range(POINTS):
        v_plane = v.ctypes.data + point * v.shape[1] * F32_BYTES
        for block in range(blocks):
            b = g.ctypes.data + point * g.shape[1] * F32_BYTES + block * most * ROW
            out = sums.ctypes.data + point * sums.shape[1] * F32_BYTES + block * channels * ROW
            for c in range(0, channels, MC):
                skip = max(0, c + MC - channels)  # the last tile reaches back over its neighbour's rows
                tile_outer(
                    MC, NV, V, np.float32, v_rows.ctypes.data, count, v_plane + (c - skip) * F32_BYTES, b,
                    out + (c - skip) * ROW, ROW, skip, nowhere.ctypes.data, fresh, 0, 0,
                )  # fmt: skip


@inlined
def _finish(job, part, sums):
    """The part's channels of dw, or of its share of the partial sums, = G^T sums G."""
    geometry, item = job.geometry, job.dw.itemsize
    depth, m, pitch = geometry[DEPTH], geometry[STEP], geometry[GROUPS] * geometry[WIDTH] * item
    side, sources = TILE + 1 - m, plane_offsets(sums)
    targets = np.arange(side * side) * depth * pitch
    for k in range(part.k_lo, part.k_hi, BLOCK):
        vectors, shift = min(BLOCK, part.k_hi - k) // V, (part.group * geometry[WIDTH] + k) * item
        for c in range(part.channels):
            here = sums.ctypes.data + ((k - part.k_lo) // BLOCK * part.channels + c) * ROW
            there = part.out + (part.c_lo + c) * pitch + shift
            transform(WEIGHT, V, m, sums.dtype, sources.ctypes.data, 8, here, targets.ctypes.data, 8, there, vectors)


@inlined
def _tiles_weight_task(task, job):
    """Up to CHANNELS input and CHANNELS output channels of one group, over one share of the tiles."""
    part, m = _place(task, job), job.geometry[STEP]
    blocks, most = -(-(part.k_hi - part.k_lo) // BLOCK), min(TILES, part.last - part.first)
    v, g, sums = planes(most * part.channels), planes(blocks * most * BLOCK), planes(blocks * part.channels * BLOCK)
    g[:] = 0  # behind the last channel
    sources, dy_sources = np.empty((POINTS, most), np.int64), np.empty((m * m, most), np.int64)
    x, dy, zeros = job.x.ctypes.data, job.dy.ctypes.data, job.zeros.ctypes.data
    for first in range(part.first, part.last, TILES):
        count = min(TILES, part.last - first)
        row_addresses(x, zeros, job.geometry, job.taps, first, count, sources)
        row_addresses(dy, zeros, job.dy_geometry, job.dy_taps, first, count, dy_sources)
        _transform_inputs(job, part, count, sources, v)
        _transform_gradients(job, part, count, dy_sources, g)
        _multiply(part.channels, count, most, v, g, sums, np.int64(first == part.first))
    _finish(job, part, sums)


@kernel(parallel=True)
def _tiles_weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _tiles_weight_task(np.int64(task), job)


class WinogradWeight(Gradient):
    """Backward-weight of filters of 3 x 3 and 5 x 5."""

    nest, most = staticmethod(_tiles_weight_nest), CHANNELS // BLOCK

    def __init__(self, shape):
        super().__init__(shape)
        m, channels = TILE + 1 - shape.w[0], (shape.w[2], shape.k_group)
        self.grid = tile_grid(shape, shape.x, shape.y, shape.number, shape.pad, TILE, channels)
        self.dy_grid = tile_grid(shape, shape.y, shape.y, shape.number, 0, m, channels)

    @classmethod
    def suits(cls, shape):
        return tiles_save(shape)

    @property
    def multiply_adds(self):
        return tile_products(self.shape, self.grid)

    def apart(self):
        return self.shape.groups * ceil(self.shape.w[2], CHANNELS)

    def chunks(self):
        (n, p, q, _), m = self.shape.y, TILE + 1 - self.shape.w[0]
        return n * ceil(p, m) * ceil(q, m) // TILES
