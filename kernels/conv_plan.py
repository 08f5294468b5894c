"""What one convolution needs to know before it runs: shapes, taps, sizes of buffers.

Nothing here depends on the number of threads: pixels and channels are cut by constants, so every result is the same
everywhere.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ._jit import kernel
from ._shapes import output_size
from .arch import BLOCK, LINE_FLOATS

PIXELS = 126  # pixels of a forward block: a multiple of 6 and 14, its input stays in L2
CHUNK = 192  # pixels of a backward-weight chunk: a BLOCK-wide panel of dy stays in L1
PANEL_BYTES = 49152  # weights of one inner nest: stay in L1, or next to it where that is smaller
RANGE = 8  # blocks of output channels of a backward-weight task: its panels of dy share L2 with
STRIP = 40  # this many lines of channels of x
TASKS = 64  # tasks to aim at when a dimension is split; a constant, so that no result depends on the machine
MERGE_BELOW = 17  # input channels under which the taps of a filter row are merged
AHEAD_BYTES = 262144  # input of the next block that is asked for ahead of time: fits into L2 beside this one's
MOST_WIDTH = 512  # output channels of a task of forward: with PIXELS it is 258 KB of C, which stay in L2
TILE = 6  # input pixels on a side of a Winograd tile: it has 7 - R output pixels on a side
TILES = 28  # tiles of a Winograd block: two of the micro-kernel; their 36 planes of inputs stay in L2
CHANNELS = 64  # of inputs and of outputs of its backward-weight task: the sums of 36 points, 590 KB, stay in L2
MOST_FILTER_BYTES = 24 << 20  # of transformed filters: larger ones would be read from memory by every block

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
    winograd: bool  # forward and backward-input by Winograd's method
    winograd_weight: bool  # backward-weight by it
    tiled: tuple  # for these, (geometry, taps) of x for y, of dy for dx and of dy for dw
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

    def arithmetic(self, direction) -> int:
        """Multiply-adds that "forward", "backward_input" or "backward_weight" really makes, transforms not counted."""
        by_winograd = self.winograd_weight if direction == "backward_weight" else self.winograd
        if not by_winograd:
            return self.multiply_adds
        geometry, _ = self.tiled[direction == "backward_input"]
        return self.y_shape[0] * int(geometry[GRID_I] * geometry[GRID_J]) * TILE**2 * self.w_shape[2] * self.w_shape[3]

    @property
    def moments_shape(self) -> tuple:
        """Shape of what forward tells of each of `moments_counts` output pixels: mean and M2 of every channel."""
        return (self.moments_counts.size, 2, self.w_shape[3])

    @cached_property
    def moments_counts(self) -> np.ndarray:
        """Output pixels of each block of forward, int64."""
        n, p, q, _ = self.y_shape
        if not self.winograd:
            return np.diff(PIXELS * np.arange(block_count(n * p * q, PIXELS)), append=n * p * q)
        m = TILE + 1 - self.w_shape[0]
        sides = [np.minimum(m, side - np.arange(0, side, m)) for side in (p, q)]
        inside = np.tile(np.outer(*sides).ravel(), n)  # pixels of each tile
        return np.add.reduceat(inside, TILES * np.arange(block_count(inside.size, TILES)))

    @property
    def padded_shape(self) -> tuple:
        """Shape of the zero-padded copy of x that a merged convolution reads."""
        n, h, w, c = self.x_shape
        return (n, h + 2 * self.pad, w + 2 * self.pad, c)


def ceil(a, b):
    return -(-a // b)


@kernel
def block_count(things, size):
    """Blocks of `size`; less than half a block left over goes to the last: alone it would read all weights."""
    return max(1, (things + size // 2) // size)


def conv2d_plan(x_shape, w_shape, stride=1, pad=0, groups=1, winograd=True) -> Conv2dPlan:
    """Plan y[n,p,q,k] = sum over r,s,c of x[n, p*stride+r-pad, q*stride+s-pad, g*C/groups+c] * w[r,s,c,k].

    x_shape (N, H, W, C), w_shape (R, S, C/groups, K); channel k belongs to group g = k // (K/groups).
    winograd: False for direct sums everywhere; otherwise by Winograd's method where it is the faster one.
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
    y_shape, k_group = (n, p, q, k), k // groups
    winograd_weight = winograd and _winograd_saves(y_shape, w_shape, stride, groups)
    winograd = winograd_weight and TILE * TILE * depth * k * 4 <= MOST_FILTER_BYTES
    merged = groups == 1 and c < MERGE_BELOW and not winograd_weight
    direct = h == w == r == s == groups == 1 and not merged
    points = TILE * TILE if winograd else r * s
    if winograd_weight:
        m = TILE + 1 - r
        parts, shares = groups * ceil(depth, CHANNELS) * ceil(k_group, CHANNELS), n * ceil(p, m) * ceil(q, m) // TILES
    else:
        parts, shares = groups * ceil(ceil(k_group, BLOCK), RANGE), n * p * q // CHUNK
    splits = max(1, min(ceil(TASKS, parts), shares // 4))
    padded = n * (h + 2 * pad) * (w + 2 * pad) * c + 64 if merged else 0
    return Conv2dPlan(
        x_shape=tuple(x_shape),
        w_shape=tuple(w_shape),
        y_shape=y_shape,
        stride=stride,
        pad=pad,
        groups=groups,
        merged=merged,
        direct=direct,
        forward=_forward_grid(x_shape, w_shape, y_shape, stride, pad, groups, merged, direct),
        backward=tuple(_backward_grids(x_shape, w_shape, y_shape, stride, pad, groups, direct)),
        winograd=winograd,
        winograd_weight=winograd_weight,
        tiled=_tiled_grids(x_shape, w_shape, y_shape, pad, groups) if winograd_weight else (),
        packed_size=0 if direct else groups * ceil(k_group, BLOCK) * points * depth * BLOCK,
        packed_t_size=0 if direct else groups * ceil(depth, BLOCK) * points * k_group * BLOCK,
        splits=splits,
        workspace_size=padded + (splits - 1) * r * s * depth * k,
        zeros=np.zeros(max(c, k), np.float32),
    )


def _winograd_saves(y_shape, w_shape, stride, groups):
    """Whether tiles are of use: a square filter of 3 or 5, whole lines of channels, and not too small an image.

    The batch does not matter: what is computed for an image does not depend on how many others there are.
    """
    _, p, q, k = y_shape
    r, s, depth, _ = w_shape
    if r != s or r not in (3, 5) or stride > 1 or depth % LINE_FLOATS or k // groups % LINE_FLOATS:
        return False
    m = TILE + 1 - r
    return r * r * p * q >= 2 * TILE * TILE * ceil(p, m) * ceil(q, m)


def _forward_grid(x_shape, w_shape, y_shape, stride, pad, groups, merged, direct):
    _, h, w, c = x_shape
    r, s, depth, k = w_shape
    _, p, q, _ = y_shape
    if merged:
        geometry = [p, q, stride, h + 2 * pad, w + 2 * pad, c, p, q, k, 1, 0, 0, s * c, k, 1, PACKED]
        return _frozen(geometry, [(i, 0, i) for i in range(r)])
    form = ROWS if direct else PACKED
    geometry = [p, q, stride, h, w, c, p, q, k, 1, 0, 0, depth, k // groups, groups, form]
    return _frozen(geometry, [(i - pad, j - pad, i * s + j) for i in range(r) for j in range(s)])


def _backward_grids(x_shape, w_shape, y_shape, stride, pad, groups, direct):
    """One grid for each residue of (h, w) modulo the stride."""
    _, h, w, c = x_shape
    r, s, depth, k = w_shape
    _, p, q, _ = y_shape
    for a in range(min(stride, h)):
        for b in range(min(stride, w)):
            reach = [
                ((a + pad - i) // stride, (b + pad - j) // stride, i * s + j)
                for i in range(r)
                for j in range(s)
                if (a + pad - i) % stride == 0 and (b + pad - j) % stride == 0
            ]
            grid = [ceil(h - a, stride), ceil(w - b, stride), 1, p, q, k, h, w, c, stride, a, b]
            yield _frozen([*grid, k // groups, depth, groups, COLUMNS if direct else PACKED], reach)


def _tiled_grids(x_shape, w_shape, y_shape, pad, groups):
    """Grids of tiles: of x for y, of dy for dx, and of dy for dw, whose tiles have the size of outputs."""
    _, h, w, c = x_shape
    r, _, depth, k = w_shape
    _, p, q, _ = y_shape
    m, forward, backward = TILE + 1 - r, (depth, k // groups, groups, PACKED), (k // groups, depth, groups, PACKED)
    return (
        _tile_grid(m, (h, w, c), (p, q, k), pad, TILE, forward),
        _tile_grid(m, (p, q, k), (h, w, c), r - 1 - pad, TILE, backward),
        _tile_grid(m, (p, q, k), (p, q, k), 0, m, forward),
    )


def _tile_grid(m, inputs, outputs, pad, side, channels):
    """Tiles of m x m outputs, each of which reads side x side inputs."""
    geometry = [ceil(outputs[0], m), ceil(outputs[1], m), m, *inputs, *outputs, m, 0, 0, *channels]
    return _frozen(geometry, [(i - pad, j - pad, i * side + j) for i in range(side) for j in range(side)])


def _frozen(geometry, taps):
    return np.array(geometry, np.int64), np.array(taps, np.int64).reshape(-1, 3)
