"""What batch norm works out a channel at a time, between its passes over memory: statistics, tables, factors.

A table is what x is normalized by, factors are what its gradient is made with; see `affine`. Few channels are folded:
x (pixels, C) is the same memory as (pixels/f, f*C), whose f*C column statistics are f more partial results to merge,
and whose tables have f*C columns.
"""

from typing import NamedTuple

import numpy as np

from ._jit import inlined, kernel
from ._shapes import check_array, check_columns, chunk_count, chunk_rows, fold, optional
from .affine import COEFFICIENTS, MEAN, OF_G, OF_X, REST, SCALE, SHIFT
from .moments import merge_moments


class BatchnormPlan(NamedTuple):
    """How x (pixels, C) is cut into chunks of rows.

    moments_shape: of the moments, and of the sums, of every chunk, (chunks, 2, f*C); moments_counts: rows of each;
    table_shape: (COEFFICIENTS, f*C) of tables and factors.
    """

    moments_shape: tuple
    moments_counts: np.ndarray
    table_shape: tuple


def columns_of(pixels: int, channels: int) -> int:
    """f*C."""
    return fold(pixels, channels) * channels


def batchnorm_plan(pixels: int, channels: int) -> BatchnormPlan:
    """The plan for x (pixels, C)."""
    columns = columns_of(pixels, channels)
    lines, rows = pixels * channels // columns, chunk_rows(columns)
    chunks = chunk_count(lines, columns)
    counts = np.full(chunks, rows)
    counts[-1] = lines - rows * (chunks - 1)
    return BatchnormPlan((chunks, 2, columns), counts, (COEFFICIENTS, columns))


class Affine(NamedTuple):
    """gamma * (x - mean) / sqrt(var + eps) + beta; vectors (C,), gamma and beta may be empty: 1 and 0."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


@inlined
def _fill_row(row, values):
    """row (fold * C) = values (C) over and over."""
    for j in range(0, row.size, values.size):
        for c in range(values.size):
            row[j + c] = values[c]


@kernel
def fill_table(affine, table):
    """mean, scale = gamma / std and shift = beta, of y = (x - mean) * scale + shift."""
    channels = affine.var.size
    scale, shift = np.empty(channels, np.float32), np.zeros(channels, np.float32)
    for c in range(channels):
        scale[c] = (affine.gamma[c] if affine.gamma.size else 1.0) / np.sqrt(affine.var[c] + affine.eps)
        if affine.beta.size:
            shift[c] = affine.beta[c]
    _fill_row(table[MEAN], affine.mean)
    _fill_row(table[SCALE], scale)
    _fill_row(table[SHIFT], shift)


def affine_of(gamma, beta, mean, var, eps):
    """Both learned vectors may be None."""
    if (gamma is None) != (beta is None):
        raise ValueError("batchnorm: found one of gamma and beta, expected both or neither: pass both or None, None")
    check_array("batchnorm: mean", mean, (mean.size,))
    check_array("batchnorm: var", var, mean.shape)
    gamma, beta = (optional(f"batchnorm: {name}", v, mean.shape) for name, v in (("gamma", gamma), ("beta", beta)))
    return Affine(gamma, beta, mean, var, float(eps))


def batchnorm_statistics(moments, counts, pixels, gamma, beta, eps, mean, var, table):
    """Mean and variance of x from the moments of its parts, and the table by which x is normalized.

    moments : (parts, 2, C) or (parts, 2, f*C) float32, mean and M2 of each part of the pixels; by `batchnorm_moments`
        or by `conv2d_forward`, of its y
    counts : (parts,) int64, rows of each part; pixels : how many there are in all
    gamma, beta : (C,) float32, or both None for 1 and 0
    mean, var : (C,) float32, overwritten: mean and biased variance over all pixels
    table : float32 of plan.table_shape, overwritten: y = (x - row 0) * row 1 + row 2, that is
        gamma * (x - mean) / sqrt(var + eps) + beta

    Cost: 8 flops a channel and part, 3 a channel, of which one is a root; reads moments, writes table.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_statistics.
    """
    affine = affine_of(gamma, beta, mean, var, eps)
    check_columns("batchnorm: moments", moments, (len(moments), 2), mean.size)
    check_array("batchnorm: counts", counts, (len(moments),), np.int64)
    check_columns("batchnorm: table", table, (COEFFICIENTS,), mean.size)
    told = counts.sum() * (moments.shape[-1] // mean.size)
    if told != pixels or counts.min() < 1:
        raise ValueError(f"batchnorm: found moments of {told} pixels, expected {pixels}, no part empty")
    merge_moments(counts, moments, mean, var)
    fill_table(affine, table)


@kernel
def _factors(sums, pixels, gamma, var, eps, factors, dgamma, dbeta):
    channels = var.size
    sum_g, sum_gx = np.zeros(channels), np.zeros(channels)
    for i in range(sums.shape[0]):
        for j in range(0, sums.shape[2], channels):
            for c in range(channels):
                sum_g[c] += sums[i, 0, j + c]
                sum_gx[c] += sums[i, 1, j + c]
    # dx = a*g + b*(x - mean) + c: a = gamma/std, b = -a * sum_gx / (std^2 * M), c = -a * sum_g / M
    rows = np.empty((COEFFICIENTS, channels), np.float32)
    for c in range(channels):
        inverse = 1.0 / np.sqrt(var[c] + eps)
        a = (gamma[c] if gamma.size else 1.0) * inverse / pixels
        rows[OF_G, c] = a * pixels
        rows[OF_X, c] = -a * inverse * inverse * sum_gx[c]
        rows[REST, c] = -a * sum_g[c]
        if gamma.size:
            dgamma[c] = sum_gx[c] * inverse
            dbeta[c] = sum_g[c]
    for k in range(COEFFICIENTS):
        _fill_row(factors[k], rows[k])


def batchnorm_factors(sums, pixels, gamma, var, eps, factors, dgamma=None, dbeta=None):
    """The factors of dx from the sums of its parts, and the gradients of gamma and beta.

    With g and xhat as in `batchnorm_backward`: dbeta = sum g, dgamma = sum g * xhat.

    sums : (parts, 2, C) or (parts, 2, f*C) float32, of g and of g * (x - mean) over a part of the pixels; by
        `batchnorm_sums` or by `conv2d_backward_input`
    pixels : how many there are in all
    factors : float32 of plan.table_shape, overwritten: dx = g * row 0 + (x - mean) * row 1 + row 2
    dgamma, dbeta : (C,) float32, overwritten; None where gamma is None

    Cost: 2 flops a channel and part, 12 a channel, of which one is a root; reads sums, writes factors.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_backward.
    """
    if not (gamma is None) == (dgamma is None) == (dbeta is None):
        raise ValueError("batchnorm: found some of gamma, dgamma, dbeta, expected all or none: pass all three")
    if pixels < 1:
        raise ValueError(f"batchnorm: found {pixels} pixels, expected at least 1: pass how many were summed")
    check_array("batchnorm: var", var, (var.size,))
    check_columns("batchnorm: sums", sums, (len(sums), 2), var.size)
    check_columns("batchnorm: factors", factors, (COEFFICIENTS,), var.size)
    learned = ("gamma", gamma), ("dgamma", dgamma), ("dbeta", dbeta)
    gamma, dgamma, dbeta = (optional(f"batchnorm: {name}", vector, var.shape) for name, vector in learned)
    _factors(sums, pixels, gamma, var, float(eps), factors, dgamma, dbeta)
