"""How four bytes of A meet four bytes of B in a register tile: as one float32, or as a pair of bf16.

Both kinds of unit lie in memory alike: a row of A is broadcast unit by unit, a row of B is vectors of them. A pair
holds two neighbours of the dimension that is summed, so that sum is half as long. The product of two bf16 is exact in
float32.
"""

from llvmlite import ir
from numba.core import cgutils

from ._ir import I16, I32, Lanes, constant_like, narrow_value
from .arch import HAS_DOT
from .number import BF16


class Fma(Lanes):
    """c + a * b of float32, rounded once."""

    def load_units(self, address, offset=0):
        """A vector of units."""
        return self.load(address, offset)

    def broadcast_unit(self, address, offset=0):
        """The unit at an address in every lane."""
        return self.broadcast(address, offset)

    def dot(self, a, b, c):
        return self.fma(a, b, c)


class Dot2(Lanes):
    """(c + a1 * b1) + a0 * b0 of pairs of bf16 (a0, a1) and (b0, b1), what Intel's VDPBF16PS computes.

    Each of the two sums is rounded to nearest even, in this order; denormals count as zeros before and after. Without
    the instruction the same is spelled out, for every CPU: slow, and equal to the bit.
    """

    has_instruction = HAS_DOT

    def load_units(self, address, offset=0):
        place = self._pointer(address, offset, ir.VectorType(I32, self.width))
        return self.builder.load(place, align=self.number.bytes)

    def broadcast_unit(self, address, offset=0):
        return self.splat(self.builder.load(self._pointer(address, offset, I32), align=BF16.bytes))

    def dot(self, a, b, c):
        if self.has_instruction and self.width == 16:
            return self._instruction(a, b, c)
        c = self.flush(c)
        for bits in (self.upper, self.lower):
            c = self.flush(self.fma(self.flush(bits(a)), self.flush(bits(b)), c))
        return c

    def _instruction(self, a, b, c):
        pairs = ir.VectorType(_BFloat(), 2 * self.width)
        return self._call("dpbf16ps", self.type, c, self.builder.bitcast(a, pairs), self.builder.bitcast(b, pairs))

    def _call(self, name, result, *arguments):
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        name = f"llvm.x86.avx512bf16.{name}.512"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), arguments)

    def narrow(self, lower, upper):
        """Two vectors of float32 → one of twice as many bf16 as they are stored, what VCVTNE2PS2BF16 makes of them.

        To nearest, ties to even; denormals become zeros, before and after. A tenth of the operations on integers.
        """
        if self.has_instruction and self.width == 16:
            both = self._call("cvtne2ps2bf16", ir.VectorType(_BFloat(), 2 * self.width), upper, lower)
            # as integers that LLVM does not take for bfloat again: those it would not store past the caches
            integers = ir.VectorType(I32, self.width)
            same = ir.InlineAsm(ir.FunctionType(integers, [integers]), "", "=v,0", side_effect=False)
            return self.builder.call(same, [self.builder.bitcast(both, integers)])
        halves = [narrow_value(self.builder, BF16, self.flush(value)) for value in (lower, upper)]
        both = self.shuffle(*halves, range(2 * self.width))
        exponent = self.builder.and_(both, constant_like(both, I16, 0x7F80))
        zero = self.builder.and_(both, constant_like(both, I16, 0x8000))
        denormal = self.builder.icmp_unsigned("==", exponent, constant_like(both, I16, 0))
        return self.builder.bitcast(self.builder.select(denormal, zero, both), ir.VectorType(I32, self.width))

    def upper(self, pairs):
        """The second number of each pair, as float32."""
        bits = self.builder.and_(pairs, constant_like(pairs, I32, 0xFFFF0000))
        return self.builder.bitcast(bits, self.type)

    def lower(self, pairs):
        """The first."""
        return self.builder.bitcast(self.builder.shl(pairs, constant_like(pairs, I32, 16)), self.type)

    def flush(self, x):
        """x, zero of its sign where it is denormal."""
        bits = self.builder.bitcast(x, ir.VectorType(I32, self.width))
        exponent = self.builder.and_(bits, constant_like(bits, I32, 0x7F800000))
        denormal = self.builder.icmp_unsigned("==", exponent, constant_like(bits, I32, 0))
        zero = self.builder.and_(bits, constant_like(bits, I32, 0x80000000))
        return self.builder.bitcast(self.builder.select(denormal, zero, bits), self.type)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def dot_of(builder, width, number):
    """The dot product of units of `number`: BF16 pairs or float32, in `width` lanes."""
    return (Dot2 if number is BF16 else Fma)(builder, width)
