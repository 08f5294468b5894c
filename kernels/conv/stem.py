"""First layers in tiles of pairs of bf16: few channels, so the S taps of a filter row are one of depth S * C.

What the pixels of a row read then begins at one distance from pixel to pixel, so tiles of A are read from the image
itself. Behind S * C numbers zeros of the weights meet whatever stands there.

In backward-weight dw is one matrix of R * S * C rows: a row is what one place of the filter reads for all pixels. Those
of a chunk are turned over, filter row by filter row, to rows of a panel that has no gaps, so no tile is half empty.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, LINE, LINE_FLOATS, V
from ..tile_amx import SIDE, STEP, configure_tiles, release_tiles, tile_block
from .finishing import begin_finish, tell_moments
from .grid import DEPTH, GROUPS, WIDTH, row_addresses
from .outer import MergedOuter, add_up, place_gradient, sums_target
from .panels import ROW, clear, copy_row, pack_rows
from .rows import MergedRows
from .strip import AT_ONCE
from .task import F32_BYTES, aligned, place
from .tiles import InTiles, multiply
from .tiles_weight import turn_square
from .tiling import in_rows

ROWS = 8  # of pixels of a task, forward
CHUNK = 256  # pixels, backward: their panels and all sums stay in L2


# ---- forward -------------------------------------------------------------------------------------------------


@inlined
def _stem_task(task, job):
    """Some rows of pixels times one of the ranges of output channels."""
    part = place(task, job)
    depth = -(-part.geometry[DEPTH] // STEP) * STEP
    own, panel, channel = in_rows(job, part, depth), job.all_taps * depth // 2 * ROW, part.lo * BLOCK
    gathered = aligned(3 * job.moments.shape[2]).reshape(3, job.moments.shape[2])
    configure_tiles()
    to = begin_finish(job, part, channel, (own.rows.ctypes.data, own.outs.ctypes.data), gathered)
    weights = job.weights.ctypes.data + part.lo * panel
    multiply(job.y.dtype, to, own, weights, panel, part.hi - part.lo, part.valid)
    tell_moments(job, part, to, gathered)
    release_tiles()


@kernel(parallel=True)
def _stem_nest(tasks, job):
    for task in numba.prange(tasks):
        _stem_task(np.int64(task), job)


class Stem(InTiles, MergedRows):
    """The taps of a filter row merged."""

    nest = staticmethod(_stem_nest)

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        self.size = ROWS * shape.y[2]

    @classmethod
    def suits(cls, shape):
        return shape.merged_tiles


# ---- backward-weight -----------------------------------------------------------------------------------------


@inlined
def _turn(kind, item, rows, pixels, depth, square, turned):
    """turned[t * depth + c] = value c behind rows[t, p] of each pixel p.

    In squares of LINE_FLOATS values; the last one of a filter row reaches back, or over what the next one overwrites.
    """
    pitch, table = turned.strides[0], rows.ctypes.data
    for p in range(0, pixels, STEP):
        for t in range(rows.shape[0]):
            for first in range(0, depth, LINE_FLOATS):
                c = max(min(first, depth - LINE_FLOATS), 0)
                there = turned.ctypes.data + (t * depth + c) * pitch + p * item
                turn_square(kind, table + t * rows.strides[0] + 8 * p, c * item, square.ctypes.data, there, pitch)


@inlined
def _pack_gradients(job, part, first, count, pixels, panel):
    """panel[block, pair] = BLOCK channels of dy of two pixels, zeros behind the last one."""
    width, item = part.geometry[WIDTH], job.dy.itemsize
    pitch = part.geometry[GROUPS] * width * item
    source = job.dy.ctypes.data + first * pitch + part.lo * BLOCK * item
    valid, apart = min(part.hi * BLOCK, width) - part.lo * BLOCK, panel.shape[1] * ROW
    pack_rows(job.dy.dtype, job.panels.dtype, source, pitch, count, valid, panel.ctypes.data, apart)
    for block in range(panel.shape[0]):
        clear(panel.ctypes.data + block * apart, -(-count // 2), pixels // 2)


@inlined
def _tell(job, part, sums):
    """The sums of a share, once they are whole, to rows of dw."""
    out, pitch = sums_target(job, part, 0, 0, part.lo)
    for q in range(part.taps.shape[0] * part.geometry[DEPTH]):
        for block in range(part.hi - part.lo):
            there = out + q * pitch + block * ROW
            copy_row(np.float32, sums[q // AT_ONCE, block, q % AT_ONCE].ctypes.data, there, BLOCK)


@inlined
def _stem_weight_task(task, job):
    """Some blocks of output channels, over some shares of the pixels."""
    part, item = place_gradient(task, job, 0), job.x.itemsize
    depth, taps, blocks = part.geometry[DEPTH], part.taps.shape[0], part.hi - part.lo
    tiles, pitch = -(-taps * depth // AT_ONCE), (CHUNK * item // LINE | 1) * LINE  # odd: rows in different sets of L1
    many = tiles * AT_ONCE + LINE_FLOATS
    turned = aligned(many * pitch // F32_BYTES).reshape(many, pitch // F32_BYTES)
    panel = aligned(blocks * CHUNK // 2 * BLOCK).reshape(blocks, CHUNK // 2, BLOCK)
    sums = aligned(tiles * blocks * AT_ONCE * BLOCK).reshape(tiles, blocks, AT_ONCE, BLOCK)
    rows, square, walk = np.empty((taps, CHUNK), np.int64), aligned(SIDE * LINE_FLOATS), np.zeros(3, np.int64)
    here, there, way = panel.ctypes.data, sums.ctypes.data, walk.ctypes.data
    configure_tiles()
    for number in range(job.taken):
        part = place_gradient(task, job, number)
        for first in range(part.first, part.last, CHUNK):
            count, fresh = min(CHUNK, part.last - first), np.int64(first == part.first)
            walk[2] = -(-count // STEP)
            pixels = walk[2] * STEP
            rows[:, count:pixels] = job.zeros.ctypes.data
            row_addresses(job.x.ctypes.data, job.zeros.ctypes.data, part.geometry, part.taps, first, count, rows)
            _turn(job.x.dtype, item, rows, pixels, depth, square, turned)
            _pack_gradients(job, part, first, count, pixels, panel)
            for k in range(tiles * blocks):
                a, b = turned.ctypes.data + k // blocks * AT_ONCE * pitch, here + k % blocks * CHUNK // 2 * ROW
                tile_block(V, fresh, a, pitch, b, way, 1, there + k * AT_ONCE * ROW, ROW)
        _tell(job, part, sums)
        add_up(job, part)
    release_tiles()


@kernel(parallel=True)
def _stem_weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _stem_weight_task(np.int64(task), job)


class StemWeight(MergedOuter):
    """The same, of dw."""

    nest, chunk = staticmethod(_stem_weight_nest), CHUNK

    @classmethod
    def suits(cls, shape):
        return shape.merged_tiles
