"""What one convolution is, as numbers: shapes and the type of its activations. All else follows from these."""

from dataclasses import dataclass

from .._shapes import output_size
from ..arch import BLOCK, DOT, DOTS
from ..number import BF16, FP32, Number

TASKS = 64  # tasks to aim at when a dimension is split; a constant, so that no result depends on the machine
MERGE_BELOW = 17  # input channels under which the taps of a filter row are merged
# inputs on a side of a tile of Winograd's method, by bytes of a number and side of a filter; larger ones round more
SIDES = {4: {3: (6,), 5: (7,)}, 2: {3: (8, 6), 5: (8,)}}
FILTERS_BYTES = 1 << 21  # of transformed filters, which every block of tiles reads: more do not stay in L2, and are
# fewer with smaller tiles


def ceil(a, b):
    return -(-a // b)


@dataclass(frozen=True)
class Shape:
    """x (N, H, W, C), w (R, S, C/groups, K), y (N, P, Q, K).

    x, dx and dy hold `number`, y holds `y_number`, w float32. dot: how 16-bit numbers are multiplied, of arch.DOTS.
    """

    x: tuple
    w: tuple
    y: tuple
    stride: int
    pad: int
    groups: int
    number: Number
    y_number: Number
    dot: str

    @property
    def merged(self) -> bool:
        """Whether there are so few input channels that forward and backward-weight merge the taps of a filter row."""
        return self.groups == 1 and self.x[3] < MERGE_BELOW

    @property
    def pairs(self) -> bool:
        """Whether pairs of bf16 are multiplied: by taps' depths that are even, forward (or merged) and backward."""
        even = self.k_group % 2 == 0 and (self.merged or self.w[2] % 2 == 0)
        return self.number is BF16 and self.dot != "widen" and even

    @property
    def tiles(self) -> bool:
        """Whether they are multiplied in tiles of 32 numbers of the depth and 32 channels, the last ones half full."""
        enough = BLOCK == 32 and self.w[2] % 16 == 0 and min(self.w[2], self.k_group) >= 32
        return self.pairs and self.dot == "amx" and enough

    @property
    def merged_tiles(self) -> bool:
        """The same where taps are merged."""
        return BLOCK == 32 and self.merged and self.pairs and self.dot == "amx" and self.k_group % 32 == 0

    @property
    def side(self) -> int:
        """Input pixels on a side of a tile of Winograd's method; it has side + 1 - R output pixels on a side."""
        sides = SIDES[self.number.bytes][self.w[0]]
        small_enough = (side for side in sides if side**2 * self.w[2] * self.w[3] * FP32.bytes <= FILTERS_BYTES)
        return next(small_enough, sides[-1])

    @property
    def k_group(self) -> int:
        """Output channels of a group."""
        return self.w[3] // self.groups

    @property
    def padded_number(self) -> Number:
        """What the copy of x with its padding holds."""
        return BF16 if self.pairs else FP32

    @property
    def padded(self) -> tuple:
        """Shape of x with its padding."""
        n, h, w, c = self.x
        return (n, h + 2 * self.pad, w + 2 * self.pad, c)

    @property
    def multiply_adds(self) -> int:
        """Of one direction for the whole batch, by definition."""
        r, s, c, k = self.w
        n, p, q, _ = self.y
        return n * p * q * k * r * s * c


def image(tensor, number):
    """Height, width and bytes of a pixel of a tensor (N, H, W, C) of `number`."""
    return tensor[1], tensor[2], tensor[3] * number.bytes


def make_shape(x_shape, w_shape, stride=1, pad=0, groups=1, number=FP32, y_number=None, dot=DOT) -> Shape:
    """The shape of a convolution; ValueError when x and w do not fit together."""
    _, h, w, c = x_shape
    r, s, depth, k = w_shape
    if groups < 1 or c != depth * groups or k % groups:
        raise ValueError(
            f"conv2d: x has {c} channels and w is {tuple(w_shape)} with {groups} groups; "
            f"expected w[2] * groups == {c} and w[3] divisible by groups"
        )
    if dot not in DOTS:
        raise ValueError(f"conv2d: found dot {dot!r}, expected one of {', '.join(DOTS)}")
    y_shape = (x_shape[0], output_size(h, r, stride, pad), output_size(w, s, stride, pad), k)
    return Shape(tuple(x_shape), tuple(w_shape), y_shape, stride, pad, groups, number, y_number or number, dot)
