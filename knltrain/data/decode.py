"""File bytes to RGB pixels, and RGB pixels to a stored size.

simplejpeg (libjpeg-turbo without the GIL) reads ordinary JPEG files; Pillow reads all the others. Both give the same
pixels, to the bit, where both can. Whoever wants neither can train from raw shards, which need no decoder.
"""

import io
import struct
import threading
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    from PIL import Image
except ImportError:
    Image = None

MAX_PIXELS = 89_478_485  # Pillow's own limit: a picture that decodes to more than 256 MiB is taken for a bomb
LARGE_PIXELS = 16_000_000  # pictures above are converted one at a time: 256 MiB each, on 68 cores, is too much
MAX_SCANS, MAX_SCANNED = 100, 600_000_000  # passes over a JPEG, and these times its pixels: seconds of decoding
_one_large = threading.Lock()
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")  # never the formats for which Pillow starts other programs


class DecodeError(ValueError):
    """The bytes are not a whole picture; the message is the reason."""


def require_decoder() -> None:
    """Raise ImportError with the cure if no decoder is installed."""
    if simplejpeg is None and Image is None:
        raise ImportError("found neither simplejpeg nor Pillow to read pictures with: pip install knltrain[jpeg]")


def decode(data: bytes) -> np.ndarray:
    """Decode a picture to RGB, (H, W, 3) uint8, C-contiguous, writeable.

    EXIF orientation is applied; gray, CMYK and palette pictures become RGB as in Pillow's convert("RGB"); alpha is
    dropped.

    Raises: DecodeError with the reason; ImportError if no decoder is installed.
    """
    require_decoder()
    data = bytes(data)
    if not data:
        raise DecodeError("empty file")
    _check_scans(data, _pixels)
    start, stop = _find_exif(data)
    if _is_ordinary(data):
        try:
            return upright(simplejpeg.decode_jpeg(data, "RGB"), _orientation(data[start + 10 : stop]))
        except ValueError as error:
            # libjpeg went on with gray or garbage: Pillow would do the same without a word
            if "premature end" in str(error).lower() or "huffman" in str(error).lower():
                raise DecodeError(str(error)) from None
    # Pillow parses EXIF while it opens a file and warns when it is broken, so it gets the file without
    pixels, tiff = _decode_with_pillow(data[:start] + data[stop:])
    return upright(pixels, _orientation(data[start + 10 : stop] or tiff))


def to_stored(data: bytes, encoding: str, size: int, fit: str = "crop") -> np.ndarray | bytes:
    """What is stored of a picture file: raw (size, size, 3) uint8, or JPEG bytes, untouched where they fit.

    fit: of raw ones: crop, the centre square; warp, the whole picture.

    Raises: DecodeError if the file is not a whole picture.
    """
    with _one_large if _pixels(data) > LARGE_PIXELS else nullcontext():
        pixels = decode(data)
        if encoding == "raw":
            return (fit_warp if fit == "warp" else fit_square)(pixels, size)
        if size in (0, min(pixels.shape[:2])) and is_plain_jpeg(data):
            return data
        if max(pixels.shape[:2]) * (size or 1) > 65_500 * (min(pixels.shape[:2]) if size else 1):  # a side's limit
            raise DecodeError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too long a strip for JPEG")
        return encode_jpeg(fit_short_side(pixels, size) if size else pixels)


def fit_stored(pixels: np.ndarray, encoding: str, size: int, fit: str = "crop") -> np.ndarray:
    """A picture (H, W, 3) uint8 as large as `to_stored` would store it."""
    if size == 0:
        return pixels
    if encoding == "jpeg":
        return fit_short_side(pixels, size)
    return (fit_warp if fit == "warp" else fit_square)(pixels, size)


def _pixels(data):
    """How many pixels the header of a file promises; 0 where it cannot be read."""
    try:
        if data[:2] == b"\xff\xd8" and simplejpeg is not None:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        else:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                height, width = image.height, image.width
        return height * width
    except Exception:  # decode will say what is wrong
        return 0


def is_plain_jpeg(data: bytes) -> bool:
    """True for a YCbCr or gray JPEG that needs no rotation: its bytes can be stored as they are."""
    start, stop = _find_exif(data)
    if _orientation(data[start + 10 : stop]) != 1:
        return False
    if simplejpeg is not None:
        return _is_ordinary(data)
    return data[:2] == b"\xff\xd8" and Image.open(io.BytesIO(data), formats=["JPEG"]).mode in ("RGB", "L")


class JpegHeader(NamedTuple):
    """What a stored JPEG says of itself; `at` is where its height stands, 0 where that may not be changed."""

    height: int
    width: int
    at: int
    mcu: int  # rows that are coded together


