"""Winograd's transforms: a two-dimensional filter becomes 36 products (Winograd 1980; Lavin and Gray 2015).

Six values of x give m = 7 - r outputs of a filter with r taps, in one dimension:

    y = A^T ((G w) * (B^T x))        six products in place of m r; in two dimensions 36 in place of m^2 r^2

It is the transpose of multiplying two polynomials by their values at six points. The matrices are made here from the
points, exactly, as fractions. The usual points 0, +-1, +-2 and infinity give five to six times the error of direct
sums. With +-2/3 and +-3/2 it is 2.2 times, root mean square: a number and its inverse keep all powers near 1.
"""

from fractions import Fraction

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .._ir import I64, Lanes, literals, load_address, number_type, times
from .shape import TILE

POINTS = TILE * TILE  # products of a tile
_PLACES = [Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)]  # points, and infinity


def _product_of_roots(roots):
    """Coefficients of prod (z - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [up - root * here for up, here in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _matrices(r):
    """B^T (6, 6), G (6, r), A^T (7 - r, 6) as lists of rows."""
    others = [[q for q in _PLACES if q != p] for p in _PLACES]
    bt = [[*_product_of_roots(roots), Fraction(0)] for roots in others] + [_product_of_roots(_PLACES)]
    g, a = [], []
    for p, roots in zip(_PLACES, others, strict=True):
        scale = Fraction(1)
        for q in roots:
            scale /= p - q
        g.append([p**k * scale for k in range(r)])
        a.append([p**k for k in range(TILE + 1 - r)])
    g.append([Fraction(k == r - 1) for k in range(r)])
    a.append([Fraction(k == TILE - r) for k in range(TILE + 1 - r)])
    return bt, g, _transposed(a)


def _transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


_BT, _G3, _A3T = _matrices(3)
_, _G5, _A5T = _matrices(5)
_THREE = (_BT, _G3, _A3T, _transposed(_A3T), _transposed(_G3))
_FIVE = (_BT, _G5, _A5T, _transposed(_A5T), _transposed(_G5))
INPUT, FILTER, OUTPUT, GRADIENT, WEIGHT = range(len(_THREE))  # what is transformed: places in both


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
        """matrix @ x for a list of vectors. The points come in pairs +-p, so two neighbouring rows (or columns) differ
        in signs alone: what they share is summed once."""
        if len(matrix) < len(matrix[0]):
            return self._pairs_of_columns(matrix, x)
        y, i = [], 0
        while i < len(matrix):
            if 0 < i < TILE - 1:
                row, signs = matrix[i], [a == b for a, b in zip(matrix[i], matrix[i + 1], strict=True)]
                even = self.combine([(f, v) for f, v, same in zip(row, x, signs, strict=True) if same])
                odd = self.combine([(f, v) for f, v, same in zip(row, x, signs, strict=True) if not same])
                y += [self.builder.fadd(even, odd), self.builder.fsub(even, odd)]
                i += 2
            else:
                y.append(self.combine(zip(matrix[i], x, strict=True)))
                i += 1
        return y

    def _pairs_of_columns(self, matrix, x):
        pairs = [(j, j + 1) for j in range(1, TILE - 1, 2)]
        sums = {j: self.builder.fadd(x[j], x[k]) for j, k in pairs}
        differences = {j: self.builder.fsub(x[j], x[k]) for j, k in pairs}
        y = []
        for row in matrix:
            terms = [(row[0], x[0]), (row[-1], x[-1])]
            terms += [(row[j], sums[j] if row[j] == row[k] else differences[j]) for j, k in pairs]
            y.append(self.combine(terms))
        return y


@intrinsic
def transform(typing, what, width, m, kind, sources, source_pitch, shift, targets, target_pitch, target_shift, vectors):
    """Y = L X L^T for `vectors` vectors of V floats side by side; L (p, q) for `what`, with tiles of m x m outputs.

    sources: address of the address of X[0, 0], of dtype `kind`; that of X[i, j] stands (i q + j) source_pitch bytes on.
    `shift` bytes are added to each address. The same for Y (p, p), float32, and targets.
    """
    constants = literals(what, width)
    if constants is None:
        return None
    three, five = _THREE[constants[0]], _FIVE[constants[0]]

    def codegen(context, builder, sig, args):
        m_, _, sources_, source_pitch_, shift_, targets_, target_pitch_, target_shift_, vectors_ = args[2:]
        sums, stored = _Sums(builder, constants[1]), Lanes(builder, constants[1], number_type(kind))

        def place(table, pitch, number, offset):
            return builder.add(load_address(builder, builder.add(table, times(builder, pitch, number)), 0), offset)

        def emit(rows):
            p, q = len(rows), len(rows[0])
            with cgutils.for_range(builder, vectors_) as loop:
                here = builder.add(shift_, times(builder, loop.index, stored.bytes))
                there = builder.add(target_shift_, times(builder, loop.index, sums.bytes))
                half = []  # L X, column by column
                for j in range(q):
                    column = [place(sources_, source_pitch_, i * q + j, here) for i in range(q)]
                    half.append(sums.times(rows, [stored.load(x) for x in column]))
                for i in range(p):
                    for j, value in enumerate(sums.times(rows, [column[i] for column in half])):
                        sums.store(value, place(targets_, target_pitch_, i * p + j, there))

        if three == five:
            emit(three)
        else:
            with builder.if_else(builder.icmp_signed("==", m_, I64(4))) as (of_three, of_five):
                with of_three:
                    emit(three)
                with of_five:
                    emit(five)
        return context.get_dummy_value()

    return types.void(what, width, types.int64, kind, *([types.int64] * 7)), codegen
