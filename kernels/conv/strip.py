"""Strips: the pixels that a block of a grid reads, copied near once, so that every tap is the same walk from elsewhere.

A strip is rows of *places*, one pitch apart. It holds the rows of the image that its taps read, with zeros where they
lie outside, all of one length. Thing (i, j) of the grid, the first of which stands in row 0, has place m = i * length +
j, and a tap reads for it what lies `shift` places further:

    three columns, taps of 3 x 3    0 0 0 0 0       things a to f have places 0 to 7, of which 3 and 4 are nobody's;
                                    0 a b c 0       the tap in the middle reads 6 places further, the last one 12
                                    0 d e f 0
                                    0 g h i 0

At stride s, rows and columns of equal remainder lie together, in s * s planes. Things of several images have rows of
their own, a run for each image; where taps read no other row than a thing's own, one run is enough.
"""

from typing import NamedTuple

import numpy as np

from .._jit import inlined
from ..ahead import DISTANCE, ask
from .grid import GRID_I, GRID_J, IMAGE_H, IMAGE_W, PITCH, STEP
from .panels import copy_row
from .task import F32_BYTES

AT_ONCE = 32  # places that are multiplied together


class Strip(NamedTuple):
    """Where things are in a strip, and what its places hold."""

    top: int  # the lowest row and column of a plane that a tap reads for thing (0, 0)
    left: int
    more_rows: int  # how many others
    length: int  # of a row of places
    shifts: np.ndarray  # (taps,) places from a thing to what each tap reads for it
    planes: np.ndarray  # (planes,) row * step + column of the remainders that a plane has
    sources: np.ndarray  # (planes, places for which one has room) addresses of the pixels, or of zeros
    starts: np.ndarray  # first place of each block of AT_ONCE, from a thing on
    kept: np.ndarray  # (things,) number of each thing among the places of these blocks


@inlined
def make_strip(job, geometry, taps, count):
    """For `count` things of a grid: everything but sources, starts and kept, which `lay` fills."""
    step, grid_j, far = geometry[STEP], geometry[GRID_J], np.int64(1 << 40)
    top, left, bottom, right = (far, far, -far, -far) if taps.shape[0] > 0 else (0, 0, 0, 0)
    for t in range(taps.shape[0]):
        row, column = taps[t, 0] // step, taps[t, 1] // step
        top, left, bottom, right = min(top, row), min(left, column), max(bottom, row), max(right, column)
    more_rows, length = bottom - top, grid_j + right - left
    runs = 1 if more_rows == 0 else count // (geometry[GRID_I] * grid_j) + 2
    most = (count // grid_j + runs * (2 + more_rows)) * length
    apart = (most // AT_ONCE + 2) * AT_ONCE  # the last block looks further
    shifts, planes = np.empty(taps.shape[0], np.int64), np.empty(step * step, np.int64)
    many = 0
    for t in range(taps.shape[0]):
        (row, a), (column, b) = divmod(taps[t, 0], step), divmod(taps[t, 1], step)
        plane = 0
        while plane < many and planes[plane] != a * step + b:
            plane += 1
        planes[plane], many = a * step + b, max(many, plane + 1)
        shifts[t] = plane * apart + (row - top) * length + column - left
    sources = np.full((many, apart), np.int64(job.zeros.ctypes.data))
    starts, kept = np.empty(apart // AT_ONCE + runs + 1, np.int64), np.empty(count, np.int64)
    return Strip(top, left, more_rows, length, shifts, planes[:many], sources, starts, kept)


@inlined
def _lay_row(job, geometry, strip, image, row, residue, begin, end, sources):
    """Places begin to end of a row: of row `row` of an image, among those of equal residue; zeros outside."""
    step, zeros = geometry[STEP], job.zeros.ctypes.data
    a, b = divmod(residue, step)
    h, pitch = row * step + a, step * geometry[PITCH]
    first, last = max(begin, -strip.left), min(end, (geometry[IMAGE_W] - 1 - b) // step + 1 - strip.left)
    if h < 0 or h >= geometry[IMAGE_H]:
        last = first
    pixel = (image * geometry[IMAGE_H] + h) * geometry[IMAGE_W] + strip.left * step + b
    for n in range(begin, end):
        inside = (n >= first) & (n < last)
        sources[n] = job.x.ctypes.data + pixel * geometry[PITCH] + n * pitch if inside else zeros


@inlined
def lay(job, geometry, strip, thing, count):
    """Find the places of `count` things of a grid from one on, and their sources.

    Returns how many blocks there are, and how many places a plane has.
    """
    grid_i, grid_j, length = geometry[GRID_I], geometry[GRID_J], strip.length
    image, rest = divmod(thing, grid_i * grid_j)
    place, done, blocks = 0, 0, 0
    while done < count:  # run by run
        i, j = divmod(rest, grid_j)
        things = count - done if strip.more_rows == 0 else min(count - done, grid_i * grid_j - rest)
        rows, column = divmod(j + things - 1, grid_j)  # of the last thing, from row i on
        for n in range(things):
            down, across = divmod(j + n, grid_j)
            strip.kept[done + n] = blocks * AT_ONCE + down * length + across - j
        for first in range(j, rows * length + column + 1, AT_ONCE):
            strip.starts[blocks] = place + first
            blocks += 1
        for plane in range(strip.planes.size):
            for row in range(rows + 1 + strip.more_rows):
                ahead, down = divmod(i + row, grid_i) if strip.more_rows == 0 else (0, i + row)
                here = place + row * length
                begin, end = (j if row == 0 else 0), length
                if row == rows + strip.more_rows:
                    end = column + 1 + length - grid_j
                sources, residue = strip.sources[plane, here : here + length], strip.planes[plane]
                _lay_row(job, geometry, strip, image + ahead, down + strip.top, residue, begin, end, sources)
        place += (rows + 1 + strip.more_rows) * length
        done, image, rest = done + things, image + 1, 0
    return blocks, place


@inlined
def stage(sources, shift, size, room, pitch):
    """Copy `size` bytes, of whole pairs, from `shift` on of the pixels of some places to an address, `pitch` apart."""
    ahead = max(1, DISTANCE // size)
    for n in range(sources.size):
        here, there = sources[n] + shift, room + n * pitch
        ask(sources[min(n + ahead, sources.size - 1)] + shift, size)
        copy_row(np.float32, here, there, size // F32_BYTES)
