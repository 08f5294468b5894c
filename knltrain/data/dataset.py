"""A folder of shards as one list of rows: the index in memory, the rows by pread."""

import bisect
import os
from pathlib import Path

import numpy as np

from .decode import DecodeError, decode, require_decoder
from .files import file_cache
from .index import read_index
from .ranks import from_first
from .shards import ShardError, checksum
from .stage import stage_files

PAGE_BYTES = 4 << 20  # a page is read in one go: large enough for Lustre, small enough to hold several
MIN_PAGES = 256  # of a data set, so that a small one is mixed well too


class DataSet:
    """All shards of a folder as rows 0..n_rows-1. Safe to read from several threads.

    Parameters
    ----------
    folder : of the shards
    comm : the ranks that open it together, all of them at once; rank 0 alone then reads the index. None: this one only
    stage : none; or local, memory: copy the shards to this node's disk or memory first (see `stage`)

    Attributes: n_rows, encoding, size, fit, class_names (list of str), labels (n_rows,) int32, page_rows (rows of a
    page that suits these shards), digest (text: where it is equal, the rows are, wherever the folder lies). The index
    takes 8 bytes a row, and 12 more where rows differ in length.

    Raises: ShardError if the folder holds no complete data set of one kind; ImportError for jpeg without a decoder.
    """

    def __init__(self, folder: str | os.PathLike, comm=None, stage: str = "none"):
        self.folder = Path(folder)
        try:
            index = from_first(comm, lambda: read_index(self.folder))
        except ValueError as error:
            raise ShardError(str(error)) from None
        self.n_rows, self.encoding, self.size, self.fit = (index[key] for key in ("n_rows", "encoding", "size", "fit"))
        self.class_names, self.digest = index["class_names"], index["digest"]
        self.labels, self._checksums = index["labels"], index["checksums"]
        self._begins, self._lengths = index.get("begins"), index.get("lengths")  # of rows in their files; jpeg only
        self._first_rows, self._data_at = index["first_rows"].tolist(), index["data_at"].tolist()
        self._names_at, self._name_bytes = index["names_at"].tolist(), index["name_bytes"].tolist()
        self._origins = [str(self.folder / name) for name in index["files"]]
        self._paths = stage_files(stage, self._origins, index["identity"], comm)
        if self.encoding == "jpeg":
            require_decoder()
        row_bytes = index["data_bytes"] // self.n_rows
        self.page_rows = max(1, min(PAGE_BYTES // row_bytes, self.n_rows // MIN_PAGES))
        self._open = file_cache()

    def __len__(self) -> int:
        return self.n_rows

    def read(self, row: int, scratch: np.ndarray | None = None) -> np.ndarray:
        """The stored bytes of a row, checked: (size, size, 3) uint8 of a raw data set, (bytes,) uint8 of a jpeg one.

        scratch: flat uint8; the result is a part of it where the row fits, else a new array.

        Raises: ShardError naming shard and row if they are damaged; IndexError if there is no such row.
        """
        shard = self._locate(row)
        begin, length = self._place(shard, row)
        data = scratch[:length] if scratch is not None and len(scratch) >= length else np.empty(length, np.uint8)
        try:
            count = self._open(self._paths[shard]).read_into(data, begin)
        except OSError as error:
            raise self._error(shard, f"row {row} cannot be read ({error.strerror}): check the file system") from None
        found, expected = checksum(self.labels[row], data), int(self._checksums[row])
        if count != length or found != expected:
            raise self._error(
                shard,
                f"row {row} ({self.name(row)}): found checksum {found:08x}, expected {expected:08x}: "
                "the file is damaged, copy or pack it again",
            )
        return data.reshape(self.size, self.size, 3) if self.encoding == "raw" else data

    def image(self, row: int) -> np.ndarray:
        """The picture of a row, (H, W, 3) uint8, decoded where needed.

        Raises: as read, and ShardError if the bytes are not a picture.
        """
        data = self.read(row)
        if self.encoding == "raw":
            return data
        try:
            return decode(data)
        except DecodeError as error:
            raise self.no_picture(row, error) from None

    def no_picture(self, row: int, reason) -> ShardError:
        """The error of a row whose bytes are as they were packed, and yet not a picture."""
        return self._error(
            self._locate(row), f"row {row} ({self.name(row)}): found no picture ({reason}): pack it again"
        )

    def name(self, row: int) -> str:
        """Path of the original file, relative to the packed folder."""
        shard = self._locate(row)
        length = self._name_bytes[shard]
        text = np.zeros(length, np.uint8)
        place = self._names_at[shard] + (int(row) - self._first_rows[shard]) * length
        self._open(self._paths[shard]).read_into(text, place)
        return text.tobytes().rstrip(b"\0").decode("utf-8", "replace")

    def advise(self, rows: np.ndarray) -> None:
        """Ask the system to read these sorted rows ahead, in as large pieces as they allow. Returns at once."""
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            row, end = int(run[0]), int(run[-1]) + 1
            while row < end:  # a run may cross into the next shard
                shard = self._locate(row)
                last = min(end, self._end_row(shard)) - 1
                begin, _ = self._place(shard, row)
                last_begin, last_length = self._place(shard, last)
                self._open(self._paths[shard]).advise(begin, last_begin + last_length - begin)
                row = last + 1

    def _locate(self, row):
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row {row}: the data set {self.folder} has rows 0..{self.n_rows - 1}")
        return bisect.bisect_right(self._first_rows, row) - 1

    def _end_row(self, shard):
        return self._first_rows[shard + 1] if shard + 1 < len(self._first_rows) else self.n_rows

    def _place(self, shard, row):
        """(begin, length) of a row in the file of its shard."""
        if self.encoding == "raw":
            length = self.size * self.size * 3
            return self._data_at[shard] + (int(row) - self._first_rows[shard]) * length, length
        return int(self._begins[row]), int(self._lengths[row])

    def _error(self, shard, text):
        return ShardError(f"shard {self._paths[shard]}: {text}")