def jpeg_header(data: np.ndarray, max_pixels: int = MAX_PIXELS) -> JpegHeader:
    """Read the frame header of a JPEG, (bytes,) uint8.

    Raises: DecodeError if there is none, if it claims more than max_pixels, or if the file does not end as a JPEG does.
    """
    at, head = 2, memoryview(data)
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", head, at + 5)
            if height * width > max_pixels:
                raise DecodeError(f"{width} x {height} pixels, more than {max_pixels} are refused")
            if data[at:].tobytes().rfind(b"\xff\xd9") < 0:  # the decoder would fill the rest with gray
                raise DecodeError("cut short, no end of image")
            samplings = head[at + 11 : at + 10 + 3 * components : 3]
            mcu = 8 * max((sampling & 15 for sampling in samplings), default=1)
            return JpegHeader(height, width, at + 5 if marker in (0xC0, 0xC1) else 0, mcu)
        at += 1 if marker == 0xFF else 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    raise DecodeError("no frame header")


def decode_part(data: np.ndarray, header: JpegHeader, bottom: float, shrink: int) -> np.ndarray:
    """Decode a stored JPEG only as far as it is needed, (h, w, 3) uint8.

    The picture is shrunk 1, 2, 4 or 8 times by the size of its cosine transforms; what lies below row `bottom` of the
    whole picture is left out, where the file is a sequential one, by telling the decoder of a lower picture: `data` is
    changed. A row that is there has the same pixels as in the whole picture.

    Raises: DecodeError
    """
    _check_scans(data.tobytes(), lambda _: header.height * header.width)
    if simplejpeg is None:
        return _decode_shrunk(data.tobytes(), header, shrink)
    height = header.height
    rows = (int(bottom) // header.mcu + 2) * header.mcu  # one more, as smooth chroma looks across the border
    if header.at and rows < height and header.mcu <= 32:
        height = rows
        data[header.at : header.at + 2] = divmod(height, 256)
    expected = -(-height // shrink), -(-header.width // shrink), 3
    least = {"min_height": expected[0], "min_width": expected[1]} if shrink > 1 else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=False, **least)
    except ValueError as error:
        raise DecodeError(str(error)) from None
    if pixels.shape != expected:
        raise DecodeError(f"{pixels.shape} pixels, expected {expected}")
    return pixels


def _decode_shrunk(data, header, shrink):
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.draft("RGB", (header.width // shrink, header.height // shrink))
        return np.array(image.convert("RGB"))


def fit_warp(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale to (size, size, 3) uint8 whatever the aspect was, as Caffe's convert_imageset does."""
    return pixels if pixels.shape[:2] == (size, size) else _resize(pixels, (size, size), None)


def fit_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale the short side to `size` and cut out the centre: (size, size, 3) uint8. Unchanged where it has that size.

    The filter is Pillow's BICUBIC, which is antialiased when it shrinks.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if side == size:
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    return _resize(pixels, (size, size), (left, top, left + side, top + side))


def fit_short_side(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale so that the short side is `size`, keeping the aspect: (H, W, 3) uint8. Unchanged where it has that size."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    if side == size:
        return pixels
    return _resize(pixels, (max(size, round(width * size / side)), max(size, round(height * size / side))), None)


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """RGB pixels (H, W, 3) uint8 to JPEG, without chroma subsampling."""
    require_pillow()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, 3) by their EXIF orientation 1..8."""
    if orientation == 1:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def require_pillow() -> None:
    """Raise ImportError with the cure if Pillow is not installed."""
    if Image is None:
        raise ImportError("found no Pillow to resize or re-encode pictures with: pip install knltrain[jpeg]")


def _resize(pixels, size, box):
    require_pillow()
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box))


def _check_scans(data, pixels):
    """Refuse a JPEG that would be decoded for a long time: each scan goes over the whole picture again.

    pixels: a function of the data, which is asked only where there is more than one scan.
    """
    scans = data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 0
    if scans > MAX_SCANS or (scans > 1 and scans * pixels(data) > MAX_SCANNED):
        raise DecodeError(f"{scans} scans over the picture, more than are wanted to decode it in a second or two")


def _is_ordinary(data):
    """True if simplejpeg should read it: one or three components (YCbCr), not too large."""
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return False
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return colorspace in ("YCbCr", "Gray") and 0 < height * width <= MAX_PIXELS


def _decode_with_pillow(data):
    """Pixels (H, W, 3) and, of a PNG or WebP, the EXIF block."""
    if Image is None:
        raise DecodeError("not an ordinary JPEG, and Pillow is not installed: pip install knltrain[jpeg]")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS} are refused")
            return np.array(image.convert("RGB")), image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    except DecodeError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DecodeError(reason) from None


def _find_exif(data):
    """Where the EXIF segment of a JPEG begins and ends; (0, 0) where there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xD9, 0xDA):
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return at, min(at + 2 + length, len(data))
        at += 2 + max(length, 2)
    return 0, 0


def _orientation(tiff):
    """Orientation 1..8 in the TIFF block of an EXIF segment; 1 where it is absent or cannot be read."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3 and count == 1:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # a broken block says nothing about the orientation
    return 1
