"""Backward-weight in tiles of pairs of bf16: `outer`, with a matrix unit for a tile.

dw (channels of x, channels of dy) is a product with the pixels as depth. A tile wants those of a channel of x side by
side: the strip that a chunk of pixels reads is turned over, square by square. A tap is a shift of x against dy: tiles
of x are whole lines, and the panel of dy is read from another row. Of that there are two, as a pair begins at an even
or at an odd place; where a strip has places that are no pixel's, they have zeros.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..ahead import ask
from ..arch import BLOCK, LINE, LINE_FLOATS, NV, V
from ..element import entry, size_of
from ..microkernel import pack_block, transpose_square
from ..store import store_row
from ..tile_amx import SIDE, configure_tiles, release_tiles, tile_block
from .grid import DEPTH, GROUPS, WIDTH
from .outer import RANGE, Outer, add_up, place_gradient, sums_target
from .panels import ROW, copy_row, pack_part
from .strip import AT_ONCE, lay, make_strip
from .task import F32_BYTES, aligned

CHUNKS = 384, 196  # pixels of a chunk, of one tap and of more: dw is read and written once a chunk, but what several
# taps read is to stay in L1, with dy's panel
MARGIN = AT_ONCE  # places before and behind those of things, for which panels have zeros
SUMS_BYTES = 5 << 18  # of a task: they, too
RANGE_ONCE = 16  # blocks of output channels of a task that has a single chunk: nothing of dw is read again
CHANNELS = 256  # of x at once: those of a chunk stay in L2, beside the panels of dy


@inlined
def turn_square(kind, table, shift, square, turned, pitch):
    """Rows from address `turned` on, `pitch` apart = LINE_FLOATS channels, from `shift` bytes on, of 2 * SIDE pixels.

    table: address of the addresses of the pixels. square: of room for a square of pairs.
    """
    for pair in range(SIDE):
        one, other = entry(table, 2 * pair) + shift, entry(table, 2 * pair + 1) + shift
        pack_block(1, V, kind, kind, one, other, square + pair * LINE)
    transpose_square(V, np.float32, np.float32, square, LINE, turned, pitch)


@inlined
def _turn(kind, sources, places, shift, channels, square, turned, pitch):
    """Rows from address `turned` on, `pitch` apart = a channel each of the places of a plane, side by side; channels
    from `shift` bytes on."""
    for p in range(0, places, AT_ONCE):
        for n in range(p + AT_ONCE, min(p + 2 * AT_ONCE, places)):
            ask(sources[n] + shift, channels * size_of(kind))
        for c in range(0, channels, LINE_FLOATS):
            here, there = shift + c * size_of(kind), turned + c * pitch + p * size_of(kind)
            turn_square(kind, sources.ctypes.data + 8 * p, here, square.ctypes.data, there, pitch)


@inlined
def _pack_gradients(job, part, strip, first, count, rows, panel):
    """panel[block, odd, pair] = BLOCK channels of dy of places 2 * pair + odd - MARGIN of a strip and the next.

    Zeros where no thing is. Returns the first and the last place of a thing.
    """
    width, item = part.geometry[WIDTH], job.dy.itemsize
    pitch = part.geometry[GROUPS] * width * item
    rows[:] = job.zeros.ctypes.data
    place = last = strip.starts[0]
    for n in range(count):
        last = strip.starts[strip.kept[n] // AT_ONCE] + strip.kept[n] % AT_ONCE
        there = (first + n) * pitch + (part.group * width + part.lo * BLOCK) * item
        rows[last + MARGIN] = job.dy.ctypes.data + there
    end = last + 2 * MARGIN
    for pair in range((end + 1) // 2):
        for n in range(2 * (pair + SIDE), min(2 * (pair + SIDE + 1), end)):
            ask(rows[n], (part.hi - part.lo) * BLOCK * item)
        for odd in range(panel.shape[1]):
            for block in range(part.lo, part.hi):
                shift = (block - part.lo) * BLOCK * item
                there = panel.ctypes.data + (((block - part.lo) * panel.shape[1] + odd) * panel.shape[2] + pair) * ROW
                one, other = rows[2 * pair + odd] + shift, rows[2 * pair + odd + 1] + shift
                valid = width - block * BLOCK
                if valid >= BLOCK:
                    pack_block(NV, V, job.dy.dtype, job.panels.dtype, one, other, there)
                else:
                    pack_part(job.dy.dtype, job.panels.dtype, one, valid, there, BLOCK, 0)
                    pack_part(job.dy.dtype, job.panels.dtype, other, valid, there, BLOCK, 1)
    return place, last


@inlined
def _find_walks(strip, item, pairs, place, last, walks):
    """For each tap one walk: over whole lines of the strip, and so from another row of the panel.

    A tile is loaded as fast as L1 gives it only where its rows are lines. Rows of the panel always are.
    """
    apart = strip.sources.shape[1]
    for t in range(strip.shifts.size):
        plane, shift = divmod(strip.shifts[t], apart)
        begin = (place + shift) // AT_ONCE * AT_ONCE
        row = begin - shift + MARGIN
        walks[t, 0] = (plane * apart + begin) * item
        walks[t, 1] = (row % 2 * pairs + row // 2) * ROW
        walks[t, 2] = (last + shift - begin) // AT_ONCE + 1


@inlined
def _multiply(job, part, walks, fresh, panel, turned, begin, sums):
    """Add a chunk's products to the sums: every tap, tile by tile."""
    taps, blocks, a_pitch = part.taps.shape[0], part.hi - part.lo, turned.strides[0]
    panel_bytes, here, there = panel.shape[1] * panel.shape[2] * ROW, turned.ctypes.data, sums.ctypes.data
    way = walks.ctypes.data
    out, pitch = sums_target(job, part, 0, begin, part.lo)  # of one tap
    near = aligned(AT_ONCE * BLOCK)
    depth, width = part.geometry[DEPTH], part.geometry[WIDTH]
    for c in range(0, turned.shape[0], AT_ONCE):
        deep = min(AT_ONCE, depth - begin - c)
        for block in range(blocks):
            a, b = here + c * a_pitch, panel.ctypes.data + block * panel_bytes
            to, valid = out + c * pitch + block * ROW, min(BLOCK, width - (part.lo + block) * BLOCK)
            if sums.size > 0:
                for t in range(taps):
                    to = there + (((begin + c) // AT_ONCE * blocks + block) * taps + t) * AT_ONCE * ROW
                    tile_block(V, fresh, a, a_pitch, b, way + t * walks.strides[0], 1, to, ROW)
            elif job.past or deep < AT_ONCE or valid < BLOCK:
                tile_block(V, 1, a, a_pitch, b, way, 1, near.ctypes.data, ROW)
                for row in range(deep):
                    store_row(near.ctypes.data + row * ROW, valid, np.float32, to + row * pitch, fresh == 0, job.past)
            else:
                tile_block(V, fresh, a, a_pitch, b, way, 1, to, pitch)


@inlined
def _tell(job, part, sums):
    """The sums of a share, once they are whole, to their place in rows of dw."""
    depth, width = part.geometry[DEPTH], part.geometry[WIDTH]
    for c in range(sums.shape[0]):
        for block in range(sums.shape[1]):
            for t in range(sums.shape[2]):
                there, pitch = sums_target(job, part, t, c * AT_ONCE, part.lo + block)
                for row in range(min(AT_ONCE, depth - c * AT_ONCE)):
                    valid = min(BLOCK, width - (part.lo + block) * BLOCK)
                    copy_row(np.float32, sums[c, block, t, row].ctypes.data, there + row * pitch, valid)


@inlined
def _tiles_weight_task(task, job):
    """Some blocks of output channels of one group, over some shares of the pixels."""
    chunk, item = job.chunk, job.x.itemsize
    part = place_gradient(task, job, 0)
    read = part.geometry[DEPTH]
    depth = -(-read // AT_ONCE) * AT_ONCE
    strip = make_strip(job, part.geometry, part.taps, chunk)
    apart, taps = strip.sources.shape[1], part.taps.shape[0]
    rows, walks, pairs = np.empty(apart + 2 * MARGIN + 2, np.int64), np.empty((taps, 3), np.int64), apart // 2 + MARGIN
    odds = min(taps, 2)
    panel = aligned((part.hi - part.lo) * odds * pairs * BLOCK).reshape(part.hi - part.lo, odds, pairs, BLOCK)
    pitch = (strip.sources.size * item // LINE | 1) * LINE  # an odd number of lines, so that rows lie in different sets
    square, at_once = aligned(SIDE * LINE_FLOATS), min(CHANNELS, depth)
    turned = aligned(at_once * pitch // F32_BYTES).reshape(at_once, pitch // F32_BYTES)
    form = depth // AT_ONCE if taps > 1 else 0, part.hi - part.lo, taps, AT_ONCE, BLOCK
    sums = aligned(form[0] * AT_ONCE * form[1] * taps * BLOCK).reshape(form)
    configure_tiles()
    for number in range(job.taken):
        part = place_gradient(task, job, number)
        for first in range(part.first, part.last, chunk):
            count, fresh = min(chunk, part.last - first), np.int64(first == part.first)
            _, places = lay(job, part.geometry, strip, first, count)
            place, last = _pack_gradients(job, part, strip, first, count, rows, panel)
            _find_walks(strip, item, pairs, place, last, walks)
            for begin in range(0, depth, CHANNELS):
                channels, shift = min(CHANNELS, read - begin), (part.group * read + begin) * item
                for plane in range(strip.planes.size):
                    there, further = turned.ctypes.data + plane * apart * item, places + AT_ONCE - 1
                    _turn(job.x.dtype, strip.sources[plane], further, shift, channels, square, there, turned.strides[0])
                rows_of_c = -(-channels // AT_ONCE) * AT_ONCE
                _multiply(job, part, walks, fresh, panel, turned[:rows_of_c], begin, sums)
        _tell(job, part, sums)
        add_up(job, part)
    release_tiles()


@kernel(parallel=True)
def _tiles_weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _tiles_weight_task(np.int64(task), job)


class TilesWeight(Outer):
    """Channels of x and dy in whole steps."""

    nest = staticmethod(_tiles_weight_nest)

    def __init__(self, shape):
        r, s, depth, _ = shape.w
        n, p, q, _ = shape.y
        self.chunk = CHUNKS[0] if r == s == 1 else CHUNKS[1]
        self.once = r == s == 1 and n * p * q <= self.chunk
        self.most = RANGE_ONCE if self.once else max(1, min(RANGE, SUMS_BYTES // (r * s * depth * ROW)))
        super().__init__(shape)

    @classmethod
    def suits(cls, shape):
        return shape.tiles

    def chunks(self):
        return super().chunks() * self.chunk // CHUNKS[0]
