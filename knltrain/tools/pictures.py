"""Pictures for the demo: eight shapes, drawn so that only the shape tells the class.

Colours, place, size, angle, clutter and noise are drawn at random for each picture from a generator keyed by (split,
class, number): the same files on every machine. A shape is a signed distance d(u, v) in its own rotated frame, about
1 in radius, negative inside; its edge is antialiased by letting coverage fall from 1 to 0 over one pixel.
"""

import io
from pathlib import Path

import numpy as np

SIZE = 64  # pixels


def disk(u, v):
    return np.hypot(u, v) - 1


def ring(u, v):
    return np.abs(np.hypot(u, v) - 0.78) - 0.22


def square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def triangle(u, v):
    sides = [u * np.cos(a) + v * np.sin(a) for a in (np.pi / 2, np.pi * 7 / 6, np.pi * 11 / 6)]
    return np.maximum.reduce(sides) - 0.55


def cross(u, v):
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(long - 1, short - 0.3)


def star(u, v):
    """Five points: fold the plane into one half-point, where the star is one side of a line."""
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(v, u) + fifth / 2) % fifth - fifth / 2)
    inner = 0.42 * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    edge = inner - [1, 0]
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    return (x - 1) * normal[0] + y * normal[1]


def stripes(u, v):
    return np.maximum(disk(u, v), np.abs(u % 0.6 - 0.3) - 0.15)


def checker(u, v):
    cells = np.sin(np.pi * u / 0.5) * np.sin(np.pi * v / 0.5)
    return np.maximum(disk(u, v), cells * 0.5 / np.pi)


SHAPES = (checker, cross, disk, ring, square, star, stripes, triangle)
CLASS_NAMES = tuple(shape.__name__ for shape in SHAPES)


def picture(shape, rng: np.random.Generator) -> np.ndarray:
    """One picture of `shape`, (SIZE, SIZE, 3) uint8."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]  # the picture spans [-1, 1] in both directions
    pixel = 2 / SIZE
    back, fore = _two_colours(rng)
    slope = rng.uniform(-40, 40, (2, 3))
    canvas = back + x[..., None] * slope[0] + y[..., None] * slope[1]
    for _ in range(rng.integers(3, 8)):  # clutter: soft blobs in any colour
        cx, cy, width = *rng.uniform(-1, 1, 2), rng.uniform(0.05, 0.16)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        canvas = _blend(canvas, rng.uniform(0, 255, 3), 0.7 * blob)
    radius, turn = rng.uniform(0.42, 0.72), rng.uniform(0, 2 * np.pi)
    cx, cy = rng.uniform(-1, 1, 2) * (0.95 - radius)
    u = ((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) / radius
    v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / radius
    canvas = _blend(canvas, fore, np.clip(0.5 - shape(u, v) * radius / pixel, 0, 1))
    canvas += rng.normal(0, rng.uniform(3, 16), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def render(folder: Path, split: str, per_class: int):
    """Write folder/<class>/NNNN.jpg, `per_class` of each.

    Needs Pillow. The same split and number give the same picture whatever `per_class` is.
    """
    from PIL import Image

    for label, (name, shape) in enumerate(zip(CLASS_NAMES, SHAPES, strict=True)):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([*split.encode(), label, number])
            data = io.BytesIO()
            Image.fromarray(picture(shape, rng)).save(data, "JPEG", quality=90)
            (folder / name / f"{number:04}.jpg").write_bytes(data.getvalue())


def _two_colours(rng):
    """Two random colours, (3,) each, far enough apart to be told from each other."""
    while True:
        one, other = rng.uniform(20, 235, (2, 3))
        if np.linalg.norm(one - other) > 110:
            return one, other


def _blend(canvas, colour, coverage):
    """canvas (H, W, 3) covered by `colour` (3,) to the share `coverage` (H, W)."""
    return canvas + (colour - canvas) * coverage[..., None]
