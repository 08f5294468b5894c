"""Convolution, gradient of the weights: see `conv` for the layouts and the table of row addresses.

A task owns a range of output channels and a share of the pixels. It walks its pixels in chunks: a chunk of dy is copied
to panels of BLOCK channels, which stay in cache while every tap's x passes by.
"""

import numba
import numpy as np

from ._jit import kernel
from ._shapes import check_array
from .conv import copy_floats, next_input, padded, row_addresses
from .conv_plan import (
    ALIAS_BYTES,
    BLOCK,
    CHUNK,
    DEPTH,
    GRID_I,
    GRID_J,
    GROUPS,
    IN_PITCH,
    LINE,
    MC,
    NV,
    RANGE,
    STEP,
    WIDTH,
    V,
    ceil,
)
from .microkernel import copy_block, peek, tile_outer


@kernel
def _weight_task(task, x, zeros, geometry, taps, dy, dw, partial, images, splits):
    """One task: up to RANGE blocks of output channels of one group, over one share of the pixels."""
    pixels = images * geometry[GRID_I] * geometry[GRID_J]
    depth, width, groups = geometry[DEPTH], geometry[WIDTH], geometry[GROUPS]
    blocks = -(-width // BLOCK)
    ranges = -(-blocks // RANGE)
    split, rest = divmod(task, groups * ranges)
    group, part = divmod(rest, ranges)
    lo, hi = part * RANGE, min(part * RANGE + RANGE, blocks)
    chunks = -(-pixels // CHUNK)
    n_taps, pitch = taps.shape[0], groups * width * 4
    out = dw.ctypes.data if split == 0 else partial.ctypes.data + (split - 1) * dw.size * 4

    rows = np.empty((n_taps, CHUNK), np.int64)
    panel = np.empty((RANGE, CHUNK, BLOCK), np.float32)
    edge = np.empty((CHUNK, MC), np.float32)
    edge_rows = np.empty(CHUNK, np.int64)
    for m in range(CHUNK):
        edge_rows[m] = edge.ctypes.data + m * MC * 4
    tile = np.zeros((MC, BLOCK), np.float32)
    aliased = n_taps == 1 and geometry[IN_PITCH] * geometry[STEP] * 4 % ALIAS_BYTES == 0
    near = np.empty((CHUNK if aliased else 0, depth + 16), np.float32)
    first_chunk = chunks * split // splits
    for chunk in range(first_chunk, chunks * (split + 1) // splits):
        first = chunk * CHUNK
        count = min(CHUNK, pixels - first)
        fresh = chunk == first_chunk
        row_addresses(x.ctypes.data, zeros.ctypes.data, geometry, taps, first, count, rows)
        in_offset = group * depth * 4
        if aliased:
            for m in range(count):
                target = near.ctypes.data + m * (depth + 16) * 4
                copy_floats(rows[0, m] + in_offset, target, depth)
                rows[0, m] = target
            in_offset = 0
        for block in range(lo, hi):
            k0 = group * width + block * BLOCK
            valid = min(BLOCK, width - block * BLOCK)
            for m in range(count):
                source = dy.ctypes.data + (first + m) * pitch + k0 * 4
                target = panel.ctypes.data + ((block - lo) * CHUNK + m) * BLOCK * 4
                if valid == BLOCK:
                    copy_block(NV, V, source, target)
                else:
                    copy_floats(source, target, valid)
                    for j in range(valid, BLOCK):
                        panel[block - lo, m, j] = 0.0
        # while this chunk is summed the next one is asked for: its x, then its dy where one task takes all of it
        ahead = next_input(x.ctypes.data, geometry, taps, first + count)
        end = ahead + count * geometry[STEP] * geometry[STEP] * geometry[IN_PITCH] * 4
        dy_ahead = dy.ctypes.data + (first + count) * pitch
        dy_end = dy_ahead + (count * pitch if groups * ranges == 1 else 0)
        for t in range(n_taps):
            for c0 in range(0, depth, MC):
                c_valid = min(MC, depth - c0)
                skip = MC - c_valid if depth >= MC else 0  # the last tile steps back and drops the rows it repeats
                a_rows, a_offset = rows.ctypes.data + t * CHUNK * 8, in_offset + (c0 - skip) * 4
                if depth < MC:
                    for m in range(count):
                        for i in range(MC):
                            edge[m, i] = peek(rows[t, m] + a_offset + i * 4) if i < depth else np.float32(0.0)
                    a_rows, a_offset = edge_rows.ctypes.data, 0
                for block in range(lo, hi):
                    k_valid = min(BLOCK, width - block * BLOCK)
                    target = out + (taps[t, 2] * depth + c0) * pitch + (group * width + block * BLOCK) * 4
                    b = panel.ctypes.data + (block - lo) * CHUNK * BLOCK * 4
                    if ahead >= end:
                        ahead, end, dy_ahead = dy_ahead, dy_end, dy_end
                    stride = LINE if ahead < end else 0
                    if c_valid == MC and k_valid == BLOCK:
                        tile_outer(MC, NV, V, a_rows, count, a_offset, b, target, pitch, fresh, ahead, stride)
                    else:  # a tile that sticks out of dw is summed beside it
                        here = tile.ctypes.data + skip * BLOCK * 4
                        if not fresh:
                            for i in range(c_valid):
                                copy_floats(target + i * pitch, here + i * BLOCK * 4, k_valid)
                        tile_outer(
                            MC, NV, V, a_rows, count, a_offset, b, tile.ctypes.data, BLOCK * 4, fresh, ahead, stride
                        )
                        for i in range(c_valid):
                            copy_floats(here + i * BLOCK * 4, target + i * pitch, k_valid)
                    ahead += stride * count


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
    source = padded(plan, x, workspace) if plan.merged else x
    geometry, taps = plan.forward
    ranges = ceil(ceil(int(geometry[WIDTH]), BLOCK), RANGE)
    partial = workspace[plan.workspace_size - (plan.splits - 1) * dw.size :]
    _weight_nest(
        plan.splits * plan.groups * ranges, source.reshape(-1), plan.zeros, geometry, taps, dy.reshape(-1),
        dw.reshape(-1), partial, x.shape[0], plan.splits,
    )  # fmt: skip
    if plan.splits > 1:
        _add_partials(partial.reshape(plan.splits - 1, dw.size), dw.reshape(-1))
