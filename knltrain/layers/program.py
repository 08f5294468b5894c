"""A step as a program: tensors, the ops that read and write them, and the two lists in which the ops run.

Layers only declare. `layer.forward(program, x) -> y` and `layer.backward(program, dy) -> dx` append ops; each op is one
call of a public kernel, with its arguments by the kernel's own names. A tensor is written once. Whoever wants to know
what a step does reads the lists: the passes that fuse (`fusion`), the planner of memory (`memory`), benchmarks, tables.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from knltrain.kernels import number_of

from ..arena import Parameter, Parameters

FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, MEMORY, PACKING, UPDATE = KINDS = (
    "forward", "backward_input", "backward_weight", "memory", "packing", "update",
)  # fmt: skip
CONVOLUTION = KINDS[:3]


class Tensor:
    """What an op reads or writes: a name and a shape; `array` exists when the planner has found it a place.

    scratch: lives from one op to the next few, and may lie where the scratch of others lay. of: the tensor whose
    memory this is under another shape.
    """

    def __init__(self, name: str, shape, dtype=np.float32, scratch: bool = False, of: "Tensor | None" = None):
        self.name, self.shape, self.dtype, self.scratch = name, tuple(shape), np.dtype(dtype), scratch
        self.root = of.root if of else self
        self.place = None  # of a root: its array, when it has one

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def array(self) -> np.ndarray:
        return self.root.place.reshape(self.shape)

    def lie_in(self, memory: np.ndarray):
        """From now on its bytes are these, uint8; of a root."""
        self.place = memory.view(self.dtype)

    def view(self, *shape) -> "Tensor":
        """The same memory under another shape of the same size."""
        return self if tuple(shape) == self.shape else Tensor(self.name, shape, self.dtype, of=self)


@dataclass(frozen=True, eq=False)
class Field:
    """An array that a parameter or a statistic will have: its `w`, `dw`, `batch`, …"""

    owner: object
    name: str

    @property
    def array(self) -> np.ndarray:
        return getattr(self.owner, self.name)

    @property
    def shape(self) -> tuple:
        return self.owner.shape

    @property
    def nbytes(self) -> int:
        return 4 * self.owner.size


@dataclass(frozen=True)
class Pass:
    """Bytes read and written from end to end; in_place of them lie where they were read."""

    read: int
    written: int
    in_place: int


@dataclass(eq=False)
class Op:
    """One call of `kernel`. owner: the layer (or loss, or optimizer) it belongs to, which has a name.

    reads, writes: tensors, fields and arrays by the names of the kernel's arguments, those that count as traffic: from
    end to end, once. passes: where a kernel of this meaning must go over memory several times, what each time, as pairs
    of argument names. others: further arguments: scratch tensors, vectors of a channel's length, numbers.
    overwrites: written argument → those read whose memory it may take, if nobody reads them later. onto: a tensor that
    the only output is added to, in its memory. flops: of the definition: what a step is worth, however it is computed;
    arithmetic: those that are really made. uses: the parameters it reads.
    """

    owner: object
    kind: str
    kernel: Callable
    reads: dict
    writes: dict
    others: dict = field(default_factory=dict)
    passes: tuple = ()
    overwrites: dict = field(default_factory=dict)
    onto: Tensor | None = None
    flops: int = 0
    arithmetic: int = 0
    uses: tuple = ()
    arguments: dict = field(default_factory=dict)  # bound: what the kernel is called with

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.kernel.__name__

    def values(self) -> dict:
        """All arguments by name, as declared."""
        return self.reads | self.writes | self.others

    def tensors(self) -> list[Tensor]:
        """The tensors among them, whose memory the planner decides."""
        found = [value for value in self.values().values() if isinstance(value, Tensor)]
        return found + ([self.onto] if self.onto else [])

    def inputs(self) -> list[Tensor]:
        """The tensors whose contents it needs, but for what is told in scratch."""
        found = [value for value in self.reads.values() if isinstance(value, Tensor)]
        return found + ([self.onto] if self.onto else [])

    def completes(self) -> list[Parameter]:
        """The parameters whose gradients are whole when this op has run."""
        return [v.owner for v in self.writes.values() if isinstance(v, Field) and v.name == "dw"]

    def bind(self):
        """Look up every argument's array: from now on the op can run."""
        self.arguments = {
            name: value.array if isinstance(value, (Tensor, Field)) else value for name, value in self.values().items()
        }

    # ---- what it costs ---------------------------------------------------------------------------------------

    def traffic(self) -> list[Pass]:
        """The passes over memory that it cannot avoid."""
        found = []
        for read, written in self.passes or [(self.reads, self.writes)]:
            inputs = [self._value(name) for name in read] + ([self.onto] if self.onto else [])
            outputs = [self._value(name) for name in written]
            places = {_place(value) for value in inputs}
            in_place = sum(value.nbytes for value in outputs if _place(value) in places)
            found.append(Pass(*(sum(v.nbytes for v in values) for values in (inputs, outputs)), in_place))
        return found

    @property
    def nbytes(self) -> int:
        return sum(one.read + one.written for one in self.traffic())

    def _value(self, name):
        return self.writes[name] if name in self.writes else self.reads[name]


def _place(value):
    """Equal for two values in the same memory."""
    if isinstance(value, Tensor):
        return id(value.root) if value.root.place is None else value.root.place.ctypes.data
    return (value.owner.name, value.name) if isinstance(value, Field) else value.ctypes.data


class Program:
    """The ops of a pass over one slot of `images`. train: with gradients, batch statistics and dropout.

    parameters: where layers register what is learned; a second program of the same model finds it there. keys: one per
    image, for what is random. results: tensors that the caller reads when the program has run. number: what activations
    and their gradients hold, as the images do; but the output of layer `last`, the logits, is float32.
    """

    def __init__(self, images: Tensor, parameters: Parameters, train: bool, keys: np.ndarray, last=None):
        self.images, self.parameters, self.train, self.keys, self.last = images, parameters, train, keys, last
        self.number = number_of(images.dtype)
        self.forward: list[Op] = []
        self.backward: list[Op] = []
        self.results: list[Tensor] = []
        self._own = set()

    def add(self, tensor):
        """Register a Parameter or Statistic. Raises ValueError where this program has another of that name."""
        if tensor.name in self._own:
            raise ValueError(f"two tensors are named {tensor.name!r}; expected unique names")
        self._own.add(tensor.name)
        return self.parameters.named.get(tensor.name) or self.parameters.add(tensor)

    @property
    def ops(self) -> list[Op]:
        """All, in the order in which they run."""
        return self.forward + self.backward

    def bind(self):
        """Every tensor and parameter has its memory: look it up for every op."""
        for op in self.ops:
            op.bind()


class Observer:
    """Is told of every op; what is not overridden does nothing."""

    def begin(self, op: Op):
        """`op` is about to run."""

    def end(self, op: Op, seconds: float):
        """It has run and took so long."""


def run(op: Op, observer: Observer | None = None):
    """Run one op; returns what its kernel returns."""
    if observer is None:
        return op.kernel(**op.arguments)
    observer.begin(op)
    start = time.perf_counter()
    result = op.kernel(**op.arguments)
    observer.end(op, time.perf_counter() - start)
    return result


def execute(ops: Iterable[Op], observer: Observer | None = None, ready: Callable[[Parameter], None] | None = None):
    """Run ops in order; ready(parameter) is called as soon as its gradient is whole."""
    for op in ops:
        run(op, observer)
        if ready:
            for parameter in op.completes():
                ready(parameter)
