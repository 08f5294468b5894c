"""Where the tiles of a task lie: 32 rows of pairs, one pitch apart, that AMX multiplies with a panel of weights.

Pixels that one tap reads in their order (1x1 at stride 1) lie so in memory, and those of merged taps do within a row;
for all others a `strip` is staged.
"""

from typing import NamedTuple

import numpy as np

from .._jit import inlined
from ..ahead import ask
from ..arch import BLOCK, LINE
from ..element import entry
from ..tile_amx import STEP
from .grid import DEPTH, GRID_I, GRID_J, GROUPS, IMAGE_H, IMAGE_W, PITCH, row_addresses
from .grid import STEP as STRIDE
from .panels import ROW
from .strip import AT_ONCE, lay, make_strip, stage
from .task import F32_BYTES, aligned


class Tiling(NamedTuple):
    """The tiles of a task: what they read, and what finishing wants to know of their things."""

    sources: np.ndarray  # (planes, places) of a strip, of which so many are staged, to an address; or none
    places: int
    room: np.ndarray
    pitch: int  # bytes from a place to the next one
    begins: np.ndarray  # (tiles,) addresses of their first places
    ends: np.ndarray  # (tiles + 1,) the things of tile t are ends[t] to ends[t + 1] - 1
    rows: np.ndarray  # (things,) offsets in their tile, in bytes
    outs: np.ndarray  # (things,) addresses of the results
    walks: np.ndarray  # (taps, 3) as `tile_block` takes them
    c: np.ndarray
    asked: int  # bytes of the next tile's pixels that memory is asked for while this one is multiplied


@inlined
def _results(job, part):
    """Addresses of the results of a part's things."""
    outs = np.empty((1, part.count), np.int64)
    row_addresses(job.y.ctypes.data, 0, part.y_geometry, part.y_taps, part.first, part.count, outs)
    return outs[0]


@inlined
def _unstaged(pitch, begins, ends, rows, outs, walks, asked):
    """Tiles that are read where they lie."""
    none = np.empty((0, 0), np.int64)
    return Tiling(none, 0, aligned(0), pitch, begins, ends, rows, outs, walks, aligned(AT_ONCE * BLOCK), asked)


@inlined
def lies_ready(part):
    """Whether the things of a part read the pixels in their order, each once."""
    geometry, taps = part.geometry, part.taps
    alone = taps.shape[0] == 1 and taps[0, 0] == 0 and taps[0, 1] == 0 and geometry[STRIDE] == geometry[GROUPS] == 1
    whole = geometry[GRID_I] == geometry[IMAGE_H] and geometry[GRID_J] == geometry[IMAGE_W]
    return alone and whole and geometry[DEPTH] % STEP == 0 and part.count >= AT_ONCE


@inlined
def in_place(job, part):
    """Tiles of the pixels themselves; the last one reaches back.

    Where a task has as many outputs as inputs, these are asked for: at most 32 lines a tile of C, more are waited for.
    """
    count, pitch, depth = part.count, part.geometry[PITCH], part.geometry[DEPTH]
    tiles = -(-count // AT_ONCE)
    begins, ends = np.empty(tiles, np.int64), np.zeros(tiles + 1, np.int64)
    rows, walks = np.empty(count, np.int64), np.zeros((1, 3), np.int64)
    for tile in range(tiles):
        first, ends[tile + 1] = min(tile * AT_ONCE, count - AT_ONCE), min((tile + 1) * AT_ONCE, count)
        begins[tile] = job.x.ctypes.data + (part.first + first) * pitch
        for n in range(ends[tile], ends[tile + 1]):
            rows[n] = (n - first) * ROW
    walks[0, 1], walks[0, 2] = part.taps[0, 2] * depth // 2 * ROW, depth // STEP
    asked = AT_ONCE * pitch if depth <= (part.hi - part.lo) * BLOCK else 0
    return _unstaged(pitch, begins, ends, rows, _results(job, part), walks, asked)


@inlined
def in_strip(job, part, depth):
    """Tiles of a strip, for `stage_strip`."""
    strip = make_strip(job, part.geometry, part.taps, part.count)
    blocks, places = lay(job, part.geometry, strip, part.first, part.count)
    pitch = (depth * 2 // LINE | 1) * LINE  # an odd number of lines, so that neighbours lie in different sets of L1
    room, walks = aligned(strip.sources.size * pitch // F32_BYTES), np.empty((part.taps.shape[0], 3), np.int64)
    if part.geometry[DEPTH] < depth:
        room[:] = 0
    rows = np.empty(part.count, np.int64)
    ends, begins = np.zeros(blocks + 1, np.int64), np.int64(room.ctypes.data) + strip.starts[:blocks] * pitch
    for n in range(part.count):
        tile, row = divmod(strip.kept[n], AT_ONCE)
        rows[n], ends[tile + 1] = row * ROW, n + 1
    for t in range(part.taps.shape[0]):
        walks[t] = strip.shifts[t] * pitch, part.taps[t, 2] * depth // 2 * ROW, depth // STEP
    outs, c = _results(job, part), aligned(AT_ONCE * BLOCK)
    return Tiling(strip.sources, places, room, pitch, begins, ends, rows, outs, walks, c, 0)


@inlined
def stage_strip(own, shift, size):
    """Copy `size` bytes of the pixels of a strip, from `shift` on."""
    for plane in range(own.sources.shape[0]):
        there = own.room.ctypes.data + plane * own.sources.shape[1] * own.pitch
        stage(own.sources[plane, : own.places], shift, size, there, own.pitch)


@inlined
def in_rows(job, part, depth):
    """Tiles of up to AT_ONCE neighbours in a row of pixels, of merged taps; a row's last one reads on behind it."""
    geometry, count = part.geometry, part.count
    grid_i, grid_j, stride, width = geometry[GRID_I], geometry[GRID_J], geometry[STRIDE], geometry[IMAGE_W]
    pitch, most = stride * geometry[PITCH], count // AT_ONCE + count // grid_j + 3
    begins, ends = np.empty(most, np.int64), np.zeros(most + 1, np.int64)
    rows, walks = np.empty(count, np.int64), np.empty(part.taps.shape, np.int64)
    n = tiles = 0
    while n < count:
        image, rest = divmod(part.first + n, grid_i * grid_j)
        i, j = divmod(rest, grid_j)
        things = min(AT_ONCE, grid_j - j, count - n)
        first = (image * geometry[IMAGE_H] + i * stride) * width + j * stride
        begins[tiles], ends[tiles + 1] = job.x.ctypes.data + first * geometry[PITCH], n + things
        for m in range(things):
            rows[n + m] = m * ROW
        n, tiles = n + things, tiles + 1
    for t in range(part.taps.shape[0]):
        walks[t] = part.taps[t, 0] * width * geometry[PITCH], part.taps[t, 2] * depth // 2 * ROW, depth // STEP
    return _unstaged(pitch, begins[:tiles], ends, rows, _results(job, part), walks, 0)


@inlined
def ask_for_pixels(asked, begins, later, part, parts):
    """For one of some parts of what tile number `later` reads."""
    if asked > 0:
        ask(entry(begins, later) + part * (asked // parts), asked // parts)
