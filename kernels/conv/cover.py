"""How tiles cover an image: whole ones, and smaller ones at its lower and right edge, which use a part of the points.

With 4 x 4 outputs a tile, 13 x 13 are 3 x 3 whole tiles, 3 of 4 x 1 at either edge and one of 1 x 1: 441 products in
place of 576. For filters of 5 x 5 that would save too little, and whole tiles stick out.

Each kind of tile is a grid of its own. Transforms know tiles of 4 x 1, but not of 1 x 4: those at the lower edge list
their pixels column by column, and are tiles of 4 x 1 lying on their side.
"""

from .grid import make_grid
from .shape import image
from .transform import FORMS, PLACES, lengths


def _cut(length, m, sizes):
    """Whole tiles along an axis, and the outputs of the one behind: 0, or the least of `sizes` that reaches the end."""
    whole, rest = divmod(length, m)
    last = min(n for n in [0, *sizes] if n >= rest)
    return (whole + 1, 0) if last == m else (whole, last)


def _kinds(height, width, m, sizes):
    """Of each kind of tile: where its first one begins, in whole tiles; how many there are; outputs of one."""
    (down, low), (across, right) = (_cut(length, m, sizes) for length in (height, width))
    corner = max(low, right) if low and right else 0  # a little sticks out there if the two differ
    yield (0, 0), (down, across), (m, m)
    yield (0, across), (down, 1), (m, right)
    yield (down, 0), (1, across), (low, m)
    yield (down, across), (1, 1), (corner, corner)


def _taps(side, r, outputs):
    """Inputs (i, j), points and outputs (i, j) of a tile with `outputs` on its two axes, in the order of its form."""
    rows, columns = outputs
    inputs = [(a, b) for a in range(rows + r - 1) for b in range(columns + r - 1)]
    pixels = [(a, b) for a in range(rows) for b in range(columns)]
    if rows < columns:  # turned over
        inputs, pixels = (sorted(taps, key=lambda tap: tap[::-1]) for taps in (inputs, pixels))
    down, across = (PLACES[side][count + r - 1] for count in outputs)
    return inputs, [side * down[a] + across[b] for a, b in inputs], pixels


def tile_grids(shape, read, written, pad, channels) -> list:
    """Pairs of grids of tiles of `written`, each of whose pixels (0, 0) reads (-pad, -pad) of `read`.

    read, written: shape and Number of a tensor. A tap of what is read has the number of its point.
    """
    side, r, m = shape.side, shape.w[0], shape.side + 1 - shape.w[0]
    channels, pairs = (*channels, shape.groups), []
    for first, sides, outputs in _kinds(*written[0][1:3], m, lengths(side, r)):
        if min(*sides, *outputs) > 0:
            form = FORMS.index((side, r, max(outputs), min(outputs)))
            inputs, points, pixels = _taps(side, r, outputs)
            i, j = (m * place for place in first)
            reads = [(i + a - pad, j + b - pad, point) for (a, b), point in zip(inputs, points, strict=True)]
            writes = [(i + a, j + b, 0) for a, b in pixels]
            tensors = (read, reads), (written, writes)
            pairs.append(tuple(make_grid(sides, m, image(*tensor), channels, taps, form) for tensor, taps in tensors))
    return pairs
