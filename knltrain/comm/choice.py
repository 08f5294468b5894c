"""Which fully connected layers travel as factors, or are split: arithmetic on measured times, alike on all ranks.

Of a gradient of n bytes a sum takes alpha + n / beta, as measured at the start. Where a node sends c copies of what it
sums (2; `direct`: 1 and the partial sums of a rank), c beta bytes a second leave it. Factors of G bytes take
alpha + G / (c beta), and the ranks of a node, L of P, then make dw of all M slots, which is M / L - M / P more each.
Backward hides what its flops take at the speed of this kernel, but for a tenth: cores add, copy and speak to the
network. So a step is longer by max(0, exchanges - hidden) + a tenth of what is hidden + more to make. A split layer has
smaller sums, and in each slot four exchanges in a group, which nothing hides.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .block import MessageBlock
from .curve import Curve
from .shares import Shares
from .split import group_sizes

FC = ("auto", "sum", "factors", "split")
BESIDE = 0.1  # of an exchange that backward hides, by which that takes longer
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
        return [layer for layer in self._large if factor_bytes(layer, slots) < sum_bytes(layer)]

    def groups(self, shares: Shares) -> list[int]:
        """Of how many ranks groups may be that split a layer; [] where there is nothing to decide."""
        some = any(layer.sharded for layer in self._large)
        return group_sizes(shares, self.shards, self.group or self.shards) if some else []

    @property
    def _large(self) -> list:
        return [layer for layer in self.layers if self.asks and 4 * layer.depth * layer.width >= SMALL]

    @property
    def asks(self) -> bool:
        """Whether arithmetic is to decide."""
        return self.mode == "auto" and not self.rounded


@dataclass(frozen=True)
class Choice:
    """The layers that travel as factors, those that are split over `group` ranks, and why, in a line.

    "" where there was nothing to choose. usual: sums take least time, as nearly always; nobody need be told.
    """

    layers: Sequence = ()
    why: str = ""
    split: Sequence = ()
    group: int = 1
    usual: bool = False


def factor_bytes(layer, slots: int) -> int:
    """x and dy of all slots, of which a node is sent what it has not."""
    return slots * layer.images * (layer.depth + layer.width) * layer.dtype.itemsize


def sum_bytes(layer) -> int:
    """Of two copies of dw, which halving sends."""
    return 2 * 4 * layer.depth * layer.width


def split_bytes(layer, size: int, slots: int, groups: int, mates: int) -> tuple[float, float]:
    """Of a step, leaving a node of `mates` ranks: x, y, dy and dx in groups of `size`, and two copies of rows of dw."""
    item, away = layer.dtype.itemsize, mates * (size - min(mates, size))
    activations = slots * layer.images * (2 * layer.depth / size * item + layer.width * (4 + item)) / (size * groups)
    return away * activations, mates * (groups - 1) / groups * sum_bytes(layer) / size


def split_as_asked(fc: FullyConnected, block: MessageBlock) -> Choice:
    """All layers that are in shards, over the largest group that fits the ranks."""
    shares, layers = block.links.shares, [layer for layer in fc.layers if layer.sharded]
    ranks, names = len(shares.ranges), _names(layers)
    if ranks == 1:
        return Choice()
    if not layers:
        return Choice(why=f"no fully connected layer has the inputs for {fc.shards} shards: nothing is split")
    sizes = group_sizes(shares, fc.shards, fc.group or fc.shards)
    if not sizes:
        why = f"{ranks} ranks make no groups of 2 or more, of equal shares, that divide {fc.shards} shards"
        return Choice(why=f"{names} travel as sums: {why}")
    return Choice((), f"{names} split over groups of {sizes[-1]} ranks", layers, sizes[-1])


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


@dataclass(frozen=True)
class _Costs:
    """What all ranks measured, as of `choose`, and a step's length by it; hidden: seconds of exchanges."""

    fc: FullyConnected
    block: MessageBlock
    curve: Curve
    buckets: int
    hidden: float
    per_flop: float

    def of(self, way: Choice) -> tuple[float, float, float]:
        """Seconds by which a step is longer; of exchanges that backward may hide; of more to compute, and to wait."""
        links, curve, copies = self.block.links, self.curve, self.block.copies
        slots, ranks = links.shares.slots, links.comm.size
        mates = min(map(len, links.nodes)) if self.block.blocks is not None else 1
        rate = (copies or 1) * links.wire.dtype().itemsize / 4 * curve.beta
        summed = 4 * self.block.mine.size - sum(sum_bytes(layer) / 2 for layer in (*way.layers, *way.split))
        exchanges = summed / self.buckets * curve.alpha + summed / curve.beta
        gathered = sum(factor_bytes(layer, slots) for layer in way.layers) if copies else 0
        exchanges += (len(way.layers) + len(way.split)) * curve.alpha + gathered / rate
        more = sum(layer.flops for layer in way.layers) * (slots / mates - slots / ranks) * self.per_flop
        for layer in way.split:
            activations, sums = split_bytes(layer, way.group, slots, ranks // way.group, mates)
            exchanges += sums / rate
            more += 4 * slots / ranks * curve.alpha + activations / rate
        beside = BESIDE * min(exchanges, self.hidden)
        return max(0.0, exchanges - self.hidden) + beside + more, exchanges, more

    def says(self, way: Choice, before: float) -> str:
        """Why, or why not; before: seconds of exchanges if all were sums."""
        _, exchanges, more = self.of(way)
        return (
            f"exchanges take {1e3 * exchanges:.3g} ms, not {1e3 * before:.3g}, of which backward hides "
            f"{1e3 * self.hidden:.3g}, for {1e3 * more:.3g} ms more to compute{' and to wait' * bool(way.split)} "
            f"({self.curve}; {1e-9 / self.per_flop:.3g} GFLOP/s)"
        )


def choose(fc: FullyConnected, block: MessageBlock, curve: Curve, buckets: int, hides: bool, per_flop: float) -> Choice:
    """How a step is shortest; curve: of sums in buckets of so many bytes; hides: behind backward."""
    costs = _Costs(fc, block, curve, buckets, fc.backward_flops * per_flop if hides else 0.0, per_flop)
    slots = block.links.shares.slots
    some = sorted(fc.candidates(slots), key=lambda layer: factor_bytes(layer, slots) / sum_bytes(layer))
    sharded = sorted((layer for layer in fc.layers if layer.sharded), key=sum_bytes, reverse=True)
    splits = [([], 1)] + [(part, size) for size in fc.groups(block.links.shares) for part in _prefixes(sharded)]
    ways = [
        Choice(factors, "", split, size)
        for split, size in splits
        for factors in ([], *_prefixes([layer for layer in some if layer not in split]))
    ]
    if len(ways) == 1:
        return ways[0]
    (before, whole, _), *_ = lengths = [costs.of(way) for way in ways]
    best = min(range(1, len(ways)), key=lambda number: lengths[number][0])
    way, taken = ways[best], lengths[best][0] <= GAIN * before
    said = [f"{_names(way.layers)} travel as factors"] * bool(way.layers)
    said += [f"{_names(way.split)} split over groups of {way.group} ranks"] * bool(way.split)
    if taken:
        return replace(way, why=f"{', '.join(said)}: {costs.says(way, whole)}")
    names = _names([*way.layers, *way.split])
    return Choice(why=f"{names} travel as sums: if {', '.join(said)}, {costs.says(way, whole)}", usual=True)


def _names(layers: Sequence) -> str:
    return ", ".join(layer.name for layer in layers)


def _prefixes(layers: list) -> list[list]:
    return [layers[: count + 1] for count in range(len(layers))]
