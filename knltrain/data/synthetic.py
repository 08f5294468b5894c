"""A data set without a disk, for measuring everything else: a few random pictures over and over."""

import numpy as np


class Synthetic:
    """Stands in for a DataSet of `n_rows` pictures of size x size in `classes` classes.

    Row r shows picture r % pictures, so memory does not grow with n_rows; labels are random. All follows from the seed.
    """

    encoding = "raw"

    def __init__(self, n_rows: int, size: int, classes: int, *, seed: int = 0, pictures: int = 64):
        random = np.random.default_rng(seed)
        self.n_rows, self.size = n_rows, size
        self.class_names = [f"class{label:04d}" for label in range(classes)]
        self.labels = random.integers(0, classes, n_rows, dtype=np.int32)
        self.page_rows = max(1, n_rows // 256)
        self._images = random.integers(0, 256, (min(pictures, n_rows), size, size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self.n_rows

    def image(self, row: int) -> np.ndarray:
        """The picture of a row, (size, size, 3) uint8; shared, not to be written to."""
        return self._images[row % len(self._images)]

    def read(self, row: int, scratch: np.ndarray | None = None) -> np.ndarray:
        """As image: nothing is read."""
        return self.image(row)

    def name(self, row: int) -> str:
        """A name, as DataSet has them."""
        return f"{self.class_names[self.labels[row]]}/{row:08d}"

    def advise(self, rows: np.ndarray) -> None:
        """Nothing to read ahead."""
