"""Winograd's transforms: a two-dimensional filter becomes 36 products (Winograd 1980; Lavin and Gray 2015).

Six values of x give m = 7 - r outputs of a filter with r taps, in one dimension:

    y = A^T ((G w) * (B^T x))        six products in place of m r; in two dimensions 36 in place of m^2 r^2

It is the transpose of multiplying two polynomials by their values at six points. The matrices are made here from the
points, exactly, as fractions. The usual points 0, +-1, +-2 and infinity give five to six times the error of direct
sums. With +-2/3 and +-3/2 it is 2.2 times, root mean square: a number and its inverse keep all powers near 1.

A tile of fewer outputs needs as many points less, and the same G w there: B^T takes what the divisors of G differ by.
Which points are left was chosen by the error: 1.8 times that of direct sums with five, 0.7 with four, 0.5 with three.
"""

from fractions import Fraction

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .._ir import I64, Lanes, literals, load_address, number_type, times
from .shape import TILE

POINTS = TILE * TILE  # products of a whole tile
_ROOTS = [Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)]  # and infinity, the sixth
PLACES = {6: (0, 1, 2, 3, 4, 5), 5: (1, 2, 3, 4, 5), 4: (1, 2, 3, 4), 3: (1, 2, 5)}  # of an axis's points, by number
# forms of a tile: taps on a side of the filter, outputs along the long axis and along the short one
FORMS = [(3, 4, 4), (3, 4, 3), (3, 3, 3), (3, 4, 2), (3, 2, 2), (3, 4, 1), (3, 1, 1), (5, 2, 2)]


