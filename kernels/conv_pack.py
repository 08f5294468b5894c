"""Weights of a convolution in panels, as the micro-kernel reads them: (depth, BLOCK) each, zeros beyond the channels.

A convolution packs all its weights once a step: every block of pixels reads them again. A fully connected layer has
hardly more pixels than a block: its tasks pack a panel where they need it, and no second copy of the weights exists.

Addresses and pitches are in bytes.
"""

import numba
import numpy as np

from ._jit import kernel
from ._shapes import check_array
from .arch import BLOCK, NV, V
from .conv_plan import ceil
from .microkernel import copy_block, peek, poke, size_of, transpose_square
from .number import FP32
from .winograd_transform import FILTER, POINTS, transform

SIDE_BY_SIDE = 4  # panels that are packed together: whole pages of w are read in longer runs


ROW = BLOCK * FP32.bytes  # of a panel
FILTER_ROWS = 32  # of the depth of filters that a task transforms


@kernel
def copy_row(kind, source, target, count):
    """target[j] = source[j], float32 from numbers of dtype `kind`."""
    for j in range(count):
        poke(np.float32, target, j, peek(kind, source, j))


@kernel
def pack_rows(kind, source, pitch, depth, valid, panels, apart):
    """panels[j // BLOCK][c, j % BLOCK] = source[c, j] for j < valid, panels `apart` from each other."""
    for c in range(depth):
        for j in range(0, valid, BLOCK):
            here, there = source + c * pitch + j * size_of(kind), panels + j // BLOCK * apart + c * ROW
            if j + BLOCK <= valid:
                copy_block(NV, V, kind, here, there)
            else:
                copy_row(kind, here, there, valid - j)
                for i in range(valid - j, BLOCK):
                    poke(np.float32, there, i, 0.0)


@kernel
def pack_columns(kind, source, pitch, depth, valid, panel):
    """panel[c, j] = source[j, c] for j < valid: in squares of V x V, and one by one what they leave."""
    squares, whole, item = valid // V * V, depth // V * V, ROW // BLOCK
    for j in range(0, squares, V):
        for c in range(0, whole, V):
            here, there = source + j * pitch + c * size_of(kind), panel + c * ROW + j * item
            transpose_square(V, kind, here, pitch, there, ROW)
    for j in range(BLOCK):
        for c in range(whole if j < squares else 0, depth):
            poke(np.float32, panel, c * BLOCK + j, peek(kind, source + j * pitch, c) if j < valid else 0.0)


