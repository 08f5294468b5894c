"""Numbers on their way between ranks: float32 as two bytes, and sums of what arrived. Serial, without the GIL.

bf16 keeps float32's range and 8 bits of precision, fp16 has 11 bits from 6e-5 to 65504 and infinity above. Both round
to nearest, ties to even. Sums are float32 always. These run in the communication thread, hence no threads of their own.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._jit import kernel

_F32, _I32, _I16, _F16 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.HalfType()


@intrinsic
def _bits(typing, x):
    """float32 → its uint32 bits."""
    return types.uint32(types.float32), lambda context, builder, signature, a: builder.bitcast(a[0], _I32)


@intrinsic
def _float(typing, bits):
    """uint32 bits → float32."""
    return types.float32(types.uint32), lambda context, builder, signature, a: builder.bitcast(a[0], _F32)


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


@kernel
def _to_bf16(x):
    bits = _bits(x)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    quiet = bits >> np.uint32(16) | np.uint32(0x40)  # a NaN must not round to infinity
    return np.uint16(quiet if x != x else rounded)


@kernel
def _from_bf16(bits):
    return _float(np.uint32(bits) << np.uint32(16))


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
    """wire = x as half bits; x flat float32, wire uint16 of equal size."""
    for i in range(x.size):
        wire[i] = _to_fp16(x[i])


@kernel
def decode_fp16(wire, x):
    """x = wire, half bits."""
    for i in range(x.size):
        x[i] = _from_fp16(wire[i])


@kernel
def accumulate_fp16(x, wire):
    """x = fp16(x) + wire, as accumulate_bf16."""
    for i in range(x.size):
        x[i] = _from_fp16(_to_fp16(x[i])) + _from_fp16(wire[i])
