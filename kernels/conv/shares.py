"""Shares of the pixels in backward-weight, and the order in which their sums are added.

A gradient of weights is a sum over all pixels. They are cut into a power of two of shares, a constant of the shape, and
the sums of shares are added as a binary tree: 0 and 1, 2 and 3, then both pairs, and so on. A task may take one share
or any aligned run of 2, 4, 8 of them, which it adds as they become ready, while they lie in its caches; so no bit
depends on how many tasks there are.

A task that takes 8 shares has four places for sums: share 5 finds the sum of 0 to 3 in the first, that of 4 in the
second, and writes to the third; as many are taken as a share's number has bits that are 1. The first place of task 0 is
dw.
"""

import numba
import numpy as np

from .._jit import inlined, kernel
from ..store import store_row

PART = 4096  # numbers of dw whose last sums a task adds


@inlined
def _bits(number):
    """How many bits of a number are 1."""
    count = 0
    while number > 0:
        count += number & 1
        number >>= 1
    return count


@inlined
def _place(job, split, number):
    """Address of a place of the task that takes a share."""
    levels = _bits(2 * job.taken - 1)  # its places: 1 for one share, 2 for two, 3 for four
    index = split // job.taken * levels + number
    if index == 0:
        return np.int64(job.dw.ctypes.data)
    return job.partial.ctypes.data + (index - 1) * job.dw.size * job.dw.itemsize


@inlined
def share(job, split):
    """Address of the place that the sums of a share are written to."""
    return _place(job, split, _bits(split % job.taken))


@inlined
def add_share(job, split, taps, depth, pitch, rows, columns):
    """Add the sums of a share to those before it that wait for them.

    They are like dw (taps, depth, pitch), of which the task has some rows (first, count) of each tap and columns (the
    same).
    """
    done, item = split % job.taken, job.dw.itemsize
    number = _bits(done)
    while done & 1:
        here, onto = _place(job, split, number), _place(job, split, number - 1)
        for tap in range(taps):
            for row in range(rows[0], rows[0] + rows[1]):
                shift = ((tap * depth + row) * pitch + columns[0]) * item
                store_row(here + shift, columns[1], np.float32, onto + shift, True, False)
        done, number = done >> 1, number - 1


@inlined
def _add_part(job, first, count):
    tasks, item, step = job.splits // job.taken, job.dw.itemsize, 1
    while step < tasks:
        for task in range(0, tasks, 2 * step):
            onto, here = _place(job, task * job.taken, 0), _place(job, (task + step) * job.taken, 0)
            store_row(here + first * item, count, np.float32, onto + first * item, True, False)
        step *= 2


@kernel(parallel=True)
def add_tasks(job):
    """dw += the sums of all tasks behind the first, in the order of the tree."""
    size = job.dw.size
    for part in numba.prange((size + PART - 1) // PART):
        first = np.int64(part) * PART
        _add_part(job, first, min(PART, size - first))
