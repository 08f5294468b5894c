"""What the docstrings of kernels say of their cost, beside what an op counts and what a loop does."""

import re
from collections import Counter

PASSES = re.compile(r"Cost: [^;]*;\s+reads\s([\w\s,]+?)(?:,\s+writes\s([\w\s,]+))?[.;]")
FLOPS = re.compile(r"Cost: (\d+) flops an element(?:, (\d+) with Nesterov)?;")
OF_CHANNELS = {"dgamma", "dbeta"}  # too short to count


def check_passes(op):
    """The docstring of the op's kernel names the tensors that the op reads and writes, each as often."""
    passes = op.passes or ((tuple(op.reads), tuple(op.writes)),)
    for said, counted in zip(PASSES.search(op.kernel.__doc__).groups(""), (0, 1), strict=True):
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
