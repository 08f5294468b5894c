"""LLVM vector IR: what every hand-written intrinsic is made of. It names no instruction set.

Lanes are float32 in registers, whatever Number they are in memory: they are widened as they are loaded and rounded as
they are stored, to nearest, ties to even; a NaN stays one. Never by LLVM's own truncation to bfloat, which becomes a
library call for each number where the CPU has no instruction for it. Addresses are int64; offsets are in bytes. The
same text becomes AVX-512, AVX2 or NEON code.
"""

from functools import reduce
from itertools import product

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.numpy_support import as_dtype

from .arch import LINE
from .number import BF16, FP16, FP32, number_of

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_STORED = {FP32: F32, BF16: I16, FP16: ir.HalfType()}  # as what a Number is loaded and stored


def stored_type(number):
    """As what LLVM loads and stores one."""
    return _STORED[number]


def literals(*values):
    """The values of these argument types, or None unless all are literal integers."""
    if all(isinstance(value, types.IntegerLiteral) for value in values):
        return [value.literal_value for value in values]


def number_type(kind):
    """The Number behind an argument that is a dtype: `x.dtype` or np.float32."""
    return number_of(as_dtype(kind.dtype))


def plus(builder, address, offset):
    """address + a constant offset."""
    return builder.add(address, I64(offset)) if offset else address


def times(builder, value, factor):
    """value * a constant."""
    return builder.mul(value, I64(factor))


def opaque(builder, address):
    """The same address, as a value that LLVM does not take apart.

    In a loop it then adds one common shift to all of them. Left to itself it may, depending on the code around, make a
    counter of each sum of its parts: more than there are registers, and vectors go to the stack in their place.
    """
    nothing = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0", side_effect=False)
    return builder.call(nothing, [address])


def load_address(builder, table, number):
    """Entry `number` of a table of addresses."""
    return builder.load(builder.inttoptr(plus(builder, table, 8 * number), I64.as_pointer()))


def address_of(context, builder, kind, array):
    """Where the elements of an array argument begin."""
    return builder.ptrtoint(context.make_array(kind)(context, builder, array).data, I64)


def prefetch_line(builder, address, near=False):
    """Ask for the line at an address, to be held in the second-level cache; `near`: in the first."""
    byte = I8.as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, byte), I32(0), I32(3 if near else 2), I32(1)])


def _like(value, element):
    """The type of `element`s of which there are as many as in a value: a vector of them, or one."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def constant_like(value, element, number):
    """`number` as an `element` for each of a value's."""
    kind = _like(value, element)
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def widen_value(builder, number, stored):
    """Float32 of a Number as it is stored; one or a vector."""
    if number is FP32:
        return stored
    if number is FP16:
        return builder.fpext(stored, _like(stored, F32))
    wide = builder.zext(stored, _like(stored, I32))
    return builder.bitcast(builder.shl(wide, constant_like(wide, I32, 16)), _like(stored, F32))


def rounded_bits(builder, value):
    """Float32 → int32 whose upper halves are the nearest bf16; what the lower ones hold does not matter."""
    bits = builder.bitcast(value, _like(value, I32))

    def of(number):
        return constant_like(bits, I32, number)

    odd = builder.and_(builder.lshr(bits, of(16)), of(1))
    rounded = builder.add(bits, builder.add(odd, of(0x7FFF)))
    quiet = builder.or_(bits, of(0x400000))  # a NaN must not round to infinity
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)


def narrow_value(builder, number, value):
    """Float32 → a Number as it is stored; one or a vector."""
    if number is FP32:
        return value
    if number is FP16:
        return builder.fptrunc(value, _like(value, stored_type(number)))
    bits = rounded_bits(builder, value)
    return builder.trunc(builder.lshr(bits, constant_like(bits, I32, 16)), _like(value, I16))


def strips(builder, count, *wide):
    """Loops over `count` numbers, as many at a time as `wide` says, then one by one: yields width and index inside."""
    kind, first = count.type, count.type(0)
    for width in (*wide, 1):
        last = builder.sub(count, builder.srem(builder.sub(count, first), kind(width)))
        with cgutils.for_range_slice(builder, first, last, kind(width), kind) as (index, _):
            yield width, index
        first = last


