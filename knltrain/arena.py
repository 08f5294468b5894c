"""What is learned, in flat blocks: all parameters end to end, with named views of value, gradient and momentum.

Because the blocks are flat, a gradient bucket is a slice, and the update, a checkpoint and a comparison are one walk
each.
"""

import ctypes
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from knltrain.kernels import aligned_zeros

ALIGN = 64  # bytes: a cache line, and one AVX-512 vector
FLOAT = 4
_REMOVE, _DONTNEED = 9, 4  # of Linux' madvise: from shared memory, from one's own


@dataclass
class Parameter:
    """One learned tensor. `decay` and `adapt` say whether weight decay and the LARS trust ratio apply to it.

    rate: what the learning rate is multiplied by for it (Caffe's lr_mult); 0: it stays as it was drawn.

    cuts: of its elements, in memory order: where a part begins that may be another rank's, with chunks of its own.
    own: those whose value, momentum and gradient this rank keeps.

    dw: where backward writes. total: the sum over all slots and ranks, which ranks of a node may share; None: in dw.
    """

    name: str
    shape: tuple
    init: Callable[[np.random.Generator], np.ndarray]
    decay: bool = True
    adapt: bool = True
    rate: float = 1.0
    cuts: tuple[int, ...] = ()
    own: slice = field(default_factory=lambda: slice(None))
    w: np.ndarray = field(default=None, repr=False)
    dw: np.ndarray = field(default=None, repr=False)
    v: np.ndarray = field(default=None, repr=False)
    total: np.ndarray = field(default=None, repr=False)
    states: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # what else an optimizer keeps of it

    def cut(self, places: Iterable[int]):
        """From now on it is cut at these elements."""
        self.cuts = tuple(places)

    def sum_alone(self, own: slice = slice(None)):
        """From now on this rank keeps the elements `own`; the sum of their gradients stands in dw, and is its own."""
        self.own, self.total = own, None

    @property
    def gradient(self) -> np.ndarray:
        """What the optimizer reads."""
        return self.dw if self.total is None else self.total

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def pieces(self, part: slice = slice(None)) -> list[slice]:
        """The elements `part`, cut where the parameter is."""
        start, stop, _ = part.indices(self.size)
        edges = [start, *(edge for edge in self.cuts if start < edge < stop), stop]
        return [slice(*both) for both in pairwise(edges)]


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


class GradientBlock:
    """The gradients of a rank, `mine`, and where their sums over all slots and ranks come to stand, `total`."""

    def __init__(self, mine: np.ndarray, total: np.ndarray):
        self.mine, self.total = mine, total


SCALARS = ("loss", "correct", "stop", "save")  # summed over slots with the gradients


class Parameters:
    """All parameters and statistics of a model in flat blocks.

    value, momentum: [parameters]. gradient: [scalars, statistics, parameters], so that the parameters of the last
    layers, whose gradients are ready first, lie at the end, and what belongs to the whole pass at the beginning.
    """

    def __init__(self):
        self.parameters: list[Parameter] = []
        self.statistics: list[Statistic] = []
        self.named: dict[str, Parameter | Statistic] = {}
        self.states: dict[str, np.ndarray] = {}  # blocks as `momentum`, by name

    def add(self, parameter):
        """Register a Parameter or a Statistic; returns it. Names must be unique."""
        if parameter.name in self.named:
            raise ValueError(f"two tensors are named {parameter.name!r}; expected unique names")
        self.named[parameter.name] = parameter
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

    def allocate(self, seed: int, gradient_block: Callable[[int], GradientBlock] | None = None):
        """Make the blocks and fill the values: each tensor from its own generator, keyed by (seed, name).

        gradient_block: floats → a block of zeros, where gradients are summed over ranks.
        """
        head, total = self._lengths()
        self.value, self.momentum, self.running = (aligned_zeros(n) for n in (total, total, head))
        make = gradient_block or (lambda floats: GradientBlock(*[aligned_zeros(floats)] * 2))
        self.block = make(head + total)
        self.gradient = self.block.mine
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
            p.dw, p.total = (block[head:][here].reshape(p.shape) for block in (self.gradient, self.block.total))
            p.w[...] = p.init(np.random.Generator(np.random.Philox(key=[seed, name_key(p.name)])))
            start += _padded(p.size)
        self.head = head

    def kept(self) -> Iterator[slice]:
        """Of a block as `value`, what this rank keeps, parameter by parameter."""
        start = 0
        for p in self.parameters:
            first, last, _ = p.own.indices(p.size)
            yield slice(start + first, start + last)
            start += _padded(p.size)

    def forget(self, *blocks: np.ndarray):
        """Give back the memory of all else in blocks as `value`: it reads as zeros until somebody writes there."""
        edges = [0, *(edge for here in self.kept() for edge in (here.start, here.stop)), self.value.size]
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            for block in blocks:
                _give_back(block[start:stop])

    def keep(self, name: str, copies: int = 0) -> np.ndarray:
        """One more block of zeros as large as the weights, or `copies` of it: the state `name` of each parameter."""
        many = (copies,) if copies else ()
        self.states[name] = block = aligned_zeros(max(copies, 1) * self.value.size).reshape(*many, -1)
        start = 0
        for p in self.parameters:
            p.states[name] = block[..., start : start + p.size].reshape(*many, *p.shape)
            start += _padded(p.size)
        return block

    @property
    def blocks(self) -> list[np.ndarray]:
        """All that training changes but gradients: what a checkpoint holds, and ranks agree on."""
        return [self.value, self.momentum, *self.states.values(), self.running]

    def take(self, other: "Parameters"):
        """Copy all blocks of another model of the same tensors."""
        for name, block in other.states.items():
            self.keep(name, len(block) if block.ndim > 1 else 0)
        for own, its in zip(self.blocks, other.blocks, strict=True):
            np.copyto(own, its)

    def gradient_slice(self, parameter: Parameter) -> slice:
        """Where a parameter's gradient lies in the gradient block, in floats, padding included."""
        start = (parameter.dw.ctypes.data - self.gradient.ctypes.data) // FLOAT
        return slice(start, start + _padded(parameter.size))

    def gradient_edges(self, parameter: Parameter, with_cuts: bool) -> list[int]:
        """Where its slice of that block begins and ends, and between them where the parameter is cut."""
        here = self.gradient_slice(parameter)
        return [here.start, *(here.start + cut for cut in parameter.cuts if with_cuts), here.stop]

    def update_statistics(self, slots: int):
        """Fold the mean over slots of each statistic, whose sum stands in `batch`, into its running average."""
        for s in self.statistics:
            s.running *= np.float32(s.fraction)
            s.running += s.batch * np.float32((1 - s.fraction) / slots)

    @property
    def count(self) -> int:
        """Learned numbers."""
        return sum(p.size for p in self.parameters)


def _give_back(array: np.ndarray):
    """Of the pages that lie wholly in `array`; where the system is not Linux they stay."""
    page, end = mmap.PAGESIZE, array.ctypes.data + array.nbytes
    start = -(-array.ctypes.data // page) * page
    if end - start >= page and hasattr(mmap, "MADV_DONTNEED"):
        advise, size = ctypes.CDLL(None).madvise, (end - start) // page * page
        for kind in (_REMOVE, _DONTNEED):
            if advise(ctypes.c_void_p(start), ctypes.c_size_t(size), kind) == 0:
                break


def name_key(name: str) -> int:
    """FNV-1a of the name: the same on every machine and in every Python."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return key


def _padded(count: int) -> int:
    return -(-count * FLOAT // ALIGN) * ALIGN // FLOAT
