"""How numbers travel: as they are, as two bytes each, or as one. Sums are float32 in every format.

With two bytes both addends of a sum are rounded, the one that arrives and the one that is there. So a + b and b + a
are the same bits, and which rank adds, that is the cut into buckets, changes nothing: only the tree of sums counts.
The finished sum is rounded once more, by the rank that owns it, before it goes to all: replicas stay equal. Only
gradients travel so: what stands at the head of the block (loss, statistics) and weights travel as they are.

One byte, int8, needs residuals: it is `coded`, for which there is a way of summing of its own.
"""

import math

import numpy as np

from knltrain.kernels import (
    accumulate_bf16,
    accumulate_fp16,
    accumulate_serial,
    decode_bf16,
    decode_fp16,
    encode_bf16,
    encode_fp16,
)

TWO_BYTES = {
    "bf16": (encode_bf16, decode_bf16, accumulate_bf16),
    "fp16": (encode_fp16, decode_fp16, accumulate_fp16),
}
CODED = "int8"
WIRES = ("fp32", *TWO_BYTES, CODED)


class Rooms:
    """Buffers by name, each as large as the most that was asked of it."""

    def __init__(self):
        self._buffers = {}

    def get(self, name: str, shape: int | tuple, dtype) -> np.ndarray:
        """One of this shape, with whatever stands there."""
        size = math.prod(shape) if isinstance(shape, tuple) else shape
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, dtype)
        return self._buffers[name][:size].reshape(shape)


class Wire:
    """One format, with buffers for the largest message so far."""

    def __init__(self, name: str):
        if name not in WIRES:
            raise ValueError(f"unknown wire format {name!r}; expected one of {', '.join(WIRES)}")
        self.name = name
        self.short, self.feeds_back = name in TWO_BYTES, name == CODED
        self.dtype = np.uint16 if self.short else np.uint8 if self.feeds_back else np.float32
        self.encode, self.decode, self.accumulate = TWO_BYTES.get(name, (None, None, accumulate_serial))
        self._rooms = Rooms()

    def room(self, shape, name: str = "into") -> np.ndarray:
        """Where numbers that travel may arrive."""
        return self._rooms.get(name, shape, self.dtype)

    def outgoing(self, x: np.ndarray | None, name: str = "out") -> np.ndarray | None:
        """x as it travels, in the buffer of that name where that is another format."""
        if not self.short or x is None:
            return x
        out = self.room(x.size, name)
        self.encode(x, out)
        return out

    def incoming(self, travelled: np.ndarray, name: str) -> np.ndarray:
        """What has travelled as float32, in the buffer of that name where that is another format."""
        if not self.short:
            return travelled
        x = self._rooms.get(name, travelled.size, np.float32)
        self.decode(travelled, x)
        return x

    def add(self, x, y):
        """x += y as if y had travelled: both are rounded."""
        self.accumulate(x, self.outgoing(y))

    def add_from(self, group, out, to: int, x, source: int):
        """Send `out` to `to`; x += what `source` sends. Either may be None."""
        into = None if x is None else self.room(x.size)
        group.exchange(self.outgoing(out), to, into, source)
        if x is not None and x.size:
            self.accumulate(x, into)

    def copy_from(self, group, out, to: int, x, source: int):
        """Send `out` to `to`; x = what `source` sends. Either may be None; `out` must be rounded already."""
        into = self.room(x.size) if self.short and x is not None else x
        group.exchange(self.outgoing(out), to, into, source)
        if self.short and x is not None:
            self.decode(into, x)

    def round(self, x):
        """x as it will be after a journey."""
        if self.short:
            out = self.outgoing(x)
            self.decode(out, x)
