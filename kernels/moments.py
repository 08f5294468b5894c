"""Mean and sum of squared deviations (M2) of the columns of some rows, and how those of all rows follow from them.

Two passes over the rows in float32 (mean, then M2); parts are merged in float64, in fixed order, with the formula of
Chan, Golub, LeVeque 1979. So the result depends neither on the thread count nor on a large mean: there is no
E[x^2] - E[x]^2.
"""

import numpy as np

from ._jit import inlined, kernel
from .element import widen


@inlined
def part_moments(x, first, pitch, rows, mean, m2):
    """mean[c], m2[c] of x[first + r * pitch + c] over r < rows; x is flat, of any Number."""
    start, step, columns = np.uint64(first), np.uint64(pitch), np.uint64(mean.size)  # unsigned: no index from the end
    mean[:] = 0
    for r in range(np.uint64(rows)):
        for c in range(columns):
            mean[c] += widen(x[start + r * step + c])
    count = np.float32(rows)
    for c in range(columns):
        mean[c] /= count
    m2[:] = 0
    for r in range(np.uint64(rows)):
        for c in range(columns):
            deviation = widen(x[start + r * step + c]) - mean[c]
            m2[c] += deviation * deviation


@kernel
def merge_moments(counts, partial, mean, var):
    """Mean and variance (C) from partial (parts, 2, n C), n pixels of C channels side by side, counts[i] rows of them.

    delta = mean_b - mean_a; mean += delta * n_b / n;
    M2 += M2_b + delta^2 * n_a * n_b / n; n = n_a + n_b.
    """
    channels, parts = mean.size, partial.shape[0]
    mean64, m64 = np.zeros(channels), np.zeros(channels)
    seen = 0
    for i in range(parts):
        for j in range(0, partial.shape[2], channels):
            share = counts[i] / (seen + counts[i])
            weight = seen * share
            for c in range(channels):
                delta = np.float64(partial[i, 0, j + c]) - mean64[c]
                mean64[c] += delta * share
                m64[c] += partial[i, 1, j + c] + delta * delta * weight
            seen += counts[i]
    for c in range(channels):
        mean[c] = mean64[c]
        var[c] = m64[c] / seen
