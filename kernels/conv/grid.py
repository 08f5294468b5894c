"""Grids: the pixels that one direction of a convolution produces, the taps of each, and where they lie in memory.

An output pixel (i, j) of a grid reads input pixel (i * step + dr, j * step + ds) for every tap (dr, ds, place of its
weights), or zeros where that lies outside. Stride, padding and image borders are contents of tables of addresses, not
cases in a loop. Pitches are in bytes, so nothing here knows the type of a pixel.
"""

from typing import NamedTuple

import numpy as np

from .._jit import inlined
from .shape import TILE, ceil, image

# fields of the geometry vector; pitch: bytes of a pixel
GRID_I, GRID_J, STEP, IN_H, IN_W, IN_PITCH, OUT_H, OUT_W, OUT_PITCH = range(9)
OUT_STEP, OUT_I, OUT_J, DEPTH, WIDTH, GROUPS, TAPS = range(9, 16)


class Grid(NamedTuple):
    """geometry (16,) and taps (taps, 3), int64."""

    geometry: np.ndarray
    taps: np.ndarray

    @property
    def pixels(self) -> int:
        """Of one image."""
        return int(self.geometry[GRID_I] * self.geometry[GRID_J])


def _grid(sides, step, inputs, outputs, place, channels, taps):
    geometry = np.array([*sides, step, *inputs, *outputs, *place, *channels, len(taps)], np.int64)
    return Grid(geometry, np.array(taps, np.int64).reshape(-1, 3))


def stacked(grids):
    """geometries (grids, 16) and taps (grids, most taps, 3); those behind a grid's TAPS are zeros."""
    taps = np.zeros((len(grids), max(len(grid.taps) for grid in grids), 3), np.int64)
    for place, grid in zip(taps, grids, strict=True):
        place[: len(grid.taps)] = grid.taps
    return Grid(np.stack([grid.geometry for grid in grids]), taps)


def forward_grid(shape):
    """y from x: one grid with R * S taps."""
    r, s, depth, _ = shape.w
    taps = [(i - shape.pad, j - shape.pad, i * s + j) for i in range(r) for j in range(s)]
    channels = depth, shape.k_group, shape.groups
    inputs, outputs = image(shape.x, shape.number), image(shape.y, shape.y_number)
    return _grid(shape.y[1:3], shape.stride, inputs, outputs, (1, 0, 0), channels, taps)


def merged_grid(shape):
    """y from a zero-padded copy of x: the S taps of a filter row are one of depth S * C, all neighbours."""
    r, s, c, k = shape.w
    taps = [(i, 0, i) for i in range(r)]
    inputs, outputs = image(shape.padded, shape.padded_number), image(shape.y, shape.y_number)
    return _grid(shape.y[1:3], shape.stride, inputs, outputs, (1, 0, 0), (s * c, k, 1), taps)


def backward_grids(shape):
    """dx from dy: one grid for each residue of (h, w) modulo the stride, with the taps that can reach it."""
    (_, h, w, _), (r, s, depth, _), stride, pad = shape.x, shape.w, shape.stride, shape.pad
    inputs, outputs = image(shape.y, shape.number), image(shape.x, shape.number)
    channels = shape.k_group, depth, shape.groups
    for a in range(min(stride, h)):
        for b in range(min(stride, w)):
            reach = [
                ((a + pad - i) // stride, (b + pad - j) // stride, i * s + j)
                for i in range(r)
                for j in range(s)
                if (a + pad - i) % stride == 0 and (b + pad - j) % stride == 0
            ]
            sides = ceil(h - a, stride), ceil(w - b, stride)
            yield _grid(sides, 1, inputs, outputs, (stride, a, b), channels, reach)


def tile_grid(shape, inputs, outputs, number, pad, side, channels):
    """Tiles of m x m pixels of `outputs`, which hold `number`; each reads side x side of `inputs` (both are shapes)."""
    m = TILE + 1 - shape.w[0]
    sides = ceil(outputs[1], m), ceil(outputs[2], m)
    taps = [(i - pad, j - pad, i * side + j) for i in range(side) for j in range(side)]
    images = image(inputs, shape.number), image(outputs, number)
    return _grid(sides, m, *images, (m, 0, 0), (*channels, shape.groups), taps)


# ---- addresses -----------------------------------------------------------------------------------------------


@inlined
def row_addresses(x, zeros, geometry, taps, first, count, table):
    """table[t, m] = address of the input pixel that tap t of output pixel first + m reads."""
    grid_i, grid_j, step = geometry[GRID_I], geometry[GRID_J], geometry[STEP]
    height, width, pitch = geometry[IN_H], geometry[IN_W], geometry[IN_PITCH]
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


@inlined
def next_input(x, geometry, taps, first):
    """Address of the input that output pixel `first` is the first to touch, whether or not it lies inside."""
    grid_j = geometry[GRID_J]
    image, rest = divmod(first, geometry[GRID_I] * grid_j)
    i, j = divmod(rest, grid_j)
    last = taps.shape[0] - 1
    h, w = i * geometry[STEP] + taps[last, 0], j * geometry[STEP] + taps[last, 1]
    return x + ((image * geometry[IN_H] + h) * geometry[IN_W] + w) * geometry[IN_PITCH]


@inlined
def out_addresses(y, geometry, first, count, table):
    """table[i] = address of output pixel first + i of the grid."""
    grid_i, grid_j, step = geometry[GRID_I], geometry[GRID_J], geometry[OUT_STEP]
    for m in range(count):
        image, rest = divmod(first + m, grid_i * grid_j)
        i, j = divmod(rest, grid_j)
        h, w = geometry[OUT_I] + i * step, geometry[OUT_J] + j * step
        table[m] = y + ((image * geometry[OUT_H] + h) * geometry[OUT_W] + w) * geometry[OUT_PITCH]
