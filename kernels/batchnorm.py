"""Batch normalization over pixels, with the residual addition and the ReLU behind it in the same pass.

x, y, dy are read as (pixels, C). Few channels are folded: (pixels, C) is the same memory as (pixels/f, f*C), whose
f*C column statistics are f more partial results to merge. Each pass is bound by memory: forward reads x twice (the
second reading of a chunk for its M2 comes from cache), backward reads x and dy twice. A task owns a chunk of rows.

Statistics: see `moments`. A convolution hands over those of its blocks of pixels, taken while they lay in cache; then
forward reads x only once.

What a pass does to a row of pixels is in `affine`.
"""

from typing import NamedTuple

import numba
import numpy as np

from ._jit import inlined, kernel
from ._shapes import (
    check_array,
    check_input,
    check_tensor,
    check_workspace,
    chunk_count,
    chunk_rows,
    fold,
    optional,
    optional_tensor,
)
from .affine import (
    ALL,
    BESIDE,
    COEFFICIENTS,
    FACTORS,
    MEAN,
    SCALE,
    SHIFT,
    WHERE_X,
    WHERE_Y,
    gradient_row,
    normalize_row,
    sum_row,
)  # fmt: skip
from .ahead import ask_ahead
from .moments import merge_moments, part_moments
from .store import goes_past


