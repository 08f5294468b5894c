"""Which part of a picture becomes the sample, in which colours: drawn from a hash of (seed, epoch, row).

So a sample does not depend on which thread, rank or step makes it. What is drawn and how pixels move is in kernels,
which run without the interpreter's lock; here it is put together, by level.
"""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np

from knltrain.kernels import (
    center_window,
    crop_normalize,
    mean_color,
    random_box,
    random_colors,
    random_window,
    resample_normalize,
    sample_key,
    transform_colors,
    uniform,
)

from .decode import MAX_PIXELS, decode_part, jpeg_header

LEVELS = ("none", "crop_flip", "scale", "scale_aspect", "color")
MIRRORS = ("random", "alternate")
PURPOSE = 1  # of the random numbers; dropout's differ
_CUTOUT_COUNTER = 2000  # draws of the blank square, behind those of window and colours
_MIX_COUNTER = 3000  # draws of the shares in which samples are mixed
SHRINKS = (8, 4, 2)  # by which a JPEG can be shrunk while it is decoded, fast


class Window(NamedTuple):
    """Part of a picture, in its pixels. If it has the size of the crop it is copied, and may reach over the edge."""

    top: float
    left: float
    height: float
    width: float
    mirror: bool


@dataclass(eq=False)
class Augment:
    """Cut, mirror and normalize: picture (H, W, 3) uint8 → sample (crop, crop, 3) float32.

    level: none: the centre. crop_flip: a random crop, mirrored half of the time (as all that follow). scale: the same
    after scaling by a random factor 1..1.875. scale_aspect: a box of random area and aspect (3/4..4/3), resampled.
    color: that, and brightness, contrast, saturation and lighting changed.

    mirror: random: in each epoch anew; alternate: in every second one, beginning at random for each picture, so that
    two epochs show both (Jordan 2024, arXiv:2404.00498).
    cutout: DeVries and Taylor 2017, arXiv:1708.04552; its centre lies anywhere in the sample. Not at level none.
    mixup: Zhang et al. 2018, arXiv:1710.09412; the samples of a slot are mixed when all are there (`mix`).

    A picture smaller than the crop is enlarged. Raises ValueError for an unknown level or a number out of range.
    """

    level: str
    crop: int  # pixels, side of the sample
    mean: np.ndarray  # 3 numbers, 0..255, or for level none and crop_flip a picture (H, W, 3) as large as all others
    std: np.ndarray  # 3 numbers, 0..255; (256, 256, 256) is Caffe's scale of 1/256
    _: KW_ONLY
    seed: int = 0  # of the whole run
    pad: int = 0  # pixels of mean colour around a picture, into which crop_flip may reach
    min_area: float = 0.25  # share of the picture, 0..1, that a scale_aspect box has at least
    short_side: int = 0  # pixels to which a picture's is scaled before none, crop_flip, scale cut; 0: as it is stored
    cutout: int = 0  # pixels, side of a square of mean colour laid over the sample; 0: none
    mirror: str = "random"  # when a picture is mirrored
    mixup: float = 0.0  # a of the distribution Beta(a, a) of the shares in which two samples are mixed; 0: they are not
    max_pixels: int = MAX_PIXELS  # of a stored JPEG, which is refused if it claims more

    def __post_init__(self):
        if self.level not in LEVELS:
            raise ValueError(f"augmentation {self.level!r}: expected one of {', '.join(LEVELS)}")
        if self.mirror not in MIRRORS:
            raise ValueError(f"mirror {self.mirror!r}: expected one of {', '.join(MIRRORS)}")
        self.mean = np.ascontiguousarray(self.mean, np.float32)
        self.inverse_std = (1 / np.asarray(self.std, np.float64)).astype(np.float32)
        sizes = (self.pad, self.short_side, self.cutout)
        good = self.crop > 0 and min(sizes) >= 0 and 0 < self.min_area <= 1 and self.inverse_std.shape == (3,)
        if not (good and 0 <= self.mixup <= 1):
            found = f"crop {self.crop}, pad, short_side, cutout {sizes}, min_area {self.min_area}, std {self.std}"
            found += f", mixup {self.mixup}"
            wanted = "crop > 0, pad, short_side and cutout >= 0, min_area in (0, 1], three numbers, mixup in [0, 1]"
            raise ValueError(f"{found}: expected {wanted}")
        if self.mean.shape != (3,) and not (self.mean.ndim == 3 and self.level in ("none", "crop_flip")):
            raise ValueError(
                f"mean of shape {self.mean.shape} with augmentation {self.level}: expected three numbers, or a mean "
                "picture (height, width, 3) with none or crop_flip"
            )
        self.cutout, self.mixup = (0, 0.0) if self.level == "none" else (self.cutout, self.mixup)

    def window(self, height: int, width: int, epoch: int, row: int) -> Window:
        """The part of a picture of this size that is the sample of (seed, epoch, row)."""
        if self.level == "none":
            return Window(*center_window(height, width, self.crop, self.short_side), False)
        key = self._key(epoch, row)
        if self.mirror == "random":
            mirror = bool(uniform(key, 0) < 0.5)
        else:
            mirror = bool(uniform(self._key(0, row), 0) < 0.5) != bool(epoch % 2)
        if self.level in ("crop_flip", "scale"):
            scaled = self.level == "scale"
            return Window(*random_window(key, height, width, self.crop, self.short_side, self.pad, scaled), mirror)
        return Window(*random_box(key, height, width, self.min_area), mirror)

    def apply(self, image: np.ndarray, epoch: int, row: int, out: np.ndarray) -> None:
        """Write the sample of (seed, epoch, row) to out, (crop, crop, 3) float32."""
        self.cut(image, self.window(image.shape[0], image.shape[1], epoch, row), epoch, row, out)

    def mix(self, images: np.ndarray, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Mix each sample of a slot, (N, crop, crop, 3) float32, with the next one, the last with the first, in place.

        Returns the shares of the samples' own pictures, (N,) float32, each a function of (seed, epoch, row).
        """
        shares = np.array([_beta(self._key(epoch, row), self.mixup) for row in rows.tolist()], np.float32)
        first = images[0].copy()
        for sample, other, share in zip(images, [*images[1:], first], shares, strict=True):
            sample *= share
            sample += (1 - share) * other
        return shares

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Samples as pixels again, uint8, clipped to what can be shown; of a mean picture its colour is undone."""
        colour = self.mean if self.mean.ndim == 1 else self.mean.mean((0, 1))
        return np.clip(np.rint(images / self.inverse_std + colour), 0, 255).astype(np.uint8)

    def decode(self, data: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, Window]:
        """Of a stored JPEG, (bytes,) uint8: as much of its pixels as `cut` needs, and the window there.

        What lies below the window is not decoded. Where a window is drawn at random, the picture is shrunk while it is
        decoded as long as the window stays as large as the crop, which is faster and changes pixels a little (see
        docs/shards.md); level none, an evaluation's, has the picture's own. `data` may be changed. Raises: DecodeError
        """
        header = jpeg_header(data, self.max_pixels)
        window = self.window(header.height, header.width, epoch, row)
        least = min(window.height, window.width)
        shrinks = () if self.level == "none" else SHRINKS
        shrink = next((factor for factor in shrinks if least >= factor * self.crop), 1)
        pixels = decode_part(data, header, window.top + window.height, shrink)
        if shrink > 1:
            top, left, height, width = (value / shrink for value in window[:4])
            window = Window(top, left, min(height, len(pixels) - top), width, window.mirror)
        return pixels, window

    def cut(self, image: np.ndarray, window: Window, epoch: int, row: int, out: np.ndarray) -> None:
        """Write a window of a picture to out, (crop, crop, 3) float32, normalized."""
        top, left, height, width, mirror = window
        if self.level == "color":
            resample_normalize(image, window[:4], mirror, _NOTHING, _ONE, out)
            change = random_colors(self._key(epoch, row), mean_color(out))
            change[:, 3] -= self.mean
            change *= self.inverse_std[:, None]
            transform_colors(out, change[:, :3], change[:, 3])
        elif height == width == self.crop and top == int(top) and left == int(left):
            crop_normalize(image, top, left, mirror, self.mean, self.inverse_std, out)
        else:
            resample_normalize(image, window[:4], mirror, self.mean, self.inverse_std, out)
        if self.cutout:
            top, left = (int(uniform(self._key(epoch, row), _CUTOUT_COUNTER + i) * self.crop) for i in (0, 1))
            top, left = top - self.cutout // 2, left - self.cutout // 2
            out[max(0, top) : max(0, top + self.cutout), max(0, left) : max(0, left + self.cutout)] = 0

    def _key(self, epoch, row):
        # back from Python the key is an int, and one above 2**63 would not be taken for a uint64
        return np.uint64(sample_key(self.seed, epoch, row, PURPOSE))


def _beta(key, a: float) -> float:
    """A number of Beta(a, a), 0 < a <= 1, from the stream `key`: Jöhnk 1964."""
    counter = _MIX_COUNTER
    while True:
        x, y = (uniform(key, counter + i) ** (1 / a) for i in (0, 1))
        if 0 < x + y <= 1:
            return x / (x + y)
        counter += 2


_NOTHING, _ONE = np.zeros(3, np.float32), np.ones(3, np.float32)
