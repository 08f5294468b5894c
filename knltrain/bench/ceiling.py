"""What the machine can do at this moment, measured in turn with the kernel that is compared with it.

A machine that others use too may run a third faster or slower from second to second. So every timing of a kernel
stands between two timings of the ceiling, and shares are medians of ratios of neighbours, not ratios of medians.
"""

import statistics
import time
from dataclasses import dataclass

import numba
import numpy as np

from knltrain.kernels import ARCH, STREAM_UNIT, fma_peak, product, stream

from ..layers import Op, Pass, run
from ..node.hardware import machine_facts

PEAK_SECONDS = 3e-3  # of one look at the peak
HEADLINE_BYTES = 256 << 20  # of the streams that the head of a table names


def clock(function, *arguments) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def machine_line() -> str:
    """The machine in one line: processor, threads, register tile."""
    tile = ARCH.tile()
    shape = f"tile {tile.rows} x {tile.vectors} vectors of {tile.width}"
    return f"{machine_facts()['processor']}, {numba.get_num_threads()} threads, {ARCH.name} kernels ({shape})"


def multiplied(precision: str) -> str:
    """What the multiply-add loop multiplies, in words."""
    return {"fp32": "float32", "dot2": "pairs of bf16", "amx": "tiles of bf16"}[product(precision)]


@dataclass(frozen=True)
class Timing:
    """Medians over the repetitions of one kernel."""

    seconds: float
    peak: float  # flop/s of the FMA loop in between
    stream_seconds: float  # of streams that move the same bytes
    of_peak: float  # share in flops of the definition, 0 for a kernel without; above 1 where fewer are made
    of_roofline: float  # share of min(peak, intensity x bandwidth), in flops that are made


class Ceiling:
    """The FMA loop, and streams for passes of up to `largest` bytes; none, and no memory for them, where that is 0.

    precision: for bf16 the loop is of pairs or of tiles, where the kernels multiply those.
    """

    def __init__(self, largest: int = 0, precision: str = "fp32"):
        self.peaks, self.precision, self.multiplied = [], precision, product(precision)
        self.rounds = 1000
        fma_peak(self.rounds, self.multiplied)  # compiles
        seconds = min(clock(fma_peak, self.rounds, self.multiplied) for _ in range(5))
        self.rounds = max(1, round(self.rounds * PEAK_SECONDS / seconds))
        if largest:
            floats = max(largest, HEADLINE_BYTES) // 4 + STREAM_UNIT
            self.source, self.target = _aligned(floats), _aligned(floats)
            stream("read", self.source, self.target)  # compiles

    def peak(self) -> float:
        """flop/s of the FMA loop on all threads, now."""
        start = time.perf_counter()
        flops = fma_peak(self.rounds, self.multiplied)
        self.peaks.append(flops / (time.perf_counter() - start))
        return self.peaks[-1]

    def bandwidths(self, repeats: int = 7) -> dict[str, float]:
        """bytes/s of streams over HEADLINE_BYTES: read, and the better of the two ways to copy and to fill."""
        source, target = _head(self.source, HEADLINE_BYTES), _head(self.target, HEADLINE_BYTES)

        def rate(name):
            moved = source.nbytes * (2 if name.startswith("copy") else 1)
            return moved / statistics.median(clock(stream, name, source, target) for _ in range(repeats))

        best = {name: max(rate(name), rate(f"{name} past the caches")) for name in ("copy", "fill")}
        return {"read": rate("read"), **best}

    def _moves(self, passes: list[Pass], past: str):
        """Streams that make the same passes: what is read in place of, beside, or without a write."""
        moves = []
        for one in passes:
            copied = min(one.read, one.written) - one.in_place
            rest = one.read - one.in_place - copied
            place = one.in_place
            moves += [("copy", 0, one.in_place, True)] if one.in_place else []
            moves += [(f"copy{past}", place, copied, False)] if copied else []
            moves += [("read", place + copied, rest, False)] if rest > 0 else []
            filled = one.written - one.in_place - copied
            moves += [(f"fill{past}", place + copied, filled, False)] if filled > 0 else []
        return [(name, *self._views(start, count, in_place)) for name, start, count, in_place in moves]

    def _views(self, start, count, in_place):
        unit = STREAM_UNIT * 4
        here = slice(start // unit * STREAM_UNIT, (start // unit + max(1, round(count / unit))) * STREAM_UNIT)
        return self.source[here], self.source[here] if in_place else self.target[here]

    def stream_seconds(self, passes: list[Pass]) -> float:
        """Seconds of streams that make the same passes, now, with or without stores past the caches."""

        def make(moves):
            for move in moves:
                stream(*move)

        return min(clock(make, self._moves(passes, past)) for past in ("", " past the caches"))

    def time(self, op: Op, before, seconds: float = 0.4, least: int = 5, most: int = 50) -> Timing:
        """Time an op for about `seconds`, with a look at the ceiling between any two; before() is called untimed."""
        before()
        run(op)
        passes = op.traffic()
        taken, peaks, streams = [], [self.peak()], [self.stream_seconds(passes)]
        near = streams[0] > op.arithmetic / peaks[0] / 2  # else memory is far from being the limit: looked at once
        while len(taken) < most and (len(taken) < least or sum(taken) < seconds):
            before()
            taken.append(clock(run, op))
            peaks.append(self.peak())
            streams.append(self.stream_seconds(passes) if near else streams[0])
        of_peak, of_roofline = [], []
        for i, mine in enumerate(taken):
            peak = (peaks[i] + peaks[i + 1]) / 2
            floor = max(op.arithmetic / peak, (streams[i] + streams[i + 1]) / 2)
            of_peak.append(op.flops / peak / mine)
            of_roofline.append(floor / mine)
        return Timing(*map(statistics.median, (taken, peaks, streams, of_peak, of_roofline)))


def _aligned(floats: int) -> np.ndarray:
    raw = np.ones(floats + 16, np.float32)
    return raw[-raw.ctypes.data % 64 // 4 :][:floats]


def _head(array, nbytes):
    return array[: nbytes // 4 // STREAM_UNIT * STREAM_UNIT]
