"""Gradient of a convolution's weights by Winograd's method: see `winograd` for tiles and points.

With y = A^T ((G w G^T) * (B^T x B)) A, dw = G^T (sum over tiles of (B^T x B) * (A dy A^T)) G: at each
point a product of matrices again, input channels by tiles times tiles by output channels. A task owns a range of
input and one of output channels and a share of the tiles; the sums of its points stay in L2 with the transformed
inputs and gradients of some tiles at a time, and are transformed to a gradient of weights once, at the end.
"""

from typing import NamedTuple

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, FEW, LINE_FLOATS, MC, NV, V
from ..microkernel import tile_outer
from .grid import DEPTH, FORM, GRID_I, GRID_J, GROUPS, TAPS, WIDTH, row_addresses
from .method import Gradient
from .panels import ROW
from .shape import ceil
from .shares import add_share, share
from .task import F32_BYTES
from .transform import GRADIENT, INPUT, WEIGHT, transform
from .winograd import SOON, TILES, ask_for_tile, at_points, forward_tiles, planes, tile_products, tiles_save

MOST_TAPS = 25  # of a filter
CHANNELS = 64  # of inputs and, at most, of outputs of a task: the sums of 36 points are 590 KB and stay in L2


class _Part(NamedTuple):
    """What a task owns at a time: input channels c_lo.. and output channels k_lo.. of a group, a share of the tiles."""

    group: int
    c_lo: int
    channels: int
    k_lo: int
    k_hi: int
    split: int  # number of its share
    out: int  # where its sums go


