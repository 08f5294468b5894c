"""Numbers on their way between ranks: float32 as two bytes, and sums of what arrived. Serial, without the GIL.

bf16 keeps float32's range and 8 bits of precision. fp16 has 11 bits from 6e-5 to 65504, and gradients that were divided
by a large batch are below: it carries 1024 times the number, 11 bits from 6e-8 to 64, and infinity above. Both round to
nearest, ties to even. Sums are float32 always. These run in the communication thread, hence no threads of their own.
"""

import numpy as np

from ._jit import kernel
from .element import narrow, widen

FP16_SCALE = 1024.0  # a power of two: multiplying and dividing by it rounds nothing
_TIMES, _OVER = np.float32(FP16_SCALE), np.float32(1 / FP16_SCALE)


@kernel
def accumulate_serial(x, y):
    """x += y, flat float32 of equal size."""
    for i in range(x.size):
        x[i] += y[i]


@kernel
def encode_bf16(x, wire):
    """wire = x as bf16 bits; x flat float32, wire uint16 of equal size."""
    for i in range(x.size):
        wire[i] = narrow(np.uint16, x[i])


@kernel
def decode_bf16(wire, x):
    """x = wire, bf16 bits."""
    for i in range(x.size):
        x[i] = widen(wire[i])


@kernel
def accumulate_bf16(x, wire):
    """x = bf16(x) + wire: both addends rounded, so that the sum is the same whichever of them travelled."""
    for i in range(x.size):
        x[i] = widen(narrow(np.uint16, x[i])) + widen(wire[i])


@kernel
def encode_fp16(x, wire):
    """wire = FP16_SCALE x as half bits; x flat float32, wire uint16 of equal size."""
    for i in range(x.size):
        wire[i] = narrow(np.int16, x[i] * _TIMES)


@kernel
def decode_fp16(wire, x):
    """x = wire / FP16_SCALE, half bits."""
    for i in range(x.size):
        x[i] = widen(np.int16(wire[i])) * _OVER


@kernel
def accumulate_fp16(x, wire):
    """x = fp16(x) + wire, as accumulate_bf16."""
    for i in range(x.size):
        x[i] = widen(narrow(np.int16, x[i] * _TIMES)) * _OVER + widen(np.int16(wire[i])) * _OVER
