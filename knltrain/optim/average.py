"""A running average of the weights, which is evaluated in their place: the noise of single steps is averaged out.

Polyak and Juditsky 1992; as an exponential average of all steps in most of today's recipes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..arena import Parameters

NAME = "average"  # the state of a parameter, in checkpoints too
PIECE = 1 << 16  # floats that are looked at together


class Average:
    """average = keep * average + (1 - keep) * w after each step; it begins as the weights, kept as a state of them."""

    def __init__(self, parameters: Parameters, keep: float):
        self.parameters, self.keep = parameters, np.float32(keep)
        if NAME not in parameters.states:
            parameters.keep(NAME)
            self.begin()

    def begin(self):
        """The average is the weights of now."""
        np.copyto(self.parameters.states[NAME], self.parameters.value)

    def step(self):
        """A step is done. The same bits on every rank, as the weights are."""
        average, value = self.parameters.states[NAME], self.parameters.value
        for own in self.parameters.kept():
            for first in range(own.start, own.stop, PIECE):
                here = slice(first, min(first + PIECE, own.stop))
                average[here] += (1 - self.keep) * (value[here] - average[here])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the weights are the average."""
        value, weights = self.parameters.value, self.parameters.value.copy()
        np.copyto(value, self.parameters.states[NAME])
        try:
            yield
        finally:
            np.copyto(value, weights)
