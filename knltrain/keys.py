"""What a value read from outside may be: its type and its bounds, said once. Recipes, shards and checkpoints use it."""

import dataclasses
import math
from typing import NamedTuple

REQUIRED = dataclasses.MISSING
LARGEST = 10**9  # of any number without another bound: far beyond use, yet no product of two overflows
LONGEST = 4096  # characters of a text, and items of a list
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    list: "a list",
    dict: "a table",
}


class Rule(NamedTuple):
    """What a value may be. Bounds are those of every number of a list, and of a text's length.

    kind: its type; None where that was seen to. free: of a recipe's key: it changes only speed, places and output, so
    that a run may be continued with another value.
    """

    help: str
    kind: type | None = None
    least: float = 0
    above: float = -math.inf
    below: float = math.inf
    most: float = LARGEST
    one_of: tuple = ()
    count: int = 0  # of the numbers in a list; 0: any
    free: bool = False

    def expected(self, value) -> str:
        """What was expected in place of `value`; "" where it is what it may be."""
        if self.one_of:
            return "" if value in self.one_of else _one_of(self.one_of)
        if self.kind is not None and type(value) is not self.kind:
            return KINDS[self.kind]
        if isinstance(value, str):
            return "a name" if len(value) < self.least else _at_most(len(value), LONGEST, " characters")
        if isinstance(value, tuple):
            if self.count and len(value) != self.count:
                return f"a list of {self.count} numbers"
            return _at_most(len(value), LONGEST, " items") or next(filter(None, map(self.expected, value)), "")
        return self._outside(value) if isinstance(value, (int, float)) else ""

    def _outside(self, number) -> str:
        if number != number or abs(number) == math.inf:
            return "a finite number"
        if number <= self.above:
            return f"more than {self.above}"
        if number < self.least:
            return f"{self.least} or more"
        return f"less than {self.below}" if number >= self.below else _at_most(number, self.most)


def _at_most(value, most, unit="") -> str:
    return f"at most {most}{unit}" if value > most else ""


def _one_of(choices) -> str:
    return f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0])


def key(default, help: str, **bounds):
    """A key of a recipe's section, all that is said about it at one place. bounds: see Rule."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **bounds)})


def shown(value) -> str:
    """The value for an error message, without the middle of a long one."""
    text = hex(value) if type(value) is int and abs(value) >= 2**64 else repr(value)
    return text if len(text) <= 80 else f"{text[:50]}…{text[-20:]}"
