"""Backward-weight in tiles of pairs of bf16: `outer`, with a matrix unit for a tile.

dw (channels of x, channels of dy) is a product with the pixels as depth. A tile wants those of a channel of x side by
side: a chunk of x is copied near as pairs of pixels and turned over, square by square. dy's panels are as in `outer`.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, LINE, LINE_FLOATS, V
from ..element import poke, size_of
from ..microkernel import pack_block, transpose_square
from ..tile_amx import SIDE, STEP, configure_tiles, release_tiles, tile_block
from .grid import DEPTH, row_addresses
from .outer import Outer, add_up, pack_gradients, place_gradient, sums_target
from .panels import ROW
from .task import F32_BYTES, aligned

CHUNK = 12 * STEP  # pixels of a chunk: dw is read and written once a chunk, and its panels stay in L1
PITCH = (CHUNK // STEP | 1) * LINE  # of a channel's pixels: an odd number of lines, so that rows lie in different sets
STRIP = 256  # channels of x at once: 213 KB, beside the panels of dy in L2
CHANNELS = 2 * SIDE  # of a block of tiles


@inlined
def _clear(job, part):
    """The sums of a task = 0."""
    for t in range(part.taps.shape[0]):
        for c in range(part.geometry[DEPTH]):
            there, _ = sums_target(job, part, t, c, part.lo)
            for j in range((part.hi - part.lo) * BLOCK):
                poke(np.float32, there, j, np.float32(0))


@inlined
def _turn(kind, rows, count, shift, channels, square, turned):
    """turned (channels, PITCH bytes) = the pixels at addresses rows[:count], from `shift` bytes on, side by side."""
    for p in range(0, count, STEP):
        for c in range(0, channels, LINE_FLOATS):
            here = shift + c * size_of(kind)
            for pair in range(SIDE):
                one, other = rows[p + 2 * pair] + here, rows[p + 2 * pair + 1] + here
                pack_block(1, V, kind, kind, one, other, square.ctypes.data + pair * LINE)
            there = turned.ctypes.data + c * PITCH + p // STEP * LINE
            transpose_square(V, np.float32, np.float32, square.ctypes.data, LINE, there, PITCH)


@inlined
def _multiply(job, part, rows, count, panel, square, turned):
    """Add a chunk's products to the sums: a strip of channels at a time, every tap, tile by tile."""
    depth, item = part.geometry[DEPTH], job.x.itemsize
    for begin in range(0, depth, STRIP):
        channels = min(STRIP, depth - begin)
        for t in range(part.taps.shape[0]):
            _turn(job.x.dtype, rows[t], count, (part.group * depth + begin) * item, channels, square, turned)
            for c in range(0, channels, CHANNELS):
                for block in range(part.lo, part.hi):
                    there, pitch = sums_target(job, part, t, begin + c, block)
                    b = panel.ctypes.data + (block - part.lo) * panel.shape[1] * ROW
                    a = turned.ctypes.data + c * PITCH
                    tile_block(V, a, PITCH, 0, 1, count // STEP, b, 0, there, pitch)


@inlined
def _tiles_weight_task(task, job):
    """Some blocks of output channels of one group, over some shares of the pixels."""
    part = place_gradient(task, job, CHUNK, 0)
    rows = np.empty((part.taps.shape[0], CHUNK), np.int64)
    panel = aligned((part.hi - part.lo) * CHUNK // 2 * BLOCK).reshape(part.hi - part.lo, CHUNK // 2, BLOCK)
    square, turned = aligned(SIDE * LINE_FLOATS), aligned(min(STRIP, part.geometry[DEPTH]) * PITCH // F32_BYTES)
    configure_tiles()
    for number in range(job.taken):
        part = place_gradient(task, job, CHUNK, number)
        _clear(job, part)
        for first in range(part.first, part.last, CHUNK):
            count = min(CHUNK, part.last - first)
            whole = -(-count // STEP) * STEP  # behind the last pixel there are zeros
            row_addresses(job.x.ctypes.data, job.zeros.ctypes.data, part.geometry, part.taps, first, count, rows)
            rows[:, count:whole] = job.zeros.ctypes.data
            panel[:, count // 2 : whole // 2] = 0
            pack_gradients(job, part, first, count, panel)
            _multiply(job, part, rows, whole, panel, square, turned)
        add_up(job, part)
    release_tiles()


@kernel(parallel=True)
def _tiles_weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _tiles_weight_task(np.int64(task), job)


class TilesWeight(Outer):
    """Channels of x and dy in whole steps."""

    nest, chunk = staticmethod(_tiles_weight_nest), CHUNK

    @classmethod
    def suits(cls, shape):
        return shape.tiles
