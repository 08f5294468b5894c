"""What `tiles` does with a tile of C while it lies in the first-level cache, and what it asks memory for before.

Tiles are finished one by one, so what all of them need is taken out of the job once, as addresses: a job is too long to
be handed on tile by tile.
"""

from typing import NamedTuple

import numpy as np

from .._jit import inlined
from ..affine import FRESH, ONTO, PAST, pass_row
from ..ahead import ask
from ..arch import BLOCK
from ..element import entry, peek, poke, size_of
from ..epilogue import REFERENCE, SQUARES, SUM, pass_tile, store_tile
from ..store import store_row
from .grid import WIDTH
from .task import F32_BYTES


class Finish(NamedTuple):
    """For the channels of a task from `channel` on: addresses, of the first of them, and distances in bytes."""

    how: int  # FRESH, ONTO, PAST
    channel: int
    rows: int  # tables of the part's things: offsets in their tile, addresses of results
    outs: int
    bias: int  # or zeros
    low: np.float32
    gathered: int  # for moments, or 0; from row to row
    pitch: int
    x: int  # from the result to the input and the output of the batch norm behind it, or 0
    y: int
    table: int
    table_pitch: int
    sums: int
    sums_pitch: int


@inlined
def begin_finish(job, part, channel, tables, gathered):
    """What finishing a group's tiles takes; the sums of a batch norm behind are 0 then. tables: the two addresses."""
    if job.norm_x.size > 0:
        job.moments[part.block, :, channel : channel + part.valid] = 0
    here, shift = np.int64(job.y.ctypes.data), channel * F32_BYTES
    behind, told = job.norm_x.size > 0, job.norm_x.size == 0 and job.moments.size > 0
    past = job.past and part.geometry[WIDTH] % BLOCK == 0  # else groups begin in the middle of a line
    return Finish(
        ONTO if job.accumulate else (PAST if past else FRESH), channel, tables[0], tables[1],
        np.int64(job.bias.ctypes.data) + shift if job.bias.size > 0 else np.int64(job.zeros.ctypes.data),
        np.float32(0) if job.relu else np.float32(-np.inf),
        np.int64(gathered.ctypes.data) + shift if told else 0, gathered.strides[0],
        np.int64(job.norm_x.ctypes.data) - here if behind else 0,
        np.int64(job.norm_y.ctypes.data) - here if job.norm_y.size > 0 else 0,
        job.norm_table.ctypes.data + shift, job.norm_table.strides[0],
        job.moments.ctypes.data + part.block * job.moments.strides[0] + shift, job.moments.strides[1],
    )  # fmt: skip


@inlined
def finish_tile(kind, to, block, begin, end, c):
    """Things begin to end, those of the tile at address c: block number `block` of the task's channels."""
    channels = block * BLOCK
    count, shift, item = end - begin, channels * F32_BYTES, size_of(kind)
    rows, outs, at = to.rows + 8 * begin, to.outs + 8 * begin, (to.channel + channels) * item
    if to.x != 0:
        pass_tile(
            c, rows, outs, count, at, kind, to.how, to.x, to.y, to.table + shift, to.table_pitch, to.sums + shift,
            to.sums + to.sums_pitch + shift,
        )  # fmt: skip
    else:
        bias, told = to.bias + shift, to.gathered + shift if to.gathered != 0 else 0
        store_tile(c, rows, outs, count, at, kind, to.how, bias, to.low, told, to.pitch, np.int64(begin == 0))


@inlined
def finish_rows(kind, to, block, begin, end, c, valid, blocks):
    """The same row by row, for `valid` channels from those of a block on; rows of C are `blocks` blocks long.

    By what knows no tiles: denormals are rounded as they are.
    """
    channels = block * BLOCK
    shift, at = channels * F32_BYTES, (to.channel + channels) * size_of(kind)
    for n in range(begin, end):
        row, there = c + entry(to.rows, n) * blocks, entry(to.outs, n) + at
        if to.x != 0:
            pass_row(
                valid, row, there + to.x, there + to.y, kind, np.int64(to.y == 0), to.table + shift, to.table_pitch,
                to.sums + shift, to.sums + to.sums_pitch + shift, there, to.how,
            )  # fmt: skip
            continue
        for j in range(valid):
            value = peek(np.float32, row, j) + peek(np.float32, to.bias + shift, j)
            poke(np.float32, row, j, to.low if value < to.low else value)
        if to.gathered != 0:
            _gather_row(row, valid, to.gathered + shift, to.pitch, n == 0)
        store_row(row, valid, kind, there, to.how == ONTO, to.how == PAST)


@inlined
def _gather_row(row, valid, gathered, pitch, first):
    """As `store_tile` does; the reference is the first row."""
    for j in range(valid):
        value = peek(np.float32, row, j)
        if first:
            poke(np.float32, gathered, j, value)
            poke(np.float32, gathered + pitch, j, np.float32(0))
            poke(np.float32, gathered + 2 * pitch, j, np.float32(0))
        apart = value - peek(np.float32, gathered, j)
        poke(np.float32, gathered + pitch, j, peek(np.float32, gathered + pitch, j) + apart)
        poke(np.float32, gathered + 2 * pitch, j, peek(np.float32, gathered + 2 * pitch, j) + apart * apart)


@inlined
def ask_for(kind, to, first, blocks, begin, end):
    """For what finishing things begin to end will read, of some blocks of channels from one on."""
    if to.x == 0 and to.how != ONTO:
        return
    shift, size = (to.channel + first * BLOCK) * size_of(kind), blocks * BLOCK * size_of(kind)
    for n in range(begin, end):
        there = entry(to.outs, n) + shift
        if to.x != 0:
            ask(there + to.x, size)
        if to.y != 0:
            ask(there + to.y, size)
        if to.how == ONTO:
            ask(there, size)


@inlined
def tell_moments(job, part, to, gathered):
    """Mean and M2 of the task's channels, from what `store_tile` has gathered."""
    if to.gathered == 0:
        return
    count = np.float32(part.count)
    for k in range(to.channel, to.channel + part.valid):
        mean = gathered[SUM, k] / count
        job.moments[part.block, 0, k] = gathered[REFERENCE, k] + mean
        job.moments[part.block, 1, k] = max(gathered[SQUARES, k] - mean * gathered[SUM, k], np.float32(0))
