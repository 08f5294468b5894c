"""C of a task of a convolution, when it is whole: rectified, its moments taken, and stored row by row."""

from ._jit import kernel
from .moments import part_moments
from .pointwise import rectify
from .store import store_row


@kernel
def store_c(c, skip, pitch, count, first_channel, valid, relu, moments, block, kind, out_rows, accumulate, past):
    """Rows of C, `pitch` floats apart from c[skip] on, the first `valid` of each to channels from first_channel on.

    moments: (blocks, 2, K), to be told of this block, or empty. out_rows: addresses of the pixels. accumulate, past: as
    in `store_row`.
    """
    if relu:
        whole = c[skip : skip + count * pitch]
        rectify(whole, whole)
    if moments.size > 0:
        mean = moments[block, 0, first_channel : first_channel + valid]
        part_moments(c, skip, pitch, count, mean, moments[block, 1, first_channel : first_channel + valid])
    for row in range(count):
        source = c.ctypes.data + 4 * (skip + row * pitch)
        store_row(source, valid, kind, out_rows[row] + 4 * first_channel, accumulate, past)
