"""What a value read from outside may be: its type and its bounds, said once. Recipes, shards and checkpoints use it."""

import dataclasses
import math
import re
from typing import NamedTuple

REQUIRED = dataclasses.MISSING
LARGEST = 10**9  # of any number without another bound: far beyond use, yet no product of two overflows
MOST_TRACED = 1000  # steps
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
    return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else repr(choices[0])


def key(default, help: str, **bounds):
    """A key of a recipe's section, all that is said about it at one place. bounds: see Rule."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **bounds)})


def converted(value, kind):
    """`value` as the type of a key: whole numbers serve as floats, lists as tuples; nothing else is converted.

    Raises ValueError: "found; expected", without the name.
    """
    if kind in (tuple[float, ...], tuple[str, ...]):
        item_kind = kind.__args__[0]
        if not isinstance(value, list):
            raise ValueError(f"{shown(value)}; expected a list of {'names' if item_kind is str else 'numbers'}")
        return tuple(converted(item, item_kind) for item in value)
    if kind == str | float:
        kind = str if isinstance(value, str) else float
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 2**1023 else math.inf
    if type(value) is not kind:
        raise ValueError(f"{shown(value)}; expected {KINDS[kind]}")
    return value


def traced_steps(text: str) -> range:
    """The steps that run.trace names. Raises ValueError, with what was expected.

    >>> traced_steps("steps 100..104")
    range(100, 105)
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(?:steps? +)?([0-9]{1,9})(?: *\.\. *([0-9]{1,9}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last < first + MOST_TRACED:
        raise ValueError(f'"steps FIRST..LAST", at most {MOST_TRACED} of them, as "steps 100..104"')
    return range(first, last + 1)


def plain(value) -> bool:
    """Whether it is text, a number, true, false or a list of those."""
    if isinstance(value, list):
        return all(map(plain, value))
    return isinstance(value, (str, bool, int, float))


def shown(value) -> str:
    """The value for an error message, without the middle of a long one."""
    text = hex(value) if type(value) is int and abs(value) >= 2**64 else repr(value)
    return text if len(text) <= 80 else f"{text[:50]}…{text[-20:]}"
