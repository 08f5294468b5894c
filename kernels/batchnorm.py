"""Batch normalization over pixels, with the residual addition and the ReLU behind it in the same pass.

Each kernel goes over memory once, and some not at all; a convolution beside it may take the first pass over:

    forward    moments of x (or told by the convolution that makes x), statistics, normalize
    backward   sums of g and of g * (x - mean) (or told by the convolution that makes g), factors, dx

x, y, dy are read as (pixels, C), few channels folded. Each pass is bound by memory. A task owns a chunk of rows, as
many for any number of threads. What comes between two passes, and the plan, is in `batchnorm_table`, what a pass does
to a row of pixels in `affine`.
"""

from typing import NamedTuple

import numba
import numpy as np

from ._jit import inlined, kernel
from ._shapes import NOTHING, check_array, check_input, check_tensor, chunk_rows, optional_tensor
from .affine import ALL, COEFFICIENTS, WHERE_X, WHERE_Y, gradient_row, normalize_row, sum_row
from .ahead import ask_ahead
from .batchnorm_table import affine_of, batchnorm_plan, columns_of, fill_table
from .moments import part_moments
from .store import goes_past


class Passed(NamedTuple):
    """g, what of dy is passed on, by `mask`: all of it, or where y or the normalized x is above 0; (rows, columns)."""

    x: np.ndarray
    y: np.ndarray  # empty where the mask does not ask for it
    dy: np.ndarray
    mask: int


def _lines(x, *others):
    """x (..., C) and others like it as rows of a table's columns, what is empty stays so; and the rows of a chunk."""
    columns = _columns(x)
    return *(a.reshape(-1, columns) for a in (x, *others)), chunk_rows(columns)


