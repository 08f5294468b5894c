"""Forward and backward-input by addresses of rows: a direct sum over taps, and no im2col matrix is ever formed.

A task owns PIXELS pixels of the grid; it writes the addresses of its input rows, tap by tap, into a table, and the
micro-kernel walks that table (Dukhan 2019). Or the rows are staged: copied near, a part of their depth at a time, and
the table shows there. So 16-bit numbers are widened where the product is of float32, and rows that are a page or more
apart, which all fall into the same few sets of a first-level cache, are laid side by side. Backward-input at stride s
has s * s grids: no multiplication by a zero that was put there.

- Rows: the weights are packed once a step; every block of pixels reads them again.
- MergedRows: few input channels (an RGB stem). The S taps of a filter row are one of depth S * C on a padded copy.
- Unpacked: a fully connected layer has hardly more pixels than a block: its tasks pack a panel of w where they need it,
  and no second copy of the weights exists.
"""

from typing import NamedTuple

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, LINE, LINE_FLOATS, MR, NV, V
from ..element import narrow, widen
from ..microkernel import tile_rows
from ..number import BF16, FP32
from . import grid
from .grid import DEPTH, GROUPS, PITCH, STEP, WIDTH, next_input, row_addresses
from .method import COLUMNS, NO_MOMENTS, PACKED, ROWS, Blocks
from .panels import ROW, SIDE_BY_SIDE, copy_row, in_unit, pack, pack_columns, pack_rows
from .shape import MERGE_BELOW, TASKS, ceil
from .strip import AT_ONCE
from .task import F32_BYTES, aligned, finish, place

PIXELS = 126  # pixels of a block: a multiple of 6 and 14, its input stays in L2
PANEL_BYTES = 49152  # weights of one inner nest: stay in L1, or next to it where that is smaller
STAGE_PITCH = 4096  # bytes of a pixel from which on rows are staged
AHEAD_BYTES = 262144  # of a tensor, what is asked for ahead of time: fits into L2 beside what is there


@inlined
def gather(job, part, padded):
    """Addresses of the inputs (taps, padded) and of the outputs (count,) of a part; the last input is repeated."""
    n_taps = part.taps.shape[0]
    rows, out_rows = np.empty((n_taps, padded), np.int64), np.empty((1, part.count), np.int64)
    x, zeros = job.x.ctypes.data, job.zeros.ctypes.data
    row_addresses(x, zeros, part.geometry, part.taps, part.first, part.count, rows)
    row_addresses(job.y.ctypes.data, 0, part.y_geometry, part.y_taps, part.first, part.count, out_rows)
    for m in range(part.count, padded):
        for t in range(n_taps):
            rows[t, m] = rows[t, part.count - 1]
    return rows, out_rows[0]


@inlined
def begin_with(job, part, channel, k0, start):
    """start = bias of a block of output channels, from number `channel` on; k0: its first one in the group."""
    for j in range(BLOCK):
        start[j] = job.bias[channel + j] if job.bias.size > 0 and k0 + j < part.geometry[WIDTH] else 0.0


@inlined
def own_panel(job, part, block, c0, count, own):
    """Pack a panel of w where it is needed: units c0 to c0 + count of a block. own: room for some, side by side."""
    depth, width, item = part.geometry[DEPTH], part.geometry[WIDTH], job.weights.itemsize
    k0, side, apart = block * BLOCK, (block - part.lo) % own.shape[0], own.shape[1] * F32_BYTES
    b, rest = own.ctypes.data + side * apart, min(width - k0, (part.hi - block) * BLOCK)
    kind, to = np.float32, job.panels.dtype
    c0, count = c0 * in_unit(to), count * in_unit(to)
    if job.form == COLUMNS:
        source = job.weights.ctypes.data + (k0 * depth + c0) * item
        pack_columns(kind, to, source, depth * item, count, min(BLOCK, rest), b)
    elif side == 0:
        source = job.weights.ctypes.data + (c0 * width + k0) * item
        valid = min(own.shape[0] * BLOCK, rest)
        pack_rows(kind, to, source, width * item, count, valid, b, apart)
    return b


