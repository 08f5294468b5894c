"""Winograd's transforms: a two-dimensional filter becomes n x n products (Winograd 1980; Lavin and Gray 2015).

n values of x give m = n + 1 - r outputs of a filter with r taps, in one dimension:

    y = A^T ((G w) * (B^T x))        n products in place of m r; in two dimensions n^2 in place of m^2 r^2

It is the transpose of multiplying two polynomials by their values at n points. The matrices are made here from the
points, exactly, as fractions. More points need fewer products, and round more:

- six, 3 x 3 in float32: the usual 0, +-1, +-2 and infinity give five to six times the error of direct sums. With
  +-2/3 and +-3/2 it is 2.2 times, root mean square: a number and its inverse keep all powers near 1;
- seven, 5 x 5 in float32: 3 times, at +-1/3, +-3/4, +-7/4 and infinity;
- eight, for tensors of 16 bits: 6 times, at 0, +-1/2, +-1, +-2 and infinity, which is a thousandth of what such a
  tensor loses when it is stored.

A tile of fewer outputs needs as many points less, and the same G w there: B^T takes what the divisors of G differ by.
Which points are left was chosen by the error. Of six: 1.8 times that of direct sums with five, 0.7 with four, 0.5 with
three. Of eight: 2.7 with six, 1.0 with four, 0.8 with three.
"""

from fractions import Fraction

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .._ir import I64, Lanes, literals, load_address, number_type, times
from .shape import SIDES

_HALF, _ONE, _TWO = Fraction(1, 2), Fraction(1), Fraction(2)
_ROOTS = {  # points of an axis by the side of a tile, and infinity, the last
    6: [Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)],
    7: [Fraction(1, 3), Fraction(-1, 3), Fraction(3, 4), Fraction(-3, 4), Fraction(7, 4), Fraction(-7, 4)],
    8: [Fraction(0), _HALF, -_HALF, _TWO, -_TWO, _ONE, -_ONE],
}
PLACES = {  # of the points of an axis that has fewer of them, by side and number
    6: {6: range(6), 5: (1, 2, 3, 4, 5), 4: (1, 2, 3, 4), 3: (1, 2, 5)},
    7: {7: range(7)},
    8: {8: range(8), 6: (1, 2, 3, 4, 5, 6), 4: (1, 2, 3, 4), 3: (1, 2, 7)},
}
# forms of a tile: its side, taps on a side of the filter, outputs along the long axis and along the short one
FORMS = [(6, 3, long, short) for long, short in ((4, 4), (4, 3), (3, 3), (4, 2), (2, 2), (4, 1), (1, 1))]
FORMS += [(8, 3, long, short) for long, short in ((6, 6), (6, 4), (4, 4), (6, 2), (2, 2), (6, 1), (1, 1))]
FORMS += [(7, 5, 3, 3), (8, 5, 4, 4)]


def lengths(side, r) -> list:
    """Outputs that a tile of a side may have along an axis."""
    return [short for *what, long, short in FORMS if what == [side, r] and long == side + 1 - r]


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


def _matrices(side, r, m):
    """B^T (n, n), G (n, r), A^T (m, n), n = m + r - 1, as lists of rows; G is cut from that of all points."""
    n, everywhere, infinity = m + r - 1, _ROOTS[side], len(_ROOTS[side])
    roots = [everywhere[place] for place in PLACES[side][n] if place != infinity]
    bt, g, a = [], [], []
    for p in roots:
        row = _product_of_roots([q for q in roots if q != p])
        factor = _divisor(p, everywhere) / _divisor(p, roots)
        bt.append([factor * value for value in row] + [Fraction(0)] * (n - len(row)))
        g.append([p**k / _divisor(p, everywhere) for k in range(r)])
        a.append([p**k for k in range(m)])
    if infinity in PLACES[side][n]:
        bt.append(_product_of_roots(roots))
        g.append([Fraction(k == r - 1) for k in range(r)])
        a.append([Fraction(k == m - 1) for k in range(m)])
    return bt, g, _transposed(a)


def _transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def _choose(what, side, r, m):
    """The matrix of a transform along an axis with m outputs."""
    bt, _, at = _matrices(side, r, m)
    g = _matrices(side, r, side + 1 - r)[1]
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
def transform(typing, what, width, form, like, kind, sources, targets, vectors):
    """Y = L X R^T for `vectors` vectors of V floats side by side; L and R for `what`, of the axes of a tile of `form`.

    like: dtype of the tensors that are convolved, whose tiles these are. sources: (table, pitch, shift): the address of
    X[i, j], of dtype `kind`, number t of X in rows, stands at table + t * pitch; to it `shift` is added, all in bytes.
    targets: the same for Y, float32.
    """
    constants = literals(what, width)
    if constants is None:
        return None
    cases = {}  # pairs of matrices, and the forms that have them
    for number, (side, r, long, short) in enumerate(FORMS):
        if side in SIDES[number_type(like).bytes][r]:
            axes = [_choose(constants[0], side, r, m) for m in (long, short)]
            cases.setdefault(repr(axes), (axes, []))[1].append(number)

    def codegen(context, builder, sig, args):
        form_, _, _, sources_, targets_, vectors_ = args[2:]
        sources_, targets_ = (cgutils.unpack_tuple(builder, table) for table in (sources_, targets_))
        sums, stored = _Sums(builder, constants[1]), Lanes(builder, constants[1], number_type(kind))

        def place(where, number, offset):
            table, pitch, shift = where
            address = load_address(builder, builder.add(table, times(builder, pitch, number)), 0)
            return builder.add(address, builder.add(shift, offset))

        def emit(left, right):
            p, q = len(left[0]), len(right[0])
            with cgutils.for_range(builder, vectors_) as loop:
                here, there = (times(builder, loop.index, lanes.bytes) for lanes in (stored, sums))
                half = []  # L X, column by column
                for j in range(q):
                    column = [place(sources_, i * q + j, here) for i in range(p)]
                    half.append(sums.times(left, [stored.load(x) for x in column]))
                for i in range(len(left)):
                    for j, value in enumerate(sums.times(right, [column[i] for column in half])):
                        sums.store(value, place(targets_, i * len(right) + j, there))

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

    table = types.UniTuple(types.int64, 3)
    return types.void(what, width, types.int64, like, kind, table, table, types.int64), codegen
