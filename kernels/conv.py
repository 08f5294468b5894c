"""Convolution, forward and backward, as loop nests around the micro-kernel: no im2col matrix is ever formed.

Layouts: x (N, H, W, C), y (N, P, Q, K), w (R, S, C/groups, K), all float32 and C-contiguous.

Forward and backward-input are the same nest. Both produce pixels of an output grid, each a sum over *taps*: an
output pixel (i, j) of the grid reads input pixel (i * step + dr, j * step + ds) for every tap (dr, ds), or zeros
where that lies outside. Forward has one grid with R*S taps. Backward-input at stride s has s*s grids, one for each
residue of (h, w) modulo s, each with the taps that can reach it: no multiplication by a zero that was put there.
A task owns a block of pixels and a range of output channels; it writes the addresses of its input rows, tap by
tap, into a table, and the micro-kernel walks that table.

Backward-weight: a task owns a range of output channels and a share of the pixels. Shares are a function of the
shape alone and their partial sums are added in order, so the thread count changes no bit.

A convolution with few input channels (an RGB stem) is run on a zero-padded copy of x with the S taps of a filter
row merged into one of depth S*C: neighbours in a row of NHWC pixels are neighbours in memory.

Cost of each direction: 2*N*P*Q*K*R*S*C/groups flops.
"""

import numba
import numpy as np

from ._jit import kernel
from ._shapes import NOTHING, check_array
from .arch import BLOCK, LINE, MR, NV, V
from .conv_pack import SIDE_BY_SIDE, pack_columns, pack_rows
from .conv_plan import (
    AHEAD_BYTES,
    COLUMNS,
    DEPTH,
    FORM,
    GRID_I,
    GRID_J,
    GROUPS,
    IN_PITCH,
    MOST_WIDTH,
    PACKED,
    PANEL_BYTES,
    PIXELS,
    STEP,
    TASKS,
    WIDTH,
    block_count,
    ceil,
)
from .conv_rows import next_input, out_addresses, row_addresses
from .conv_store import store_c
from .microkernel import tile_rows
from .store import goes_past
from .winograd import run_tiles

NO_MOMENTS = np.zeros((0, 2, 0), np.float32)


