"""The mean picture of a data set, which Caffe's recipes subtract: `knltrain shards DIR --mean FILE.npy` writes it."""

import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from ..claims.whole import write_whole
from .dataset import DataSet
from .progress import Progress


def mean_picture(folder: str | os.PathLike, *, threads: int | None = None, report=sys.stderr) -> np.ndarray:
    """mean[h, w, c] = sum over rows of x[h, w, c] / rows, (size, size, 3) float32 in units of 0..255.

    Sums are whole numbers, so the result depends on no order. threads: readers; None takes the cores of this process.

    Raises: ValueError if the pictures are not raw, of one size; ShardError if one is damaged.
    """
    data = DataSet(folder)
    if data.encoding != "raw":
        raise ValueError(f"{folder}: found {data.encoding} shards, expected raw ones, whose pictures are of one size")
    threads = threads or len(os.sched_getaffinity(0))
    progress, lock, done, stop = Progress(report, len(data), "rows"), threading.Lock(), 0, threading.Event()

    def total(part):
        nonlocal done
        sums, scratch = np.zeros((data.size, data.size, 3), np.uint64), np.empty(data.size**2 * 3, np.uint8)
        for row in range(len(data) * part // threads, len(data) * (part + 1) // threads):
            if stop.is_set():
                break
            sums += data.read(row, scratch)
            with lock:
                done += 1
                progress.show(done)
        return sums

    with ThreadPoolExecutor(threads, "mean") as pool:
        try:
            return (sum(pool.map(total, range(threads))) / len(data)).astype(np.float32)
        finally:
            stop.set()  # after an error or Ctrl-C the pool waits for nobody who reads on


def write_mean(folder: str | os.PathLike, path: Path, **options) -> str:
    """Write the mean picture to a .npy file, whole or not at all; returns a line that says what it is."""
    path = Path(path)
    if path.suffix != ".npy" or not path.parent.is_dir():
        raise ValueError(f"found --mean {path}, expected a name that ends in .npy, in a folder that is there")
    mean = mean_picture(folder, **options)
    content = io.BytesIO()
    np.save(content, mean)
    write_whole(path, content.getvalue())
    red, green, blue = mean.mean((0, 1))
    return f"{path}: mean of {folder}, {mean.shape[0]} x {mean.shape[1]}; colour {red:.1f}, {green:.1f}, {blue:.1f}"


@cache
def read_mean_image(path, size: int) -> np.ndarray:
    """A mean picture (H, W, 3) float32, red green blue in units of 0..255, from a .npy file of that, or of Caffe's
    (3, H, W) blue green red.

    Raises: ValueError if it is not of size x size pixels, with the file's name.
    """
    if not Path(path).is_file():
        cure = f"knltrain shards DIR --mean {path} makes it, --set data.mean_image= does without"
        raise ValueError(f"{path}: found no such file, expected a mean picture: {cure}")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # what it claims to hold is not read yet
    except OSError:
        raise
    except Exception as error:  # a broken header gives anything
        raise ValueError(f"{path}: found no NumPy array ({error}), expected a mean picture in a .npy file") from None
    shape = getattr(found, "shape", None)
    if shape is not None and found.dtype.kind not in "uif":
        raise ValueError(f"{path}: found {found.dtype}, expected a mean picture of numbers")
    if shape == (3, size, size):
        found = found[::-1].transpose(1, 2, 0)
    elif shape != (size, size, 3):
        raise ValueError(
            f"{path}: found shape {shape}, expected a mean picture of ({size}, {size}, 3), red green blue, or "
            f"(3, {size}, {size}), blue green red, the size of the raw shards"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{path}: found values that are not numbers, expected 0..255")
    return np.ascontiguousarray(found, np.float32)
