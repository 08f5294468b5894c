"""What one convolution needs to know before it runs: shapes, taps, sizes of buffers.

Nothing here depends on the number of threads: pixels and channels are cut by constants, so every result is the same
everywhere.
"""

from dataclasses import dataclass

import numpy as np

from ._jit import kernel
from ._shapes import output_size
from .arch import ARCH

MR, MC, NV, V = ARCH.rows, ARCH.columns, ARCH.vectors, ARCH.width
BLOCK = ARCH.block  # output channels of one tile
PIXELS = 126  # pixels of a forward block: a multiple of 6 and 14, its input stays in L2
CHUNK = 192  # pixels of a backward-weight chunk: a BLOCK-wide panel of dy stays in L1
PANEL_BYTES = 49152  # weights of one inner nest: stay in L1, or next to it where that is smaller
RANGE = 8  # blocks of output channels of a backward-weight task: its panels of dy share L2 with
STRIP = 40  # this many lines of channels of x
TASKS = 64  # tasks to aim at when a dimension is split; a constant, so that no result depends on the machine
MERGE_BELOW = 17  # input channels under which the taps of a filter row are merged
AHEAD_BYTES = 262144  # input of the next block that is asked for ahead of time: fits into L2 beside this one's
MOST_WIDTH = 512  # output channels of a task of forward: with PIXELS it is 258 KB of C, which stay in L2

# fields of the geometry vector handed to the compiled nest
GRID_I, GRID_J, STEP, IN_H, IN_W, IN_PITCH, OUT_H, OUT_W, OUT_PITCH = range(9)
OUT_STEP, OUT_I, OUT_J, DEPTH, WIDTH, GROUPS, FORM = range(9, 16)
PACKED, ROWS, COLUMNS = range(3)  # forms of the weights: packed; w (DEPTH, WIDTH) itself; w (WIDTH, DEPTH) itself


@dataclass(frozen=True)
class Conv2dPlan:
    """Everything about one convolution that depends on shapes alone. Make it with `conv2d_plan`."""

    x_shape: tuple
    w_shape: tuple
    y_shape: tuple
    stride: int
    pad: int
    groups: int
    merged: bool
    direct: bool  # fully connected: the weights are read as they are, packed panel by panel where they are used
    forward: tuple  # (geometry, taps)
    backward: tuple  # of (geometry, taps), one per residue class
    packed_size: int  # floats of the weights packed for forward
    packed_t_size: int  # floats of the weights packed for backward-input
    splits: int  # shares of the pixels in backward-weight
    workspace_size: int  # floats of scratch for forward and backward-weight
    zeros: np.ndarray  # the pixel that lies outside

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one direction for the whole batch."""
        r, s, c, k = self.w_shape
        n, p, q, _ = self.y_shape
        return n * p * q * k * r * s * c

    @property
    def moments_shape(self) -> tuple:
        """Shape of what forward tells of each block of `moments_rows` output pixels: mean and M2 of every channel."""
        n, p, q, k = self.y_shape
        return (pixel_blocks(n * p * q), 2, k)

    @property
    def moments_rows(self) -> int:
        """Output pixels of a block; the last has what is left."""
        return PIXELS

    @property
    def padded_shape(self) -> tuple:
        """Shape of the zero-padded copy of x that a merged convolution reads."""
        n, h, w, c = self.x_shape
        return (n, h + 2 * self.pad, w + 2 * self.pad, c)


def ceil(a, b):
    return -(-a // b)


@kernel
def pixel_blocks(pixels):
    """Blocks of PIXELS; less than half a block left over goes to the last: alone it would read all weights."""
    return max(1, (pixels + PIXELS // 2) // PIXELS)


def conv2d_plan(x_shape, w_shape, stride=1, pad=0, groups=1) -> Conv2dPlan:
    """Plan y[n,p,q,k] = sum over r,s,c of x[n, p*stride+r-pad, q*stride+s-pad, g*C/groups+c] * w[r,s,c,k].

    x_shape (N, H, W, C), w_shape (R, S, C/groups, K); channel k belongs to group g = k // (K/groups).
    Raises ValueError when the shapes do not fit together.
    """
    n, h, w, c = x_shape
    r, s, depth, k = w_shape
    if groups < 1 or c != depth * groups or k % groups:
        raise ValueError(
            f"conv2d: x has {c} channels and w is {tuple(w_shape)} with {groups} groups; "
            f"expected w[2] * groups == {c} and w[3] divisible by groups"
        )
    p, q = output_size(h, r, stride, pad), output_size(w, s, stride, pad)
    k_group = k // groups
    merged = groups == 1 and c < MERGE_BELOW
    direct = h == w == r == s == groups == 1 and not merged
    if merged:
        wide = w + 2 * pad
        geometry = [p, q, stride, h + 2 * pad, wide, c, p, q, k, 1, 0, 0, s * c, k, 1, PACKED]
        taps = [(i, 0, i) for i in range(r)]
    else:
        geometry = [p, q, stride, h, w, c, p, q, k, 1, 0, 0, depth, k_group, groups, ROWS if direct else PACKED]
        taps = [(i - pad, j - pad, i * s + j) for i in range(r) for j in range(s)]
    backward = []
    for a in range(min(stride, h)):
        for b in range(min(stride, w)):
            reach = [
                ((a + pad - i) // stride, (b + pad - j) // stride, i * s + j)
                for i in range(r)
                for j in range(s)
                if (a + pad - i) % stride == 0 and (b + pad - j) % stride == 0
            ]
            grid = [ceil(h - a, stride), ceil(w - b, stride), 1, p, q, k, h, w, c, stride, a, b]
            form = COLUMNS if direct else PACKED
            backward.append(_frozen([*grid, k_group, depth, groups, form], reach))
    blocks = groups * ceil(k_group, BLOCK)
    weights = r * s * depth * k
    splits = max(1, min(ceil(TASKS, groups * ceil(ceil(k_group, BLOCK), RANGE)), n * p * q // (4 * CHUNK)))
    padded = n * (h + 2 * pad) * (w + 2 * pad) * c + 64 if merged else 0
    return Conv2dPlan(
        x_shape=tuple(x_shape),
        w_shape=tuple(w_shape),
        y_shape=(n, p, q, k),
        stride=stride,
        pad=pad,
        groups=groups,
        merged=merged,
        direct=direct,
        forward=_frozen(geometry, taps),
        backward=tuple(backward),
        packed_size=0 if direct else blocks * r * s * depth * BLOCK,
        packed_t_size=0 if direct else groups * ceil(depth, BLOCK) * r * s * k_group * BLOCK,
        splits=splits,
        workspace_size=padded + (splits - 1) * weights,
        zeros=np.zeros(max(c, k), np.float32),
    )


def _frozen(geometry, taps):
    return np.array(geometry, np.int64), np.array(taps, np.int64).reshape(-1, 3)
