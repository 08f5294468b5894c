"""Numbers on their way between ranks: float32 as two bytes, and sums of what arrived. Serial, without the GIL.

bf16 keeps float32's range and 8 bits of precision. fp16 has 11 bits from 6e-5 to 65504, and gradients that were divided
by a large batch are below: it carries 1024 times the number, 11 bits from 6e-8 to 64, and infinity above. Both round to
nearest, ties to even. Sums are float32 always. These run in the communication thread, hence no threads of their own.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._jit import kernel

FP16_SCALE = 1024.0  # a power of two: multiplying and dividing by it rounds nothing
_TIMES, _OVER = np.float32(FP16_SCALE), np.float32(1 / FP16_SCALE)
_F32, _I32, _I16, _F16 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.HalfType()


@intrinsic
def _to_fp16(typing, x):
    """float32 → the uint16 bits of the nearest half."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], _F16), _I16)

    return types.uint16(types.float32), generate


@intrinsic
def _from_fp16(typing, bits):
    """uint16 bits of a half → float32."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], _F16), _F32)

    return types.float32(types.uint16), generate


@intrinsic
def _to_bf16(typing, x):
    """float32 → the uint16 bits of the nearest bf16. In 32 bits: Numba's own arithmetic would widen them to 64."""

    def generate(context, builder, signature, arguments):
        def number(value):
            return ir.Constant(_I32, value)

        bits = builder.bitcast(arguments[0], _I32)
        upper = builder.lshr(bits, number(16))
        half = builder.add(number(0x7FFF), builder.and_(upper, number(1)))
        rounded = builder.lshr(builder.add(bits, half), number(16))
        quiet = builder.or_(upper, number(0x40))  # a NaN must not round to infinity
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(is_nan, quiet, rounded), _I16)

    return types.uint16(types.float32), generate


@intrinsic
def _from_bf16(typing, bits):
    """uint16 bits of a bf16 → float32."""

    def generate(context, builder, signature, arguments):
        wide = builder.shl(builder.zext(arguments[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, _F32)

    return types.float32(types.uint16), generate


@kernel
def accumulate_serial(x, y):
    """x += y, flat float32 of equal size."""
    for i in range(x.size):
        x[i] += y[i]


@kernel
def encode_bf16(x, wire):
    """wire = x as bf16 bits; x flat float32, wire uint16 of equal size."""
    for i in range(x.size):
        wire[i] = _to_bf16(x[i])


@kernel
def decode_bf16(wire, x):
    """x = wire, bf16 bits."""
    for i in range(x.size):
        x[i] = _from_bf16(wire[i])


@kernel
def accumulate_bf16(x, wire):
    """x = bf16(x) + wire: both addends rounded, so that the sum is the same whichever of them travelled."""
    for i in range(x.size):
        x[i] = _from_bf16(_to_bf16(x[i])) + _from_bf16(wire[i])


@kernel
def encode_fp16(x, wire):
    """wire = FP16_SCALE x as half bits; x flat float32, wire uint16 of equal size."""
    for i in range(x.size):
        wire[i] = _to_fp16(x[i] * _TIMES)


@kernel
def decode_fp16(wire, x):
    """x = wire / FP16_SCALE, half bits."""
    for i in range(x.size):
        x[i] = _from_fp16(wire[i]) * _OVER


@kernel
def accumulate_fp16(x, wire):
    """x = fp16(x) + wire, as accumulate_bf16."""
    for i in range(x.size):
        x[i] = _from_fp16(_to_fp16(x[i] * _TIMES)) * _OVER + _from_fp16(wire[i]) * _OVER
