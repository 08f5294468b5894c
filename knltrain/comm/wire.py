"""How numbers travel: as they are, as two bytes each, or as one. Sums are float32 in every format.

With two bytes both addends of a sum are rounded, the one that arrives and the one that is there. So a + b and b + a
are the same bits, and which rank adds, that is the cut into buckets, changes nothing: only the tree of sums counts.
The finished sum is rounded once more, by the rank that owns it, before it goes to all: replicas stay equal. Only
gradients travel so: what stands at the head of the block (loss, statistics) and weights travel as they are.

One byte, int8, needs residuals: it is `coded`, for which there is a way of summing of its own.
"""

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


class Wire:
    """One format, with buffers for the largest message so far."""

    def __init__(self, name: str):
        if name not in WIRES:
            raise ValueError(f"unknown wire format {name!r}; expected one of {', '.join(WIRES)}")
        self.name = name
        self.short, self.feeds_back = name in TWO_BYTES, name == CODED
        self.dtype = np.uint16 if self.short else np.uint8 if self.feeds_back else np.float32
        self.encode, self.decode, self.accumulate = TWO_BYTES.get(name, (None, None, accumulate_serial))
        self._out = self._into = np.empty(0, self.dtype)

    def _room(self, buffer: str, size: int) -> np.ndarray:
        if getattr(self, buffer).size < size:
            setattr(self, buffer, np.empty(size, self.dtype))
        return getattr(self, buffer)[:size]

    def room(self, shape: tuple[int, int]) -> np.ndarray:
        """Where rows that travel may arrive."""
        return self._room("_into", shape[0] * shape[1]).reshape(shape)

    def coded(self, x: np.ndarray) -> np.ndarray:
        """x as it travels, in memory of its own where that is another format."""
        if not self.short:
            return x
        out = np.empty(x.size, self.dtype)
        self.encode(x, out)
        return out

    def plain(self, travelled: np.ndarray) -> np.ndarray:
        """What has travelled, as float32, in memory of its own where that is another format."""
        if not self.short:
            return travelled
        x = np.empty(travelled.size, np.float32)
        self.decode(travelled, x)
        return x

    def _outgoing(self, x):
        if not self.short or x is None:
            return x
        out = self._room("_out", x.size)
        self.encode(x, out)
        return out

    def add(self, x, y):
        """x += y as if y had travelled: both are rounded."""
        self.accumulate(x, self._outgoing(y))

    def add_from(self, group, out, to: int, x, source: int):
        """Send `out` to `to`; x += what `source` sends. Either may be None."""
        into = None if x is None else self._room("_into", x.size)
        group.exchange(self._outgoing(out), to, into, source)
        if x is not None and x.size:
            self.accumulate(x, into)

    def copy_from(self, group, out, to: int, x, source: int):
        """Send `out` to `to`; x = what `source` sends. Either may be None; `out` must be rounded already."""
        into = self._room("_into", x.size) if self.short and x is not None else x
        group.exchange(self._outgoing(out), to, into, source)
        if self.short and x is not None:
            self.decode(into, x)

    def round(self, x):
        """x as it will be after a journey."""
        if self.short:
            out = self._outgoing(x)
            self.decode(out, x)
