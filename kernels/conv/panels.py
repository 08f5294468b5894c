"""Weights in panels, as the micro-kernel reads them: (depth, BLOCK) float32 each, zeros beyond the channels.

Addresses and pitches are in bytes; `kind` is the dtype of what is read.
"""

import numba
import numpy as np

from .._jit import kernel
from ..arch import BLOCK, NV, V
from ..microkernel import copy_block, peek, poke, size_of, transpose_square
from .shape import ceil
from .task import F32_BYTES

ROW = BLOCK * F32_BYTES  # of a panel
SIDE_BY_SIDE = 4  # panels that are packed together: whole pages of w are read in longer runs


@kernel
def copy_row(kind, source, target, count):
    """target[j] = source[j]: float32 from numbers of dtype `kind`."""
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
    squares, whole = valid // V * V, depth // V * V
    for j in range(0, squares, V):
        for c in range(0, whole, V):
            here, there = source + j * pitch + c * size_of(kind), panel + c * ROW + j * F32_BYTES
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
    apart, valid = taps * depth * ROW, min(SIDE_BY_SIDE * BLOCK, k_group - first)
    for t in range(taps):
        panels = out.ctypes.data + (group * blocks + part * SIDE_BY_SIDE) * apart + t * depth * ROW
        source = w.ctypes.data + (t * depth * width + group * k_group + first) * w.itemsize
        pack_rows(w.dtype, source, width * w.itemsize, depth, valid, panels, apart)


@kernel
def _pack_transposed_task(task, w, k_group, out):
    # w (taps, depth, K) -> out (groups, blocks of c, taps, k_group, BLOCK): one block
    taps, depth, width = w.shape
    group, block = divmod(task, -(-depth // BLOCK))
    first = block * BLOCK
    for t in range(taps):
        panel = out.ctypes.data + (task * taps + t) * k_group * ROW
        source = w.ctypes.data + ((t * depth + first) * width + group * k_group) * w.itemsize
        pack_columns(w.dtype, source, width * w.itemsize, k_group, min(BLOCK, depth - first), panel)


@kernel(parallel=True)
def _pack(tasks, w, k_group, transposed, out):
    for task in numba.prange(tasks):
        if transposed:
            _pack_transposed_task(np.int64(task), w, k_group, out)
        else:
            _pack_task(np.int64(task), w, k_group, out)


def pack(shape, w, transposed, out):
    """w (R, S, C/groups, K) to `out`, flat, for each group [block of k][R*S][C/groups][BLOCK].

    transposed: [block of c][R*S][K/groups][BLOCK].
    """
    r, s, depth, k = shape.w
    tasks = shape.groups * (ceil(depth, BLOCK) if transposed else ceil(shape.k_group, SIDE_BY_SIDE * BLOCK))
    _pack(tasks, w.reshape(r * s, depth, k), shape.k_group, transposed, out)
