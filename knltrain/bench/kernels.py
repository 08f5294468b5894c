"""`knltrain bench kernels`: every distinct kernel call of a model's training step, checked, then timed.

The calls are recorded from a step of the model itself and repeated on the step's own memory, at its size.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels import set_threads

from . import twins
from .ceiling import Ceiling, Timing, machine_line
from .costs import CONVOLUTION, PASSES, Cost, cost, shape
from .probe import Call, watch
from .workload import Workload

CHECK_BATCH = 2  # images of the step whose results are compared with NumPy
SMALL_BYTES = 1 << 20  # a kernel without flops that moves less is checked, not timed: its call costs more than its work


@dataclass
class Row:
    """A distinct call, how often a step makes it, and what was measured."""

    call: Call
    cost: Cost
    count: int = 1
    timing: Timing = None


def distinct_calls(workload: Workload) -> list[Row]:
    """The calls of one step in the order of its convolutions' kinds, equal ones merged."""
    rows = {}

    def begin(call):
        if call.signature in rows:
            rows[call.signature].count += 1
        else:
            rows[call.signature] = Row(call, cost(call))

    with watch(begin, lambda call, note, seconds: None):
        workload.step()
    return sorted(rows.values(), key=lambda row: PASSES.index(row.cost.kind))


def check(model: str, options: dict, wanted) -> float:
    """Compare every distinct call of a step of CHECK_BATCH images with NumPy; returns the largest relative error."""
    seen, errors = set(), [0.0]

    def begin(call):
        if call.signature in seen or not wanted(call):
            return None
        seen.add(call.signature)
        return twins.snapshot(call)

    def end(call, before, seconds):
        if before is not None:
            errors.append(twins.error(call, before))

    workload = Workload(model, CHECK_BATCH, options)
    with watch(begin, end):
        workload.step()
    return max(errors)


def refill(call: Call):
    """A function to call before each repetition: gives back to a kernel that works in place what it has overwritten.

    Found by trying: what differs after a second call was an input.
    """
    call.run()
    first = {name: array.copy() for name, array in call.arrays().items()}
    call.run()
    changed = [(array, first[name]) for name, array in call.arrays().items() if _differ(array, first[name])]
    del first

    def before():
        for array, original in changed:
            np.copyto(array, original)

    return before


def _differ(a, b) -> bool:
    return not np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def run(model, slot_batch, threads=0, options=None, passes=(), layers=(), plot=None, as_json=False):
    """Print the table, or the rows as JSON; draw the roofline to `plot`. passes, layers: only these.

    Raises ValueError where the filters leave nothing, RuntimeError where a result is wrong.
    """
    options = options or {}
    if threads:
        set_threads(threads)

    def wanted(call):
        return (not layers or call.layer in layers) and (not passes or cost(call).kind in passes)

    worst = check(model, options, wanted)
    workload = Workload(model, slot_batch, options)
    workload.step()  # touches all memory
    found = [row for row in distinct_calls(workload) if wanted(row.call)]
    rows = [row for row in found if row.cost.flops or row.cost.bytes >= SMALL_BYTES]
    if not found:
        raise ValueError(f"no call of {model} fits --layer {' '.join(layers)} --pass {' '.join(passes)}: see the table")
    if plot and not any(row.cost.flops for row in rows):
        raise ValueError(f"--plot {plot}: found no kernel with flops, expected some: see --pass and --layer")
    ceiling = Ceiling(max((one.read + one.written for row in rows for one in row.cost.passes), default=1))
    bandwidths = ceiling.bandwidths()
    for number, row in enumerate(rows, start=1):
        _progress(f"{number}/{len(rows)} {row.call.layer} {row.call.kernel}")
        row.timing = ceiling.time(row.cost, row.call.run, refill(row.call))
    _progress("")
    if as_json:
        print(json.dumps([_record(row, bandwidths) for row in rows], indent=1))
    else:
        small = sum(row.count for row in found) - sum(row.count for row in rows)
        print(_head(model, slot_batch, ceiling, bandwidths, worst) + "\n" + table(rows, small))
    if plot:
        from ..plots import roofline

        roofline([_record(row, bandwidths) for row in rows], Path(plot), f"{model}, slot batch {slot_batch}")


