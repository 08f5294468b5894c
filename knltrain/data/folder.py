"""A folder of pictures in place of shards, for evaluation: each file is read as `knltrain pack` would store it."""

import os
from pathlib import Path

import numpy as np

from .decode import DecodeError, require_decoder, to_stored
from .shards import Packed
from .sources import list_source


class PictureFolder:
    """The files of class folders, on disk or in a tar, as the rows of a DataSet; rows are decoded at every reading.

    class_names : of the network; the folder may lack some. packed : as the shards it was trained on were

    Raises: ValueError if there is no class folder, or one of a class that the network does not know.
    """

    def __init__(self, folder: str | os.PathLike, class_names: list[str], packed: Packed):
        if packed == ("raw", 0, packed.fit):
            raise ValueError("raw pictures of size 0: expected such as `knltrain pack` makes")
        require_decoder()
        self.folder, self.class_names, self.packed = Path(folder), class_names, packed
        self.encoding, self.size, self.fit = packed
        found, self._entries = list_source(self.folder)
        number = {name: label for label, name in enumerate(class_names)}
        unknown = [name for name in found if name not in number]
        if unknown:
            raise ValueError(
                f"{folder}: found a folder {unknown[0]}, expected only the {len(class_names)} classes of the network, "
                f"{class_names[0]} to {class_names[-1]}"
            )
        self.labels = np.array([number[entry.class_name] for entry in self._entries], np.int32)

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, row: int, scratch: np.ndarray | None = None) -> np.ndarray:
        """As DataSet.read. Raises: ValueError naming a file that is no picture."""
        try:
            stored = to_stored(self._entries[row].read(), *self.packed)
        except DecodeError as error:
            raise self.no_picture(row, error) from None
        return stored if self.encoding == "raw" else np.frombuffer(bytearray(stored), np.uint8)

    def no_picture(self, row: int, reason) -> ValueError:
        """The error of a file that cannot be evaluated."""
        name = self._entries[row].name
        return ValueError(f"{self.folder}: {name}: found no picture ({reason}): take the file away")
