"""How a number lies in memory, as a value: a Number instead of a flag or a literal 4.

The dtype of an array is the tag. Kernels calculate in float32 whatever they read and write, and take the Number of a
tensor from its array (`x.dtype`), so that Numba compiles one body a Number and no kernel asks for the precision.
Pitches and offsets are in bytes.
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


FP32 = Number("fp32", np.dtype(np.float32), 2.0**-24)
NUMBERS = {number.dtype: number for number in (FP32,)}


def number_of(dtype) -> Number:
    """The Number that arrays of a dtype hold; TypeError where there is none."""
    number = NUMBERS.get(np.dtype(dtype))
    if number is None:
        known = ", ".join(str(dtype) for dtype in NUMBERS)
        raise TypeError(f"found {np.dtype(dtype)}, expected {known}: convert the array first")
    return number
