"""Convolution, gradient of the weights: see `conv` for the layouts and the table of row addresses.

A task owns a range of output channels and a share of the pixels. It walks its pixels in chunks: a chunk of dy is copied
to panels of BLOCK channels, and the pixels of x that the chunk reads to columns of SPAN channels, a cache line each.
Both then stay in L2 while every tap passes by, wherever they lay in memory before.
"""

import numba
import numpy as np

from ._jit import kernel
from ._shapes import check_array
from .arch import BLOCK, LINE, LINE_FLOATS, MC, NV, V
from .conv import padded
from .conv_pack import copy_row, pack_rows
from .conv_plan import (
    CHUNK,
    DEPTH,
    GRID_I,
    GRID_J,
    GROUPS,
    IN_H,
    IN_PITCH,
    IN_W,
    RANGE,
    STEP,
    STRIP,
    WIDTH,
    ceil,
)
from .conv_rows import next_input, row_addresses
from .microkernel import copy_block, peek, tile_outer
from .winograd_weight import run_tiles_weight

LINE_VECTORS = LINE_FLOATS // V
SPAN = LINE_FLOATS // MC * MC  # channels of a packed line: whole tiles


@kernel
def _pixel(geometry, taps, tap, m):
    """Number of the input pixel that a tap of output pixel m reads, counted over all images.

    Outside an image it is that of the next pixel inside, or behind the last: so no pixel that a later output reads
    comes before that of tap 0, and none that an earlier one reads behind that of the last tap, however wide the
    padding is.
    """
    image, rest = divmod(m, geometry[GRID_I] * geometry[GRID_J])
    i, j = divmod(rest, geometry[GRID_J])
    height, width = geometry[IN_H], geometry[IN_W]
    h, w = i * geometry[STEP] + taps[tap, 0], j * geometry[STEP] + taps[tap, 1]
    if h < 0 or h >= height:
        return (image + (h >= height)) * height * width
    return (image * height + h) * width + min(max(w, 0), width)


@kernel
def _pixel_range(geometry, taps, first, count, images):
    """Input pixels [begin, end) that output pixels [first, first + count) read."""
    begin = _pixel(geometry, taps, 0, first)
    end = _pixel(geometry, taps, taps.shape[0] - 1, first + count - 1) + 1
    return max(begin, 0), min(end, images * geometry[IN_H] * geometry[IN_W])


@kernel
def _line_start(line, depth):
    """The first channel of packed line number `line`: the last one reaches back, so that it is full."""
    return min(line * SPAN, max(depth - LINE_FLOATS, 0))


