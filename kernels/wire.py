"""Numbers on their way between ranks: float32 as two bytes, and sums of what arrived. Serial, without the GIL.

bf16 keeps float32's range and 8 bits of precision. fp16 has 11 bits from 6e-5 to 65504, and gradients that were divided
by a large batch are below: it carries 1024 times the number, 11 bits from 6e-8 to 64, and infinity above. Both round to
nearest, ties to even. Sums are float32 always. These run in the communication thread, hence no threads of their own.

int8 is one byte a number and one a block of up to INT8_BLOCK: the biased exponent of its scale, a power of two, so that
code times scale, and what is lost, are exact in float32. What is lost is added to the next numbers (error feedback:
Seide et al. 2014). A block with an infinity or a NaN arrives as NaN throughout, and loses nothing.
"""

import numpy as np

from ._jit import kernel
from .element import narrow, widen

FP16_SCALE = 1024.0  # a power of two: multiplying and dividing by it rounds nothing
INT8_BLOCK = 256  # numbers of a scale, at most
_TIMES, _OVER = np.float32(FP16_SCALE), np.float32(1 / FP16_SCALE)


@kernel
def accumulate_serial(x, y):
    """x += y, flat float32 of equal size. Cost: 1 flop, 8 bytes read and 4 written a number."""
    for i in range(x.size):
        x[i] += y[i]


@kernel
def encode_bf16(x, wire):
    """wire = x as bf16 bits; x flat float32, wire uint16 of equal size. Cost: 4 bytes read, 2 written a number."""
    for i in range(x.size):
        wire[i] = narrow(np.uint16, x[i])


@kernel
def decode_bf16(wire, x):
    """x = wire, bf16 bits. Cost: 2 bytes read and 4 written a number."""
    for i in range(x.size):
        x[i] = widen(wire[i])


@kernel
def accumulate_bf16(x, wire):
    """x = bf16(x) + wire: both addends rounded, so that the sum is the same whichever of them travelled.

    Cost: 1 flop, 6 bytes read and 4 written a number.
    """
    for i in range(x.size):
        x[i] = widen(narrow(np.uint16, x[i])) + widen(wire[i])


@kernel
def encode_fp16(x, wire):
    """wire = FP16_SCALE x as half bits; x flat float32, wire uint16 of equal size.

    Cost: 1 flop, 4 bytes read and 2 written a number.
    """
    for i in range(x.size):
        wire[i] = narrow(np.int16, x[i] * _TIMES)


@kernel
def decode_fp16(wire, x):
    """x = wire / FP16_SCALE, half bits. Cost: 1 flop, 2 bytes read and 4 written a number."""
    for i in range(x.size):
        x[i] = widen(np.int16(wire[i])) * _OVER


@kernel
def accumulate_fp16(x, wire):
    """x = fp16(x) + wire, as accumulate_bf16. Cost: 4 flops, 6 bytes read and 4 written a number."""
    for i in range(x.size):
        x[i] = widen(narrow(np.int16, x[i] * _TIMES)) * _OVER + widen(np.int16(wire[i])) * _OVER


@kernel
def encode_int8(x, residual, edges, coded):
    """coded = x + residual, and residual = what that loses; x, residual flat float32 of equal size.

    edges: int64, ascending, where blocks begin, and where the last one ends; the first is that of x[0]. coded: uint8,
    for each block the exponent of its scale and a code for each number: x.size + edges.size - 1 bytes.
    Cost: 6 flops, 8 bytes read and 5 written a number.
    """
    sums, scales = np.empty(INT8_BLOCK, np.float32), np.empty(2, np.float32)
    sum_bits, scale_bits = sums.view(np.int32), scales.view(np.int32)
    for block in range(edges.size - 1):
        start, size = edges[block] - edges[0], edges[block + 1] - edges[block]
        here, lost = x[start : start + size], residual[start : start + size]
        codes = coded[start + block + 1 : start + block + 1 + size]
        for i in range(size):
            sums[i] = here[i] + lost[i]
        most = np.int32(0)
        for i in range(size):
            most = max(most, sum_bits[i] & np.int32(0x7FFFFFFF))
        exponent = most >> 23
        if exponent == 255:
            coded[start + block] = 255
            codes[:] = 0
            continue
        exponent = max(exponent - 6, 0)  # below 2^-120: a scale of 0, and all is lost
        coded[start + block] = exponent
        scale_bits[0], scale_bits[1] = exponent << 23, (254 - exponent) << 23  # a power of two and its inverse
        scale, inverse = scales[0], scales[1]
        for i in range(size):
            code = min(np.rint(sums[i] * inverse), np.float32(127))
            codes[i] = np.int32(code) & 255
            lost[i] = sums[i] - code * scale


@kernel
def decode_int8(coded, edges, x):
    """x = coded, as `encode_int8` left it. Cost: 1 flop, 1 byte read and 4 written a number."""
    scales = np.empty(1, np.float32)
    scale_bits = scales.view(np.int32)
    for block in range(edges.size - 1):
        start, size = edges[block] - edges[0], edges[block + 1] - edges[block]
        here, codes = x[start : start + size], coded[start + block + 1 : start + block + 1 + size]
        scale_bits[0] = np.int32(coded[start + block]) << 23
        scale = scales[0]
        for i in range(size):
            here[i] = np.float32(np.int8(codes[i])) * scale
