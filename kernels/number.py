"""How a number lies in memory, as a value: a Number instead of a flag or a literal 4.

The dtype of an array is the tag. Kernels calculate in float32 whatever they read and write, and take the Number of a
tensor from its array (`x.dtype`), so that Numba compiles one body a Number and no kernel asks for the precision.
NumPy has no bf16: its bits lie in uint16, and those of fp16 in int16, so that both are told apart and nobody
calculates with them by accident. Pitches and offsets are in bytes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Number:
    """An element type: its name, the dtype of arrays that hold it, and its round-off, relative, half a unit."""

    name: str
    dtype: np.dtype
    round_off: float

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    def narrow(self, values) -> np.ndarray:
        """Float32 → the nearest of these, ties to even, as an array of `dtype`; infinities and NaN stay what they are.

        Twin of the kernels' `narrow`.
        """
        values = np.ascontiguousarray(values, np.float32)
        if self is FP32:
            return values
        if self is FP16:
            with np.errstate(over="ignore"):
                return values.astype(np.float16).view(np.int16)
        bits = values.view(np.uint32)
        rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
        return (np.where(np.isnan(values), bits | 0x400000, rounded) >> 16).astype(np.uint16)

    def widen(self, stored: np.ndarray) -> np.ndarray:
        """The same numbers as float32, exactly. Twin of the kernels' `widen`."""
        if self is FP32:
            return stored
        if self is FP16:
            return stored.view(np.float16).astype(np.float32)
        return (stored.astype(np.uint32) << 16).view(np.float32)


FP32 = Number("fp32", np.dtype(np.float32), 2.0**-24)
BF16 = Number("bf16", np.dtype(np.uint16), 2.0**-8)  # float32's range
FP16 = Number("fp16", np.dtype(np.int16), 2.0**-11)  # to 65,504; below 6e-5 fewer bits, nothing below 3e-8
NUMBERS = {number.dtype: number for number in (FP32, BF16, FP16)}


def number_of(dtype) -> Number:
    """The Number that arrays of a dtype hold; TypeError where there is none."""
    number = NUMBERS.get(np.dtype(dtype))
    if number is None:
        raise TypeError(f"found {np.dtype(dtype)}, expected float32, uint16 (bf16) or int16 (fp16): convert it first")
    return number


def number_named(name: str) -> Number:
    """The Number of a name, e.g. "bf16"; ValueError where there is none."""
    for number in NUMBERS.values():
        if number.name == name:
            return number
    raise ValueError(f"found precision {name!r}, expected one of {', '.join(n.name for n in NUMBERS.values())}")
