"""One number between memory and float32: for loops that are written number by number, whatever they read and write.

`kind` is a dtype: of an array, `x.dtype`, or np.float32.
"""

from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype, from_dtype

from ._ir import I64, Lanes, load_address, narrow_value, number_type, stored_type, times, widen_value
from .number import number_of


@intrinsic
def widen(typing, value):
    """An element of an array, as float32: exact. A float32 is left as it is. Twin: Number.widen."""
    number = number_of(as_dtype(value))

    def codegen(context, builder, sig, args):
        return widen_value(builder, number, builder.bitcast(args[0], stored_type(number)))

    return types.float32(value), codegen


@intrinsic
def narrow(typing, kind, value):
    """A float32 as an element of arrays of dtype `kind`: the nearest, ties to even. Twin: Number.narrow."""
    number = number_type(kind)
    element = from_dtype(number.dtype)

    def codegen(context, builder, sig, args):
        return builder.bitcast(narrow_value(builder, number, args[1]), context.get_value_type(element))

    return element(kind, types.float32), codegen


@intrinsic
def size_of(typing, kind):
    """Bytes of a number of dtype `kind`."""

    def codegen(context, builder, sig, args):
        return I64(number_type(kind).bytes)

    return types.int64(kind), codegen


@intrinsic
def peek(typing, kind, address, index):
    """Number `index` of dtype `kind` from an address on, as float32."""

    def codegen(context, builder, sig, args):
        lane = Lanes(builder, 1, number_type(kind))
        return lane.load_one(builder.add(args[1], times(builder, args[2], lane.bytes)))

    return types.float32(kind, types.int64, types.int64), codegen


@intrinsic
def poke(typing, kind, address, index, value):
    """Store a float32 as number `index` of dtype `kind` from an address on."""

    def codegen(context, builder, sig, args):
        lane = Lanes(builder, 1, number_type(kind))
        lane.store_one(args[3], builder.add(args[1], times(builder, args[2], lane.bytes)))
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64, types.float32), codegen


@intrinsic
def entry(typing, table, index):
    """Number `index` of the int64 at an address. Handing an array on in a loop costs two counts of references."""

    def codegen(context, builder, sig, args):
        return load_address(builder, builder.add(args[0], times(builder, args[1], 8)), 0)

    return types.int64(types.int64, types.int64), codegen