def cases(builder, *choices):
    """A branch for each combination of what the choices (value, how many it may be) are: yields it inside."""
    for numbers in product(*(range(many) for _, many in choices)):
        met = [
            builder.icmp_signed("==", choice[0], choice[0].type(n)) for choice, n in zip(choices, numbers, strict=True)
        ]
        with builder.if_then(reduce(builder.and_, met)):
            yield numbers


class Lanes:
    """`width` numbers side by side: a vector of float32 in registers, `number` in memory, `bytes` long there."""

    def __init__(self, builder, width, number=FP32):
        self.builder, self.width, self.number = builder, width, number
        self.type, self.bytes = ir.VectorType(F32, width), width * number.bytes
        self.stored = stored_type(number)

    # ---- memory ----------------------------------------------------------------------------------------------

    def _pointer(self, address, offset, kind):
        return self.builder.inttoptr(plus(self.builder, address, offset), kind.as_pointer())

    def _align(self, aligned):
        return self.bytes if aligned else self.number.bytes

    def load(self, address, offset=0, aligned=False):
        place = self._pointer(address, offset, ir.VectorType(self.stored, self.width))
        return widen_value(self.builder, self.number, self.builder.load(place, align=self._align(aligned)))

    def store(self, value, address, offset=0, aligned=False, past=False):
        """past: the caches, where the processor can and the place is aligned."""
        place = self._pointer(address, offset, ir.VectorType(self.stored, self.width))
        narrow = narrow_value(self.builder, self.number, value)
        stored = self.builder.store(narrow, place, align=self._align(aligned or past))
        if past:
            self._past(stored)

    def store_bits(self, value, address, offset=0, past=False):
        """A vector as it is, whatever it holds; past: the caches, a whole aligned line."""
        align = LINE if past else self.number.bytes
        stored = self.builder.store(value, self._pointer(address, offset, value.type), align=align)
        if past:
            self._past(stored)

    def _past(self, stored):
        stored.set_metadata("nontemporal", self.builder.module.add_metadata([I32(1)]))

    def load_one(self, address, offset=0):
        stored = self.builder.load(self._pointer(address, offset, self.stored), align=self.number.bytes)
        return widen_value(self.builder, self.number, stored)

    def store_one(self, value, address):
        place = self._pointer(address, 0, self.stored)
        self.builder.store(narrow_value(self.builder, self.number, value), place, align=self.number.bytes)

    def load_bytes(self, address):
        """As many uint8, as float32."""
        place = self._pointer(address, 0, ir.VectorType(I8, self.width))
        return self.builder.uitofp(self.builder.load(place, align=1), self.type)

    def broadcast(self, address, offset=0):
        """The number at an address in every lane."""
        return self.splat(self.load_one(address, offset))

    def splat(self, value):
        """One value in every lane."""
        undefined = ir.Constant(ir.VectorType(value.type, self.width), ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, value, I32(0)), undefined, [0] * self.width)

    # ---- registers -------------------------------------------------------------------------------------------

    def constant(self, value):
        return ir.Constant(self.type, [float(value)] * self.width)

    def variable(self, value=None):
        """A place that LLVM keeps in a register."""
        if value is None:
            return cgutils.alloca_once(self.builder, self.type)
        return cgutils.alloca_once_value(self.builder, value)

    def fma(self, a, b, c):
        """a * b + c, rounded once."""
        signature = ir.FunctionType(self.type, [self.type] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, signature, f"llvm.fma.v{self.width}f32")
        return self.builder.call(function, [a, b, c])

    def shuffle(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


class Strip:
    """`width` neighbouring numbers of each of some rows, from number `index` on, that are handled at once."""

    def __init__(self, builder, width, index):
        self.builder, self.width, self.index, self.lanes = builder, width, index, Lanes(builder, width)

    def _there(self, address, number):
        lanes = Lanes(self.builder, self.width, number)
        return lanes, self.builder.add(address, times(self.builder, self.index, number.bytes))

    def load(self, address, number=FP32):
        lanes, there = self._there(address, number)
        return lanes.load(there)

    def store(self, value, address, number=FP32, past=False):
        lanes, there = self._there(address, number)
        lanes.store(value, there, past=past and self.width > 1)
