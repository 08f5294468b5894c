"""Backward-weight as sums of outer products, x by dy, of pixels that are copied near first.

A task owns a range of output channels and a share of the pixels. It walks its pixels in chunks: a chunk of dy is copied
to panels of BLOCK channels, and the pixels of x that the chunk reads to columns of SPAN channels, a cache line each.
Both then stay in L2 while every tap passes by, wherever they lay in memory before.
"""

from typing import NamedTuple

import numba
import numpy as np

from .._jit import kernel
from ..arch import BLOCK, LINE, LINE_FLOATS, MC, NV, V
from ..microkernel import copy_block, peek, size_of, tile_outer
from . import grid
from .grid import DEPTH, GRID_I, GRID_J, GROUPS, IN_PITCH, STEP, WIDTH, next_input, pixel_range, row_addresses
from .method import Gradient
from .panels import ROW, copy_row, pack_rows
from .rows import MergedRows, padded, padded_size
from .shape import ceil
from .task import F32_BYTES, share

CHUNK = 192  # pixels of a chunk: a BLOCK-wide panel of dy stays in L1
RANGE = 8  # blocks of output channels of a task: its panels of dy share L2 with
STRIP = 40  # this many lines of channels of x
SPAN = LINE_FLOATS // MC * MC  # channels of a packed line: whole tiles
LINE_VECTORS = LINE_FLOATS // V


class _Part(NamedTuple):
    """What a task owns: blocks lo to hi of a group's output channels, pixels first to last; its sums go to `out`."""

    group: int
    lo: int
    hi: int
    first: int
    last: int
    out: int
    alone: bool  # it takes all output channels
    merged: bool  # few channels, windows that overlap: x is read where it lies


class _Room(NamedTuple):
    """A task's own arrays."""

    columns: np.ndarray  # (lines, pixels, LINE_FLOATS) of x; the last pixel is the one outside
    sources: np.ndarray  # of the pixels that are packed, addresses
    rows: np.ndarray  # (taps, CHUNK) addresses of columns
    panel: np.ndarray  # (RANGE, CHUNK, BLOCK) of dy
    edge: np.ndarray  # (CHUNK, MC): pixels of a depth that fills no tile, or empty
    beside: np.ndarray  # (blocks, taps, depth, BLOCK): sums of the last blocks, those that stick out of dw
    nowhere: np.ndarray