def _product_of_roots(roots):
    """Coefficients of prod (z - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [up - root * here for up, here in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _divisor(p, roots):
    """prod (p - q) over the other roots."""
    product = Fraction(1)
    for q in roots:
        product *= p - q if q != p else 1
    return product


def _matrices(r, m):
    """B^T (n, n), G (n, r), A^T (m, n), n = m + r - 1, as lists of rows; G is cut from that of six points."""
    n, infinity = m + r - 1, len(_ROOTS)
    roots = [_ROOTS[place] for place in PLACES[n] if place != infinity]
    bt, g, a = [], [], []
    for p in roots:
        row = _product_of_roots([q for q in roots if q != p])
        factor = _divisor(p, _ROOTS) / _divisor(p, roots)
        bt.append([factor * value for value in row] + [Fraction(0)] * (n - len(row)))
        g.append([p**k / _divisor(p, _ROOTS) for k in range(r)])
        a.append([p**k for k in range(m)])
    if infinity in PLACES[n]:
        bt.append(_product_of_roots(roots))
        g.append([Fraction(k == r - 1) for k in range(r)])
        a.append([Fraction(k == m - 1) for k in range(m)])
    return bt, g, _transposed(a)


def _transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def _choose(what, r, m):
    """The matrix of a transform along an axis with m outputs."""
    bt, _, at = _matrices(r, m)
    g = _matrices(r, TILE + 1 - r)[1]
    return (bt, g, at, _transposed(at), _transposed(g))[what]


INPUT, FILTER, OUTPUT, GRADIENT, WEIGHT = range(5)  # what is transformed: places in `_choose`


class _Sums(Lanes):
    """Sums of vectors, written as few multiply-adds, in an order that is always the same."""

    def combine(self, terms):
        """Sum of factor * vector over (factor, vector); None for the empty sum."""
        terms = sorted(((f, v) for f, v in terms if f and v is not None), key=lambda term: term[0] != 1)
        if not terms:
            return None
        (factor, total), *rest = terms
        if factor != 1:
            total = self.builder.fmul(total, self.constant(factor))
        for factor, vector in rest:
            if factor == 1:
                total = self.builder.fadd(total, vector)
            else:
                total = self.fma(vector, self.constant(factor), total)
        return total

    def times(self, matrix, x):
        """matrix @ x for a list of vectors. Points come in pairs +-p, so two neighbouring rows (or columns) differ in
        signs alone: what they share is summed once."""
        if len(matrix) < len(matrix[0]):
            return self._pairs_of_columns(matrix, x)
        y, i = [], 0
        while i < len(matrix):
            if _differ_in_signs(matrix[i : i + 2]):
                row, signs = matrix[i], [a == b for a, b in zip(matrix[i], matrix[i + 1], strict=True)]
                even = self.combine([(f, v) for f, v, same in zip(row, x, signs, strict=True) if same])
                odd = self.combine([(f, v) for f, v, same in zip(row, x, signs, strict=True) if not same])
                y += [even, even] if odd is None else [self.builder.fadd(even, odd), self.builder.fsub(even, odd)]
                i += 2
            else:
                y.append(self.combine(zip(matrix[i], x, strict=True)))
                i += 1
        return y

    def _pairs_of_columns(self, matrix, x):
        columns, terms, j = _transposed(matrix), [[] for _ in matrix], 0
        while j < len(columns):
            if _differ_in_signs(columns[j : j + 2]):
                both, apart = self.builder.fadd(x[j], x[j + 1]), self.builder.fsub(x[j], x[j + 1])
                for row, one, other in zip(terms, *columns[j : j + 2], strict=True):
                    row.append((one, both if one == other else apart))
                j += 2
            else:
                for row, factor in zip(terms, columns[j], strict=True):
                    row.append((factor, x[j]))
                j += 1
        return [self.combine(row) for row in terms]


def _differ_in_signs(rows):
    """Whether these are two rows, and those of points +-p."""
    return len(rows) == 2 and all(abs(a) == abs(b) for a, b in zip(*rows, strict=True))


@intrinsic
def transform(
    typing, what, width, form, kind, sources, source_pitch, shift, targets, target_pitch, target_shift, vectors
):
    """Y = L X R^T for `vectors` vectors of V floats side by side; L and R for `what`, of the axes of a tile of `form`.

    sources: address of the address of X[0, 0], of dtype `kind`; that of X[i, j], number t of X in rows, stands
    t * source_pitch bytes on. `shift` bytes are added to each address. The same for Y, float32, and targets.
    """
    constants = literals(what, width)
    if constants is None:
        return None
    cases = {}  # pairs of matrices, and the forms that have them
    for number, (r, long, short) in enumerate(FORMS):
        axes = [_choose(constants[0], r, m) for m in (long, short)]
        cases.setdefault(repr(axes), (axes, []))[1].append(number)

    def codegen(context, builder, sig, args):
        form_, _, sources_, source_pitch_, shift_, targets_, target_pitch_, target_shift_, vectors_ = args[2:]
        sums, stored = _Sums(builder, constants[1]), Lanes(builder, constants[1], number_type(kind))

        def place(table, pitch, number, offset):
            return builder.add(load_address(builder, builder.add(table, times(builder, pitch, number)), 0), offset)

        def emit(left, right):
            p, q = len(left[0]), len(right[0])
            with cgutils.for_range(builder, vectors_) as loop:
                here = builder.add(shift_, times(builder, loop.index, stored.bytes))
                there = builder.add(target_shift_, times(builder, loop.index, sums.bytes))
                half = []  # L X, column by column
                for j in range(q):
                    column = [place(sources_, source_pitch_, i * q + j, here) for i in range(p)]
                    half.append(sums.times(left, [stored.load(x) for x in column]))
                for i in range(len(left)):
                    for j, value in enumerate(sums.times(right, [column[i] for column in half])):
                        sums.store(value, place(targets_, target_pitch_, i * len(right) + j, there))

        end = builder.append_basic_block("transformed")
        switch = builder.switch(form_, end)
        for (left, right), numbers in cases.values():
            block = builder.append_basic_block()
            for number in numbers:
                switch.add_case(ir.Constant(I64, number), block)
            builder.position_at_end(block)
            emit(left, right)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(what, width, types.int64, kind, *([types.int64] * 7)), codegen