def _columns(x):
    return columns_of(x.size // x.shape[-1], x.shape[-1])


def _check_table(what, table, x):
    check_array(f"batchnorm: {what}", table, (COEFFICIENTS, _columns(x)))


def _check_parts(what, parts, x):
    check_array(f"batchnorm: {what}", parts, batchnorm_plan(x.size // x.shape[-1], x.shape[-1]).moments_shape)


# ---- forward -------------------------------------------------------------------------------------------------


@inlined
def _moments_body(i, rows, x, partial):
    first, columns = i * rows, x.shape[1]
    part_moments(x.reshape(-1), first * columns, columns, min(rows, x.shape[0] - first), partial[i, 0], partial[i, 1])


@kernel(parallel=True)
def _moments(rows, x, partial):
    for i in numba.prange(partial.shape[0]):
        _moments_body(np.int64(i), rows, x, partial)


def batchnorm_moments(x, moments):
    """Mean and M2 of every chunk of x (..., C), float32 of plan.moments_shape, overwritten.

    A chunk is read for its mean and then, from the cache, for its M2.
    Cost: 4 flops an element; reads x.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_statistics.
    """
    check_input("batchnorm: x", x)
    _check_parts("moments", moments, x)
    x, rows = _lines(x)
    _moments(rows, x, moments)


@inlined
def _normalize_body(i, rows, x, table, residual, beside, low, y, past):
    columns, pitch = x.shape[1], table.strides[0]
    added = min(1, residual.size) + min(1, beside.size)
    for r in range(i * rows, min((i + 1) * rows, x.shape[0])):
        ask_ahead(x, r)
        if residual.size:
            ask_ahead(residual, r)
        normalize_row(
            columns, x.ctypes.data + r * x.strides[0], x.dtype, added,
            residual.ctypes.data + r * x.strides[0], table.ctypes.data, beside.ctypes.data, pitch, low,
            y.ctypes.data + r * y.strides[0], y.dtype, past,
        )  # fmt: skip


@kernel(parallel=True)
def _normalize(rows, x, table, residual, beside, low, y, past):
    for i in numba.prange((x.shape[0] + rows - 1) // rows):
        _normalize_body(np.int64(i), rows, x, table, residual, beside, low, y, past)


def batchnorm_normalize(x, table, y, residual=None, relu=False, residual_table=None):
    """y = x normalized by its table (+ residual), then max(y, 0) if relu.

    x, y, residual : (..., C) of a Number, x and residual of the same; y may be x or residual
    table : by `batchnorm_statistics`
    residual_table : the same of another batch norm, or None; the residual is normalized by it: what is added is the
        output of that batch norm, which nobody else reads

    Cost: 4 flops an element, 5 with a residual, 8 with its table; reads x, residual, writes y.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_normalize.
    """
    check_input("batchnorm: x", x)
    _check_table("table", table, x)
    if residual_table is not None:
        _check_table("table of the residual", residual_table, x)
        if residual is None:
            raise ValueError("batchnorm: found a table and no residual, expected both: pass what it normalizes")
    check_tensor("batchnorm: y", y, x.shape)
    low = np.float32(0 if relu else -np.inf)
    x, y, residual, rows = _lines(x, y, optional_tensor("batchnorm: residual", residual, x))
    beside = NOTHING.reshape(0, x.shape[1]) if residual_table is None else residual_table
    _normalize(rows, x, table, residual, beside, low, y, int(goes_past(y, x.shape[1], x, residual)))


def batchnorm_inference(x, gamma, beta, mean, var, eps, y, residual=None, relu=False):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta (+ residual), then max(y, 0) if relu; e.g. of running averages.

    Arrays as in `batchnorm_statistics` and `batchnorm_normalize`.
    Cost: 4 flops an element, 5 with a residual; reads x, residual, writes y.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_inference.
    """
    check_input("batchnorm: x", x)
    check_array("batchnorm: mean", mean, x.shape[-1:])
    table = np.empty((COEFFICIENTS, _columns(x)), np.float32)
    fill_table(affine_of(gamma, beta, mean, var, eps), table)
    batchnorm_normalize(x, table, y, residual, relu)


# ---- backward ------------------------------------------------------------------------------------------------


@inlined
def _sums_body(i, rows, g, table, dresidual, partial):
    # sums of g and of g * (x - mean)
    partial[i] = 0
    x, y, dy = g.x, g.y, g.dy
    sum_g, pitch, shift = partial.ctypes.data + i * partial.strides[0], table.strides[0], dy.strides[0]
    for r in range(i * rows, min((i + 1) * rows, x.shape[0])):
        ask_ahead(x, r)
        ask_ahead(dy, r)
        if y.size:
            ask_ahead(y, r)
        here = r * x.strides[0]
        sum_row(
            x.shape[1], x.ctypes.data + here, x.dtype, y.ctypes.data + here, dy.ctypes.data + r * shift, dy.dtype,
            g.mask, table.ctypes.data, pitch, sum_g, sum_g + partial.strides[1], min(1, dresidual.size),
            dresidual.ctypes.data + r * shift,
        )  # fmt: skip


@kernel(parallel=True)
def _sums(rows, g, table, dresidual, partial):
    for i in numba.prange(partial.shape[0]):
        _sums_body(np.int64(i), rows, g, table, dresidual, partial)


def batchnorm_sums(x, y, dy, table, sums, relu=False, dresidual=None):
    """Sums over every chunk of g and of g * (x - mean), g = dy * (normalized x (+ residual) > 0) if relu else dy.

    x, dy : (..., C) of a Number
    y : like x, the output where there is a residual, else None: its sign follows from x
    table : by `batchnorm_statistics`
    sums : float32 of plan.moments_shape, overwritten
    dresidual : like dy, overwritten with g; may be dy or y; None where nobody wants it

    Cost: 4 flops an element, 3 for the mask of a ReLU; reads x, dy.
    With dresidual: 4 flops an element, 1 for the mask; reads x, y, dy, writes dresidual.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_backward.
    """
    check_input("batchnorm: x", x)
    _check_table("table", table, x)
    check_tensor("batchnorm: dy", dy, x.shape)
    if relu and y is None and dresidual is not None:
        raise ValueError("batchnorm: found a ReLU behind a residual and no y, expected its output: pass it")
    y = optional_tensor("batchnorm: y", y if relu else None, x)
    _check_parts("sums", sums, x)
    mask = WHERE_Y if y.size else WHERE_X if relu else ALL
    x, y, dy, dresidual, rows = _lines(x, y, dy, optional_tensor("batchnorm: dresidual", dresidual, dy))
    _sums(rows, Passed(x, y, dy, mask), table, dresidual, sums)


@inlined
def _input_gradient_body(i, rows, x, dy, by_x, table, factors, dx, past):
    for r in range(i * rows, min((i + 1) * rows, x.shape[0])):
        ask_ahead(x, r)
        ask_ahead(dy, r)
        gradient_row(
            x.shape[1], x.ctypes.data + r * x.strides[0], x.dtype, dy.ctypes.data + r * dy.strides[0], dy.dtype, by_x,
            table.ctypes.data, factors.ctypes.data, table.strides[0],
            dx.ctypes.data + r * dx.strides[0], dx.dtype, past,
        )  # fmt: skip


@kernel(parallel=True)
def _input_gradient(rows, x, dy, by_x, table, factors, dx, past):
    for i in numba.prange((x.shape[0] + rows - 1) // rows):
        _input_gradient_body(np.int64(i), rows, x, dy, by_x, table, factors, dx, past)


def batchnorm_backward(x, dy, table, factors, dx, relu=False):
    """The gradient of x: dx = gamma / sqrt(var + eps) * (g - sum g / M - xhat * sum (g * xhat) / M), of M pixels.

    g = dy * (normalized x > 0) if relu else dy, xhat = (x - mean) / sqrt(var + eps). Behind a residual dy is g already:
    the dresidual of `batchnorm_sums`, or what a convolution passed on.

    x, dy : (..., C) of a Number
    table, factors : by `batchnorm_statistics` and `batchnorm_factors`
    dx : like x, overwritten; may be dy or x

    Cost: 5 flops an element, 3 for the mask of a ReLU; reads x, dy, writes dx.
    Raises: TypeError, ValueError. Twin: reference.batchnorm_backward.
    """
    check_input("batchnorm: x", x)
    _check_table("table", table, x)
    _check_table("factors", factors, x)
    for name, array in (("dy", dy), ("dx", dx)):
        check_tensor(f"batchnorm: {name}", array, x.shape)
    x, dy, dx, rows = _lines(x, dy, dx)
    past = int(goes_past(dx, dx.shape[1], x, dy))
    _input_gradient(rows, x, dy, int(relu), table, factors, dx, past)
