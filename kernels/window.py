"""Which part of a picture becomes a sample, and in which colours: drawn from (key, counter), nothing else.

Serial and without the GIL, as `image`. A window is in pixels of the stored picture and need not be whole numbers.
"""

import math

import numpy as np

from ._jit import inlined, kernel
from .random import uniform

ATTEMPTS = 10  # of a box of random area and aspect, before the centre is taken
LARGEST_SCALE = 1.875  # of the short side at level scale: 256 to 480 (Simonyan and Zisserman 2014)


@kernel
def center_window(height, width, crop, short_side):
    """(top, left, height, width) of the centre: crop x crop of the picture scaled to `short_side` (0: as it is)."""
    least = min(height, width)
    if short_side == 0 or short_side == least:
        side = min(crop, least)
        return float((height - side) // 2), float((width - side) // 2), float(side), float(side)
    side = least * min(1.0, crop / short_side)
    return (height - side) / 2, (width - side) / 2, side, side


@kernel
def random_window(key, height, width, crop, short_side, pad, scaled):
    """(top, left, height, width) of a random crop x crop part of the picture scaled to `short_side` (0: as it is).

    scaled: the short side is drawn from short_side to 1.875 times it first. pad: pixels around the picture that a
    crop may reach into, where the picture is not scaled. A crop that would not fit is as large as the short side.
    """
    least = min(height, width)
    target = float(least) if short_side == 0 else float(short_side)
    if scaled:
        target *= 1.0 + (LARGEST_SCALE - 1.0) * uniform(key, 3)
    if target == least:
        side = crop if crop <= least + 2 * pad else least
        room = pad if side == crop else 0
        top = int(uniform(key, 1) * (height + 2 * room - side + 1)) - room
        left = int(uniform(key, 2) * (width + 2 * room - side + 1)) - room
        return float(top), float(left), float(side), float(side)
    side = least * min(1.0, crop / target)
    return uniform(key, 1) * (height - side), uniform(key, 2) * (width - side), side, side


@kernel
def random_box(key, height, width, min_area):
    """(top, left, height, width) of a box of random area (share min_area..1) and aspect (3/4..4/3).

    Szegedy et al. 2015; torchvision's RandomResizedCrop.
    """
    for attempt in range(ATTEMPTS):
        area = height * width * (min_area + (1 - min_area) * uniform(key, 4 * attempt + 1))
        aspect = math.exp((2 * uniform(key, 4 * attempt + 2) - 1) * math.log(4 / 3))
        h, w = max(1, round(math.sqrt(area / aspect))), max(1, round(math.sqrt(area * aspect)))
        if h <= height and w <= width:
            top = int(uniform(key, 4 * attempt + 3) * (height - h + 1))
            left = int(uniform(key, 4 * attempt + 4) * (width - w + 1))
            return float(top), float(left), float(h), float(w)
    # a very long picture: its centre, as near to the allowed aspects as it can be
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return float((height - h) // 2), float((width - w) // 2), float(h), float(w)


# ---- colours -------------------------------------------------------------------------------------------------

JITTER = 0.4  # brightness, contrast and saturation are each drawn from 1 - JITTER to 1 + JITTER
LIGHTING = 0.1  # standard deviation along each principal component of ImageNet's colours (Krizhevsky et al. 2012)
GRAY = np.array([0.299, 0.587, 0.114])
COMPONENTS = 255.0 * np.array(  # eigenvectors (columns) times eigenvalues, red green blue, in units of 0..255
    [
        [-0.5675 * 0.2175, 0.7192 * 0.0188, 0.4009 * 0.0045],
        [-0.5808 * 0.2175, -0.0045 * 0.0188, -0.8140 * 0.0045],
        [-0.5836 * 0.2175, -0.6948 * 0.0188, 0.4203 * 0.0045],
    ]
)
_COLOR_COUNTER = 1000  # draws of colours, behind those of the window


@kernel
def random_colors(key, color):
    """(3, 4) float64: the change of colours x -> A[:, :3] @ x + A[:, 3] of a picture whose mean colour is `color`.

    Brightness, contrast and saturation in random order, each a blend with weight 1 - JITTER .. 1 + JITTER with black,
    the mean gray, or the pixel's own gray; then a shift along the principal components. All of these are linear in
    the pixel, so one 3 x 4 matrix holds them (fb.resnet.torch: ColorJitter 0.4, Lighting 0.1; nothing is clipped).
    """
    change = np.zeros((3, 4))
    for c in range(3):
        change[c, c] = 1.0
    order = int(6 * uniform(key, _COLOR_COUNTER))
    for turn in range(3):
        kind = _permuted(order, turn)
        weight = 1.0 - JITTER + 2 * JITTER * uniform(key, _COLOR_COUNTER + 1 + kind)
        if kind == 1:  # contrast: the mean gray of the picture as it is by now
            gray = 0.0
            for c in range(3):
                value = change[c, 3]
                for d in range(3):
                    value += change[c, d] * color[d]
                gray += GRAY[c] * value
            change *= weight
            change[:, 3] += (1 - weight) * gray
        elif kind == 2:  # saturation: every pixel's own gray
            grays = np.zeros(4)
            for c in range(3):
                grays += GRAY[c] * change[c]
            change *= weight
            for c in range(3):
                change[c] += (1 - weight) * grays
        else:
            change *= weight
    for j in range(3):
        amount = LIGHTING * _normal(key, _COLOR_COUNTER + 4 + 2 * j)
        for c in range(3):
            change[c, 3] += amount * COMPONENTS[c, j]
    return change


@inlined
def _permuted(order, turn):
    """Element `turn` of permutation number `order` (0..5) of 0, 1, 2."""
    first = order // 2
    if turn == 0:
        return first
    low = 1 if first == 0 else 0
    high = 3 - first - low
    return low if (turn == 1) == (order % 2 == 0) else high


@inlined
def _normal(key, j):
    """A standard normal number from draws j and j + 1 (Box and Muller 1958)."""
    return math.sqrt(-2.0 * math.log(1.0 - uniform(key, j))) * math.cos(2.0 * math.pi * uniform(key, j + 1))
