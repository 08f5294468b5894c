"""Backward-weight as sums of outer products, x by dy, of pixels that are copied near first.

A task owns a range of output channels and a share of the pixels. It walks its pixels in chunks: a chunk of dy is copied
to panels of BLOCK channels, and then, tap by tap, the pixels of x that the tap reads to columns of SPAN channels, a
cache line each. Both are widened on the way; or two pixels become one row of pairs of bf16.
"""

from typing import NamedTuple

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, FEW, LINE, LINE_FLOATS, MC, NV, V
from ..element import peek, size_of
from ..microkernel import pack_block, tile_outer
from ..number import BF16, FP32
from . import grid
from .grid import DEPTH, GRID_I, GRID_J, GROUPS, PITCH, STEP, WIDTH, next_input, row_addresses
from .method import Gradient
from .panels import ROW, copy_row, in_unit, pack_part, pack_rows
from .rows import MergedRows, padded, padded_size
from .shares import add_share, share
from .task import F32_BYTES, aligned

CHUNK = 192  # pixels of a chunk: a BLOCK-wide panel of dy stays in L1
RANGE = 8  # blocks of output channels of a task, at most: its panels of dy share L2 with
STRIP = 40  # this many lines of channels of x
SPAN = LINE_FLOATS // MC * MC  # channels of a packed line: whole tiles
LINE_VECTORS = LINE_FLOATS // V


class _Part(NamedTuple):
    """What a task owns at a time: blocks lo to hi of a group's output channels, pixels first to last of a share."""

    geometry: np.ndarray
    taps: np.ndarray
    group: int
    lo: int
    hi: int
    first: int
    last: int
    split: int  # number of the share
    out: int  # where its sums go
    alone: bool  # it takes all output channels
    merged: bool  # few channels, windows that overlap: something may be read behind each
    in_place: bool  # x is read where it lies


class _Room(NamedTuple):
    """A task's own arrays."""

    columns: np.ndarray  # (lines, pixels, LINE_FLOATS) of x, in units
    places: np.ndarray  # (CHUNK,) addresses of its pixels
    rows: np.ndarray  # (taps, CHUNK) addresses of the pixels of x that a chunk reads
    panel: np.ndarray  # (blocks, CHUNK, BLOCK) of dy, in units
    edge: np.ndarray  # (CHUNK, MC): pixels of a depth that fills no tile, or empty
    beside: np.ndarray  # (blocks, taps, depth, BLOCK): sums of the last blocks, those that stick out of dw
    nowhere: np.ndarray


