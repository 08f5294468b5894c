"""Forward and backward-input in tiles of pairs of bf16, as Intel's AMX multiplies them.

A tile of C is summed over all taps and depth without leaving its registers, and finished while it lies in the
first-level cache: AMX multiplies so fast that every other pass over C would take longer. What tiles read: `tiling`.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..ahead import DISTANCE
from ..arch import BLOCK, V
from ..element import entry, size_of
from ..tile_amx import STEP, configure_tiles, release_tiles, tile_block
from .finishing import ask_for, begin_finish, finish_rows, finish_tile, tell_moments
from .grid import DEPTH, GRID_J, GROUPS, WIDTH
from .method import PACKED, ROWS
from .panels import ROW, SIDE_BY_SIDE, clear
from .rows import Rows, Unpacked, own_panel
from .strip import AT_ONCE
from .task import aligned, place
from .tiling import ask_for_pixels, in_place, in_strip, lies_ready, stage_strip

PIXELS = 256  # of a block, at most
STRIP_BYTES = 1 << 19  # of its pixels: with its weights it stays in L2
NEAR = 4096  # of the depth of weights that a task packs for itself, in all of its panels: they stay in L2
LONG = 8  # panels from which on rows are finished from end to end where that reads tensors: memory streams
WIDE = 16  # panels that are packed together where rows of w are far apart: they are read in longer runs
WEIGHTS_BYTES = 1 << 20  # of all weights of a task: more are read panel by panel, each by all pixels of a block


@inlined
def _finish(kind, to, ends, block, tile, c, valid):
    """The tile of sums at address c: block number `block` of the task's `valid` channels."""
    begin, end = entry(ends, tile), entry(ends, tile + 1)
    if (block + 1) * BLOCK <= valid:
        finish_tile(kind, to, block, begin, end, c)
    else:
        finish_rows(kind, to, block, begin, end, c, valid - block * BLOCK, 1)


