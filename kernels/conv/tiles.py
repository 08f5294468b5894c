"""Forward and backward-input in tiles of pairs of bf16: `rows`, with all rows staged and a matrix unit for a tile.

A tile's rows are one pitch apart, which rows at addresses are not: so they are copied near first.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, V
from ..tile_amx import SIDE, STEP, configure_tiles, release_tiles, tile_block
from .grid import DEPTH, GROUPS, WIDTH
from .panels import ROW
from .rows import PANEL_BYTES, Rows, begin_with, gather, near_rows, stage, taps_in_a_row
from .task import F32_BYTES, aligned, finish, place

PIXELS_AT_ONCE = 2 * SIDE
UNITS = STEP // 2  # of a step of depth


@inlined
def _begin(group, job, part, c):
    """C (pixels, channels of the part) = bias."""
    start, width = np.zeros(BLOCK, np.float32), part.geometry[WIDTH]
    for block in range(part.lo, part.hi):
        begin_with(job, part, group * width + block * BLOCK, block * BLOCK, start)
        for m in range(c.shape[0]):
            for j in range(BLOCK):
                c[m, (block - part.lo) * BLOCK + j] = start[j]


@inlined
def _multiply(group, job, part, rows, c):
    """C += sum over taps and depth of one group: some taps whole, or a part of one tap's depth, at a time."""
    width, taps, depth = part.geometry[WIDTH], part.taps, part.geometry[DEPTH] // 2  # in units
    padded, blocks, limit = rows.shape[1], -(-width // BLOCK), PANEL_BYTES // ROW // UNITS * UNITS
    depth_at_once, taps_at_once = min(depth, limit), min(taps.shape[0], max(1, limit // depth))
    near = near_rows(taps_at_once, padded, padded, depth_at_once)
    a, pitch = near.table[0, 0], near.table[0, 1] - near.table[0, 0]
    t0 = 0
    while t0 < taps.shape[0]:
        t1 = taps_in_a_row(taps, t0, taps_at_once)
        for c0 in range(0, depth, depth_at_once):
            count = min(depth_at_once, depth - c0)
            stage(job, part, rows, t0, t1, (group * depth + c0) * F32_BYTES, count, near.table)
            for block in range(part.lo, part.hi):
                panel = ((group * blocks + block) * job.all_taps + taps[t0, 2]) * depth + c0
                for m in range(0, padded, PIXELS_AT_ONCE):
                    there = c.ctypes.data + m * c.strides[0] + (block - part.lo) * ROW
                    tile_block(
                        V, a + m * pitch, pitch, padded * pitch, t1 - t0, count // UNITS,
                        job.weights.ctypes.data + panel * ROW, depth * ROW, there, c.strides[0],
                    )  # fmt: skip
        t0 = t1


@inlined
def _tiles_task(task, job):
    """PIXELS pixels of the grid times one of the ranges of output channels, for every group."""
    part = place(task, job)
    pitch, padded = (part.hi - part.lo) * BLOCK, -(-part.count // PIXELS_AT_ONCE) * PIXELS_AT_ONCE
    rows, out_rows = gather(job, part, padded)
    c = aligned(padded * pitch)
    configure_tiles()
    for group in range(part.geometry[GROUPS]):
        _begin(group, job, part, c.reshape(padded, pitch))
        if part.taps.shape[0] > 0:
            _multiply(group, job, part, rows, c.reshape(padded, pitch))
        finish(job, part, group, c, pitch, part.count, out_rows)
    release_tiles()


@kernel(parallel=True)
def _tiles_nest(tasks, job):
    for task in numba.prange(tasks):
        _tiles_task(np.int64(task), job)


class Tiles(Rows):
    """Packed pairs, depths of whole steps."""

    nest = staticmethod(_tiles_nest)

    @classmethod
    def suits(cls, shape):
        return shape.tiles
