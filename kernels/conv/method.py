"""Methods: how one direction of a convolution may be computed. Each owns its sizes, its packing, its run and its cost.

A method is made for a Shape, and may be asked before whether it suits one; `plan` picks. What a method does depends on
the shape alone: pixels and channels are cut by constants, so no bit of a result depends on the number of threads.
"""

from functools import cached_property

import numba
import numpy as np

from ..arch import BLOCK, LINE_FLOATS
from ..number import FP32
from ..store import goes_past
from .grid import stacked
from .panels import pack
from .shape import TASKS, ceil
from .shares import add_tasks
from .task import Behind, GradientJob, Job, block_count

NO_MOMENTS = np.zeros((0, 2, 0), np.float32)
PACKED, ROWS, COLUMNS = range(3)  # forms of the weights: packed; w (DEPTH, WIDTH) itself; w (WIDTH, DEPTH) itself


class Method:
    """What all have in common."""

    workspace_size = 0  # floats of scratch
    panels = FP32  # what panels hold; BF16: pairs
    staged = False  # whether rows of the input are copied near before they are multiplied

    def __init__(self, shape):
        self.shape = shape
        longest = max(shape.x[3], shape.w[1] * shape.x[3] if shape.merged else 0, shape.y[3], LINE_FLOATS)
        self.zeros = np.zeros(longest, np.float32)  # and so of every Number

    @classmethod
    def suits(cls, shape) -> bool:
        """Whether it can compute this shape, faster than the methods behind it in the list."""
        return True

    @cached_property
    def stack(self) -> list:
        """`grids`, pairs of what is read and what is written (or dy), as arrays."""
        return stacked(self.grids)

    def points(self) -> int:
        """Places that a pixel's or tile's taps have: of packed weights, of sums."""
        return self.shape.w[0] * self.shape.w[1]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds that it makes, transforms not counted."""
        return self.shape.multiply_adds


class Blocks(Method):
    """Forward, or `transposed` backward-input: a task owns a block of a grid and a range of output channels.

    Subclasses give `grids`; `size`, pixels or tiles of a block; `nest`, the compiled loop over tasks; `tasks()`, how
    many to aim at.
    """

    form, step = PACKED, 1  # of the weights; numbers of the depth that are multiplied at once: panels have zeros behind
    most_width = 512  # output channels of a task: with its pixels it is 258 KB of C, which stay in L2

    def __init__(self, shape, transposed):
        super().__init__(shape)
        self.transposed = transposed
        depth, width = (shape.k_group, shape.w[2]) if transposed else (shape.w[2], shape.k_group)
        self.depth, self.width = depth, width  # channels of input and output, of a group
        self.all_taps = self.points()  # that the packed weights have
        whole = ceil(depth, self.step) * self.step
        self.packed_size = shape.groups * ceil(width, BLOCK) * self.all_taps * whole * BLOCK  # numbers of `panels`

    def tasks(self, threads: int) -> int:
        """How many to aim at: a task owns whole sums, so no bit depends on it."""
        return 4 * threads

    def pack(self, w, packed):
        """w (R, S, C/groups, K) as `run` reads it: packed (packed_size,)."""
        r, s, depth, k = w.shape
        pack(w.reshape(r * s, depth, k), self.shape.groups, self.transposed, packed, self.step)

    def blocks(self, grid) -> int:
        """Blocks of a grid, over all images."""
        return int(block_count(self.shape.x[0] * grid.pixels, self.size))

    @cached_property
    def order(self) -> np.ndarray:
        """(blocks, 3): grid, block of that grid, number among all. Grids take turns by their share: a thread, which is
        dealt a run of blocks, gets some of each, and those of the same images."""
        counts = [self.blocks(grid) for grid, _ in self.grids]
        rows = [(g, block) for g, count in enumerate(counts) for block in range(count)]
        turn = np.argsort([(block + 0.5) / counts[g] for g, block in rows], kind="stable")
        return np.array([(*row, number) for number, row in enumerate(rows)], np.int64)[turn]

    def block_sizes(self) -> np.ndarray:
        """Output pixels of each block of all grids, int64."""
        sizes = []
        for grid, written in self.grids:
            inside = np.tile(written.inside(), self.shape.x[0])
            sizes.append(np.add.reduceat(inside, self.size * np.arange(self.blocks(grid))))
        return np.concatenate(sizes)

    def cut(self, threads: int) -> int:
        """Ranges of output channels: where blocks alone are too few tasks. But each range reads all of the input."""
        width = self.width
        most = max(ceil(self.tasks(threads), len(self.order)), ceil(width, self.most_width))
        return min(ceil(width, BLOCK), most)

    def run(self, x, weights, y, bias, workspace, moments=NO_MOMENTS, accumulate=False, relu=False, behind=None):
        """y = or, with `accumulate`, += the sums over all taps, plus bias where it is not empty. Of dy for x: dx."""
        behind = behind or Behind(np.empty(0, y.dtype), np.empty(0, y.dtype), np.empty((0, 0), np.float32))
        ranges, past = self.cut(numba.get_num_threads()), goes_past(y, self.width)
        job = Job(
            x.reshape(-1), self.zeros, weights.reshape(-1).view(np.float32), bias, y.reshape(-1), moments, *behind,
            *self.stack, self.order, self.all_taps, self.form, self.size, x.shape[0], ranges, accumulate, relu, past,
            self.staged, np.empty(0, self.panels.dtype),
        )  # fmt: skip
        self.nest(len(self.order) * ranges, job)


class Gradient(Method):
    """Backward-weight: a task owns a range of channels and some of the `splits` shares of the pixels.

    See `shares` for the order of their sums. Subclasses give `most`, blocks of output channels of a task; `apart()`,
    the tasks of a share that take all output channels between them, as many times; `chunks()`, into which pixels are
    cut; `grids` of x and dy; and `nest`, the compiled loop over tasks.
    """

    chunk = 0  # pixels that are copied near at a time, where that is a number of them
    once = False  # whether every tile of dw is summed at once and stored, past the caches where dw is large

    def __init__(self, shape):
        super().__init__(shape)
        r, s, depth, k = shape.w
        self.blocks = ceil(shape.k_group, BLOCK)  # of output channels
        wanted, most = ceil(TASKS, self.apart() * ceil(self.blocks, self.most)), max(1, self.chunks() // 4)
        self.splits = min(1 << (wanted - 1).bit_length(), 1 << (most.bit_length() - 1))
        self.partial_size = (self.splits - 1) * r * s * depth * k
        self.workspace_size = self.partial_size

    def tasks(self, threads: int) -> tuple[int, int, int]:
        """Blocks of output channels of a task, shares of a task, and how many tasks: never other bits.

        Two a thread at least, if need be of fewer blocks, each of which packs or transforms x for itself. Where one
        takes all channels, also some shares in a row: then four tasks a thread and no thread more than another, or
        sixteen. Else those that read the same pixels should do so at about the same time.
        """
        apart = self.splits * self.apart()
        wide, runs = max(1, min(self.most, self.blocks // ceil(2 * threads, apart))), self.splits
        at_once = self.apart() * ceil(self.blocks, wide)
        if at_once == 1:
            runs = next((n for n in self._runs() if n >= 4 * threads and (n % threads == 0 or n >= 16 * threads)), runs)
        return wide, self.splits // runs, runs * at_once

    def _runs(self):
        """The numbers of tasks among which all shares can be dealt: 1, 2, 4 and so on."""
        return (1 << i for i in range(self.splits.bit_length()))

    def run(self, x, dy, dw, workspace):
        """dw, overwritten."""
        wide, taken, tasks = self.tasks(numba.get_num_threads())
        partial = workspace[self.workspace_size - self.partial_size : self.workspace_size]
        job = GradientJob(
            x.reshape(-1), dy.reshape(-1), self.zeros, dw.reshape(-1), partial, *self.stack, x.shape[0],
            self.splits, taken, wide, self.points(), self.chunk, self.once and goes_past(dw, self.shape.k_group),
            np.empty(0, self.panels.dtype),
        )  # fmt: skip
        self.nest(tasks, job)
        if taken < self.splits:
            add_tasks(job)
