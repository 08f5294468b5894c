"""Grids: what one direction of a convolution produces, the taps of each, and where they lie in memory.

The thing (i, j) of a grid, a pixel or a tile, reads pixel (i * step + dr, j * step + ds) of the input for every tap
(dr, ds, place of its weights), or zeros where that lies outside. What it writes is a grid of the same size over the
output, with a tap for each of its pixels. Stride, padding and image borders are contents of tables of addresses, not
cases in a loop. Pitches are in bytes, so nothing here knows the type of a pixel.
"""

from typing import NamedTuple

import numpy as np

from .._jit import inlined
from .shape import ceil, image

# fields of the geometry vector: sides of the grid, of the image, bytes of a pixel; channels; taps; of a tile its form
GRID_I, GRID_J, STEP, IMAGE_H, IMAGE_W, PITCH, DEPTH, WIDTH, GROUPS, TAPS, FORM = range(11)


class Grid(NamedTuple):
    """One image tensor as a grid sees it: geometry (11,) and taps (taps, 3), int64."""

    geometry: np.ndarray
    taps: np.ndarray

    @property
    def pixels(self) -> int:
        """Of one image."""
        return int(self.geometry[GRID_I] * self.geometry[GRID_J])

    def inside(self) -> np.ndarray:
        """How many taps of each thing lie inside, of one image."""
        sides = []
        for axis, (count, side) in enumerate(zip(self.geometry[:2], self.geometry[IMAGE_H:PITCH], strict=True)):
            places = self.geometry[STEP] * np.arange(count)[:, None] + self.taps[:, axis]
            sides.append(((places >= 0) & (places < side)).astype(np.int64))
        return (sides[0] @ sides[1].T).ravel()


def make_grid(sides, step, pixels, channels, taps, form=0) -> Grid:
    """pixels: height, width and bytes of a pixel of the image; channels: depth, width and groups of the convolution."""
    geometry = np.array([*sides, step, *pixels, *channels, len(taps), form], np.int64)
    return Grid(geometry, np.array(taps, np.int64).reshape(-1, 3))


def stacked(pairs):
    """Of pairs of grids: geometries (pairs, 11) and taps (pairs, most, 3) of what is read, then of what is written.

    Taps behind a grid's own are zeros.
    """
    arrays = []
    for grids in zip(*pairs, strict=True):
        taps = np.zeros((len(grids), max(len(grid.taps) for grid in grids), 3), np.int64)
        for place, grid in zip(taps, grids, strict=True):
            place[: len(grid.taps)] = grid.taps
        arrays += [np.stack([grid.geometry for grid in grids]), taps]
    return arrays


def forward_grid(shape):
    """y from x: one grid with R * S taps, and that of what it writes."""
    r, s, depth, _ = shape.w
    taps = [(i - shape.pad, j - shape.pad, i * s + j) for i in range(r) for j in range(s)]
    channels = depth, shape.k_group, shape.groups
    x, y = image(shape.x, shape.number), image(shape.y, shape.y_number)
    sides = shape.y[1:3]
    return make_grid(sides, shape.stride, x, channels, taps), make_grid(sides, 1, y, channels, [(0, 0, 0)])


def merged_grid(shape):
    """y from a zero-padded copy of x: the S taps of a filter row are one of depth S * C, all neighbours."""
    r, s, c, k = shape.w
    taps = [(i, 0, i) for i in range(r)]
    x, y = image(shape.padded, shape.padded_number), image(shape.y, shape.y_number)
    sides, channels = shape.y[1:3], (s * c, k, 1)
    return make_grid(sides, shape.stride, x, channels, taps), make_grid(sides, 1, y, channels, [(0, 0, 0)])


def backward_grids(shape):
    """dx from dy: one grid for each residue of (h, w) modulo the stride, with the taps that can reach it."""
    (_, h, w, _), (r, s, depth, _), stride, pad = shape.x, shape.w, shape.stride, shape.pad
    dy, dx = image(shape.y, shape.number), image(shape.x, shape.number)
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
            yield make_grid(sides, 1, dy, channels, reach), make_grid(sides, stride, dx, channels, [(a, b, 0)])


# ---- addresses -----------------------------------------------------------------------------------------------


@inlined
def row_addresses(x, zeros, geometry, taps, first, count, table):
    """table[t, m] = address of the pixel of x at tap t of thing first + m, or `zeros` where that lies outside."""
    grid_i, grid_j, step = geometry[GRID_I], geometry[GRID_J], geometry[STEP]
    height, width, pitch = geometry[IMAGE_H], geometry[IMAGE_W], geometry[PITCH]
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
    """Address of the pixel of x that thing `first` is the first to touch, whether or not it lies inside."""
    grid_j = geometry[GRID_J]
    image, rest = divmod(first, geometry[GRID_I] * grid_j)
    i, j = divmod(rest, grid_j)
    last = taps.shape[0] - 1
    h, w = i * geometry[STEP] + taps[last, 0], j * geometry[STEP] + taps[last, 1]
    return x + ((image * geometry[IMAGE_H] + h) * geometry[IMAGE_W] + w) * geometry[PITCH]
