"""Which fully connected layers travel as factors (see `factors`): arithmetic on measured times, alike on all ranks.

Of a gradient of n bytes a sum takes alpha + n / beta, as measured at the start. Where a node sends c copies of what it
sums (2; `direct`: 1 and the partial sums of a rank), gathering G bytes takes alpha + G / (c beta). The ranks of a node,
L of P, then make dw of all M slots, which is M / L - M / P more each. Backward hides what its flops take at the speed
of this kernel. So a step is longer by max(0, exchanges - hidden) + more to make.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .block import MessageBlock
from .curve import Curve
from .split import group_sizes

FC = ("auto", "sum", "factors", "split")
GAIN = 0.9  # of what a step is longer by, below which factors are taken
SMALL = 1 << 16  # bytes of a gradient, below which latencies count
TRIES = 4


@dataclass(frozen=True)
class FullyConnected:
    """What a recipe says of the fully connected layers: mode of FC, and `layers.dense.DenseGradient` of each.

    backward_flops: of the backward pass of a slot. rounded: whether a wire format of its own rounds sums between nodes.
    shards: in which layers are that may be split; group: of how many ranks at most, 0: of any number.
    """

    mode: str = "sum"
    layers: Sequence = ()
    backward_flops: float = 0.0
    rounded: bool = False
    shards: int = 1
    group: int = 0

    def candidates(self, slots: int) -> list:
        """Layers whose factors are fewer bytes than sums; [] where there is nothing to decide."""
        large = [layer for layer in self.layers if 4 * layer.depth * layer.width >= SMALL]
        return [layer for layer in large if factor_bytes(layer, slots) < sum_bytes(layer)] if self.asks else []

    @property
    def asks(self) -> bool:
        """Whether arithmetic is to decide."""
        return self.mode == "auto" and not self.rounded


@dataclass(frozen=True)
class Choice:
    """The layers that travel as factors, those that are split over `group` ranks, and why, in a line.

    "" where there was nothing to choose.
    """

    layers: Sequence = ()
    why: str = ""
    split: Sequence = ()
    group: int = 1


def factor_bytes(layer, slots: int) -> int:
    """x and dy of all slots, of which a node is sent what it has not."""
    return slots * layer.images * (layer.depth + layer.width) * layer.dtype.itemsize


def sum_bytes(layer) -> int:
    """Of two copies of dw, which halving sends."""
    return 2 * 4 * layer.depth * layer.width


def split_as_asked(fc: FullyConnected, block: MessageBlock) -> Choice:
    """All layers that are in shards, over the largest group that fits the ranks."""
    shares, layers = block.links.shares, [layer for layer in fc.layers if layer.sharded]
    ranks, names = len(shares.ranges), ", ".join(layer.name for layer in layers)
    if ranks == 1:
        return Choice()
    if not layers:
        return Choice(why=f"no fully connected layer has the inputs for {fc.shards} shards: nothing is split")
    sizes = group_sizes(shares, fc.shards, fc.group or fc.shards)
    if not sizes:
        why = f"{ranks} ranks make no groups of 2 or more, of equal shares, that divide {fc.shards} shards"
        return Choice(why=f"{names} travel as sums: {why}")
    return Choice((), f"{names} are split over groups of {sizes[-1]} ranks", layers, sizes[-1])


def seconds_per_flop(layer, add, gather) -> float:
    """Of making and adding a part of a layer's dw, on the slowest rank. Collective."""
    rows = layer.rows[0]
    x, dy = (np.zeros((layer.images, columns), layer.dtype) for columns in (len(rows), layer.width))
    dw, total, times = *np.zeros((2, len(rows) * layer.width), np.float32), []
    for _ in range(TRIES):
        begin = time.perf_counter()
        layer.make(x, dy, dw)
        add(total, dw)
        times.append(time.perf_counter() - begin)
    return max(gather(min(times))) / (layer.flops * len(rows) / layer.depth)


def choose(fc: FullyConnected, block: MessageBlock, curve: Curve, buckets: int, hides: bool, per_flop: float) -> Choice:
    """The layers for which a step is shortest; curve: of sums in buckets of so many bytes; hides: behind backward."""
    links = block.links
    slots, ranks = links.shares.slots, links.comm.size
    mates = min(map(len, links.nodes)) if block.blocks is not None else 1
    copies, wire = block.copies, links.wire.dtype().itemsize / 4
    hidden = fc.backward_flops * per_flop if hides else 0.0

    def longer(layers):
        summed = 4 * block.mine.size - sum(sum_bytes(layer) / 2 for layer in layers)
        exchanges = summed / buckets * curve.alpha + summed / curve.beta
        gathered = sum(factor_bytes(layer, slots) for layer in layers) if copies else 0
        exchanges += len(layers) * curve.alpha + gathered / (copies or 1) / wire / curve.beta
        more = sum(layer.flops for layer in layers) * (slots / mates - slots / ranks) * per_flop
        return max(0.0, exchanges - hidden) + more, exchanges, more

    some = sorted(fc.candidates(slots), key=lambda layer: factor_bytes(layer, slots) / sum_bytes(layer))
    prefixes = [[], *map(list, accumulate(([layer] for layer in some), lambda a, b: a + b))]
    (before, whole, _), best = longer([]), min(prefixes, key=lambda layers: longer(layers)[0])
    taken = best if longer(best)[0] <= GAIN * before else []
    told, how = (taken, "travel as factors:") if taken else (some, "travel as sums: as factors")
    _, exchanges, more = longer(told)
    names = ", ".join(layer.name for layer in told)
    why = (
        f"{names} {how} exchanges take {1e3 * exchanges:.3g} ms, not {1e3 * whole:.3g}, of which backward hides "
        f"{1e3 * hidden:.3g}, for {1e3 * more:.3g} ms more to compute ({curve}; {1e-9 / per_flop:.3g} GFLOP/s)"
    )
    return Choice(taken, why)