@inlined
def _multiply_rows(kind, to, own, weights, panel, panels, valid):
    """All tiles of a group, whose finish reads more than C: whole rows of all panels, one behind the other."""
    begins, ends, last = own.begins.ctypes.data, own.ends.ctypes.data, own.outs.size - 1
    tiles, asked = own.begins.size, own.asked
    c, ahead = aligned(AT_ONCE * panels * BLOCK), max(1, DISTANCE // (valid * size_of(kind)))
    walks, taps, pitch = own.walks.ctypes.data, own.walks.shape[0], own.pitch
    for tile in range(tiles):
        for k in range(panels):
            ask_for_pixels(asked, begins, min(tile + 1, tiles - 1), k, panels)
            a, b = entry(begins, tile), weights + k * panel
            tile_block(V, 1, a, pitch, b, walks, taps, c.ctypes.data + k * ROW, panels * ROW)
        for n in range(entry(ends, tile), entry(ends, tile + 1)):
            later = min(n + ahead, last)
            ask_for(kind, to, 0, panels, later, later + 1)
            finish_rows(kind, to, 0, n, n + 1, c.ctypes.data, valid, panels)


@inlined
def multiply(kind, to, own, weights, panel, panels, valid):
    """All tiles of a group: pixels by pixels or, if that is too much for L2, panel by panel of the weights."""
    if to.x != 0 and panels >= LONG and panels * panel <= WEIGHTS_BYTES:
        return _multiply_rows(kind, to, own, weights, panel, panels, valid)
    begins, ends, c = own.begins.ctypes.data, own.ends.ctypes.data, own.c.ctypes.data
    walks, taps, pitch = own.walks.ctypes.data, own.walks.shape[0], own.pitch
    tiles, asked, by_panel = own.begins.size, own.asked, panels * panel > WEIGHTS_BYTES
    for k in range(tiles * panels):
        block, tile = (k // tiles, k % tiles) if by_panel else (k % panels, k // panels)
        if tile + 1 < tiles and by_panel:
            ask_for(kind, to, block, 1, entry(ends, tile + 1), entry(ends, tile + 2))
        elif tile + 1 < tiles:  # for some rows of the next tile, from end to end
            first = entry(ends, tile + 1)
            many = entry(ends, tile + 2) - first
            ask_for(kind, to, 0, panels, first + many * block // panels, first + many * (block + 1) // panels)
        if not by_panel:
            ask_for_pixels(asked, begins, min(tile + 1, tiles - 1), block, panels)
        tile_block(V, 1, entry(begins, tile), pitch, weights + block * panel, walks, taps, c, ROW)
        _finish(kind, to, ends, block, tile, c, valid)


@inlined
def _multiply_unpacked(job, part, to, own):
    """The same where a task packs its weights: a part of the depth of panels whose rows, or columns, are neighbours."""
    depth, tiles = part.geometry[DEPTH], own.begins.size
    beside = WIDE if job.form == ROWS else SIDE_BY_SIDE
    at_once = NEAR // beside
    panels = aligned(NEAR // 2 * BLOCK).reshape(beside, at_once // 2 * BLOCK)
    sums, walk = aligned(beside * tiles * AT_ONCE * BLOCK), np.zeros(3, np.int64)
    for lo in range(part.lo, part.hi, beside):
        blocks = min(beside, part.hi - lo)
        for first in range(0, depth, at_once):
            count = min(at_once, depth - first)
            walk[2] = -(-count // STEP)
            for block in range(blocks):
                b = own_panel(job, part, lo + block, first // 2, count // 2, panels)
                clear(b, count // 2, walk[2] * STEP // 2)
                for tile in range(tiles):
                    c = sums.ctypes.data + (block * tiles + tile) * AT_ONCE * ROW
                    a, fresh = own.begins[tile] + first * 2, np.int64(first == 0)
                    tile_block(V, fresh, a, own.pitch, b, walk.ctypes.data, 1, c, ROW)
        for k in range(blocks * tiles):
            c = sums.ctypes.data + k * AT_ONCE * ROW
            _finish(job.y.dtype, to, own.ends.ctypes.data, lo - part.lo + k // tiles, k % tiles, c, part.valid)


@inlined
def _tiles_task(task, job):
    """A block of the grid times one of the ranges of output channels, for every group."""
    part = place(task, job)
    width, groups, read = part.geometry[WIDTH], part.geometry[GROUPS], part.geometry[DEPTH] * job.x.itemsize
    depth = -(-part.geometry[DEPTH] // STEP) * STEP
    panel = job.all_taps * depth // 2 * ROW
    own = in_place(job, part) if lies_ready(part) else in_strip(job, part, depth)
    gathered = aligned(3 * job.moments.shape[2]).reshape(3, job.moments.shape[2])
    configure_tiles()
    for group in range(groups):
        stage_strip(own, group * read, read)
        channel = group * width + part.lo * BLOCK
        to = begin_finish(job, part, channel, (own.rows.ctypes.data, own.outs.ctypes.data), gathered)
        if job.form == PACKED:
            weights = job.weights.ctypes.data + (group * -(-width // BLOCK) + part.lo) * panel
            multiply(job.y.dtype, to, own, weights, panel, part.hi - part.lo, part.valid)
        else:
            _multiply_unpacked(job, part, to, own)
        tell_moments(job, part, to, gathered)
    release_tiles()


@kernel(parallel=True)
def _tiles_nest(tasks, job):
    for task in numba.prange(tasks):
        _tiles_task(np.int64(task), job)


class InTiles:
    """What all methods have. C is a tile, so any number of channels may be one task's."""

    nest, most_width, step = staticmethod(_tiles_nest), 1 << 30, STEP

    def tasks(self, threads):
        return 4 * threads


class Tiles(InTiles, Rows):
    """Packed pairs, zeros behind a depth that is not whole steps."""

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        pixels = max(AT_ONCE, min(PIXELS, STRIP_BYTES // (2 * self.depth)))
        row = max(grid.geometry[GRID_J] for grid, _ in self.grids)  # whole ones: less of them is read twice
        self.size = int(pixels // row * row) or pixels

    @classmethod
    def suits(cls, shape):
        return shape.tiles


class UnpackedTiles(InTiles, Unpacked):
    """A fully connected layer. One block of pixels has them all, as each packs all weights."""

    size = PIXELS

    @classmethod
    def suits(cls, shape):
        return shape.tiles and Unpacked.suits(shape)