@kernel
def _pack_task(task, w, k_group, out):
    # w (taps, depth, K) -> out (groups, blocks of k, taps, depth, BLOCK): SIDE_BY_SIDE blocks of a group
    taps, depth, width = w.shape
    blocks = -(-k_group // BLOCK)
    group, part = divmod(task, -(-blocks // SIDE_BY_SIDE))
    first = part * SIDE_BY_SIDE * BLOCK
    apart = taps * depth * BLOCK * 4
    for t in range(taps):
        panels = out.ctypes.data + (group * blocks + part * SIDE_BY_SIDE) * apart + t * depth * BLOCK * 4
        source = w.ctypes.data + (t * depth * width + group * k_group + first) * 4
        pack_rows(w.dtype, source, width * 4, depth, min(SIDE_BY_SIDE * BLOCK, k_group - first), panels, apart)


@kernel(parallel=True)
def _pack(tasks, w, k_group, out):
    for task in numba.prange(tasks):
        _pack_task(np.int64(task), w, k_group, out)


@kernel
def _pack_transposed_block(index, w, k_group, out):
    # w (taps, depth, K) -> out[index] (taps, k_group, BLOCK); index runs over groups x blocks of c
    taps, depth, width = w.shape
    group, block = divmod(index, -(-depth // BLOCK))
    first = block * BLOCK
    for t in range(taps):
        panel = out.ctypes.data + (index * taps + t) * k_group * BLOCK * 4
        source = w.ctypes.data + ((t * depth + first) * width + group * k_group) * 4
        pack_columns(w.dtype, source, width * 4, k_group, min(BLOCK, depth - first), panel)


@kernel(parallel=True)
def _pack_transposed(w, k_group, out):
    for index in numba.prange(out.shape[0]):
        _pack_transposed_block(np.int64(index), w, k_group, out)


@kernel
def _filter_task(task, w, groups, transposed, out):
    """A block of channels of w (taps, C/groups, K), some rows of its depth, as transformed filters (36, depth, BLOCK).

    transposed: for backward-input, with filters turned around and C and K exchanged.
    """
    taps, depth, width = w.shape
    k_group = width // groups
    rows, columns = (k_group, depth) if transposed else (depth, k_group)
    blocks, parts = -(-columns // BLOCK), -(-rows // FILTER_ROWS)
    index, part = divmod(task, parts)
    group, block = divmod(index, blocks)
    first, channel = part * FILTER_ROWS, block * BLOCK
    count, valid = min(FILTER_ROWS, rows - first), min(BLOCK, columns - channel)
    panels = np.empty((taps, FILTER_ROWS, BLOCK), np.float32)
    sources = np.empty(taps, np.int64)
    targets = 4 * BLOCK * ((index * POINTS + np.arange(POINTS)) * rows + first)
    for t in range(taps):
        panel = panels[t].ctypes.data
        if transposed:
            source = w.ctypes.data + ((t * depth + channel) * width + group * k_group + first) * 4
            pack_columns(w.dtype, source, width * 4, count, valid, panel)
        else:
            source = w.ctypes.data + ((t * depth + first) * width + group * k_group + channel) * 4
            pack_rows(w.dtype, source, width * 4, count, valid, panel, 0)
        sources[taps - 1 - t if transposed else t] = 4 * t * FILTER_ROWS * BLOCK
    m = 4 if taps == 9 else 2
    for row in range(count):
        here, there = panels.ctypes.data + 4 * row * BLOCK, out.ctypes.data + 4 * row * BLOCK
        transform(FILTER, V, m, panels.dtype, sources.ctypes.data, 8, here, targets.ctypes.data, 8, there, NV)


@kernel(parallel=True)
def _transform_filters(tasks, w, groups, transposed, out):
    for task in numba.prange(tasks):
        _filter_task(np.int64(task), w, groups, transposed, out)


def _run_filters(plan, w, transposed, out):
    r, s, depth, k = plan.w_shape
    rows, columns = (k // plan.groups, depth) if transposed else (depth, k // plan.groups)
    tasks = plan.groups * ceil(columns, BLOCK) * ceil(rows, FILTER_ROWS)
    _transform_filters(tasks, w.reshape(r * s, depth, k), plan.groups, transposed, out)


def conv2d_pack(plan, w, packed):
    """Reorder w (R, S, C/groups, K) into packed, flat: [K block][R*S][C/groups][BLOCK], zeros beyond K.

    Not needed where plan.direct: `conv2d_forward` then reads w itself.
    """
    check_array("conv2d: w", w, plan.w_shape)
    check_array("conv2d: packed", packed, (plan.packed_size,))
    if plan.winograd:
        return _run_filters(plan, w, False, packed)
    r, s, depth, k = plan.w_shape
    tasks = plan.groups * ceil(k // plan.groups, SIDE_BY_SIDE * BLOCK)
    _pack(tasks, w.reshape(r * s, depth, k), k // plan.groups, packed)


def conv2d_pack_transposed(plan, w, packed_t):
    """Reorder w into packed_t (plan.packed_t_size,): [C block][R*S][K/groups][BLOCK], for backward-input.

    Not needed where plan.direct.
    """
    check_array("conv2d: w", w, plan.w_shape)
    check_array("conv2d: packed_t", packed_t, (plan.packed_t_size,))
    if plan.winograd:
        return _run_filters(plan, w, True, packed_t)
    r, s, depth, k = plan.w_shape
    k_group = k // plan.groups
    _pack_transposed(w.reshape(r * s, depth, k), k_group, packed_t.reshape(-1, r * s, k_group, BLOCK))
