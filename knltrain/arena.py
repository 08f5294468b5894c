"""Memory: three flat blocks for what is learned, one planned block for everything that comes and goes.

`Parameters` lays all parameters end to end and gives each layer named views of value, gradient and momentum. Because
the blocks are flat, a gradient bucket is a slice, and the update, a checkpoint and a comparison are one walk each.

`Arena` is used twice. First symbolically: layers `take` and `give` buffers in the order in which a step will use
them, and every buffer gets an offset. Then `allocate` makes the one block, and a step allocates nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kernels import aligned_zeros

ALIGN = 64  # bytes: a cache line, and one AVX-512 vector
FLOAT = 4


@dataclass
class Parameter:
    """One learned tensor. `decay` and `adapt` say whether weight decay and the LARS trust ratio apply to it.

    dw: where backward writes. total: the sum over all slots and ranks, which ranks of a node may share; None: in dw.
    """

    name: str
    shape: tuple
    init: Callable[[np.random.Generator], np.ndarray]
    decay: bool = True
    adapt: bool = True
    w: np.ndarray = field(default=None, repr=False)
    dw: np.ndarray = field(default=None, repr=False)
    v: np.ndarray = field(default=None, repr=False)
    total: np.ndarray = field(default=None, repr=False)

    @property
    def gradient(self) -> np.ndarray:
        """What the optimizer reads."""
        return self.dw if self.total is None else self.total

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Statistic:
    """A running average of something measured in the forward pass (batch norm's mean and variance).

    `batch` is a view of the gradient block: there a slot's value is summed over slots and ranks like a gradient.
    """

    name: str
    shape: tuple
    initial: float
    fraction: float  # weight of the old value: running = fraction * running + (1 - fraction) * batch
    running: np.ndarray = field(default=None, repr=False)
    batch: np.ndarray = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


SCALARS = ("loss", "correct", "stop", "save")  # summed over slots with the gradients


class Parameters:
    """All parameters and statistics of a model in flat blocks.

    value, momentum: [parameters]. gradient: [scalars, statistics, parameters], so that the parameters of the last
    layers, whose gradients are ready first, lie at the end, and what belongs to the whole pass at the beginning.
    """

    def __init__(self):
        self.parameters: list[Parameter] = []
        self.statistics: list[Statistic] = []
        self._names = set()

    def add(self, parameter):
        """Register a Parameter or a Statistic; returns it. Names must be unique."""
        if parameter.name in self._names:
            raise ValueError(f"two tensors are named {parameter.name!r}; expected unique names")
        self._names.add(parameter.name)
        (self.parameters if isinstance(parameter, Parameter) else self.statistics).append(parameter)
        return parameter

    def _lengths(self) -> tuple[int, int]:
        """Floats of [scalars, statistics] and of [parameters], each tensor padded to whole cache lines."""
        head = _padded(len(SCALARS)) + sum(_padded(s.size) for s in self.statistics)
        return head, sum(_padded(p.size) for p in self.parameters)

    @property
    def total_bytes(self) -> int:
        """Of the four blocks: value, gradient, momentum and running averages."""
        head, total = self._lengths()
        return (2 * head + 3 * total) * FLOAT + 4 * ALIGN

    @property
    def gradient_bytes(self) -> int:
        """Of the gradient block alone."""
        return sum(self._lengths()) * FLOAT

    def allocate(self, seed: int, gradient_memory: Callable[[int], np.ndarray] | None = None):
        """Make the blocks and fill the values: each tensor from its own generator, keyed by (seed, name).

        gradient_memory: floats → zeros for the gradient block, where ranks of a node want to see each other's.
        """
        head, total = self._lengths()
        self.value, self.momentum, self.running = (aligned_zeros(n) for n in (total, total, head))
        self.gradient = (gradient_memory or aligned_zeros)(head + total)
        self.scalars = self.gradient[: len(SCALARS)]
        offset = _padded(len(SCALARS))
        for statistic in self.statistics:
            here = slice(offset, offset + statistic.size)
            statistic.batch = self.gradient[here].reshape(statistic.shape)
            statistic.running = self.running[here].reshape(statistic.shape)
            statistic.running[...] = statistic.initial
            offset += _padded(statistic.size)
        start = 0
        for p in self.parameters:
            here = slice(start, start + p.size)
            p.w, p.v = self.value[here].reshape(p.shape), self.momentum[here].reshape(p.shape)
            p.dw = self.gradient[head:][here].reshape(p.shape)
            p.w[...] = p.init(np.random.Generator(np.random.Philox(key=[seed, name_key(p.name)])))
            start += _padded(p.size)
        self.head = head

    def gradient_slice(self, parameter: Parameter) -> slice:
        """Where a parameter's gradient lies in the gradient block, in floats, padding included."""
        start = (parameter.dw.ctypes.data - self.gradient.ctypes.data) // FLOAT
        return slice(start, start + _padded(parameter.size))

    def update_statistics(self, slots: int):
        """Fold the mean over slots of each statistic, whose sum stands in `batch`, into its running average."""
        for s in self.statistics:
            s.running *= np.float32(s.fraction)
            s.running += s.batch * np.float32((1 - s.fraction) / slots)

    @property
    def count(self) -> int:
        """Learned numbers."""
        return sum(p.size for p in self.parameters)

    def state(self) -> dict[str, np.ndarray]:
        """Named views of everything that a checkpoint must hold."""
        arrays = {f"value/{p.name}": p.w for p in self.parameters}
        arrays |= {f"momentum/{p.name}": p.v for p in self.parameters}
        return arrays | {f"running/{s.name}": s.running for s in self.statistics}


def name_key(name: str) -> int:
    """FNV-1a of the name: the same on every machine and in every Python."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return key


def _padded(count: int) -> int:
    return -(-count * FLOAT // ALIGN) * ALIGN // FLOAT


# ---- what comes and goes ---------------------------------------------------------------------------------------


@dataclass
class Buffer:
    """A tensor that lives in the arena for a part of the step; `array` exists after `Arena.allocate`."""

    shape: tuple
    dtype: type = np.float32
    offset: int = 0
    given: bool = False  # back to the arena
    array: np.ndarray = field(default=None, repr=False)
    parent: "Buffer" = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def view(self, shape) -> "Buffer":
        """The same memory under another shape of the same size."""
        return Buffer(tuple(shape), self.dtype, parent=self)

    @property
    def root(self) -> "Buffer":
        return self.parent.root if self.parent else self


class Arena:
    """First-fit planner: offsets are decided in the order of `take` and `give`, memory is made once, at the end."""

    def __init__(self):
        self.buffers: list[Buffer] = []
        self.views: list[Buffer] = []
        self.holes: list[tuple[int, int]] = []  # free (offset, bytes) below `size`, sorted, never adjacent
        self.size = 0
        self.scratch = self.panel_floats = 0

    def take(self, shape, dtype=np.float32) -> Buffer:
        """A buffer that is nobody else's until it is given back."""
        buffer = Buffer(tuple(shape), dtype)
        need = _bytes(buffer)
        for index, (offset, free) in enumerate(self.holes):
            if free >= need:
                buffer.offset = offset
                self.holes[index : index + 1] = [(offset + need, free - need)] if free > need else []
                break
        else:
            if self.holes and sum(self.holes[-1]) == self.size:  # grow the last hole
                buffer.offset = self.holes.pop()[0]
            else:
                buffer.offset = self.size
            self.size = buffer.offset + need
        self.buffers.append(buffer)
        return buffer

    def give(self, buffer: Buffer):
        """Take back a buffer: whoever takes next may get its memory."""
        buffer = buffer.root
        if buffer.given:
            raise RuntimeError(f"a buffer of shape {buffer.shape} was given back before; expected once")
        buffer.given = True
        self.holes.append((buffer.offset, _bytes(buffer)))
        self.holes.sort()
        merged = []
        for offset, free in self.holes:
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + free)
            else:
                merged.append((offset, free))
        self.holes = merged

    def view(self, buffer: Buffer, shape) -> Buffer:
        """`buffer` under another shape; bound when the arena is allocated."""
        view = buffer.view(shape)
        self.views.append(view)
        return view

    def need_scratch(self, floats: int):
        """Ask for at least so many floats of scratch, shared by all layers, contents undefined between calls."""
        self.scratch = max(self.scratch, floats)

    def need_panels(self, floats: int):
        """The same for packed weights, which are used beside the scratch."""
        self.panel_floats = max(self.panel_floats, floats)

    @property
    def total_bytes(self) -> int:
        return self.size + (self.scratch + self.panel_floats) * FLOAT + 3 * ALIGN

    def allocate(self):
        """Make the block and bind every buffer to its place in it."""
        raw = np.empty(self.size + ALIGN, np.uint8)
        start = -raw.ctypes.data % ALIGN
        for buffer in self.buffers:
            here = raw[start + buffer.offset : start + buffer.offset + buffer.nbytes]
            buffer.array = here.view(buffer.dtype).reshape(buffer.shape)
        for view in self.views:
            view.array = view.root.array.reshape(view.shape)
        self.workspace, self.panels = aligned_zeros(self.scratch), aligned_zeros(self.panel_floats)


def _bytes(buffer: Buffer) -> int:
    return -(-buffer.nbytes // ALIGN) * ALIGN