@inlined
def place_gradient(task, job, number):
    """The part of a task in the share `number` of those it takes, of whole chunks."""
    geometry, taps, chunk = job.geometries[0], job.taps[0], job.chunk
    pixels, width, groups = job.images * geometry[GRID_I] * geometry[GRID_J], geometry[WIDTH], geometry[GROUPS]
    blocks, chunks = -(-width // BLOCK), -(-pixels // chunk)
    ranges = -(-blocks // job.wide)
    run, rest = divmod(task, groups * ranges)
    split = run * job.taken + number
    group, part = divmod(rest, ranges)
    first, last = chunks * split // job.splits * chunk, min(chunks * (split + 1) // job.splits * chunk, pixels)
    merged = groups == 1 and geometry[DEPTH] * job.x.itemsize != geometry[PITCH]
    in_place = merged and job.panels.itemsize == F32_BYTES  # pairs are of two pixels, which do not lie side by side
    lo, hi = part * job.wide, min((part + 1) * job.wide, blocks)
    alone = groups * ranges == 1
    return _Part(geometry, taps, group, lo, hi, first, last, split, share(job, split), alone, merged, in_place)


@inlined
def add_up(job, part):
    """Add the part's sums to those of the shares before."""
    depth, width = part.geometry[DEPTH], part.geometry[WIDTH]
    first = part.lo * BLOCK
    columns = part.group * width + first, min(part.hi * BLOCK, width) - first
    add_share(job, part.split, part.taps.shape[0], depth, part.geometry[GROUPS] * width, (0, depth), columns)


@inlined
def _room(job, part):
    depth, width, n_taps = part.geometry[DEPTH], part.geometry[WIDTH], part.taps.shape[0]
    lines = 0 if part.in_place else -(-depth // SPAN)
    # pixels: an odd number, so that the lines of one lie in different sets of L1
    at_once, pixels = -(-lines // max(1, -(-lines // STRIP))), CHUNK | 1
    columns = aligned(at_once * pixels * LINE_FLOATS).reshape(at_once, pixels, LINE_FLOATS)
    # all blocks are summed beside dw where the depth does not fill a tile, else the last one, if it sticks out
    beside = part.hi - part.lo if depth < MC else (1 if part.hi * BLOCK > width else 0)
    blocks, rows, edges = part.hi - part.lo, max(depth, MC), CHUNK if part.in_place and depth < MC else 0
    return _Room(
        columns,
        np.int64(columns.ctypes.data) + np.arange(CHUNK) * LINE,
        np.empty((n_taps, CHUNK), np.int64),
        aligned(blocks * CHUNK * BLOCK).reshape(blocks, CHUNK, BLOCK),
        aligned(edges * MC).reshape(edges, MC),
        aligned(beside * n_taps * rows * BLOCK).reshape(beside, n_taps, rows, BLOCK),
        np.zeros(BLOCK, np.float32),
    )


# ---- packing -------------------------------------------------------------------------------------------------


@inlined
def _line_start(line, depth):
    """The first channel of packed line number `line`: the last one reaches back, so that it is full."""
    return min(line * SPAN, max(depth - LINE_FLOATS, 0))


@inlined
def _pack_columns(job, part, room, sources, count, first):
    """columns[s, p] = line number first + s of the pixel at address sources[p], or of two pixels, as pairs."""
    kind, to, per_unit, depth = job.x.dtype, job.panels.dtype, in_unit(job.panels.dtype), part.geometry[DEPTH]
    columns = room.columns
    lines = min(columns.shape[0], -(-depth // SPAN) - first)
    for p in range(-(-count // per_unit)):
        one, other = sources[p * per_unit], sources[p * per_unit + per_unit - 1]
        for s in range(lines):
            shift = (part.group * depth + _line_start(first + s, depth)) * size_of(kind)
            target = columns.ctypes.data + (s * columns.shape[1] + p) * LINE
            if depth >= LINE_FLOATS or part.merged:
                pack_block(LINE_VECTORS, V, kind, to, one + shift, other + shift, target)
            else:
                for place in range(per_unit):
                    pack_part(kind, to, sources[p * per_unit + place] + shift, depth, target, LINE_FLOATS, place)


@inlined
def pack_gradients(job, part, first, count, panel):
    """panel[block, m] = BLOCK channels of dy of pixel first + m; or of two pixels, as pairs."""
    width, item = part.geometry[WIDTH], job.dy.itemsize
    pitch = part.geometry[GROUPS] * width * item
    source = job.dy.ctypes.data + first * pitch + part.group * width * item
    for block in range(part.lo, part.hi):
        valid, there = min(BLOCK, width - block * BLOCK), panel.ctypes.data + (block - part.lo) * panel.shape[1] * ROW
        pack_rows(job.dy.dtype, job.panels.dtype, source + block * BLOCK * item, pitch, count, valid, there, 0)


@inlined
def _pack_edge(kind, rows, count, depth, edge):
    """edge[m] = the pixel at address rows[m], zeros behind its depth; rows then point there."""
    for m in range(count):
        for i in range(MC):
            edge[m, i] = peek(kind, rows[m], i) if i < depth else np.float32(0.0)
        rows[m] = edge.ctypes.data + m * MC * F32_BYTES


# ---- sums ----------------------------------------------------------------------------------------------------


@inlined
def sums_target(job, part, t, c, block):
    """Address of the sums of tap number t, from channel c on, of a block of output channels; and their pitch."""
    depth, width = part.geometry[DEPTH], part.geometry[WIDTH]
    pitch, column = part.geometry[GROUPS] * width * job.dw.itemsize, part.group * width + block * BLOCK
    return part.out + (part.taps[t, 2] * depth + c) * pitch + column * job.dw.itemsize, np.int64(pitch)


@inlined
def _beside(room, t, block):
    """Address of the sums of tap number t of one of the last blocks, that are summed beside dw; ROW is their pitch."""
    return room.beside.ctypes.data + (block * room.beside.shape[1] + t) * room.beside.shape[2] * ROW


@inlined
def _next_chunk(job, part, first, count):
    """What is asked for while a chunk is summed: the next one's x, then its dy where one task takes all of it.

    First and last + 1 address of both.
    """
    geometry = part.geometry
    x = next_input(job.x.ctypes.data, geometry, part.taps, first + count)
    pitch = geometry[GROUPS] * geometry[WIDTH] * job.dy.itemsize
    dy = job.dy.ctypes.data + (first + count) * pitch
    x_end = x + count * geometry[STEP] * geometry[STEP] * geometry[PITCH]
    return x, x_end, dy, dy + (count * pitch if part.alone else 0)


@inlined
def _tap_rows(job, part, room, t, count, line):
    """Address of the addresses of rows of x for a tap: where they lie, or copied to columns from a line on."""
    if not part.in_place:
        _pack_columns(job, part, room, room.rows[t], count, line)
        return room.places.ctypes.data
    if room.edge.size > 0:
        _pack_edge(job.x.dtype, room.rows[t], count, part.geometry[DEPTH], room.edge)
    return room.rows.ctypes.data + t * CHUNK * 8


@inlined
def _multiply(job, part, room, first, count):
    """Add a chunk's outer products to the sums: a strip of channels at a time, every tap, tile by tile."""
    depth, (at_once, size, _), rows = part.geometry[DEPTH], room.columns.shape, room.rows
    row_addresses(job.x.ctypes.data, job.zeros.ctypes.data, part.geometry, part.taps, first, count, rows)
    if count < CHUNK:
        rows[:, count] = job.zeros.ctypes.data  # the second of a pair
    units, strip = -(-count // in_unit(job.panels.dtype)), depth if part.in_place else at_once * SPAN
    fresh, panel, nowhere = np.int64(first == part.first), room.panel.ctypes.data, room.nowhere.ctypes.data
    ahead, ahead_end, dy_ahead, dy_end = _next_chunk(job, part, first, count)
    blocks, apart = part.hi - part.lo, room.beside.shape[1] * room.beside.shape[2] * ROW
    whole = blocks - room.beside.shape[0]  # those behind are summed beside dw
    for begin in range(0, depth, strip):
        for t in range(part.taps.shape[0]):
            a_rows = _tap_rows(job, part, room, t, count, begin // SPAN)
            (out, pitch), near = sums_target(job, part, t, 0, part.lo), _beside(room, t, 0)
            for c0 in range(begin, min(begin + strip, depth), MC):
                left, a_offset = depth - c0 if depth >= MC else MC, c0 * F32_BYTES
                if not part.in_place:
                    line = c0 // SPAN
                    a_offset += (line - begin // SPAN) * size * LINE - _line_start(line, depth) * F32_BYTES
                for block in range(blocks):
                    there, step = out + c0 * pitch + block * ROW, pitch
                    if block >= whole:
                        there, step = near + (block - whole) * apart + c0 * ROW, ROW
                    if ahead >= ahead_end:
                        ahead, ahead_end, dy_ahead = dy_ahead, dy_end, dy_end
                    stride = LINE if ahead < ahead_end else 0
                    tile_outer(
                        MC, FEW, NV, V, job.panels.dtype, a_rows, units, a_offset,
                        panel + block * CHUNK * ROW, there, step, left, nowhere, fresh, ahead, stride,
                    )  # fmt: skip
                    ahead += stride * units


@inlined
def _store_beside(job, part, room):
    depth, width, (blocks, n_taps) = part.geometry[DEPTH], part.geometry[WIDTH], room.beside.shape[:2]
    for n in range(blocks):
        block = part.hi - blocks + n
        for t in range(n_taps):
            (out, pitch), source = sums_target(job, part, t, 0, block), _beside(room, t, n)
            for c in range(depth):
                copy_row(np.float32, source + c * ROW, out + c * pitch, min(BLOCK, width - block * BLOCK))


@inlined
def _weight_task(task, job):
    """Some blocks of output channels of one group, over some shares of the pixels."""
    room = _room(job, place_gradient(task, job, 0))
    for number in range(job.taken):
        part = place_gradient(task, job, number)
        for first in range(part.first, part.last, CHUNK):
            count = min(CHUNK, part.last - first)
            pack_gradients(job, part, first, count, room.panel)
            _multiply(job, part, room, first, count)
        _store_beside(job, part, room)
        add_up(job, part)


@kernel(parallel=True)
def _weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _weight_task(np.int64(task), job)


class Outer(Gradient):
    """Any shape."""

    nest, chunk, most = staticmethod(_weight_nest), CHUNK, RANGE

    def __init__(self, shape):
        super().__init__(shape)
        self.grids = [grid.forward_grid(shape)]
        self.panels = BF16 if shape.pairs else FP32

    def apart(self):
        return self.shape.groups

    def chunks(self):
        n, p, q, _ = self.shape.y
        return n * p * q // self.chunk


class MergedOuter(Outer):
    """The taps of a filter row merged, as in `MergedRows`: the workspace begins with the padded copy of x."""

    def __init__(self, shape):
        super().__init__(shape)
        self.grids = [grid.merged_grid(shape)]
        self.workspace_size += padded_size(shape)

    @classmethod
    def suits(cls, shape):
        return MergedRows.suits(shape)

    def run(self, x, dy, dw, workspace):
        super().run(padded(self.shape, x, workspace), dy, dw, workspace)
