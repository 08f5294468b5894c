"""From a stored uint8 picture to normalized float32 pixels: crop, resample, mirror, change colours.

Serial and without the GIL: reader threads call these while the compute kernels use the cores, so nothing here is
parallel. Which part of the picture to take is drawn in `window`; nothing here draws a random number. Each call takes a
few kilobytes of workspace for itself, one line of the picture and the weights of its columns.
"""

import math

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._ir import Lanes, address_of, load_address, times
from ._jit import inlined, kernel
from .store import goes_past, store_row

SAMPLE_BYTES = 256 << 10  # of a sample so large that a batch of them does not stay in the caches

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

    Cost: 2 flops a tap, 2 * max(scale, 1) taps down for each number of a line of the box, as many across for each of
    an output line; reads the box, writes out.
    Raises: ValueError if a shape disagrees or the box leaves the picture, TypeError for another dtype.
    """
    _check(image, mean, inverse_std, out)
    box = top, left, height, width = tuple(float(value) for value in box)
    if not (height > 0 and width > 0 and 0 <= top <= image.shape[0] - height and 0 <= left <= image.shape[1] - width):
        raise ValueError(f"box {box}, expected (top, left, height, width) inside a picture of {image.shape[:2]}")
    if mean.ndim != 1:
        raise ValueError(f"mean has shape {mean.shape}, expected (3,): a mean picture cannot be resampled")
    flat = image.reshape(len(image), -1)
    past = goes_past(out, 3 * out.shape[1], least=SAMPLE_BYTES)
    _resample_normalize(flat, box, bool(mirror), mean, inverse_std, out, past)
    return out


def transform_colors(out, matrix, offset):
    """out[p, q] = matrix @ out[p, q] + offset, in place: every linear change of colours in one pass.

    out : (P, Q, 3) float32; matrix (3, 3) and offset (3,) float32
    Cost: 18 flops, 12 bytes read and 12 written a pixel.
    """
    if out.dtype != np.float32 or out.ndim != 3 or out.shape[2] != 3 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected contiguous float32 (P, Q, 3)")
    _transform_colors(out.reshape(-1, 3), np.asarray(matrix, np.float32), np.asarray(offset, np.float32))
    return out


def mean_color(out):
    """Mean over all pixels of (P, Q, 3) float32: (3,) float64, summed in the order of the pixels.

    Cost: 3 flops and 12 bytes read a pixel.
    """
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


@inlined
def _taps(scale):
    """How many input pixels an output pixel can reach, at most."""
    return int(math.ceil(2 * max(scale, 1.0))) + 1


@inlined
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
def _resample_normalize(image, box, mirror, mean, inverse_std, out, past):
    """image (H, 3 W): the vertical pass is one loop over neighbours in memory."""
    (top, left, height, width), (rows, columns, _) = box, out.shape
    limit_y, limit_x = image.shape[0], image.shape[1] // 3
    scale_y, scale_x = height / rows, width / columns
    down, weights = np.empty(_taps(scale_y), np.float32), np.empty(_taps(scale_x), np.float32)
    taps, begin, end = len(weights), int(math.floor(left)), 0
    groups = (columns + 3) // 4
    starts = np.zeros(4 * groups, np.int64)  # of an output pixel, in `line`
    across = np.zeros((groups, taps, 16), np.float32)  # each weight four times: of four pixels, for one tap
    for q in range(columns):
        first = _weights(q, left, width, scale_x, limit_x, weights)
        t = columns - 1 - q if mirror else q
        starts[t], end = 3 * (first - begin), first + taps
        for k in range(taps):
            across[t // 4, k, 4 * (t % 4) : 4 * (t % 4) + 4] = weights[k]
    count = min(limit_x, end) - begin  # columns that are needed
    line = np.zeros(3 * (count + taps) + 1, np.float32)  # taps of weight 0 may reach behind the last column
    pixels = np.empty(12 * groups + 4, np.float32)  # one row of the output, and what its last vector writes behind
    means, scales = np.zeros(16, np.float32), np.zeros(16, np.float32)
    for i in range(16):
        if i % 4 < 3:
            means[i], scales[i] = mean[i % 4], inverse_std[i % 4]
    for p in range(rows):
        y = _weights(p, top, height, scale_y, limit_y, down)
        _weigh_rows(image, y, 3 * begin, 3 * count, down, line)
        for group in range(groups):
            _weigh_pixels(line, starts, across, means, scales, taps, group, pixels)
        store_row(pixels.ctypes.data, 3 * columns, out.dtype, out[p].ctypes.data, False, past)


@intrinsic
def _weigh_pixels(typingctx, line, starts, across, means, scales, taps, group, pixels):
    """Four pixels of an output row: pixels[12 group + 3 i + c] = (sum over k of across[group, k, i] * line[starts[4
    group + i] + 3 k + c] - means[c]) * scales[c].

    One vector holds the four, each in four lanes: a load a pixel and one multiply-add a tap. The fourth lane is the
    next pixel's first value, and dropped at the end; so `line` must go on for one value behind the last pixel, and
    four values behind the group are overwritten.
    """
    packed = [4 * (i // 3) + i % 3 if i < 12 else 15 for i in range(16)]

    def codegen(context, builder, signature, arguments):
        line, starts, across, means, scales, pixels = (
            address_of(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 2, 3, 4, 7)
        )
        taps, group = arguments[5:7]
        four, sixteen = Lanes(builder, 4), Lanes(builder, 16)
        item = four.number.bytes
        pixel = builder.add(starts, times(builder, group, 4 * 8))
        first = [builder.add(line, times(builder, load_address(builder, pixel, i), item)) for i in range(4)]
        weights = builder.add(across, times(builder, builder.mul(group, taps), sixteen.bytes))
        total = sixteen.variable(sixteen.constant(0))
        with cgutils.for_range(builder, taps) as loop:
            step = times(builder, loop.index, 3 * item)
            values = [four.load(builder.add(place, step)) for place in first]
            halves = [four.shuffle(values[i], values[i + 1], range(8)) for i in (0, 2)]
            weight = sixteen.load(builder.add(weights, times(builder, loop.index, sixteen.bytes)))
            builder.store(sixteen.fma(weight, four.shuffle(*halves, range(16)), builder.load(total)), total)
        values = builder.fmul(builder.fsub(builder.load(total), sixteen.load(means)), sixteen.load(scales))
        place = builder.add(pixels, times(builder, group, 12 * item))
        sixteen.store(sixteen.shuffle(values, values, packed), place)
        return context.get_dummy_value()

    return types.void(line, starts, across, means, scales, types.int64, types.int64, pixels), codegen


@inlined
def _weigh_rows(image, y, begin, count, down, line):
    """line = sum over k of down[k] * image[y + k], over `count` values from `begin`."""
    taps = len(down)
    while taps > 1 and down[taps - 1] == 0:  # there may be no such row
        taps -= 1
    if count < 16:
        for i in range(count):
            line[i] = 0
            for k in range(taps):
                line[i] += down[k] * np.float32(image[y + k, begin + i])
        return
    for i in range(0, count - 15, 16):
        _weigh_bytes(image, y, begin + i, down, taps, line, i)
    _weigh_bytes(image, y, begin + count - 16, down, taps, line, count - 16)  # a last one may repeat a part


@intrinsic
def _weigh_bytes(typingctx, image, y, x, down, taps, line, at):
    """line[at + i] = sum over k of down[k] * image[y + k, x + i], for i below 16, as one vector."""

    def codegen(context, builder, signature, arguments):
        picture, weights, sums = (address_of(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 5))
        _, y, x, _, taps, _, at = arguments
        strides = context.make_array(signature.args[0])(context, builder, arguments[0]).strides
        width = cgutils.unpack_tuple(builder, strides)[0]
        lanes = Lanes(builder, 16)
        total = lanes.variable(lanes.constant(0))
        with cgutils.for_range(builder, taps) as loop:
            row = builder.add(picture, builder.mul(builder.add(y, loop.index), width))
            weight = lanes.broadcast(builder.add(weights, times(builder, loop.index, lanes.number.bytes)))
            builder.store(lanes.fma(weight, lanes.load_bytes(builder.add(row, x)), builder.load(total)), total)
        lanes.store(builder.load(total), builder.add(sums, times(builder, at, lanes.number.bytes)))
        return context.get_dummy_value()

    kinds = types.int64, types.int64
    return types.void(image, *kinds, down, types.int64, line, types.int64), codegen


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