@kernel
def _pack_columns(kind, sources, count, depth, first, columns):
    # columns[s, p] = line number first + s of the pixel at address sources[p]
    lines = min(columns.shape[0], -(-depth // SPAN) - first)
    for p in range(count):
        for s in range(lines):
            source = sources[p] + _line_start(first + s, depth) * 4
            target = columns.ctypes.data + (s * columns.shape[1] + p) * LINE
            if depth >= LINE_FLOATS:
                copy_block(LINE_VECTORS, V, kind, source, target)
            else:
                copy_row(kind, source, target, depth)
                for j in range(depth, LINE_FLOATS):
                    columns[s, p, j] = 0.0


@kernel
def _weight_task(task, x, zeros, geometry, taps, dy, dw, partial, images, splits):
    """One task: up to RANGE blocks of output channels of one group, over one share of the pixels."""
    pixels = images * geometry[GRID_I] * geometry[GRID_J]
    depth, width, groups = geometry[DEPTH], geometry[WIDTH], geometry[GROUPS]
    in_pitch = geometry[IN_PITCH] * 4
    blocks = -(-width // BLOCK)
    ranges = -(-blocks // RANGE)
    split, rest = divmod(task, groups * ranges)
    group, part = divmod(rest, ranges)
    lo, hi = part * RANGE, min(part * RANGE + RANGE, blocks)
    chunks = -(-pixels // CHUNK)
    first_chunk, last_chunk = chunks * split // splits, chunks * (split + 1) // splits
    n_taps, pitch = taps.shape[0], groups * width * 4
    out = dw.ctypes.data if split == 0 else partial.ctypes.data + (split - 1) * dw.size * 4

    merged = groups == 1 and depth != geometry[IN_PITCH]  # few channels, windows that overlap: read where they lie
    size = CHUNK
    if n_taps > 1 and not merged:
        for chunk in range(first_chunk, last_chunk):
            first = chunk * CHUNK
            begin, end = _pixel_range(geometry, taps, first, min(CHUNK, pixels - first), images)
            size = max(size, end - begin)
    # one more for the pixel outside; odd, so that the lines of a pixel lie in different sets of L1
    size = (size + 1) | 1
    lines = -(-depth // SPAN)
    at_once = -(-lines // -(-lines // STRIP))
    columns = np.empty((0 if merged else at_once, size, LINE_FLOATS), np.float32)
    outside = columns.ctypes.data + (size - 1) * LINE
    columns[:, size - 1] = 0.0
    packed_geometry = geometry.copy()
    packed_geometry[IN_PITCH] = LINE_FLOATS
    sources = np.empty(size, np.int64)
    rows = np.empty((n_taps, CHUNK), np.int64)
    panel = np.empty((RANGE, CHUNK, BLOCK), np.float32)
    edge = np.empty((CHUNK if merged and depth < MC else 0, MC), np.float32)
    # blocks that stick out of dw are summed beside it: all where the depth does not fill a tile, else the last one
    first_beside = lo if depth < MC else (blocks - 1 if width % BLOCK > 0 else blocks)
    first_beside = min(max(first_beside, lo), hi)
    beside = np.empty((hi - first_beside, n_taps, max(depth, MC), BLOCK), np.float32)
    nowhere = np.zeros(BLOCK, np.float32)
    for chunk in range(first_chunk, last_chunk):
        first = chunk * CHUNK
        count = min(CHUNK, pixels - first)
        fresh = chunk == first_chunk
        begin, end = 0, count
        if merged:
            row_addresses(x.ctypes.data, zeros.ctypes.data, geometry, taps, first, count, rows)
        elif n_taps > 1:
            begin, end = _pixel_range(geometry, taps, first, count, images)
            for p in range(end - begin):
                sources[p] = x.ctypes.data + (begin + p) * in_pitch + group * depth * 4
            origin = columns.ctypes.data - begin * LINE
            row_addresses(origin, outside, packed_geometry, taps, first, count, rows)
        else:
            row_addresses(x.ctypes.data, zeros.ctypes.data, geometry, taps, first, count, rows)
            for m in range(count):
                sources[m] = rows[0, m] + group * depth * 4
                rows[0, m] = columns.ctypes.data + m * LINE
        for block in range(lo, hi):
            source = dy.ctypes.data + first * pitch + (group * width + block * BLOCK) * 4
            pack_rows(dy.dtype, source, pitch, count, min(BLOCK, width - block * BLOCK), panel[block - lo].ctypes.data, 0)
        # while this chunk is summed the next one is asked for: its x, then its dy where one task takes all of it
        ahead = next_input(x.ctypes.data, geometry, taps, first + count)
        ahead_end = ahead + count * geometry[STEP] * geometry[STEP] * in_pitch
        dy_ahead = dy.ctypes.data + (first + count) * pitch
        dy_end = dy_ahead + (count * pitch if groups * ranges == 1 else 0)
        for c0 in range(0, depth, MC):
            c_valid = min(MC, depth - c0)
            skip = MC - c_valid if depth >= MC else 0  # the last tile reaches back over its neighbour's rows
            line, strip_line = c0 // SPAN, c0 // SPAN % at_once
            if merged:
                a_offset = (c0 - skip) * 4
            else:
                if strip_line == 0 and c0 % SPAN == 0:
                    _pack_columns(x.dtype, sources, end - begin, depth, line, columns)
                a_offset = strip_line * size * LINE + (c0 - skip - _line_start(line, depth)) * 4
            for t in range(n_taps):
                a_rows = rows.ctypes.data + t * CHUNK * 8
                if edge.size > 0:
                    for m in range(count):
                        for i in range(MC):
                            edge[m, i] = peek(x.dtype, rows[t, m], i) if i < depth else np.float32(0.0)
                        rows[t, m] = edge.ctypes.data + m * MC * 4
                for block in range(lo, hi):
                    if block < first_beside:
                        target = out + (taps[t, 2] * depth + c0 - skip) * pitch + (group * width + block * BLOCK) * 4
                        target_pitch = pitch
                    else:
                        target = beside[block - first_beside, t].ctypes.data + (c0 - skip) * BLOCK * 4
                        target_pitch = BLOCK * 4
                    b = panel.ctypes.data + (block - lo) * CHUNK * BLOCK * 4
                    if ahead >= ahead_end:
                        ahead, ahead_end, dy_ahead = dy_ahead, dy_end, dy_end
                    stride = LINE if ahead < ahead_end else 0
                    tile_outer(
                        MC, NV, V, a_rows, count, a_offset, b, target, target_pitch, skip, nowhere.ctypes.data, fresh,
                        ahead, stride,
                    )  # fmt: skip
                    ahead += stride * count
    for block in range(first_beside, hi):
        valid = min(BLOCK, width - block * BLOCK)
        for t in range(n_taps):
            for c in range(depth):
                target = out + (taps[t, 2] * depth + c) * pitch + (group * width + block * BLOCK) * 4
                copy_row(np.float32, beside[block - first_beside, t, c].ctypes.data, target, valid)


@kernel(parallel=True)
def _weight_nest(tasks, x, zeros, geometry, taps, dy, dw, partial, images, splits):
    for task in numba.prange(tasks):
        _weight_task(np.int64(task), x, zeros, geometry, taps, dy, dw, partial, images, splits)


@kernel
def _add_partials_range(lo, hi, partial, dw):
    # partial (splits - 1, weights): added in order
    for split in range(partial.shape[0]):
        for j in range(lo, hi):
            dw[j] += partial[split, j]


@kernel(parallel=True)
def _add_partials(partial, dw):
    step = 4096
    for index in numba.prange((dw.size + step - 1) // step):
        lo = np.int64(index) * step
        _add_partials_range(lo, min(lo + step, dw.size), partial, dw)


def conv2d_backward_weight(plan, x, dy, dw, workspace):
    """dw[r,s,c,k] = sum over n,p,q of x[n, p*stride+r-pad, q*stride+s-pad, g*C/groups+c] * dy[n,p,q,k].

    dw (R, S, C/groups, K) is overwritten; workspace (plan.workspace_size,) float32 is undefined after.
    Threads: a task owns a range of k and a share of the pixels. Twin: reference.conv2d_backward_weight.
    """
    check_array("conv2d: x", x, plan.x_shape)
    check_array("conv2d: dy", dy, plan.y_shape)
    check_array("conv2d: dw", dw, plan.w_shape)
    check_array("conv2d: workspace", workspace, (plan.workspace_size,))
    partial = workspace[plan.workspace_size - (plan.splits - 1) * dw.size :]
    if plan.winograd_weight:
        run_tiles_weight(plan, x, dy, dw, partial)
    else:
        source = padded(plan, x, workspace) if plan.merged else x
        geometry, taps = plan.forward
        ranges = ceil(ceil(int(geometry[WIDTH]), BLOCK), RANGE)
        _weight_nest(
            plan.splits * plan.groups * ranges, source.reshape(-1), plan.zeros, geometry, taps, dy.reshape(-1),
            dw.reshape(-1), partial, x.shape[0], plan.splits,
        )  # fmt: skip
    if plan.splits > 1:
        _add_partials(partial.reshape(plan.splits - 1, dw.size), dw.reshape(-1))
