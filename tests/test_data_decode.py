"""knltrain/data/decode.py: the pixels Pillow would give, or a reason."""

import csv
import importlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
module = importlib.import_module("knltrain.data.decode")
decode, DecodeError = module.decode, module.DecodeError

SHARED = Path(os.environ.get("KNLTRAIN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
ODD = SHARED / "odd-jpegs"
TOLERANCE = {"mean": 0.05, "jpeg": 12}  # of a mean colour; of a pixel after JPEG at quality 95


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], 2).astype(np.uint8)


def saved(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    """Each test with both decoders, and with Pillow alone."""
    if request.param == "Pillow":
        monkeypatch.setattr(module, "simplejpeg", None)
    elif module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


@pytest.mark.skipif(not ODD.is_dir(), reason="no shared/data/odd-jpegs")
def test_decode__handles_every_odd_file(decoder):
    rows = list(csv.DictReader((ODD / "manifest.csv").read_text().splitlines()))
    assert len(rows) == 25
    for row in rows:
        data = (ODD / row["file"]).read_bytes()
        if row["pillow"].startswith("ok"):
            pixels = decode(data)
            mean = [float(row[f"mean_{c}"]) for c in "rgb"]
            np.testing.assert_allclose(pixels.mean((0, 1)), mean, atol=TOLERANCE["mean"], err_msg=row["file"])
            turned = row["exif_orientation"] in tuple("5678")
            assert pixels.shape == tuple(int(row[k]) for k in ("height", "width")[:: -1 if turned else 1]) + (3,)
            assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
        else:
            with pytest.raises(DecodeError, match="."):
                decode(data)


@pytest.mark.skipif(not ODD.is_dir(), reason="no shared/data/odd-jpegs")
def test_decode__gives_the_same_bits_with_either_decoder(monkeypatch):
    names = ["progressive_650.jpg", "sampling_411.jpg", "sampling_422_odd_width.jpg", "sampling_420_odd_both.jpg"]
    fast = [decode((ODD / name).read_bytes()) for name in names]
    monkeypatch.setattr(module, "simplejpeg", None)
    for name, pixels in zip(names, fast, strict=True):
        np.testing.assert_array_equal(pixels, decode((ODD / name).read_bytes()), err_msg=name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode__turns_like_exif_transpose(decoder, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(smooth(17, 31)), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(expected))
    assert module.is_plain_jpeg(data) == (kind == "JPEG" and orientation == 1)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_decode__converts_every_jpeg_mode(decoder, mode):
    image = Image.fromarray(smooth(24, 24)).convert(mode)
    data = saved(image, quality=95, subsampling=0)
    np.testing.assert_allclose(decode(data), np.asarray(image.convert("RGB")), atol=TOLERANCE["jpeg"])
    assert module.is_plain_jpeg(data) == (mode != "CMYK")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_decode__drops_alpha_and_palette(mode):
    image = Image.fromarray(smooth(24, 24)).convert(mode)
    np.testing.assert_array_equal(decode(saved(image, "PNG")), np.asarray(image.convert("RGB")))


def test_decode__refuses_every_truncation(decoder):
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    for length in range(0, len(data) - 40, 37):
        with pytest.raises(DecodeError):
            decode(data[:length])


def test_decode__refuses_a_hole_in_the_data():
    if module.simplejpeg is None:
        pytest.skip("Pillow alone does not notice it")
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)))
    with pytest.raises(DecodeError):
        decode(data[: len(data) // 2] + b"\xff\xd9")


def test_decode__survives_random_damage(decoder):
    data = bytearray(saved(Image.fromarray(smooth(40, 40)), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"))
    random = np.random.default_rng(1)
    for _ in range(200):
        damaged = data.copy()
        for at in random.integers(0, len(data), 4):
            damaged[at] = random.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert decode(damaged).shape[2] == 3
            except DecodeError:
                pass


def test_decode__refuses_a_bomb(decoder, monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DecodeError, match="11 x 10 pixels, more than 100"):
            decode(saved(Image.fromarray(smooth(10, 11)), kind))


def test_decode__says_how_to_get_a_decoder(monkeypatch):
    monkeypatch.setattr(module, "simplejpeg", None)
    monkeypatch.setattr(module, "Image", None)
    with pytest.raises(ImportError, match=r"pip install knltrain\[jpeg\]"):
        decode(b"x")


def test_fit__scales_the_short_side_and_cuts_the_centre():
    pixels = smooth(90, 60)
    assert module.fit_short_side(pixels, 30).shape == (45, 30, 3)
    assert module.fit_short_side(pixels, 60) is pixels
    np.testing.assert_array_equal(module.fit_square(pixels, 60), pixels[15:75])
    shrunk = module.fit_square(pixels, 30)
    assert shrunk.shape == (30, 30, 3)
    np.testing.assert_allclose(shrunk.mean((0, 1)), pixels[15:75].mean((0, 1)), atol=1)
    assert module.fit_square(pixels, 100).shape == (100, 100, 3)


def test_encode__is_plain_and_close():
    data = module.encode_jpeg(smooth(33, 47))
    assert module.is_plain_jpeg(data)
    np.testing.assert_allclose(decode(data), smooth(33, 47), atol=TOLERANCE["jpeg"])