@inlined
def _channels(part, parts, channels, unit):
    """First and last + 1 of a part of the channels, in whole units."""
    units = -(-channels // unit)
    return units * part // parts * unit, min(units * (part + 1) // parts * unit, channels)


@inlined
def _place(task, job, number):
    """The part of a task in the share `number` of those it takes."""
    geometry = job.geometries[0]
    depth, width, groups = geometry[DEPTH], geometry[WIDTH], geometry[GROUPS]
    c_parts, k_parts = -(-depth // CHANNELS), -(-width // (job.wide * BLOCK))
    run, rest = divmod(task, groups * c_parts * k_parts)
    split = run * job.taken + number
    rest, k_part = divmod(rest, k_parts)
    group, c_part = divmod(rest, c_parts)
    c_lo, c_hi = _channels(c_part, c_parts, depth, LINE_FLOATS)
    k_lo, k_hi = _channels(k_part, k_parts, width, BLOCK)
    return _Part(group, c_lo, c_hi - c_lo, k_lo, k_hi, split, share(job, split))


@inlined
def _transform_inputs(job, part, geometry, taps, count, sources, v):
    """v (planes, tiles x channels) = B^T x B of `count` tiles, whose pixels stand at sources (points, tiles)."""
    to, form, pitch = at_points(v, taps), geometry[FORM], sources.strides[0]
    shift, start = (part.group * geometry[DEPTH] + part.c_lo) * job.x.itemsize, v.ctypes.data
    for t in range(count):
        ask_for_tile(sources, min(t + SOON, count - 1), shift, part.channels * job.x.itemsize)
        pixels = sources.ctypes.data + 8 * t, pitch, shift
        points = to.ctypes.data, 8, start + t * part.channels * F32_BYTES
        transform(INPUT, V, form, job.x.dtype, job.x.dtype, pixels, points, part.channels // V)


@inlined
def _transform_gradients(job, part, geometry, taps, count, sources, g):
    """g (planes, blocks x tiles x BLOCK) = A dy A^T of `count` tiles; sources (outputs, tiles)."""
    to, form, pitch, most = at_points(g, taps), geometry[FORM], sources.strides[0], sources.shape[1]
    first, start = part.group * geometry[WIDTH], g.ctypes.data
    shift = (first + part.k_lo) * job.dy.itemsize
    for t in range(count):
        ask_for_tile(sources, min(t + SOON, count - 1), shift, (part.k_hi - part.k_lo) * job.dy.itemsize)
        for k in range(part.k_lo, part.k_hi, BLOCK):
            there = start + ((k - part.k_lo) // BLOCK * most + t) * ROW
            pixels = sources.ctypes.data + 8 * t, pitch, (first + k) * job.dy.itemsize
            points, vectors = (to.ctypes.data, 8, there), min(BLOCK, part.k_hi - k) // V
            transform(GRADIENT, V, form, job.x.dtype, job.dy.dtype, pixels, points, vectors)


@inlined
def _multiply(channels, taps, count, most, v, g, sums, fresh):
    """sums (planes, blocks x channels x BLOCK) = or += v^T g at its points, over `count` of `most` tiles.

    fresh (points,): whether nothing was summed at a point until now.
    """
    v_rows, nowhere = np.arange(count) * channels * F32_BYTES, np.empty(BLOCK, np.float32)
    blocks = sums.shape[1] // (channels * BLOCK)
    for point in taps[:, 2]:
        v_plane = v.ctypes.data + point * v.shape[1] * F32_BYTES
        for block in range(blocks):
            b = g.ctypes.data + point * g.shape[1] * F32_BYTES + block * most * ROW
            out = sums.ctypes.data + point * sums.shape[1] * F32_BYTES + block * channels * ROW
            for c in range(0, channels, MC):
                tile_outer(
                    MC, FEW, NV, V, np.float32, v_rows.ctypes.data, count, v_plane + c * F32_BYTES, b,
                    out + c * ROW, ROW, channels - c, nowhere.ctypes.data, np.int64(fresh[point]), 0, 0,
                )  # fmt: skip


@inlined
def _finish(job, part, sums):
    """The part's channels of dw, or of its share of the partial sums, = G^T sums G."""
    geometry, item = job.geometries[0], job.dw.itemsize
    depth, form, pitch = geometry[DEPTH], geometry[FORM], geometry[GROUPS] * geometry[WIDTH] * item
    sources, targets = np.arange(sums.shape[0]) * sums.shape[1] * F32_BYTES, np.arange(MOST_TAPS) * depth * pitch
    for k in range(part.k_lo, part.k_hi, BLOCK):
        vectors, shift = min(BLOCK, part.k_hi - k) // V, (part.group * geometry[WIDTH] + k) * item
        for c in range(part.channels):
            here = sums.ctypes.data + ((k - part.k_lo) // BLOCK * part.channels + c) * ROW
            there = part.out + (part.c_lo + c) * pitch + shift
            points, taps = (sources.ctypes.data, 8, here), (targets.ctypes.data, 8, there)
            transform(WEIGHT, V, form, job.x.dtype, sums.dtype, points, taps, vectors)


@inlined
def _add_tiles(job, part, grid, v, g, sums, fresh):
    """Add the products of the part's share of one grid's tiles to the sums."""
    geometry, dy_geometry = job.geometries[grid], job.dy_geometries[grid]
    taps, dy_taps = job.taps[grid, : geometry[TAPS]], job.dy_taps[grid, : dy_geometry[TAPS]]
    sources, dy_sources = np.empty((taps.shape[0], TILES), np.int64), np.empty((dy_taps.shape[0], TILES), np.int64)
    x, dy, zeros = job.x.ctypes.data, job.dy.ctypes.data, job.zeros.ctypes.data
    tiles = job.images * geometry[GRID_I] * geometry[GRID_J]
    last = tiles * (part.split + 1) // job.splits
    for first in range(tiles * part.split // job.splits, last, TILES):
        count = min(TILES, last - first)
        row_addresses(x, zeros, geometry, taps, first, count, sources)
        row_addresses(dy, zeros, dy_geometry, dy_taps, first, count, dy_sources)
        _transform_inputs(job, part, geometry, taps, count, sources, v)
        _transform_gradients(job, part, geometry, taps, count, dy_sources, g)
        _multiply(part.channels, taps, count, TILES, v, g, sums, fresh)
        fresh[taps[:, 2]] = False


@inlined
def _add_up(job, part):
    """Add the part's gradient to those of the shares before."""
    geometry, rows = job.geometries[0], (part.c_lo, part.channels)
    depth, width = geometry[DEPTH], geometry[WIDTH]
    pitch, columns = geometry[GROUPS] * width, (part.group * width + part.k_lo, part.k_hi - part.k_lo)
    add_share(job, part.split, job.dw.size // (depth * pitch), depth, pitch, rows, columns)


@inlined
def _winograd_weight_task(task, job):
    """Up to CHANNELS input and CHANNELS output channels of one group, over some shares of the tiles."""
    part = _place(task, job, 0)
    blocks, points = -(-(part.k_hi - part.k_lo) // BLOCK), job.points
    v, g = planes(points, TILES * part.channels), planes(points, blocks * TILES * BLOCK)
    sums, fresh = planes(points, blocks * part.channels * BLOCK), np.ones(points, np.bool_)
    g[:] = 0  # behind the last channel
    for number in range(job.taken):
        part = _place(task, job, number)
        fresh[:] = True
        for grid in range(job.geometries.shape[0]):
            _add_tiles(job, part, grid, v, g, sums, fresh)
        for point in range(points):
            if fresh[point]:  # an image smaller than a whole tile
                sums[point] = 0
        _finish(job, part, sums)
        _add_up(job, part)


@kernel(parallel=True)
def _winograd_weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _winograd_weight_task(np.int64(task), job)


class WinogradWeight(Gradient):
    """Backward-weight of filters of 3 x 3 and 5 x 5."""

    nest, most = staticmethod(_winograd_weight_nest), CHANNELS // BLOCK

    def __init__(self, shape):
        self.grids = forward_tiles(shape)
        super().__init__(shape)

    @classmethod
    def suits(cls, shape):
        return tiles_save(shape)

    @property
    def multiply_adds(self):
        return tile_products(self.shape, self.grids)

    def points(self):
        return self.shape.side**2

    def apart(self):
        return self.shape.groups * ceil(self.shape.w[2], CHANNELS)

    def chunks(self):
        return self.shape.y[0] * sum(grid.pixels for grid, _ in self.grids) // TILES
