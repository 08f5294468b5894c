"""The table of row addresses: where each output pixel of a convolution reads and writes.

Stride, padding and image borders are contents of these tables, not cases in a loop.
"""

import numpy as np

from ._jit import kernel
from .conv_plan import GRID_I, GRID_J, IN_H, IN_PITCH, IN_W, OUT_H, OUT_I, OUT_J, OUT_PITCH, OUT_STEP, OUT_W, STEP


@kernel
def row_addresses(x, zeros, geometry, taps, first, count, table):
    # table[t, m] = address of the input pixel that tap t of output pixel first + m reads
    grid_i, grid_j, step = geometry[GRID_I], geometry[GRID_J], geometry[STEP]
    height, width, pitch = geometry[IN_H], geometry[IN_W], 4 * geometry[IN_PITCH]
    image, rest = divmod(first, grid_i * grid_j)
    i, j = divmod(rest, grid_j)
    places = np.empty((3, count), np.int64)  # h, w and address of the pixel at tap (0, 0)
    m = 0
    while m < count:  # row by row of the grid
        h, row = i * step, x + (image * height + i * step) * width * pitch
        run = min(grid_j - j, count - m)
        for n in range(run):
            places[0, m + n], places[1, m + n] = h, (j + n) * step
            places[2, m + n] = row + (j + n) * step * pitch
        m, j, i = m + run, 0, i + 1
        if i == grid_i:
            i, image = 0, image + 1
    for t in range(taps.shape[0]):
        dr, ds = taps[t, 0], taps[t, 1]
        offset = (dr * width + ds) * pitch
        for m in range(count):  # without branches, so that it runs in vectors
            h, w = places[0, m] + dr, places[1, m] + ds
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
            table[t, m] = places[2, m] + offset if inside else zeros


@kernel
def next_input(x, geometry, taps, first):
    """Address of the input that output pixel `first` is the first to touch, whether or not it lies inside."""
    grid_j = geometry[GRID_J]
    image, rest = divmod(first, geometry[GRID_I] * grid_j)
    i, j = divmod(rest, grid_j)
    last = taps.shape[0] - 1
    h, w = i * geometry[STEP] + taps[last, 0], j * geometry[STEP] + taps[last, 1]
    return x + ((image * geometry[IN_H] + h) * geometry[IN_W] + w) * geometry[IN_PITCH] * 4


@kernel
def out_addresses(y, geometry, first, count, table):
    # table[i] = address of output pixel first + i of the grid
    grid_i, grid_j, step = geometry[GRID_I], geometry[GRID_J], geometry[OUT_STEP]
    for m in range(count):
        image, rest = divmod(first + m, grid_i * grid_j)
        i, j = divmod(rest, grid_j)
        h, w = geometry[OUT_I] + i * step, geometry[OUT_J] + j * step
        table[m] = y + ((image * geometry[OUT_H] + h) * geometry[OUT_W] + w) * geometry[OUT_PITCH] * 4
