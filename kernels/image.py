"""From a stored uint8 picture to normalized float32 pixels: crop, resample, mirror, change colours.

Serial and without the GIL: reader threads call these while the compute kernels use the cores, so nothing here is
parallel. Which part of the picture to take is drawn in `window`; nothing here draws a random number. Each call takes a
few kilobytes of workspace for itself, one line of the picture and the weights of its columns.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import kernel

_U8, _F32 = np.dtype(np.uint8), np.dtype(np.float32)


def crop_normalize(image, top, left, mirror, mean, inverse_std, out):
    """Copy a window of a picture, normalized: the window may reach over the edge, where the output is 0.

    out[p, q, c] = (image[top + p, left + q', c] - mean[c]) * inverse_std[c],  q' = Q - 1 - q if mirror else q

    Parameters
    ----------
    image : (H, W, 3) uint8, C-contiguous
    top, left : int, corner of the window; negative in a padding
    mean : (3,) float32, in units of 0..255; or a mean picture (H, W, 3), from which the same window is taken
    inverse_std : (3,) float32
    out : (P, Q, 3) float32, overwritten. A pixel outside the picture gives 0, that is, the mean colour.

    Cost: 50 us for 227 x 227 (one Sapphire Rapids core).
    Raises: ValueError if a shape disagrees, TypeError for another dtype.
    """
    _check(image, mean, inverse_std, out)
    if mean.ndim == 3 and mean.shape != image.shape:
        raise ValueError(f"mean picture has shape {mean.shape}, expected that of the picture, {image.shape}")
    flat = image.reshape(len(image), -1)
    means = mean.reshape(len(image), -1) if mean.ndim == 3 else mean.reshape(1, 3)
    _crop_normalize(flat, int(top), int(left), bool(mirror), means, inverse_std, out.reshape(len(out), -1))
    return out


def resample_normalize(image, box, mirror, mean, inverse_std, out):
    """Resample a box of a picture to the size of `out`, antialiased, normalized.

    The filter is a triangle, as wide as an output pixel when shrinking and as an input pixel when enlarging (Pillow's
    BILINEAR); weights are cut off at the edge of the box and scaled to sum to 1.

    Parameters
    ----------
    image : (H, W, 3) uint8, C-contiguous
    box : (top, left, height, width), inside the picture; need not be whole numbers
    mean, inverse_std : (3,) float32, in units of 0..255
    out : (P, Q, 3) float32, overwritten

    Raises: ValueError if a shape disagrees or the box leaves the picture, TypeError for another dtype.
    """
    _check(image, mean, inverse_std, out)
    top, left, height, width = (float(value) for value in box)
    if not (height > 0 and width > 0 and 0 <= top <= image.shape[0] - height and 0 <= left <= image.shape[1] - width):
        raise ValueError(f"box {tuple(box)}, expected (top, left, height, width) inside a picture of {image.shape[:2]}")
    if mean.ndim != 1:
        raise ValueError(f"mean has shape {mean.shape}, expected (3,): a mean picture cannot be resampled")
    flat = image.reshape(len(image), -1)
    _resample_normalize(flat, top, left, height, width, bool(mirror), mean, inverse_std, out)
    return out


def transform_colors(out, matrix, offset):
    """out[p, q] = matrix @ out[p, q] + offset, in place: every linear change of colours in one pass.

    out : (P, Q, 3) float32; matrix (3, 3) and offset (3,) float32
    """
    if out.dtype != np.float32 or out.ndim != 3 or out.shape[2] != 3 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected contiguous float32 (P, Q, 3)")
    _transform_colors(out.reshape(-1, 3), np.asarray(matrix, np.float32), np.asarray(offset, np.float32))
    return out


def mean_color(out):
    """Mean over all pixels of (P, Q, 3) float32: (3,) float64, summed in the order of the pixels."""
    return _mean_color(out.reshape(-1, 3))


def _check(image, mean, inverse_std, out):
    if not (image.dtype == _U8 and mean.dtype == inverse_std.dtype == out.dtype == _F32):
        found = ", ".join(str(array.dtype) for array in (image, mean, inverse_std, out))
        raise TypeError(f"image, mean, inverse_std, out are {found}: expected uint8, then three times float32")
    for name, array in (("image", image), ("out", out)):
        if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected (height, width, 3)")
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError(f"{name} is not a C-contiguous writeable array: copy it first")
    if mean.shape[-1:] != (3,) or mean.ndim == 2 or inverse_std.shape != (3,):
        raise ValueError(f"mean has shape {mean.shape} and inverse_std {inverse_std.shape}, expected (3,)")


# ---- crop ----------------------------------------------------------------------------------------------------


@kernel
def _crop_normalize(image, top, left, mirror, means, inverse_std, out):
    """image (H, 3 W), means (H, 3 W) or (1, 3), out (P, 3 Q): a row is one loop over neighbours in memory."""
    height, width = image.shape[0], image.shape[1] // 3
    rows, columns = out.shape[0], out.shape[1] // 3
    # the columns of the window that lie in the picture: [first, last)
    first = min(max(0, -left), columns)
    last = max(min(columns, width - left), first)
    count = 3 * (last - first)
    begin = 3 * (left + first)
    line, mean, scale = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)  # unsigned: an index may not be meant from the end
    for i in range(count):
        mean[i] = means[0, i % 3]
        scale[i] = inverse_std[i % 3]
    for p in range(rows):
        y = top + p
        if y < 0 or y >= height or count == 0:
            out[p] = 0
            continue
        if means.shape[0] > 1:
            mean[:] = means[y, begin : begin + count]
        row = image[y, begin : begin + count]
        if not mirror:
            out[p, : 3 * first] = 0
            out[p, 3 * last :] = 0
            target = out[p, 3 * first : 3 * last]
            for i in range(count):
                target[i] = (np.float32(row[i]) - mean[i]) * scale[i]
            continue
        out[p, : 3 * (columns - last)] = 0
        out[p, 3 * (columns - first) :] = 0
        for i in range(count):
            line[i] = (np.float32(row[i]) - mean[i]) * scale[i]
        target = out[p, 3 * (columns - last) : 3 * (columns - first)]
        source, at = np.uint64(0), np.uint64(count)
        for _ in range(count // 3):
            at -= three
            target[at] = line[source]
            target[at + one] = line[source + one]
            target[at + two] = line[source + two]
            source += three


# ---- resample ------------------------------------------------------------------------------------------------


@kernel
def _taps(scale):
    """How many input pixels an output pixel can reach, at most."""
    return int(math.ceil(2 * max(scale, 1.0))) + 1


@kernel
def _weights(i, begin, extent, scale, limit, weights):
    """Weights of output pixel i in a box [begin, begin + extent) of a line; returns the first input pixel.

    weights (taps,): from the first pixel on, 0 behind the last; they sum to 1.
    """
    radius = max(scale, 1.0)
    centre = begin + (i + 0.5) * scale
    lowest, highest = int(math.floor(begin)), min(int(math.ceil(begin + extent)), limit)
    first = max(lowest, int(math.floor(centre - radius)))
    last = min(highest, int(math.ceil(centre + radius)))
    total = 0.0
    for k in range(weights.shape[0]):
        weight = 0.0
        if first + k < last:
            weight = max(0.0, 1.0 - abs(first + k + 0.5 - centre) / radius)
        weights[k] = weight
        total += weight
    for k in range(weights.shape[0]):
        weights[k] /= total
    return first


@kernel
def _resample_normalize(image, top, left, height, width, mirror, mean, inverse_std, out):
    """image (H, 3 W): the vertical pass is one loop over neighbours in memory."""
    rows, columns, _ = out.shape
    limit_y, limit_x = image.shape[0], image.shape[1] // 3
    scale_y, scale_x = height / rows, width / columns
    down, across = np.empty(_taps(scale_y), np.float32), np.empty((columns, _taps(scale_x)), np.float32)
    starts = np.empty(columns, np.int64)  # in `line`
    taps, begin, end = across.shape[1], int(math.floor(left)), 0
    for q in range(columns):
        first = _weights(q, left, width, scale_x, limit_x, across[q])
        starts[q], end = 3 * (first - begin), first + taps
    count = min(limit_x, end) - begin  # columns that are needed
    line = np.zeros(3 * (count + taps), np.float32)  # taps of weight 0 may reach behind the last column
    for p in range(rows):
        y = _weights(p, top, height, scale_y, limit_y, down)
        _weigh_rows(image, y, 3 * begin, 3 * count, down, line)
        _weigh_columns(line, starts, across, mirror, mean, inverse_std, out[p])


@intrinsic
def _weigh_pixels(typingctx, line, at, weights, first, taps):
    """Sum over k of weights[first + k] * line[at + 3 k : at + 3 k + 3], as three floats.

    One vector of four lanes holds a pixel, and one value of the next pixel that is dropped at the end: a load and a
    multiply-add a tap in place of three. `line` must go on for one value behind the last pixel.
    """
    four = ir.VectorType(ir.FloatType(), 4)

    def codegen(context, builder, signature, arguments):
        line, at, weights, first, taps = arguments
        line, weights = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip((signature.args[0], signature.args[2]), (line, weights), strict=True)
        )
        total = cgutils.alloca_once_value(builder, ir.Constant(four, [0.0] * 4))
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(four, [four] * 3), "llvm.fma.v4f32")
        with cgutils.for_range(builder, taps) as loop:
            place = builder.add(at, builder.mul(loop.index, loop.index.type(3)))
            pixel = builder.bitcast(builder.gep(line, [place]), four.as_pointer())
            weight = builder.load(builder.gep(weights, [builder.add(first, loop.index)]))
            undefined = ir.Constant(four, ir.Undefined)
            splat = builder.insert_element(undefined, weight, ir.IntType(32)(0))
            splat = builder.shuffle_vector(splat, undefined, ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4))
            builder.store(builder.call(fma, [splat, builder.load(pixel, align=4), builder.load(total)]), total)
        values = [builder.extract_element(builder.load(total), ir.IntType(32)(c)) for c in range(3)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(types.float32, 3)(line, types.int64, weights, types.int64, types.int64), codegen


@kernel
def _weigh_columns(line, starts, across, mirror, mean, inverse_std, row):
    """`line` (pixels, 3) flat to the pixels of one output row (Q, 3), normalized."""
    columns, taps = across.shape
    weights = across.reshape(-1)
    m0, m1, m2 = mean[0], mean[1], mean[2]
    s0, s1, s2 = inverse_std[0], inverse_std[1], inverse_std[2]
    for q in range(columns):
        r, g, b = _weigh_pixels(line, starts[q], weights, q * taps, taps)
        t = columns - 1 - q if mirror else q
        row[t, 0] = (r - m0) * s0
        row[t, 1] = (g - m1) * s1
        row[t, 2] = (b - m2) * s2


@kernel
def _weigh_rows(image, y, begin, count, down, line):
    """line = sum over k of down[k] * image[y + k], over `count` values from `begin`; two rows at a time."""
    for k in range(0, down.shape[0], 2):
        w0, w1 = down[k], np.float32(0)
        if k > 0 and w0 == 0:
            break
        row0 = row1 = image[y + k, begin : begin + count]
        if k + 1 < down.shape[0] and down[k + 1] != 0:
            w1, row1 = down[k + 1], image[y + k + 1, begin : begin + count]
        if k == 0:
            for i in range(count):
                line[i] = w0 * np.float32(row0[i]) + w1 * np.float32(row1[i])
        else:
            for i in range(count):
                line[i] += w0 * np.float32(row0[i]) + w1 * np.float32(row1[i])


# ---- colours -------------------------------------------------------------------------------------------------


@kernel
def _transform_colors(pixels, matrix, offset):
    a00, a01, a02 = matrix[0, 0], matrix[0, 1], matrix[0, 2]
    a10, a11, a12 = matrix[1, 0], matrix[1, 1], matrix[1, 2]
    a20, a21, a22 = matrix[2, 0], matrix[2, 1], matrix[2, 2]
    b0, b1, b2 = offset[0], offset[1], offset[2]
    for i in range(pixels.shape[0]):
        r, g, b = pixels[i, 0], pixels[i, 1], pixels[i, 2]
        pixels[i, 0] = a00 * r + a01 * g + a02 * b + b0
        pixels[i, 1] = a10 * r + a11 * g + a12 * b + b1
        pixels[i, 2] = a20 * r + a21 * g + a22 * b + b2


@kernel
def _mean_color(pixels):
    r = g = b = 0.0
    for i in range(pixels.shape[0]):
        r += pixels[i, 0]
        g += pixels[i, 1]
        b += pixels[i, 2]
    return np.array([r, g, b]) / pixels.shape[0]
