"""Weights in panels, as the micro-kernel reads them: (depth, BLOCK) float32 each, or (depth / 2, BLOCK) pairs of bf16.

Zeros stand beyond the channels. Addresses and pitches are in bytes; `kind` is the dtype of what is read, `to` that of
the panels: BF16's stands for pairs.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..arch import BLOCK, NV, V
from ..element import peek, poke, size_of
from ..microkernel import pack_block, transpose_square
from ..number import FP32
from .shape import ceil
from .task import F32_BYTES

ROW = BLOCK * F32_BYTES  # of a panel
SIDE_BY_SIDE = 4  # panels that are packed together: whole pages of w are read in longer runs


@inlined
def in_unit(to):
    """How many numbers of dtype `to` there are in the four bytes that are multiplied at once."""
    return F32_BYTES // size_of(to)


@inlined
def copy_row(kind, source, target, count):
    """target[j] = source[j]: float32 from numbers of dtype `kind`."""
    whole = count // V * V
    for j in range(0, whole, V):
        here = source + j * size_of(kind)
        pack_block(1, V, kind, np.float32, here, here, target + j * F32_BYTES)
    for j in range(whole, count):
        poke(np.float32, target, j, peek(kind, source, j))


@inlined
def pack_part(kind, to, source, valid, target, count, place):
    """Number `place` of each of `count` units at `target` = source[j], zero from `valid` on: one by one."""
    for j in range(count):
        poke(to, target, j * in_unit(to) + place, peek(kind, source, j) if j < valid else 0.0)


@inlined
def pack_rows(kind, to, source, pitch, depth, valid, panels, apart):
    """panels[j // BLOCK][c, j % BLOCK] = source[c, j] for j < valid, panels `apart` from each other.

    As pairs: [c // 2, j % BLOCK] = (source[c, j], source[c + 1, j]), a zero behind an odd depth.
    """
    per_unit = in_unit(to)
    for c in range(0, depth, per_unit):
        for j in range(0, valid, BLOCK):
            here, there = source + c * pitch + j * size_of(kind), panels + j // BLOCK * apart + c // per_unit * ROW
            if j + BLOCK <= valid and c + per_unit <= depth:
                pack_block(NV, V, kind, to, here, here + (per_unit - 1) * pitch, there)
            else:
                for place in range(per_unit):
                    inside = valid - j if c + place < depth else 0
                    pack_part(kind, to, here + place * pitch, inside, there, BLOCK, place)


@inlined
def pack_columns(kind, to, source, pitch, depth, valid, panel):
    """panel[c, j] = source[j, c] for j < valid: in squares of V x V, and one by one what they leave.

    As pairs: panel[c // 2, j] = (source[j, c], source[j, c + 1]); the depth is even.
    """
    per_unit = in_unit(to)
    squares, whole = valid // V * V, depth // V * V
    for j in range(0, squares, V):
        for c in range(0, whole, V):
            here, there = source + j * pitch + c * size_of(kind), panel + c // per_unit * ROW + j * F32_BYTES
            transpose_square(V, kind, to, here, pitch, there, ROW)
    for j in range(BLOCK):
        for c in range(whole if j < squares else 0, depth):
            value = peek(kind, source + j * pitch, c) if j < valid else 0.0
            poke(to, panel, (c // per_unit * BLOCK + j) * per_unit + c % per_unit, value)


@inlined
def clear(panel, used, units):
    """Zeros from row `used` on."""
    for n in range(used * BLOCK, units * BLOCK):
        poke(np.float32, panel, n, np.float32(0))


@inlined
def _pack_task(task, w, k_group, units, out):
    # w (taps, depth, K) -> out (groups, blocks of k, taps, units, BLOCK): SIDE_BY_SIDE blocks of a group
    taps, depth, width = w.shape
    blocks, bytes_a_tap, used = -(-k_group // BLOCK), units * ROW, -(-depth // in_unit(out.dtype))
    group, part = divmod(task, -(-blocks // SIDE_BY_SIDE))
    first = part * SIDE_BY_SIDE * BLOCK
    apart, valid = taps * bytes_a_tap, min(SIDE_BY_SIDE * BLOCK, k_group - first)
    for t in range(taps):
        panels = out.ctypes.data + (group * blocks + part * SIDE_BY_SIDE) * apart + t * bytes_a_tap
        source = w.ctypes.data + (t * depth * width + group * k_group + first) * w.itemsize
        pack_rows(w.dtype, out.dtype, source, width * w.itemsize, depth, valid, panels, apart)
        for block in range(-(-valid // BLOCK)):
            clear(panels + block * apart, used, units)


@inlined
def _pack_transposed_task(task, w, k_group, units, out):
    # w (taps, depth, K) -> out (groups, blocks of c, taps, units, BLOCK): one block
    taps, depth, width = w.shape
    group, block = divmod(task, -(-depth // BLOCK))
    first = block * BLOCK
    for t in range(taps):
        panel = out.ctypes.data + (task * taps + t) * units * ROW
        source = w.ctypes.data + ((t * depth + first) * width + group * k_group) * w.itemsize
        pack_columns(w.dtype, out.dtype, source, width * w.itemsize, k_group, min(BLOCK, depth - first), panel)
        clear(panel, k_group // in_unit(out.dtype), units)


@kernel(parallel=True)
def _pack(tasks, w, k_group, units, transposed, out):
    for task in numba.prange(tasks):
        if transposed:
            _pack_transposed_task(np.int64(task), w, k_group, units, out)
        else:
            _pack_task(np.int64(task), w, k_group, units, out)


def pack(w, groups, transposed, out, step=1):
    """w (taps, depth, K) to `out`, flat, for each group [block of k][taps][depth][BLOCK].

    transposed: [block of depth][taps][K/groups][BLOCK]. As pairs: [.. / 2][BLOCK][2]. Zeros behind each depth (or K
    /groups), up to whole steps.
    """
    _, depth, k = w.shape
    units = ceil(ceil(k // groups if transposed else depth, step) * step, FP32.bytes // out.itemsize)
    tasks = groups * (ceil(depth, BLOCK) if transposed else ceil(k // groups, SIDE_BY_SIDE * BLOCK))
    _pack(tasks, w, k // groups, units, transposed, out)
