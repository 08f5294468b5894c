"""A data set without a disk, for measuring everything else: a few random pictures over and over."""

import numpy as np

from .arrays import Arrays


class Synthetic(Arrays):
    """n_rows pictures of size x size in `classes` classes; all follows from the seed.

    Row r shows picture r % pictures, so memory does not grow with n_rows; labels are random.
    """

    def __init__(self, n_rows: int, size: int, classes: int, *, seed: int = 0, pictures: int = 64):
        random = np.random.default_rng(seed)
        labels = random.integers(0, classes, n_rows, dtype=np.int32)
        images = random.integers(0, 256, (min(pictures, n_rows), size, size, 3), dtype=np.uint8)
        super().__init__(images, labels[: len(images)], [f"class{label:04d}" for label in range(classes)])
        self.labels, self.page_rows = labels, max(1, n_rows // 256)

    def image(self, row: int) -> np.ndarray:
        return self._images[row % len(self._images)]