def _progress(text: str):
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text[:100]}\x1b[K")
        sys.stderr.flush()


def _record(row: Row, bandwidths) -> dict:
    timing, flops = row.timing, row.cost.flops
    return {
        "layer": row.call.layer,
        "pass": row.cost.kind,
        "kernel": row.call.kernel,
        "shape": shape(row.call),
        "calls_per_step": row.count,
        "seconds": timing.seconds,
        "flops": flops,
        "arithmetic": row.cost.arithmetic,
        "bytes": row.cost.bytes,
        "gflop_per_s": flops / timing.seconds / 1e9,
        "gb_per_s": row.cost.bytes / timing.seconds / 1e9,
        "share_of_peak": timing.of_peak,
        "share_of_roofline": timing.of_roofline,
        "peak_gflop_per_s": timing.peak / 1e9,
        "stream_gb_per_s": row.cost.bytes / timing.stream_seconds / 1e9,
        "copy_gb_per_s": bandwidths["copy"] / 1e9,
    }


# ---- the table -----------------------------------------------------------------------------------------------


def _head(model, slot_batch, ceiling, bandwidths, worst) -> str:
    peaks = np.array(ceiling.peaks) / 1e9
    read, copy, fill = (bandwidths[name] / 1e9 for name in ("read", "copy", "fill"))
    low, middle, high = np.percentile(peaks, [10, 50, 90])
    return "\n".join([
        machine_line(),
        f"peak    {middle:.0f} GFLOP/s (multiply-add loop, float32; {low:.0f} to {high:.0f} while this ran)",
        f"memory  {read:.0f} GB/s read, {copy:.0f} copy, {fill:.0f} fill (256 MiB)",
        f"{model}, slot batch {slot_batch}: the distinct kernel calls of one training step. All results were compared "
        f"with NumPy\nat {CHECK_BATCH} images first: largest error {worst:.1e} of the largest element.",
    ])  # fmt: skip


def table(rows: list[Row], small: int) -> str:
    """Rows by kind, with a sum under each part; small: how many calls of a step are too small to be timed."""
    width = max((len(row.call.layer) for row in rows), default=0)
    wide = max((len(shape(row.call)) for row in rows), default=0)
    lines = []
    heavy = [row for row in rows if row.cost.kind in CONVOLUTION]
    if heavy:
        head = f"{'layer':{width}}  {'pass':15}  {'shape':{wide}}  calls"
        lines += ["", head + "        ms  GFLOP/s    GB/s  of peak  of roofline"]
        for row in heavy:
            t = row.timing
            lines.append(
                f"{row.call.layer:{width}}  {row.cost.kind:15}  {shape(row.call):{wide}}  {row.count:5}"
                f"  {1e3 * t.seconds:8.3f}  {row.cost.flops / t.seconds / 1e9:7.0f}"
                f"  {row.cost.bytes / t.seconds / 1e9:6.1f}  {t.of_peak:7.1%}  {t.of_roofline:11.1%}"
            )
        if any(row.cost.arithmetic < row.cost.flops for row in heavy):
            lines.append("W: by Winograd's method; GFLOP/s and peak in flops of the definition, roofline in those made")
        lines += ["", "by pass, weighted by the work of a step:"]
        for kind in (*CONVOLUTION, "together"):
            some = [row for row in heavy if kind in (row.cost.kind, "together")]
            if some:
                lines.append(_sum_line(kind, some))
    light = [row for row in rows if row.cost.kind not in CONVOLUTION]
    if light:
        head = f"{'layer':{width}}  {'kernel':23}  {'shape':{wide}}  calls"
        lines += ["", head + "        ms       MB    GB/s  stream GB/s  of stream"]
        for row in light:
            t = row.timing
            lines.append(
                f"{row.call.layer:{width}}  {row.call.kernel:23}  {shape(row.call):{wide}}  {row.count:5}"
                f"  {1e3 * t.seconds:8.3f}  {row.cost.bytes / 1e6:7.1f}  {row.cost.bytes / t.seconds / 1e9:6.1f}"
                f"  {row.cost.bytes / t.stream_seconds / 1e9:11.1f}  {t.of_roofline:9.1%}"
            )
        lines += ["", "by kernel, weighted by the work of a step:"]
        for kernel in dict.fromkeys(row.call.kernel for row in light):
            some = [row for row in light if row.call.kernel == kernel]
            lines.append(_sum_line(kernel, some))
    if small:
        lines += ["", f"not timed: {small} calls a step that move less than {SMALL_BYTES >> 20} MiB each"]
    return "\n".join(lines)


def _sum_line(name, rows) -> str:
    """Time of a step in these calls, and the share: the time that the ceilings allow, divided by the time it takes."""
    taken = sum(row.count * row.timing.seconds for row in rows)
    roofline = sum(row.count * row.timing.seconds * row.timing.of_roofline for row in rows) / taken
    line = f"  {name:23}  {1e3 * taken:9.2f} ms a step"
    flops = sum(row.count * row.cost.flops for row in rows)
    if flops:
        peak = sum(row.count * row.timing.seconds * row.timing.of_peak for row in rows) / taken
        return line + f"  {flops / taken / 1e9:6.0f} GFLOP/s  {peak:6.1%} of peak  {roofline:6.1%} of roofline"
    moved = sum(row.count * row.cost.bytes for row in rows)
    return line + f"  {moved / taken / 1e9:6.1f} GB/s     {roofline:6.1%} of stream"
