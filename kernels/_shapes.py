"""What the public functions share: checking arrays at the border, output sizes, and how work is cut into chunks.

Chunk sizes depend on shapes only, never on the number of threads or the machine: partial sums are the same
everywhere, and so is every bit of a result.
"""

import numpy as np

from .number import number_of

NOTHING = np.empty(0, np.float32)  # stands for an absent optional array, so that a kernel is compiled once
CHUNK = 1 << 15  # floats in one chunk: 128 KiB, so that a second pass over it comes from the second-level cache
FOLDED = 128  # columns that make the inner loops long enough to run at full vector speed


def check_array(what: str, array, shape: tuple, dtype=np.float32) -> None:
    """Raise TypeError unless `array` is an array of `dtype`, ValueError unless it is C-contiguous of `shape`."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{what}: found {found}, expected an array of {np.dtype(dtype)}: convert it first")
    if array.shape != tuple(shape):
        raise ValueError(f"{what}: found shape {array.shape}, expected {tuple(shape)}: allocate it with that shape")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what}: found strides {array.strides}, expected C-contiguous: copy it first")


def check_columns(what: str, array, axes: tuple, channels: int) -> None:
    """Like `check_array` for float32 (*axes, channels), or with several times as many columns, of `fold`ed channels."""
    columns = getattr(array, "shape", (0,))[-1:] or (0,)
    check_array(what, array, (*axes, max(1, columns[0] // channels) * channels))


def check_tensor(what: str, array, shape: tuple, like=None) -> None:
    """Like `check_array` for activations and their gradients, which hold any Number, or that of the array `like`."""
    if isinstance(array, np.ndarray):
        try:
            number_of(array.dtype)
        except TypeError as error:
            raise TypeError(f"{what}: {error}") from None
    check_array(what, array, shape, getattr(array if like is None else like, "dtype", np.float32))


def check_input(what: str, array, ndim: int | None = None) -> None:
    """Like `check_tensor` where the shape is not known beforehand: contiguous, `ndim` axes, not empty."""
    check_tensor(what, array, getattr(array, "shape", ()))
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{what}: found {array.ndim} axes, expected {ndim}: reshape it")
    if array.size == 0 or array.ndim == 0:
        raise ValueError(f"{what}: found shape {array.shape}, expected at least one element on an axis: pass a batch")


def check_workspace(what: str, workspace, size: int) -> None:
    """The workspace must be flat float32 with at least `size` elements; its contents are undefined afterwards."""
    check_array(what, workspace, getattr(workspace, "shape", ()))
    if workspace.ndim != 1 or workspace.size < size:
        raise ValueError(f"{what}: found shape {workspace.shape}, expected ({size},) or more: allocate it so")


def optional(what: str, array, shape: tuple):
    """`array` after `check_array`, or NOTHING where it is None."""
    if array is None:
        return NOTHING
    check_array(what, array, shape)
    return array


def optional_tensor(what: str, array, like):
    """`array` after `check_tensor` with shape and Number of `like`, or where it is None an empty one of that Number."""
    if array is None:
        return np.empty(0, like.dtype)
    check_tensor(what, array, like.shape, like)
    return array


def output_size(size: int, kernel: int, stride: int, pad: int) -> int:
    """floor((size + 2*pad - kernel) / stride) + 1: windows of a convolution or a pooling along one axis.

    >>> output_size(227, 11, 4, 0)
    55
    """
    if kernel < 1 or stride < 1 or pad < 0:
        raise ValueError(f"found kernel {kernel}, stride {stride}, pad {pad}, expected at least 1, 1, 0: correct them")
    if size + 2 * pad < kernel:
        raise ValueError(f"found input {size} with pad {pad}, expected at least the kernel {kernel}: use larger images")
    return (size + 2 * pad - kernel) // stride + 1


def fold(pixels: int, channels: int) -> int:
    """How many pixels to lay side by side as one row, so that few channels still make a row of FOLDED columns.

    A power of two that divides `pixels`: x (pixels, C) is then the same memory as (pixels / fold, fold * C).
    """
    factor = 1
    while pixels % (2 * factor) == 0 and 2 * factor * channels <= FOLDED:
        factor *= 2
    return factor


def chunk_rows(columns: int) -> int:
    """Rows of `columns` floats in one chunk: about CHUNK floats, at least 8 to spread the cost of a partial."""
    return max(8, CHUNK // columns)


def chunk_count(rows: int, columns: int) -> int:
    """Chunks of `chunk_rows(columns)` that cover `rows`; the last may be shorter."""
    return -(-rows // chunk_rows(columns))
