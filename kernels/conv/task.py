"""What tasks share, whichever their method. In forward and backward-input: place, room for C, and the finish.

A task there owns a block of the grid (pixels or tiles) and a range of output channels. It finds its place, gathers the
addresses of its inputs, multiplies into an array C of its own, which stays in L2, and finishes: C is rectified, told
to the batch norm behind, and stored.
"""

from typing import NamedTuple

import numpy as np

from .._jit import inlined, kernel
from ..affine import FRESH, ONTO, PAST, pass_row
from ..ahead import DISTANCE, ask
from ..arch import BLOCK, LINE, LINE_FLOATS
from ..each import RAISE, each
from ..moments import part_moments
from ..number import FP32
from ..store import store_row
from .grid import GRID_I, GRID_J, TAPS, WIDTH

F32_BYTES = FP32.bytes  # of an element of C, of panels and of everything else that a task keeps for itself


class Behind(NamedTuple):
    """The batch norm with ReLU whose output a convolution reads: backward-input then tells its sums."""

    x: np.ndarray  # its input, flat, or empty: there is none
    y: np.ndarray  # its output, flat, where a residual was added, else empty
    table: np.ndarray  # (COEFFICIENTS, K or more) of `affine`


class Job(NamedTuple):
    """All that the tasks of one nest share. Arrays but moments, geometry and taps are flat."""

    x: np.ndarray
    zeros: np.ndarray  # the pixel that lies outside
    weights: np.ndarray  # or panels of them, units of four bytes: one type, one compilation
    bias: np.ndarray  # (K,) or empty
    y: np.ndarray
    moments: np.ndarray  # (blocks, 2, K), to be told mean and M2 of each block, or the sums of a batch norm; or empty
    norm_x: np.ndarray  # Behind
    norm_y: np.ndarray
    norm_table: np.ndarray
    geometries: np.ndarray  # of the grids, of what is read and of what is written
    taps: np.ndarray
    y_geometries: np.ndarray
    y_taps: np.ndarray
    order: np.ndarray  # (blocks, 3): grid, block of that grid, number among the blocks of all grids
    all_taps: int  # that the packed weights have
    form: int  # of the weights
    size: int  # pixels or tiles of a block
    images: int
    ranges: int  # into which the output channels are cut
    accumulate: bool
    relu: bool
    past: bool  # the caches
    staged: bool  # rows of x are copied near, widened where they are 16-bit and panels are not
    panels: np.ndarray  # empty; its dtype is that of the panels of weights


class GradientJob(NamedTuple):
    """The same for backward-weight. Arrays are flat; grids of x and of dy."""

    x: np.ndarray
    dy: np.ndarray
    zeros: np.ndarray
    dw: np.ndarray
    partial: np.ndarray  # places of sums beside dw, of `shares`
    geometries: np.ndarray
    taps: np.ndarray
    dy_geometries: np.ndarray
    dy_taps: np.ndarray
    images: int
    splits: int  # shares into which the pixels are cut
    taken: int  # of them by a task
    wide: int  # blocks of output channels of a task, at most
    points: int  # of a whole tile
    chunk: int  # pixels that are copied near at a time
    past: bool  # the caches: nothing of dw is read again
    panels: np.ndarray  # empty; its dtype is that of the panels of x and dy


class Part(NamedTuple):
    """What one task owns: `count` things of a grid from `first` on, by blocks lo to hi of output channels."""

    geometry: np.ndarray
    taps: np.ndarray
    y_geometry: np.ndarray
    y_taps: np.ndarray
    block: int  # among those of all grids
    first: int
    count: int
    lo: int
    hi: int
    valid: int  # output channels in its range


@kernel
def block_count(things, size):
    """Blocks of `size`; less than half a block left over goes to the last: alone it would read all weights."""
    return max(1, (things + size // 2) // size)


@inlined
def place(task, job):
    """The part of a task."""
    size = job.size
    index, part = divmod(task, job.ranges)
    grid, block, number = job.order[index]
    geometry = job.geometries[grid]
    things, width = job.images * geometry[GRID_I] * geometry[GRID_J], geometry[WIDTH]
    count = size if block < block_count(things, size) - 1 else things - block * size
    blocks = -(-width // BLOCK)
    lo, hi = blocks * part // job.ranges, blocks * (part + 1) // job.ranges
    taps, y_geometry = job.taps[grid, : geometry[TAPS]], job.y_geometries[grid]
    y_taps = job.y_taps[grid, : y_geometry[TAPS]]
    valid = min(hi * BLOCK, width) - lo * BLOCK
    return Part(geometry, taps, y_geometry, y_taps, number, block * size, count, lo, hi, valid)


@inlined
def aligned(count):
    """`count` float32 beginning at a cache line, not set."""
    raw = np.empty(count + LINE_FLOATS, np.float32)
    skip = -raw.ctypes.data % LINE // F32_BYTES
    return raw[skip : skip + count]


@inlined
def _pass_on(job, part, first, c, pitch, count, out_rows):
    """C, the gradient of a batch norm's output, to what its ReLU passes on: stored, summed for `batchnorm_factors`."""
    x, y, table, sums, item = job.norm_x, job.norm_y, job.norm_table, job.moments[part.block], job.y.itemsize
    sums[:, first : first + part.valid] = 0
    sum_g = sums.ctypes.data + first * F32_BYTES
    by_x, how = np.int64(y.size == 0), ONTO if job.accumulate else (PAST if job.past else FRESH)
    width = part.valid * item
    rows_ahead = max(1, DISTANCE // width)
    for row in range(count):
        place = out_rows[min(row + rows_ahead, count - 1)] + first * item - job.y.ctypes.data
        ask(x.ctypes.data + place, width)
        if y.size > 0:
            ask(y.ctypes.data + place, width)
        if job.accumulate:
            ask(job.y.ctypes.data + place, width)
        there = out_rows[row] + first * item
        place = there - job.y.ctypes.data
        pass_row(
            part.valid, c.ctypes.data + row * pitch * F32_BYTES, x.ctypes.data + place, y.ctypes.data + place,
            job.y.dtype, by_x, table.ctypes.data + first * F32_BYTES, table.strides[0],
            sum_g, sum_g + sums.strides[0], there, how,
        )  # fmt: skip


@inlined
def finish(job, part, group, c, pitch, count, out_rows):
    """`count` rows of C, `pitch` floats apart, to the pixels at addresses out_rows."""
    first = group * part.geometry[WIDTH] + part.lo * BLOCK
    if job.norm_x.size > 0:
        return _pass_on(job, part, first, c, pitch, count, out_rows)
    if job.relu:
        whole = c[: count * pitch]
        each(RAISE, whole, whole, np.float32(0), whole)
    if job.moments.size > 0:
        mean = job.moments[part.block, 0, first : first + part.valid]
        part_moments(c, 0, pitch, count, mean, job.moments[part.block, 1, first : first + part.valid])
    start, kind, shift = c.ctypes.data, job.y.dtype, first * job.y.itemsize
    accumulate, past = job.accumulate, job.past
    for row in range(count):
        store_row(start + row * pitch * F32_BYTES, part.valid, kind, out_rows[row] + shift, accumulate, past)
