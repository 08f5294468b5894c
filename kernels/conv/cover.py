"""How tiles cover an image: whole ones, and smaller ones at its lower and right edge, which use a part of the points.

With m = 4 outputs on a side of a tile, 13 x 13 are 3 x 3 whole tiles, 3 of 4 x 1 at either edge and one of 1 x 1: 441
products in place of 576. For filters of 5 x 5, m = 2, they save too little, and whole tiles stick out.

Each kind of tile is a grid of its own. A tile's long axis comes first in its form, so that those at the lower edge are
turned over: the order of taps says so, and no transform has to know.
"""

from .grid import make_grid
from .shape import image
from .transform import FORMS, PLACES, lengths


def _cut(length, m, lengths):
    """Whole tiles along an axis, and the length of the one behind: 0, or the least that reaches the end."""
    whole, rest = divmod(length, m)
    last = min(n for n in [0, *lengths] if n >= rest)
    return (whole + 1, 0) if last == m else (whole, last)


def tile_grids(shape, read, written, pad, channels) -> list:
    """Pairs of grids of tiles of `written`, each of whose pixels (0, 0) reads (-pad, -pad) of `read`.

    read, written: shape and Number of a tensor. A tap of what is read has the number of its point.
    """
    side, r, m = shape.side, shape.w[0], shape.side + 1 - shape.w[0]
    (read, number), (written, y_number) = read, written
    (height, rest_i), (width, rest_j) = (_cut(length, m, lengths(side, r)) for length in written[1:3])
    corner = max(rest_i, rest_j) if rest_i and rest_j else 0  # a little sticks out there if the two differ
    kinds = [
        ((0, 0), (height, width), (m, m), False),
        ((0, width), (height, 1), (m, rest_j), False),
        ((height, 0), (1, width), (m, rest_i), True),
        ((height, width), (1, 1), (corner, corner), False),
    ]
    grids = []
    for (i, j), sides, (long, short), turned in kinds:
        if min(*sides, short) == 0:
            continue
        form = FORMS.index((side, r, long, short))
        places = [(a, b) for a in range(long + r - 1) for b in range(short + r - 1)]
        points = [(PLACES[side][long + r - 1][a], PLACES[side][short + r - 1][b]) for a, b in places]
        outputs = [(a, b) for a in range(long) for b in range(short)]
        if turned:
            places, points, outputs = ([(b, a) for a, b in pairs] for pairs in (places, points, outputs))
        i, j = i * m, j * m
        reads = [(i + a - pad, j + b - pad, side * p + q) for (a, b), (p, q) in zip(places, points, strict=True)]
        writes = [(i + a, j + b, 0) for a, b in outputs]
        common = *channels, shape.groups
        reads = make_grid(sides, m, image(read, number), common, reads, form)
        grids.append((reads, make_grid(sides, m, image(written, y_number), common, writes, form)))
    return grids