@inlined
def _next_block(job, part):
    """First and last + 1 address of what the next block of pixels will read, as far as it is worth asking for."""
    geometry = part.geometry
    size = part.count * geometry[STEP] * geometry[STEP] * geometry[PITCH]
    last = part.hi == -(-geometry[WIDTH] // BLOCK)
    if part.taps.shape[0] == 0 or not last or size > AHEAD_BYTES:
        return 0, 0
    ahead = next_input(job.x.ctypes.data, geometry, part.taps, part.first + part.count)
    return ahead, ahead + size


@inlined
def wanted(job, part, out_rows):
    """(ranges, 2): first and last + 1 address of what is asked for while a part is multiplied.

    What the next block reads, and what finishing this one does beside C, where that is all of some pixels in a row.
    """
    ranges, here = np.zeros((4, 2), np.int64), np.int64(job.y.ctypes.data)
    ranges[0] = _next_block(job, part)
    pitch = part.y_geometry[PITCH]
    size = part.count * pitch
    neighbours = out_rows[-1] + pitch == out_rows[0] + size
    if job.norm_x.size == 0 or job.ranges > 1 or size > AHEAD_BYTES or not neighbours:
        return ranges
    read = True, job.norm_y.size > 0, job.accumulate
    for n, start in enumerate((job.norm_x.ctypes.data, job.norm_y.ctypes.data, job.y.ctypes.data)):
        if read[n]:
            first = out_rows[0] - here + np.int64(start)
            ranges[n + 1] = first, first + size
    return ranges


@inlined
def taps_in_a_row(taps, t0, most):
    """End of the taps from t0 on whose weights are neighbours: those of the list that have no gap, `most` at once."""
    t1 = t0 + 1
    while t1 < taps.shape[0] and t1 - t0 < most and taps[t1, 2] == taps[t1 - 1, 2] + 1:
        t1 += 1
    return t1


class _Near(NamedTuple):
    """Room for the rows that are staged at once, and their addresses."""

    room: np.ndarray
    table: np.ndarray  # (taps, padded)


@inlined
def near_rows(n_taps, count, padded, units):
    """Room for `count` rows of each tap; those behind, up to `padded`, are the last one again."""
    lines = -(-units * F32_BYTES // LINE) | 1  # odd, so that rows lie in different sets of L1
    room, table = aligned(n_taps * count * lines * LINE_FLOATS), np.empty((n_taps, padded), np.int64)
    for t in range(n_taps):
        for m in range(padded):
            table[t, m] = room.ctypes.data + (t * count + min(m, count - 1)) * lines * LINE
    return _Near(room, table)


@inlined
def stage(job, part, rows, t0, t1, shift, units, table):
    """Copy `units` units of the rows of taps t0 to t1, from `shift` bytes on, to the addresses of a table."""
    for t in range(t0, t1):
        for m in range(part.count):
            if job.panels.itemsize == F32_BYTES:
                copy_row(job.x.dtype, rows[t, m] + shift, table[t - t0, m], units)
            else:  # pairs as they are
                copy_row(np.float32, rows[t, m] + shift, table[t - t0, m], units)


@inlined
def _multiply(group, job, part, rows, c, ranges):
    """C = bias + sum over taps and depth of one group; ranges: what is `wanted`, and still is when it is done.

    One inner nest reads at most PANEL_BYTES of weights: some taps whole, or a part of one tap's depth, in units.
    """
    width, taps, per_unit = part.geometry[WIDTH], part.taps, in_unit(job.panels.dtype)
    depth = -(-part.geometry[DEPTH] // per_unit)
    padded, row_bytes = rows.shape[1], (part.hi - part.lo) * ROW
    blocks, limit = -(-width // BLOCK), PANEL_BYTES // ROW
    depth_at_once, taps_at_once = depth if depth <= limit else -(-depth // -(-depth // limit)), max(1, limit // depth)
    room = 0 if job.form == PACKED else depth_at_once * BLOCK
    own = aligned(SIDE_BY_SIDE * room).reshape(SIDE_BY_SIDE, room)
    start, c_rows = np.zeros(BLOCK, np.float32), np.arange(padded) * row_bytes
    near = near_rows(min(taps_at_once, taps.shape[0]) if job.staged else 0, part.count, padded, depth_at_once)
    turn, ahead, end = -1, 0, 0
    t0 = 0
    while t0 < taps.shape[0]:
        t1 = taps_in_a_row(taps, t0, taps_at_once)
        for c0 in range(0, depth, depth_at_once):
            c_count = min(depth_at_once, depth - c0)
            a_rows, a_offset = rows.ctypes.data + t0 * padded * 8, (group * depth + c0) * per_unit * job.x.itemsize
            if job.staged:
                stage(job, part, rows, t0, t1, a_offset, c_count, near.table)
                a_rows, a_offset = near.table.ctypes.data, 0
            for block in range(part.lo, part.hi):
                begin = 0
                if t0 == 0 and c0 == 0:
                    begin = start.ctypes.data
                    begin_with(job, part, group * width + block * BLOCK, block * BLOCK, start)
                if job.form == PACKED:
                    panel = ((group * blocks + block) * job.all_taps + taps[t0, 2]) * depth + c0
                    b = job.weights.ctypes.data + panel * ROW
                else:
                    b = own_panel(job, part, block, c0, c_count, own)
                here = c.ctypes.data + (block - part.lo) * ROW
                for m in range(0, padded, MR):
                    while ahead >= end and turn + 1 < ranges.shape[0]:
                        turn += 1
                        ahead, end = ranges[turn, 0], ranges[turn, 1]
                    stride = LINE if ahead < end else 0
                    tile_rows(
                        MR, NV, V, job.panels.dtype, a_rows + m * 8, padded * 8, t1 - t0, c_count, a_offset,
                        b, depth * ROW, c_rows.ctypes.data + m * 8, here, begin, ahead, stride,
                    )  # fmt: skip
                    ahead += stride * c_count * (t1 - t0)
                    ranges[turn, 0] = ahead
        t0 = t1
    if taps.shape[0] == 0:  # a residue class that no tap reaches
        c[:] = 0


@inlined
def _rows_task(task, job):
    """PIXELS pixels of the grid times one of the ranges of output channels, for every group."""
    part = place(task, job)
    pitch = (part.hi - part.lo) * BLOCK
    padded = -(-part.count // MR) * MR  # the last tile reads the last pixel again: to rows of C that nobody reads
    rows, out_rows = gather(job, part, padded)
    c = aligned(padded * pitch)
    ranges = wanted(job, part, out_rows)
    for group in range(part.geometry[GROUPS]):
        _multiply(group, job, part, rows, c, ranges)
        finish(job, part, group, c, pitch, part.count, out_rows)


@kernel(parallel=True)
def _rows_nest(tasks, job):
    for task in numba.prange(tasks):
        _rows_task(np.int64(task), job)


class Rows(Blocks):
    """Packed weights, any shape."""

    size, nest = PIXELS, staticmethod(_rows_nest)

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        self.grids = list(grid.backward_grids(shape)) if transposed else [grid.forward_grid(shape)]
        self.panels = BF16 if shape.pairs else FP32
        one_tap, channels = shape.w[0] == shape.w[1] == 1, shape.y[3] if transposed else shape.x[3]
        widens = shape.number is not self.panels
        self.staged = widens or (one_tap and channels * shape.number.bytes >= STAGE_PITCH)

    def tasks(self, threads):
        return max(TASKS, super().tasks(threads))


class Unpacked(Rows):
    """Weights as they are: a fully connected layer."""

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        self.form, self.packed_size = COLUMNS if transposed else ROWS, 0

    def tasks(self, threads):
        return 4 * threads

    @classmethod
    def suits(cls, shape):
        _, h, w, c = shape.x
        return h == w == shape.w[0] == shape.w[1] == shape.groups == 1 and c >= MERGE_BELOW


class MergedRows(Rows):
    """Forward with the taps of a filter row merged; the workspace holds the padded copy of x."""

    def __init__(self, shape, transposed):
        super().__init__(shape, transposed)
        r, s, depth, k = shape.w
        self.grids, self.workspace_size, self.staged = [grid.merged_grid(shape)], padded_size(shape), False
        self.all_taps, step = r, max(self.step, FP32.bytes // self.panels.bytes)
        self.packed_size = ceil(k, BLOCK) * r * ceil(s * depth, step) * step * BLOCK

    @classmethod
    def suits(cls, shape):
        return shape.merged

    def pack(self, w, packed):
        r, s, depth, k = w.shape
        pack(w.reshape(r, s * depth, k), 1, False, packed, self.step)

    def run(self, x, weights, y, bias, workspace, moments=NO_MOMENTS, accumulate=False, relu=False):
        super().run(padded(self.shape, x, workspace), weights, y, bias, workspace, moments, accumulate, relu)


# ---- padding -------------------------------------------------------------------------------------------------


SLACK = 64  # zeros behind the padded copy: what the last line, pair or step reads there, and throws away


def padded_size(shape):
    """Floats of the zero-padded copy of x, and of what is read behind it: a tile may have more pixels than its row."""
    n, h, w, c = shape.padded
    return ceil((n * h * w * c + SLACK + AT_ONCE * shape.stride * c) * shape.padded_number.bytes, FP32.bytes)


def padded(shape, x, workspace):
    """The zero-padded copy of x at the head of the workspace; x itself where it is that already."""
    if shape.pad == 0 and shape.number is FP32:
        return x
    n, h, w, c = shape.padded
    copy = workspace.view(shape.padded_number.dtype)[: n * h * w * c + SLACK]
    copy[-SLACK:] = 0
    copy = copy[:-SLACK].reshape(shape.padded)
    _pad_images(x.reshape(n, x.shape[1], -1), shape.pad, shape.pad * c, copy.reshape(n, h, w * c))
    return copy


@inlined
def _pad_image(x, pad, around, out):
    # x (H, W*C), out (H + 2 pad, W*C + 2 around): a row of pixels is one row of numbers
    out[:pad] = 0
    for h in range(x.shape[0]):
        row = out[h + pad]
        row[:around] = 0
        done = 0
        if x.itemsize == out.itemsize:  # as it is, four bytes at a time
            words = x.shape[1] * x.itemsize // F32_BYTES
            copy_row(np.float32, x[h].ctypes.data, row.ctypes.data + around * x.itemsize, words)
            done = words * F32_BYTES // x.itemsize
        for j in range(done, x.shape[1]):
            row[around + j] = narrow(out.dtype, widen(x[h, j]))
        row[around + x.shape[1] :] = 0
    out[x.shape[0] + pad :] = 0


@kernel(parallel=True)
def _pad_images(x, pad, around, out):
    for n in numba.prange(x.shape[0]):
        _pad_image(x[n], pad, around, out[n])
