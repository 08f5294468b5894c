"""The plan of a shape: which method computes each direction of a convolution."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arch import DOT
from ..number import FP32
from .method import Blocks, Gradient
from .outer import MergedOuter, Outer
from .rows import MergedRows, Rows, Unpacked
from .shape import Shape, make_shape
from .stem import Stem, StemWeight
from .tiles import Tiles, UnpackedTiles
from .tiles_weight import TilesWeight
from .winograd import Winograd
from .winograd_weight import WinogradWeight

# candidates, the faster ones first: the first that suits is taken
FORWARD = (UnpackedTiles, Tiles, Stem, Winograd, MergedRows, Unpacked, Rows)
BACKWARD_INPUT = (UnpackedTiles, Tiles, Winograd, Unpacked, Rows)
BACKWARD_WEIGHT = (TilesWeight, StemWeight, WinogradWeight, MergedOuter, Outer)


@dataclass(frozen=True)
class Conv2dPlan:
    """A convolution's shape and the method of each direction. Make it with `conv2d_plan`."""

    shape: Shape
    forward: Blocks
    backward_input: Blocks
    backward_weight: Gradient

    @property
    def x_shape(self) -> tuple:
        return self.shape.x

    @property
    def w_shape(self) -> tuple:
        return self.shape.w

    @property
    def y_shape(self) -> tuple:
        return self.shape.y

    @property
    def unpacked(self) -> bool:
        """Whether w itself is read by forward and backward-input, and nothing is to be packed."""
        return self.packed_size == 0

    @property
    def packed_size(self) -> int:
        """Numbers of the weights packed for forward, of `forward.panels`."""
        return self.forward.packed_size

    @property
    def packed_t_size(self) -> int:
        """Numbers of the weights packed for backward-input, of `backward_input.panels`."""
        return self.backward_input.packed_size

    @property
    def workspace_size(self) -> int:
        """Floats of scratch for forward and backward-weight."""
        return max(self.forward.workspace_size, self.backward_weight.workspace_size)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one direction for the whole batch, by definition."""
        return self.shape.multiply_adds

    def arithmetic(self, direction) -> int:
        """Multiply-adds that "forward", "backward_input" or "backward_weight" really makes, transforms not counted."""
        return getattr(self, direction).multiply_adds

    @cached_property
    def moments_counts(self) -> np.ndarray:
        """Output pixels of each block of forward, int64."""
        return self.forward.block_sizes()

    @property
    def sums_shape(self) -> tuple:
        """Shape of the sums that backward-input tells a batch norm, over each of its blocks of dx."""
        return (len(self.backward_input.order), 2, self.x_shape[3])

    @property
    def moments_shape(self) -> tuple:
        """Shape of what forward tells of each of `moments_counts` output pixels: mean and M2 of every channel."""
        return (self.moments_counts.size, 2, self.w_shape[3])


def conv2d_plan(
    x_shape, w_shape, stride=1, pad=0, groups=1, number=FP32, y_number=None, dot=DOT, without=()
) -> Conv2dPlan:
    """Plan y[n,p,q,k] = sum over r,s,c of x[n, p*stride+r-pad, q*stride+s-pad, g*C/groups+c] * w[r,s,c,k].

    x_shape (N, H, W, C), w_shape (R, S, C/groups, K); channel k belongs to group g = k // (K/groups).
    number: what x, dx and dy hold; y_number: what y holds, the same where it is None; dot: how numbers of 16 bits are
    multiplied, of arch.DOTS; without: methods that are not to be taken.
    Raises ValueError when the shapes do not fit together.
    """
    shape = make_shape(x_shape, w_shape, stride, pad, groups, number, y_number, dot)

    def pick(candidates):
        return next(method for method in candidates if method not in without and method.suits(shape))

    forward, backward_input = pick(FORWARD)(shape, False), pick(BACKWARD_INPUT)(shape, True)
    return Conv2dPlan(shape, forward, backward_input, pick(BACKWARD_WEIGHT)(shape))
