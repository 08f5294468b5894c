"""kernels/image.py against plain NumPy."""

import numpy as np
import pytest

from knltrain.kernels import aligned_zeros, crop_normalize, mean_color, resample_normalize, transform_colors

TOLERANCE = {"float32": 1e-4}  # in units of one standard deviation

MEAN = np.array([123.7, 116.3, 103.5], np.float32)
INVERSE_STD = (1 / np.array([58.4, 57.1, 57.4])).astype(np.float32)


def picture(height, width):
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def crop_twin(image, top, left, mirror, size):
    margin = size + abs(top) + abs(left)
    normal = (image - MEAN.astype(np.float64)) * INVERSE_STD
    wide = np.pad(normal, ((margin, margin), (margin, margin), (0, 0)))
    cut = wide[margin + top : margin + top + size, margin + left : margin + left + size]
    return cut[:, ::-1] if mirror else cut


def axis_weights(n_in, begin, extent, n_out):
    """(n_out, n_in) weights of a triangle filter over [begin, begin + extent), rows sum to 1."""
    scale = extent / n_out
    centre = begin + (np.arange(n_out) + 0.5) * scale
    distance = np.abs(np.arange(n_in) + 0.5 - centre[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    weights[:, : int(begin)] = weights[:, int(np.ceil(begin + extent)) :] = 0
    return weights / weights.sum(1, keepdims=True)


def resample_twin(image, box, mirror, size):
    top, left, height, width = box
    down, across = axis_weights(image.shape[0], top, height, size), axis_weights(image.shape[1], left, width, size)
    part = np.einsum("py,yxc,qx->pqc", down, image.astype(np.float64), across, optimize=True)
    part = (part - MEAN) * INVERSE_STD
    return part[:, ::-1] if mirror else part


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "height, width, top, left, size",
    [
        (7, 103, 0, 50, 7),
        (33, 32, -4, -3, 32),
        (33, 32, 5, 4, 32),
        (9, 9, 2, 3, 1),
        (5, 6, -10, 0, 4),
        (5, 6, 0, 20, 4),
    ],
)
def test_crop__equals_padding_then_slicing(height, width, top, left, size, mirror):
    image, out = picture(height, width), np.full((size, size, 3), np.nan, np.float32)
    crop_normalize(image, top, left, mirror, MEAN, INVERSE_STD, out)
    np.testing.assert_allclose(out, crop_twin(image, top, left, mirror, size), atol=TOLERANCE["float32"])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "height, width, box, size",
    [
        (64, 48, (0, 0, 64, 48), 32),
        (64, 48, (13, 7, 41, 29), 32),
        (17, 23, (2, 3, 11, 9), 32),
        (103, 7, (0, 0, 103, 7), 5),
        (1, 1, (0, 0, 1, 1), 3),
        (64, 48, (13.25, 7.5, 40.75, 29.125), 32),
        (64, 48, (0.5, 47.25, 63.5, 0.75), 9),
    ],
)
def test_resample__equals_dense_weights(height, width, box, size, mirror):
    image, out = picture(height, width), np.full((size, size, 3), np.nan, np.float32)
    resample_normalize(image, box, mirror, MEAN, INVERSE_STD, out)
    np.testing.assert_allclose(out, resample_twin(image, box, mirror, size), atol=TOLERANCE["float32"])


def test_resample__stores_past_the_caches_what_it_stores_otherwise():
    image, box = picture(300, 401), (3.5, 20, 250, 300.25)
    floats = 224 * 224 * 3
    past, ordinary = (aligned_zeros(floats + 1)[start : start + floats].reshape(224, 224, 3) for start in (0, 1))
    for out in (past, ordinary):
        resample_normalize(image, box, True, MEAN, INVERSE_STD, out)
    np.testing.assert_array_equal(past, ordinary)
    np.testing.assert_allclose(past, resample_twin(image, box, True, 224), atol=TOLERANCE["float32"])


def test_resample__agrees_with_pillow_bilinear():
    Image = pytest.importorskip("PIL.Image")
    image, out = picture(90, 70), np.empty((32, 32, 3), np.float32)
    unit, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    resample_normalize(image, (5, 6, 77, 61), False, zero, unit, out)
    expected = Image.fromarray(image[5:82, 6:67]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(out - np.asarray(expected)).max() < 1.01  # Pillow rounds to integers after each of two passes


def test_kernels__reject_wrong_arrays():
    image, out = picture(8, 8), np.empty((4, 4, 3), np.float32)
    with pytest.raises(TypeError, match="float32"):
        crop_normalize(image, 0, 0, False, MEAN, INVERSE_STD, out.astype(np.float64))
    with pytest.raises(ValueError, match="C-contiguous"):
        crop_normalize(image[:, ::2], 0, 0, False, MEAN, INVERSE_STD, out)
    with pytest.raises(ValueError, match="inside a picture"):
        resample_normalize(image, (0, 0, 9, 8), False, MEAN, INVERSE_STD, out)
    with pytest.raises(ValueError, match="mean picture has shape"):
        crop_normalize(image, 0, 0, False, np.zeros((8, 9, 3), np.float32), INVERSE_STD, out)
    with pytest.raises(ValueError, match="cannot be resampled"):
        resample_normalize(image, (0, 0, 8, 8), False, np.zeros((8, 8, 3), np.float32), INVERSE_STD, out)
    with pytest.raises(ValueError, match="contiguous float32"):
        transform_colors(out.astype(np.float64), np.eye(3), np.zeros(3))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("top, left", [(2, 3), (-2, -3), (4, 9)])
def test_crop__subtracts_the_same_window_of_a_mean_picture(top, left, mirror):
    image, out = picture(9, 13), np.empty((6, 6, 3), np.float32)
    mean = picture(13, 9).reshape(9, 13, 3).astype(np.float32)
    crop_normalize(image, top, left, mirror, mean, INVERSE_STD, out)
    wide = np.pad((image - mean) * INVERSE_STD, ((9, 9), (9, 9), (0, 0)))
    cut = wide[9 + top : 15 + top, 9 + left : 15 + left]
    np.testing.assert_allclose(out, cut[:, ::-1] if mirror else cut, atol=TOLERANCE["float32"])


def test_colors__are_one_matrix():
    out = picture(7, 5).astype(np.float32)
    before, matrix, offset = out.copy(), np.random.default_rng(0).normal(size=(3, 3)), np.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(mean_color(out), before.reshape(-1, 3).mean(0), rtol=1e-6)
    transform_colors(out, matrix, offset)
    np.testing.assert_allclose(out, before @ matrix.T + offset, atol=1e-3)