class Affine(NamedTuple):
    """gamma * (x - mean) / sqrt(var + eps) + beta; vectors (C,), gamma and beta may be empty: 1 and 0."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


class Passed(NamedTuple):
    """g, what of dy is passed on, by `mask`: all of it, or where y or the normalized x is above 0; (rows, columns)."""

    x: np.ndarray
    y: np.ndarray  # empty where the mask does not ask for it
    dy: np.ndarray
    mask: int


# ---- workspace: two partial results per chunk, and the rows of coefficients ------------------------------------


def _partition(pixels, channels):
    """columns = fold * C, rows per chunk, chunks."""
    columns = fold(pixels, channels) * channels
    return columns, chunk_rows(columns), chunk_count(pixels * channels // columns, columns)


def batchnorm_workspace(pixels: int, channels: int) -> int:
    """Floats of workspace that forward and backward need for x (pixels, C)."""
    columns, _, chunks = _partition(pixels, channels)
    return (2 * chunks + COEFFICIENTS) * columns


def _carve(workspace, pixels, channels):
    """Rows per chunk, partial (chunks, 2, columns) and coefficients (6, columns), views of the workspace."""
    columns, rows, chunks = _partition(pixels, channels)
    check_workspace("batchnorm: workspace", workspace, batchnorm_workspace(pixels, channels))
    used = workspace[: (2 * chunks + COEFFICIENTS) * columns].reshape(-1, columns)
    return rows, used[: 2 * chunks].reshape(chunks, 2, columns), used[2 * chunks :]


@inlined
def _fill_row(row, values):
    """row (fold * C) = values (C) over and over."""
    for j in range(0, row.size, values.size):
        for c in range(values.size):
            row[j + c] = values[c]


# ---- forward -------------------------------------------------------------------------------------------------


@inlined
def _moments_body(i, rows, x, partial):
    first, columns = i * rows, x.shape[1]
    part_moments(x.reshape(-1), first * columns, columns, min(rows, x.shape[0] - first), partial[i, 0], partial[i, 1])


@inlined
def _normalize_body(i, rows, x, coefficients, residual, added, low, y, past):
    columns, pitch = x.shape[1], coefficients.strides[0]
    for r in range(i * rows, min((i + 1) * rows, x.shape[0])):
        ask_ahead(x, r)
        if residual.size:
            ask_ahead(residual, r)
        normalize_row(
            columns, x.ctypes.data + r * x.strides[0], x.dtype, added,
            residual.ctypes.data + r * x.strides[0], coefficients.ctypes.data, pitch, low,
            y.ctypes.data + r * y.strides[0], y.dtype, past,
        )  # fmt: skip


@inlined
def _affine_rows(affine, mean_row, scale_row, shift_row):
    """mean, scale = gamma / std and shift = beta, of y = (x - mean) * scale + shift."""
    channels = affine.var.size
    scale, shift = np.empty(channels, np.float32), np.zeros(channels, np.float32)
    for c in range(channels):
        scale[c] = (affine.gamma[c] if affine.gamma.size else 1.0) / np.sqrt(affine.var[c] + affine.eps)
        if affine.beta.size:
            shift[c] = affine.beta[c]
    _fill_row(mean_row, affine.mean)
    _fill_row(scale_row, scale)
    _fill_row(shift_row, shift)


@kernel(parallel=True)
def _normalize(rows, x, affine, coefficients, residual, table, low, y, past):
    _affine_rows(affine, coefficients[MEAN], coefficients[FACTORS], coefficients[FACTORS + 1])
    if table.size:
        _fill_row(coefficients[BESIDE], table[MEAN])
        _fill_row(coefficients[SCALE], table[SCALE])
        _fill_row(coefficients[SHIFT], table[SHIFT])
    added = min(1, residual.size) + min(1, table.size)
    for i in numba.prange((x.shape[0] + rows - 1) // rows):
        _normalize_body(np.int64(i), rows, x, coefficients, residual, added, low, y, past)


@kernel(parallel=True)
def _moments(rows, x, partial, mean, var):
    for i in numba.prange(partial.shape[0]):
        _moments_body(np.int64(i), rows, x, partial)
    counts = np.full(partial.shape[0], rows)
    counts[-1] = x.shape[0] - rows * (partial.shape[0] - 1)
    merge_moments(counts, partial, mean, var)


def _check(x, gamma, beta, mean, var):
    """Pixels and channels of x (..., C), after checking it and the vectors of C."""
    check_input("batchnorm: x", x)
    channels = x.shape[-1]
    if (gamma is None) != (beta is None):
        raise ValueError("batchnorm: found one of gamma and beta, expected both or neither: pass both or None, None")
    check_array("batchnorm: mean", mean, (channels,))
    check_array("batchnorm: var", var, (channels,))
    return x.size // channels, channels


def _affine(gamma, beta, mean, var, eps):
    """Both learned vectors may be None."""
    gamma, beta = (optional(f"batchnorm: {name}", v, mean.shape) for name, v in (("gamma", gamma), ("beta", beta)))
    return Affine(gamma, beta, mean, var, float(eps))


def _run_normalize(rows, x, affine, coefficients, y, residual, table, relu):
    columns = coefficients.shape[1]
    if table is not None:
        check_array("batchnorm: table of the residual", table, (COEFFICIENTS, affine.mean.size))
        if residual is None:
            raise ValueError("batchnorm: found a table and no residual, expected both: pass what it normalizes")
    check_tensor("batchnorm: y", y, x.shape)
    residual = optional_tensor("batchnorm: residual", residual, x)
    low = np.float32(0 if relu else -np.inf)
    x, y, residual = x.reshape(-1, columns), y.reshape(-1, columns), residual.reshape(-1, columns)
    past = int(goes_past(y, columns, x, residual))
    table = np.empty((0, affine.mean.size), np.float32) if table is None else table
    _normalize(rows, x, affine, coefficients, residual, table, low, y, past)


def batchnorm_statistics(moments, counts, mean, var):
    """Mean and variance (C) of the pixels whose moments a convolution tells; as in `batchnorm_forward`.

    Cost: 8 flops a channel and part of the pixels; reads moments, writes mean, var.
    """
    check_array("batchnorm: moments", moments, (len(moments), 2, mean.size))
    check_array("batchnorm: counts", counts, (len(moments),), np.int64)
    merge_moments(counts, moments, mean, var)


def batchnorm_forward(
    x, gamma, beta, eps, y, mean, var, workspace, residual=None, relu=False, moments=None, counts=None,
    residual_table=None
):  # fmt: skip
    """y = gamma * (x - mean) / sqrt(var + eps) + beta (+ residual), then max(y, 0) if relu; statistics of this x.

    Parameters
    ----------
    x, y, residual : (..., C) of a Number, x and residual of the same; y may be x or residual
    gamma, beta : (C,) float32, or both None for 1 and 0
    mean, var : (C,) float32, written: mean and biased variance over all pixels
    workspace : flat float32, at least `batchnorm_workspace(pixels, C)`
    residual_table : (COEFFICIENTS, C) float32 of `batchnorm_table`, or None; the residual is normalized by it: what is
        added is the output of another batch norm, which nobody else reads
    moments, counts : (parts, 2, C) float32, mean and M2 of each part of the pixels, and (parts,) int64, how many
        pixels it has; as `conv2d_forward` writes them of its y. None: x is read for them

    Cost: 4 flops an element for the statistics, 4 to 5 for y; reads x twice, residual, writes y. With moments: those
    for y; reads x, residual, writes y.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_forward.
    """
    pixels, channels = _check(x, gamma, beta, mean, var)
    rows, partial, coefficients = _carve(workspace, pixels, channels)
    if moments is None:
        _moments(rows, x.reshape(-1, partial.shape[2]), partial, mean, var)
    else:
        if counts.sum() != pixels or counts.min() < 1:
            raise ValueError(f"batchnorm: found moments of {counts.sum()} pixels, expected {pixels}, no part empty")
        batchnorm_statistics(moments, counts, mean, var)
    _run_normalize(rows, x, _affine(gamma, beta, mean, var, eps), coefficients, y, residual, residual_table, relu)


def batchnorm_inference(x, gamma, beta, mean, var, eps, y, residual=None, relu=False):
    """The same with given statistics, e.g. running averages. Twin: reference.batchnorm_inference.

    Cost: 4 flops an element, 5 with a residual; reads x, residual, writes y.
    """
    pixels, channels = _check(x, gamma, beta, mean, var)
    columns, rows, _ = _partition(pixels, channels)
    coefficients = np.empty((COEFFICIENTS, columns), np.float32)
    _run_normalize(rows, x, _affine(gamma, beta, mean, var, eps), coefficients, y, residual, None, relu)


# ---- backward ------------------------------------------------------------------------------------------------


@inlined
def _ask_for_gradient(r, g):
    ask_ahead(g.x, r)
    ask_ahead(g.dy, r)
    if g.y.size:
        ask_ahead(g.y, r)


@inlined
def _sums_body(i, rows, g, coefficients, dresidual, partial):
    # sums of g and of g * (x - mean)
    partial[i] = 0
    x, y, dy = g.x, g.y, g.dy
    sum_g, pitch, shift = partial.ctypes.data + i * partial.strides[0], coefficients.strides[0], dy.strides[0]
    for r in range(i * rows, min((i + 1) * rows, x.shape[0])):
        _ask_for_gradient(r, g)
        here = r * x.strides[0]
        sum_row(
            x.shape[1], x.ctypes.data + here, x.dtype, y.ctypes.data + here, dy.ctypes.data + r * shift, dy.dtype,
            g.mask, coefficients.ctypes.data, pitch, sum_g, sum_g + partial.strides[1], min(1, dresidual.size),
            dresidual.ctypes.data + r * shift,
        )  # fmt: skip


@inlined
def _merge_sums(partial, sum_g, sum_gx):
    """Add up partial (chunks, 2, fold * C) into two float64 arrays (C)."""
    channels = sum_g.size
    for i in range(partial.shape[0]):
        for j in range(0, partial.shape[2], channels):
            for c in range(channels):
                sum_g[c] += partial[i, 0, j + c]
                sum_gx[c] += partial[i, 1, j + c]


@inlined
def _input_gradient_body(i, rows, g, coefficients, dx, past):
    x, y, dy = g.x, g.y, g.dy
    for r in range(i * rows, min((i + 1) * rows, x.shape[0])):
        _ask_for_gradient(r, g)
        here = r * x.strides[0]
        gradient_row(
            x.shape[1], x.ctypes.data + here, x.dtype, y.ctypes.data + here, dy.ctypes.data + r * dy.strides[0],
            dy.dtype, g.mask, coefficients.ctypes.data, coefficients.strides[0],
            dx.ctypes.data + r * dx.strides[0], dx.dtype, past,
        )  # fmt: skip


@kernel
def _fill_table(affine, coefficients):
    _affine_rows(affine, coefficients[MEAN], coefficients[SCALE], coefficients[SHIFT])


def batchnorm_table(gamma, beta, mean, var, eps, table):
    """What a pass over rows of x needs: float32 table (COEFFICIENTS, C), as `conv2d_backward_input` reads it.

    Cost: 3 flops a channel, of which one is a root; reads vectors, writes table.
    """
    check_array("batchnorm: table", table, (COEFFICIENTS, mean.size))
    _fill_table(_affine(gamma, beta, mean, var, eps), table)


@kernel(parallel=True)
def _sums(rows, g, affine, dresidual, partial, coefficients, dgamma, dbeta):
    _fill_table(affine, coefficients)
    if rows > 0:  # else they are told
        for i in numba.prange(partial.shape[0]):
            _sums_body(np.int64(i), rows, g, coefficients, dresidual, partial)
    channels, pixels = affine.mean.size, g.x.size // affine.mean.size
    sum_g, sum_gx = np.zeros(channels), np.zeros(channels)
    _merge_sums(partial, sum_g, sum_gx)
    # dx = a*g + b*(x - mean) + c: a = gamma/std, b = -a * sum_gx / (std^2 * M), c = -a * sum_g / M
    factors = np.empty((3, channels), np.float32)
    for c in range(channels):
        inverse = 1.0 / np.sqrt(affine.var[c] + affine.eps)
        a = (affine.gamma[c] if affine.gamma.size else 1.0) * inverse / pixels
        factors[0, c] = a * pixels
        factors[1, c] = -a * inverse * inverse * sum_gx[c]
        factors[2, c] = -a * sum_g[c]
        if affine.gamma.size:
            dgamma[c] = sum_gx[c] * inverse
            dbeta[c] = sum_g[c]
    for k in range(3):
        _fill_row(coefficients[FACTORS + k], factors[k])


@kernel(parallel=True)
def _input_gradient(rows, g, coefficients, dx, past):
    for i in numba.prange((g.x.shape[0] + rows - 1) // rows):
        _input_gradient_body(np.int64(i), rows, g, coefficients, dx, past)


def batchnorm_backward(
    x, y, dy, gamma, beta, mean, var, eps, dx, dgamma, dbeta, workspace, relu=False, dresidual=None, sums=None
):
    """Gradients of `batchnorm_forward`, from its x, its output y and the statistics it wrote.

    With g = dy * (y > 0) if relu else dy, xhat = (x - mean) / sqrt(var + eps), M pixels:
    dbeta = sum g, dgamma = sum g * xhat, dx = gamma / sqrt(var + eps) * (g - dbeta/M - xhat * dgamma/M), dresidual = g.

    Parameters
    ----------
    x, dy : (..., C) of a Number
    y : like x, or None: of no use where there is no ReLU, or none behind a residual; a third less is then read
    dx : like x, overwritten; may be dy or x
    dgamma, dbeta : (C,) float32, overwritten; None where gamma is None
    dresidual : like x, overwritten; may be dy or y (then dx must be another array); None where nobody wants it
    workspace : flat float32, at least `batchnorm_workspace(pixels, C)`
    sums : (parts, 2, C) float32, of g and of g * (x - mean) over some pixels each, as `conv2d_backward_input` tells
        them; dy is g then, relu False and dresidual None. None: x and dy are read for them

    Cost: 4 flops an element for the sums, 5 for dx, in both 3 for the mask of a ReLU; reads x twice, dy twice, writes
    dx. With dresidual: 5 for the sums with the mask, 5 for dx; reads x twice, y, dy, dresidual, writes dresidual, dx.
    With sums: those for dx; reads x, dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_backward.
    """
    if not (gamma is None) == (dgamma is None) == (dbeta is None):
        raise ValueError("batchnorm: found some of gamma, dgamma, dbeta, expected all or none: pass all three")
    if dresidual is not None and dresidual is dx:
        raise ValueError("batchnorm: found one array for dx and dresidual, expected two: pass dy as one of them")
    pixels, channels = _check(x, gamma, beta, mean, var)
    rows, partial, coefficients = _carve(workspace, pixels, channels)
    if relu and y is None and dresidual is not None:
        raise ValueError("batchnorm: found a ReLU behind a residual and no y, expected its output: pass it")
    y = optional_tensor("batchnorm: y", y if relu else None, x)
    for name, array in (("dy", dy), ("dx", dx)):
        check_tensor(f"batchnorm: {name}", array, x.shape)
    dgamma = optional("batchnorm: dgamma", dgamma, (channels,))
    dbeta = optional("batchnorm: dbeta", dbeta, (channels,))
    dresidual = optional_tensor("batchnorm: dresidual", dresidual, dy)

    shape = (-1, partial.shape[2])
    x, y, dy, dx, dresidual = (a.reshape(shape) for a in (x, y, dy, dx, dresidual))
    mask = WHERE_Y if y.size else WHERE_X if relu else ALL
    summed = rows  # at a time; 0: the sums are told
    if sums is not None:
        if relu or dresidual.size:
            raise ValueError("batchnorm: found sums and a ReLU or residual, expected dy to be what is behind them")
        check_array("batchnorm: sums", sums, (len(sums), 2, channels))
        summed, partial = 0, sums
    affine, g = _affine(gamma, beta, mean, var, eps), Passed(x, y, dy, mask)
    _sums(summed, g, affine, dresidual, partial, coefficients, dgamma, dbeta)
    if dresidual.size:  # holds g already, masked
        g = Passed(x, y[:0], dresidual, ALL)
    _input_gradient(rows, g, coefficients, dx, int(goes_past(dx, dx.shape[1], x, g.dy, g.y)))