@kernel
def _place(task, job):
    geometry = job.geometry
    pixels, width, groups = job.images * geometry[GRID_I] * geometry[GRID_J], geometry[WIDTH], geometry[GROUPS]
    blocks, chunks = -(-width // BLOCK), -(-pixels // CHUNK)
    ranges = -(-blocks // RANGE)
    split, rest = divmod(task, groups * ranges)
    group, part = divmod(rest, ranges)
    first, last = chunks * split // job.splits * CHUNK, min(chunks * (split + 1) // job.splits * CHUNK, pixels)
    merged = groups == 1 and geometry[DEPTH] * job.x.itemsize != geometry[IN_PITCH]
    lo, hi = part * RANGE, min(part * RANGE + RANGE, blocks)
    return _Part(group, lo, hi, first, last, share(job, split), groups * ranges == 1, merged)


@kernel
def _room(job, part):
    depth, width, n_taps = job.geometry[DEPTH], job.geometry[WIDTH], job.taps.shape[0]
    size = CHUNK
    if n_taps > 1 and not part.merged:
        for first in range(part.first, part.last, CHUNK):
            count = min(CHUNK, part.last - first)
            begin, end = pixel_range(job.geometry, job.taps, first, count, job.images)
            size = max(size, end - begin)
    # one more for the pixel outside; odd, so that the lines of a pixel lie in different sets of L1
    size = (size + 1) | 1
    lines = -(-depth // SPAN)
    columns = np.empty((0 if part.merged else -(-lines // -(-lines // STRIP)), size, LINE_FLOATS), np.float32)
    columns[:, size - 1] = 0.0
    # all blocks are summed beside dw where the depth does not fill a tile, else the last one, if it sticks out
    beside = part.hi - part.lo if depth < MC else (1 if part.hi * BLOCK > width else 0)
    return _Room(
        columns,
        np.empty(size, np.int64),
        np.empty((n_taps, CHUNK), np.int64),
        np.empty((RANGE, CHUNK, BLOCK), np.float32),
        np.empty((CHUNK if part.merged and depth < MC else 0, MC), np.float32),
        np.empty((beside, n_taps, max(depth, MC), BLOCK), np.float32),
        np.zeros(BLOCK, np.float32),
    )


# ---- packing -------------------------------------------------------------------------------------------------


@kernel
def _gather(job, part, room, first, count):
    """Addresses of the columns for a chunk, and of the pixels to pack into them, whose number it returns."""
    geometry, taps, x, zeros = job.geometry, job.taps, job.x.ctypes.data, job.zeros.ctypes.data
    shift, columns = part.group * geometry[DEPTH] * job.x.itemsize, room.columns.ctypes.data
    if part.merged or taps.shape[0] == 1:
        row_addresses(x, zeros, geometry, taps, first, count, room.rows)
        if not part.merged:
            for m in range(count):
                room.sources[m] = room.rows[0, m] + shift
                room.rows[0, m] = columns + m * LINE
        return count
    begin, end = pixel_range(geometry, taps, first, count, job.images)
    for p in range(end - begin):
        room.sources[p] = x + (begin + p) * geometry[IN_PITCH] + shift
    packed = geometry.copy()
    packed[IN_PITCH] = LINE
    outside = columns + (room.columns.shape[1] - 1) * LINE
    row_addresses(columns - begin * LINE, outside, packed, taps, first, count, room.rows)
    return end - begin


@kernel
def _line_start(line, depth):
    """The first channel of packed line number `line`: the last one reaches back, so that it is full."""
    return min(line * SPAN, max(depth - LINE_FLOATS, 0))


@kernel
def _pack_columns(kind, sources, count, depth, first, columns):
    """columns[s, p] = line number first + s of the pixel at address sources[p]."""
    lines = min(columns.shape[0], -(-depth // SPAN) - first)
    for p in range(count):
        for s in range(lines):
            source = sources[p] + _line_start(first + s, depth) * size_of(kind)
            target = columns.ctypes.data + (s * columns.shape[1] + p) * LINE
            if depth >= LINE_FLOATS:
                copy_block(LINE_VECTORS, V, kind, source, target)
            else:
                copy_row(kind, source, target, depth)
                for j in range(depth, LINE_FLOATS):
                    columns[s, p, j] = 0.0


@kernel
def _pack_gradients(job, part, first, count, panel):
    """panel[block, m] = BLOCK channels of dy of pixel first + m."""
    width, item = job.geometry[WIDTH], job.dy.itemsize
    pitch = job.geometry[GROUPS] * width * item
    source = job.dy.ctypes.data + first * pitch + part.group * width * item
    for block in range(part.lo, part.hi):
        valid, there = min(BLOCK, width - block * BLOCK), panel.ctypes.data + (block - part.lo) * CHUNK * ROW
        pack_rows(job.dy.dtype, source + block * BLOCK * item, pitch, count, valid, there, 0)


@kernel
def _pack_edge(kind, rows, count, depth, edge):
    """edge[m] = the pixel at address rows[m], zeros behind its depth; rows then point there."""
    for m in range(count):
        for i in range(MC):
            edge[m, i] = peek(kind, rows[m], i) if i < depth else np.float32(0.0)
        rows[m] = edge.ctypes.data + m * MC * F32_BYTES


# ---- sums ----------------------------------------------------------------------------------------------------


@kernel
def _target(job, part, room, t, c, block):
    """Address of the sums of tap number t, from channel c on, of a block of output channels; and their pitch."""
    beside = block - (part.hi - room.beside.shape[0])
    if beside >= 0:
        return room.beside.ctypes.data + ((beside * room.beside.shape[1] + t) * room.beside.shape[2] + c) * ROW, ROW
    depth, width = job.geometry[DEPTH], job.geometry[WIDTH]
    pitch, column = job.geometry[GROUPS] * width * job.dw.itemsize, part.group * width + block * BLOCK
    return part.out + (job.taps[t, 2] * depth + c) * pitch + column * job.dw.itemsize, np.int64(pitch)


@kernel
def _next_chunk(job, part, first, count):
    """What is asked for while a chunk is summed: the next one's x, then its dy where one task takes all of it.

    First and last + 1 address of both.
    """
    geometry = job.geometry
    x = next_input(job.x.ctypes.data, geometry, job.taps, first + count)
    pitch = geometry[GROUPS] * geometry[WIDTH] * job.dy.itemsize
    dy = job.dy.ctypes.data + (first + count) * pitch
    x_end = x + count * geometry[STEP] * geometry[STEP] * geometry[IN_PITCH]
    return x, x_end, dy, dy + (count * pitch if part.alone else 0)


@kernel
def _multiply(job, part, room, first, count, packed):
    """Add a chunk's outer products to the sums; `packed` pixels of x go to columns, a strip of channels at a time."""
    depth, (at_once, size, _) = job.geometry[DEPTH], room.columns.shape
    fresh, panel, nowhere = np.int64(first == part.first), room.panel.ctypes.data, room.nowhere.ctypes.data
    ahead, ahead_end, dy_ahead, dy_end = _next_chunk(job, part, first, count)
    for c0 in range(0, depth, MC):
        skip = max(0, c0 + MC - depth) if depth >= MC else 0  # the last tile reaches back over its neighbour's rows
        a_offset = (c0 - skip) * job.x.itemsize
        if not part.merged:
            line, strip_line = c0 // SPAN, c0 // SPAN % at_once
            if strip_line == 0 and c0 % SPAN == 0:
                _pack_columns(job.x.dtype, room.sources, packed, depth, line, room.columns)
            a_offset = strip_line * size * LINE + (c0 - skip - _line_start(line, depth)) * F32_BYTES
        for t in range(job.taps.shape[0]):
            if room.edge.size > 0:
                _pack_edge(job.x.dtype, room.rows[t], count, depth, room.edge)
            a_rows = room.rows.ctypes.data + t * CHUNK * 8
            for block in range(part.lo, part.hi):
                target, pitch = _target(job, part, room, t, c0 - skip, block)
                if ahead >= ahead_end:
                    ahead, ahead_end, dy_ahead = dy_ahead, dy_end, dy_end
                stride = LINE if ahead < ahead_end else 0
                tile_outer(
                    MC, NV, V, a_rows, count, a_offset, panel + (block - part.lo) * CHUNK * ROW, target, pitch, skip,
                    nowhere, fresh, ahead, stride,
                )  # fmt: skip
                ahead += stride * count


@kernel
def _store_beside(job, part, room):
    depth, width, item = job.geometry[DEPTH], job.geometry[WIDTH], job.dw.itemsize
    blocks, n_taps = room.beside.shape[:2]
    for block in range(part.hi - blocks, part.hi):
        valid, column = min(BLOCK, width - block * BLOCK), part.group * width + block * BLOCK
        for t in range(n_taps):
            for c in range(depth):
                source, _ = _target(job, part, room, t, c, block)
                row = (job.taps[t, 2] * depth + c) * job.geometry[GROUPS] * width
                copy_row(np.float32, source, part.out + (row + column) * item, valid)


@kernel
def _weight_task(task, job):
    """Up to RANGE blocks of output channels of one group, over one share of the pixels."""
    part = _place(task, job)
    room = _room(job, part)
    for first in range(part.first, part.last, CHUNK):
        count = min(CHUNK, part.last - first)
        packed = _gather(job, part, room, first, count)
        _pack_gradients(job, part, first, count, room.panel)
        _multiply(job, part, room, first, count, packed)
    _store_beside(job, part, room)


@kernel(parallel=True)
def _weight_nest(tasks, job):
    for task in numba.prange(tasks):
        _weight_task(np.int64(task), job)


class Outer(Gradient):
    """Any shape."""

    nest = staticmethod(_weight_nest)

    def __init__(self, shape):
        super().__init__(shape)
        self.grid = self.dy_grid = grid.forward_grid(shape)

    def cut(self):
        n, p, q, _ = self.shape.y
        return self.shape.groups * ceil(ceil(self.shape.k_group, BLOCK), RANGE), n * p * q // CHUNK


class MergedOuter(Outer):
    """The taps of a filter row merged, as in `MergedRows`: the workspace begins with the padded copy of x."""

    def __init__(self, shape):
        super().__init__(shape)
        self.grid = grid.merged_grid(shape)
        self.workspace_size += padded_size(shape)

    @classmethod
    def suits(cls, shape):
        return MergedRows.suits(shape)

    def run(self, x, dy, dw, workspace):
        super().run(padded(self.shape, x, workspace), dy, dw, workspace)
