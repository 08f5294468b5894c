"""Pictures that are in memory already, as the rows of a data set."""

import hashlib

import numpy as np


class Arrays:
    """Stands in for a DataSet: images (N, size, size, 3) uint8, labels (N,) integers, names of the classes.

    Raises ValueError where these do not fit together.
    """

    encoding, fit = "raw", "crop"

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: list[str]):
        images, labels = np.asarray(images), np.asarray(labels)
        n = len(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise ValueError(f"found images {images.shape} of {images.dtype}, expected (N, size, size, 3) of uint8")
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or not n:
            raise ValueError(f"found labels {labels.shape} of {labels.dtype}, expected ({n},) whole numbers")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"found labels {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1}: one a class name"
            )
        self._images, self.labels, self.class_names = images, labels.astype(np.int32), list(map(str, class_names))
        self.size, self.page_rows = images.shape[1], max(1, n // 256)

    @property
    def digest(self) -> str:
        """Equal where the rows are."""
        found = hashlib.sha256(np.ascontiguousarray(self._images))
        found.update(self.labels.tobytes())
        return found.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> np.ndarray:
        """The picture of a row, (size, size, 3) uint8; shared, not to be written to."""
        return self._images[row]

    def read(self, row: int, scratch: np.ndarray | None = None) -> np.ndarray:
        """As image: nothing is read."""
        return self.image(row)

    def name(self, row: int) -> str:
        """A name, as DataSet has them."""
        return f"{self.class_names[self.labels[row]]}/{row:08d}"

    def advise(self, rows: np.ndarray) -> None:
        """Nothing to read ahead."""