@kernel
def _rows_task(
    task, ranges, x, zeros, geometry, taps, all_taps, weights, bias, y, images, accumulate, relu, moments, past
):  # fmt: skip
    """One task: PIXELS pixels of the grid times one of `ranges` ranges of output channels, for every group.

    C is summed in an array of the task's own, which stays in L2, and stored when it is whole.
    """
    pixels = images * geometry[GRID_I] * geometry[GRID_J]
    depth, width, groups = geometry[DEPTH], geometry[WIDTH], geometry[GROUPS]
    blocks = -(-width // BLOCK)
    along = block_count(pixels, PIXELS)
    pixel_block, part = divmod(task, ranges)
    first = pixel_block * PIXELS
    count = PIXELS if pixel_block < along - 1 else pixels - first
    padded = -(-count // MR) * MR  # the last tile reads the last pixel again: to rows of C that nobody reads
    lo, hi = blocks * part // ranges, blocks * (part + 1) // ranges
    valid = min(hi * BLOCK, width) - lo * BLOCK

    n_taps, form = taps.shape[0], geometry[FORM]
    rows = np.empty((n_taps, padded), np.int64)
    out_rows = np.empty(count, np.int64)
    pitch = (hi - lo) * BLOCK
    c = np.empty(padded * pitch + LINE // 4, np.float32)
    skip = -c.ctypes.data % LINE // 4  # floats to its first whole line
    c_rows = np.arange(padded) * pitch * 4  # from the start of C: an array lives as long as its own name is used
    start = np.zeros(BLOCK, np.float32)
    row_addresses(x.ctypes.data, zeros.ctypes.data, geometry, taps, first, count, rows)
    out_addresses(y.ctypes.data, geometry, first, count, out_rows)
    for m in range(count, padded):
        for t in range(n_taps):
            rows[t, m] = rows[t, count - 1]

    # one inner nest reads at most PANEL_BYTES of weights: some taps whole, or a part of one tap's depth
    limit = PANEL_BYTES // (4 * BLOCK)
    taps_at_once = max(1, limit // depth)
    depth_at_once = depth if depth <= limit else -(-depth // -(-depth // limit))
    b_pitch = depth * BLOCK * 4
    own = np.empty(0 if form == PACKED else SIDE_BY_SIDE * depth_at_once * BLOCK + LINE // 4, np.float32)  # panels
    ahead = end = 0  # what the next block of pixels will read
    ahead_bytes = count * geometry[STEP] * geometry[STEP] * geometry[IN_PITCH] * 4
    if n_taps > 0 and part == ranges - 1 and ahead_bytes <= AHEAD_BYTES:
        ahead = next_input(x.ctypes.data, geometry, taps, first + count)
        end = ahead + ahead_bytes
    for group in range(groups):
        in_offset = group * depth * 4
        t0 = 0
        while t0 < n_taps:
            # weights of consecutive taps are neighbours only where the tap list has no gap
            t1 = t0 + 1
            while t1 < n_taps and t1 - t0 < taps_at_once and taps[t1, 2] == taps[t1 - 1, 2] + 1:
                t1 += 1
            for c0 in range(0, depth, depth_at_once):
                c_count = min(depth_at_once, depth - c0)
                for block in range(lo, hi):
                    k0 = block * BLOCK
                    begin = 0
                    if t0 == 0 and c0 == 0:
                        begin = start.ctypes.data
                        for j in range(BLOCK):
                            start[j] = bias[group * width + k0 + j] if bias.size > 0 and k0 + j < width else 0.0
                    if form == PACKED:
                        panel = ((group * blocks + block) * all_taps + taps[t0, 2]) * depth + c0
                        b = weights.ctypes.data + panel * BLOCK * 4
                    else:
                        side, apart = (block - lo) % SIDE_BY_SIDE, 4 * BLOCK * depth_at_once
                        b = own.ctypes.data + -own.ctypes.data % LINE + side * apart
                        rest = min(width - k0, (hi - block) * BLOCK)
                        if form == COLUMNS:
                            source = weights.ctypes.data + 4 * (k0 * depth + c0)
                            pack_columns(weights.dtype, source, 4 * depth, c_count, min(BLOCK, rest), b)
                        elif side == 0:
                            source = weights.ctypes.data + 4 * (c0 * width + k0)
                            pack_rows(weights.dtype, source, 4 * width, c_count, min(SIDE_BY_SIDE * BLOCK, rest), b, apart)
                    here = c.ctypes.data + 4 * (skip + (block - lo) * BLOCK)
                    for m in range(0, padded, MR):
                        stride = LINE if ahead < end else 0
                        tile_rows(
                            MR, NV, V, rows.ctypes.data + (t0 * padded + m) * 8, padded * 8, t1 - t0, c_count,
                            in_offset + c0 * 4, b, b_pitch, c_rows.ctypes.data + m * 8, here, begin, ahead, stride,
                        )  # fmt: skip
                        ahead += stride * c_count * (t1 - t0)
            t0 = t1
        if n_taps == 0:  # a residue class that no tap reaches
            c[:] = 0
        first_channel = group * width + lo * BLOCK
        store_c(
            c, skip, pitch, count, first_channel, valid, relu, moments, pixel_block, y.dtype, out_rows, accumulate, past
        )


@kernel(parallel=True)
def _rows_nest(
    tasks, ranges, x, zeros, geometry, taps, all_taps, weights, bias, y, images, accumulate, relu, moments, past
):  # fmt: skip
    for task in numba.prange(tasks):
        _rows_task(
            np.int64(task), ranges, x, zeros, geometry, taps, all_taps, weights, bias, y, images, accumulate, relu,
            moments, past,
        )  # fmt: skip


def _run_rows(grid, all_taps, x, zeros, weights, bias, y, accumulate=False, relu=False, moments=NO_MOMENTS):
    geometry, taps = grid
    width = int(geometry[WIDTH])
    blocks = ceil(width, BLOCK)
    along = block_count(x.shape[0] * int(geometry[GRID_I] * geometry[GRID_J]), PIXELS)
    # where pixels alone give too few tasks channels are cut too; but each range reads all of the input
    wanted = TASKS if geometry[FORM] == PACKED else 4 * numba.get_num_threads()
    ranges = min(blocks, max(ceil(wanted, along), ceil(width, MOST_WIDTH)))
    past = goes_past(y, width)
    _rows_nest(
        along * ranges, ranges, x.reshape(-1), zeros, geometry, taps, all_taps, weights.reshape(-1), bias,
        y.reshape(-1), x.shape[0], accumulate, relu, moments, past,
    )  # fmt: skip


def padded(plan, x, workspace):
    """The zero-padded copy of x at the head of the workspace; x itself where nothing is to be padded."""
    if plan.pad == 0:
        return x
    n, h, w, c = plan.padded_shape
    copy = workspace[: n * h * w * c].reshape(plan.padded_shape)
    _pad_images(x.reshape(n, x.shape[1], -1), plan.pad, plan.pad * c, copy.reshape(n, h, w * c))
    return copy


@kernel
def _pad_image(x, pad, pad_floats, out):
    # x (H, W*C), out (H + 2 pad, W*C + 2 pad_floats): a row of pixels is one row of floats
    out[:pad] = 0.0
    for h in range(x.shape[0]):
        row = out[h + pad]
        row[:pad_floats] = 0.0
        row[pad_floats : pad_floats + x.shape[1]] = x[h]
        row[pad_floats + x.shape[1] :] = 0.0
    out[x.shape[0] + pad :] = 0.0


@kernel(parallel=True)
def _pad_images(x, pad, pad_floats, out):
    for n in numba.prange(x.shape[0]):
        _pad_image(x[n], pad, pad_floats, out[n])


def conv2d_forward(plan, x, packed, bias, y, workspace, moments=None, relu=False):
    """y = convolution of x with packed weights, plus bias (K,) unless it is None, then max(y, 0) if relu.

    x, y: float32 of the plan's shapes; y is overwritten. packed: by `conv2d_pack`, or w itself where plan.direct.
    workspace: (plan.workspace_size,) float32, undefined after. moments: None, or float32 of plan.moments_shape, to be
    overwritten: mean and M2 of every channel over each block of pixels, with which a batch norm can begin.
    Twin: reference.conv2d_forward.
    """
    check_array("conv2d: x", x, plan.x_shape)
    check_array("conv2d: y", y, plan.y_shape)
    check_array("conv2d: packed", packed, plan.w_shape if plan.direct else (plan.packed_size,))
    check_array("conv2d: workspace", workspace, (plan.workspace_size,))
    if bias is not None:
        check_array("conv2d: bias", bias, (plan.w_shape[3],))
    r, s = plan.w_shape[:2]
    source = padded(plan, x, workspace) if plan.merged else x
    taps = r if plan.merged else r * s
    if moments is None:
        moments = NO_MOMENTS
    else:
        check_array("conv2d: moments", moments, plan.moments_shape)
    bias = NOTHING if bias is None else bias
    if plan.winograd:
        return run_tiles(plan.tiled[0], x, plan.zeros, packed, bias, y, False, relu, moments)
    _run_rows(plan.forward, taps, source, plan.zeros, packed, bias, y, False, relu, moments)


def conv2d_backward_input(plan, dy, packed_t, dx, accumulate=False):
    """dx[n,h,w,c] = sum over r,s,k of dy[n,(h+pad-r)/stride,(w+pad-s)/stride,k] * w[r,s,c,k], where these are whole.

    packed_t: by `conv2d_pack_transposed`, or w itself where plan.direct. dx is overwritten, with `accumulate` added to.
    Twin: reference.conv2d_backward_input.
    """
    check_array("conv2d: dy", dy, plan.y_shape)
    check_array("conv2d: dx", dx, plan.x_shape)
    check_array("conv2d: packed_t", packed_t, plan.w_shape if plan.direct else (plan.packed_t_size,))
    if plan.winograd:
        return run_tiles(plan.tiled[1], dy, plan.zeros, packed_t, NOTHING, dx, accumulate, False, NO_MOMENTS)
    r, s = plan.w_shape[:2]
    for grid in plan.backward:
        _run_rows(grid, r * s, dy, plan.zeros, packed_t, NOTHING, dx, accumulate)
