"""A picture file that is to be packed: where its bytes lie, or why they cannot be had."""

from dataclasses import dataclass

import numpy as np

from .decode import DecodeError
from .files import OpenFile

MAX_FILE_BYTES = 64 << 20  # larger than any picture that would be decoded
MAX_RATIO = 20  # how many times its size a compressed file may hold, beyond MAX_FILE_BYTES: pictures shrink little


@dataclass(slots=True)
class Entry:
    """One picture file: a stretch of a file on disk, or a reason why it cannot be read."""

    name: str  # class/…/file, with slashes
    path: str = ""
    offset: int = 0
    length: int = 0
    fault: str | None = None
    held: OpenFile | None = None  # in place of the file at path: what a compressed tar, or parquet, held

    @property
    def class_name(self) -> str:
        return self.name.partition("/")[0]

    def read(self) -> bytes:
        """The bytes of the file. Raises: DecodeError with the reason if they cannot be had."""
        if self.fault:
            raise DecodeError(self.fault)
        if self.length > MAX_FILE_BYTES:
            raise DecodeError(f"{self.length} bytes, more than {MAX_FILE_BYTES} are refused")
        data = np.empty(self.length, np.uint8)
        try:
            count = (self.held or OpenFile(self.path)).read_into(data, self.offset)
        except OSError as error:
            raise DecodeError(error.strerror) from None
        if count != self.length:
            raise DecodeError(f"{count} bytes, expected {self.length}")
        return data.tobytes()
