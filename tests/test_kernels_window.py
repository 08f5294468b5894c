"""kernels/window.py: what is drawn has the right distribution and stays in the picture."""

import itertools

import numpy as np
import pytest

from knltrain.kernels import center_window, random_box, random_colors, random_window, sample_key, uniform
from knltrain.kernels.window import COMPONENTS, GRAY, JITTER, LIGHTING

SHAPES = ((20, 31), (16, 16), (200, 20), (8, 300), (1, 1), (375, 500))


def keys(count):
    return [np.uint64(sample_key(1, 2, row, 1)) for row in range(count)]


@pytest.mark.parametrize("short_side", [0, 16, 24, 256])
@pytest.mark.parametrize("height, width", SHAPES)
def test_windows__stay_in_the_picture(height, width, short_side):
    windows = [center_window(height, width, 16, short_side)]
    for key in keys(40):
        windows += [random_window(key, height, width, 16, short_side, 0, scaled) for scaled in (False, True)]
        windows.append(random_box(key, height, width, 0.08))
    for top, left, h, w in windows:
        assert top >= 0 and left >= 0 and h > 0 and w > 0
        assert top + h <= height + 1e-9 and left + w <= width + 1e-9


def test_center__is_the_crop_of_the_scaled_picture():
    # 224 of a short side of 256, as evaluations have it: 7/8 of the short side, from the middle
    np.testing.assert_allclose(center_window(512, 768, 224, 256), (32, 160, 448, 448))
    assert center_window(256, 256, 227, 256) == center_window(256, 256, 227, 0) == (14, 14, 227, 227)


def test_scale__reaches_from_once_to_nearly_twice():
    sides = np.array([random_window(key, 256, 320, 224, 256, 0, True)[2] for key in keys(2000)])
    short_sides = 224 / sides * 256
    assert 256 <= short_sides.min() < 260 and 476 < short_sides.max() <= 480
    assert abs(short_sides.mean() - 368) < 5


def colors_twin(key, picture):
    """Brightness, contrast, saturation in the drawn order, each as a blend of whole pictures; then lighting."""
    order = list(itertools.permutations(range(3)))[int(6 * uniform(key, 1000))]
    for kind in order:
        weight = 1 - JITTER + 2 * JITTER * uniform(key, 1001 + kind)
        gray = picture @ GRAY
        other = (np.zeros_like(picture), np.full_like(picture, gray.mean()), np.repeat(gray[..., None], 3, 2))[kind]
        picture = weight * picture + (1 - weight) * other
    draws = [uniform(key, 1004 + j) for j in range(6)]
    normal = [np.sqrt(-2 * np.log(1 - draws[2 * j])) * np.cos(2 * np.pi * draws[2 * j + 1]) for j in range(3)]
    return picture + COMPONENTS @ (LIGHTING * np.array(normal))


def test_colors__are_those_of_blending_pictures():
    picture = np.random.default_rng(0).uniform(0, 255, (6, 7, 3))
    seen = set()
    for key in keys(40):
        change = random_colors(key, picture.mean((0, 1)))
        np.testing.assert_allclose(picture @ change[:, :3].T + change[:, 3], colors_twin(key, picture), atol=1e-9)
        seen.add(int(6 * uniform(key, 1000)))
    assert seen == set(range(6))


def test_colors__lighting_has_the_deviation_of_the_paper():
    shifts = np.array([random_colors(key, np.zeros(3))[:, 3] for key in keys(4000)])
    expected = LIGHTING * np.sqrt((COMPONENTS**2).sum(1))
    np.testing.assert_allclose(shifts.std(0), expected, rtol=0.05)
    assert (np.abs(shifts.mean(0)) < 0.1 * expected).all()
