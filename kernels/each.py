"""One simple function of two arrays, vector by vector, for what only memory should limit.

LLVM vectorizes a loop of its own only where it can check that the arrays do not overlap. Where the output is one of the
inputs it cannot, and a loop over 16-bit numbers then takes five times as long (measured).
"""

from numba import types
from numba.extending import intrinsic

from ._ir import Lanes, address_of, literals, number_type, strips, times
from .arch import V

RAISE, SUM, MASK = range(3)
VECTORS = 4  # of V numbers at a time


@intrinsic
def each(typing, function, a, b, low, y):
    """y = max(a, low) for RAISE, max(a + b, low) for SUM, b where a > 0 else 0 for MASK; a NaN to compare passes.

    function : a literal; a, b, y : (n,) of a Number each, y may be a or b, b may be a; low : float32
    """
    constants = literals(function)
    if constants is None:
        return None
    numbers = [number_type(array) for array in (a, b, y)]

    def codegen(context, builder, sig, args):
        size = context.make_array(y)(context, builder, args[4]).nitems
        places = [address_of(context, builder, sig.args[i], args[i]) for i in (1, 2, 4)]
        for width, index in strips(builder, size, VECTORS * V):
            lanes = [Lanes(builder, width, number) for number in numbers]
            here = [builder.add(places[i], times(builder, index, numbers[i].bytes)) for i in range(3)]
            of_a, of_b = lanes[0].load(here[0]), lanes[1].load(here[1])
            lanes[2].store(_value(builder, lanes[2], constants[0], of_a, of_b, args[3]), here[2])
        return context.get_dummy_value()

    return types.void(function, a, b, types.float32, y), codegen


def _value(builder, lanes, function, a, b, low):
    if function == MASK:
        zero = lanes.constant(0)
        return builder.select(builder.fcmp_ordered(">", a, zero), b, zero)
    value, floor = a if function == RAISE else builder.fadd(a, b), lanes.splat(low)
    return builder.select(builder.fcmp_ordered("<", value, floor), floor, value)
