"""Files that are read by offset, from many threads, without HDF5 and its lock."""

import os
from functools import lru_cache

import numpy as np

OPEN_FILES = 128  # kept open: a data set may have more files than a process may open


class OpenFile:
    """A file that is closed when nobody holds it any more.

    The number of the descriptor stays inside: two threads may open the same file at once, of which a cache keeps
    only one, and a bare number would outlive the other.
    """

    def __init__(self, path):
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, array: np.ndarray, offset: int) -> int:
        """Fill a contiguous uint8 array; returns how many bytes there were, less only at the end of the file."""
        count = os.preadv(self._number, [array], offset)
        while 0 < count < len(array):  # one call may stop short, after 2 GiB or by a signal
            more = os.preadv(self._number, [array[count:]], offset + count)
            if more == 0:
                break
            count += more
        return count

    def advise(self, begin: int, length: int) -> None:
        """Ask the system to read a stretch ahead. Returns at once."""
        os.posix_fadvise(self._number, begin, length, os.POSIX_FADV_WILLNEED)

    def __del__(self):
        if hasattr(self, "_number"):
            os.close(self._number)


def file_cache():
    """A function path → OpenFile that keeps the files used last open."""
    return lru_cache(maxsize=OPEN_FILES)(OpenFile)
