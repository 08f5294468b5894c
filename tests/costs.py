"""What the docstrings of kernels say of their cost, beside what an op counts and what a loop does."""

import re
from collections import Counter

PASSES = re.compile(r"(?:Cost|With (\w+)): [^;]*;\s+reads\s([\w\s,]+?)(?:,\s+writes\s([\w\s,]+))?[.;]")
FLOPS = re.compile(r"Cost: (\d+) flops an element(?:, (\d+) with Nesterov)?;")
OF_CHANNELS = {"dgamma", "dbeta"}  # too short to count


def check_passes(op):
    """The docstring of the op's kernel names the tensors that the op reads and writes, each as often.

    It may say so once more, "With sums: …", for calls with that argument.
    """
    passes, given = op.passes or ((tuple(op.reads), tuple(op.writes)),), op.values()
    told = [said for word, *said in PASSES.findall(op.kernel.__doc__) if not word or given.get(word)]
    for said, counted in zip(told[-1], (0, 1), strict=True):
        found = Counter(name for one in passes for name in one[counted])
        words = re.findall(r"(\w+)( twice)?", said)
        told = Counter({name: 2 if twice else 1 for name, twice in words if name in op.reads | op.writes})
        assert told == Counter({n: c for n, c in found.items() if n not in OF_CHANNELS}), (op.name, said)


class Counted:
    """A number that counts the flops in which it takes part."""

    flops = 0

    def _flop(self, *_):
        Counted.flops += 1
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = sqrt = _flop
