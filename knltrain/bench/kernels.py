"""`knltrain bench kernels`: every distinct op of a model's training step, checked, then timed.

The ops are those of the model's own program, repeated on the step's own memory, at its size.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..layers import CONVOLUTION, KINDS, Observer, Op
from ..layers import run as run_op
from . import twins
from .ceiling import Ceiling, Timing, machine_line, multiplied
from .workload import Workload

CHECK_BATCH = 2  # images of the step whose results are compared with NumPy
SMALL_BYTES = 1 << 20  # a kernel without flops that moves less is checked, not timed: the call costs more


@dataclass
class Row:
    """A distinct op, how often a step runs it, and what was measured."""

    op: Op
    count: int = 1
    timing: Timing = None


class Check(Observer):
    """Compares every distinct op that is `wanted` with NumPy; counts them all."""

    def __init__(self, wanted, compare: bool):
        self.wanted, self.compare = wanted, compare
        self.rows: dict[tuple, Row] = {}
        self.errors, self.before = [0.0], None

    def begin(self, op):
        key, self.before = signature(op), None
        if key in self.rows:
            self.rows[key].count += 1
        elif self.wanted(op):
            self.rows[key] = Row(op)
            self.before = twins.snapshot(op) if self.compare else None

    def end(self, op, seconds):
        if self.before is not None:
            self.errors.append(twins.error(op, self.before))


def signature(op: Op) -> tuple:
    """Equal for two ops that do the same work: shapes and settings, not contents."""
    return (op.name, *((name, _kind(value)) for name, value in op.arguments.items()))


def _kind(value):
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str)
    if hasattr(value, "w_shape"):  # the plan of a convolution
        return value.shape
    return "number" if isinstance(value, (float, np.uint64)) else value  # a rate or a key changes no work


def observe_step(workload: Workload, wanted, compare: bool) -> Check:
    """Run one step and look at every op of it."""
    check = Check(wanted, compare)
    workload.observe(check)
    workload.step()
    workload.observe(None)
    return check


def shape(op: Op) -> str:
    """The work of an op in words: `32x56x56x64 -> 256, 1x1/1`; with a W where it is done by Winograd's method."""
    plan = op.arguments.get("plan")
    if plan is None:
        arrays = [array for array in op.arguments.values() if isinstance(array, np.ndarray)]
        return "x".join(map(str, max(arrays, key=lambda array: array.size if array.ndim > 1 else 0).shape))
    conv = plan.shape
    (r, s, _, k), groups = conv.w, f" in {conv.groups} groups" if conv.groups > 1 else ""
    by = " W" if op.arithmetic < op.flops else ""
    return f"{'x'.join(map(str, conv.x))} -> {k}, {r}x{s}/{conv.stride}{groups}{by}"


def refill(op: Op):
    """A function to call before each repetition: gives back to a kernel that works in place what it has overwritten.

    Found by trying: what differs after a second run was an input.
    """
    arrays = [array for array in op.arguments.values() if isinstance(array, np.ndarray)]
    run_op(op)
    first = [array.copy() for array in arrays]
    run_op(op)
    changed = [(array, copy) for array, copy in zip(arrays, first, strict=True) if _differ(array, copy)]
    del first

    def before():
        for array, original in changed:
            np.copyto(array, original)

    return before


def _differ(a, b) -> bool:
    return not np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def run(model, slot_batch, threads=0, options=None, passes=(), layers=(), plot=None, precision="fp32"):
    """The rows as records and as a table; draw the roofline to `plot`. passes, layers: only these.

    Raises ValueError where the filters leave nothing, RuntimeError where a result is wrong.
    """

    def wanted(op):
        return (not layers or op.owner.name in layers) and (not passes or op.kind in passes)

    how = {"options": options, "precision": precision, "threads": threads}
    worst = max(observe_step(Workload(model, CHECK_BATCH, **how), wanted, True).errors)
    workload = Workload(model, slot_batch, **how)
    found = observe_step(workload, wanted, False).rows.values()  # and all memory is touched
    found = sorted(found, key=lambda row: KINDS.index(row.op.kind))
    rows = [row for row in found if row.op.flops or row.op.nbytes >= SMALL_BYTES]
    if not found:
        raise ValueError(f"no op of {model} fits --layer {' '.join(layers)} --pass {' '.join(passes)}: see the table")
    if plot and not any(row.op.flops for row in rows):
        raise ValueError(f"--plot {plot}: found no kernel with flops, expected some: see --pass and --layer")
    largest = max((one.read + one.written for row in rows for one in row.op.traffic()), default=1)
    ceiling = Ceiling(largest, precision)
    bandwidths = ceiling.bandwidths()
    for number, row in enumerate(rows, start=1):
        _progress(f"{number}/{len(rows)} {row.op.owner.name} {row.op.name}")
        row.timing = ceiling.time(row.op, refill(row.op))
    _progress("")
    records, what = [_record(row, bandwidths) for row in rows], f"{model}, slot batch {slot_batch}"
    if plot:
        from ..tell.plots import roofline

        roofline(records, Path(plot), what)
    small = sum(row.count for row in found) - sum(row.count for row in rows)
    text = f"{_head(f'{what}, {precision}', ceiling, bandwidths, worst)}\n{table(rows, small)}"
    return [{"precision": precision} | record for record in records], text


def _progress(text: str):
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text[:100]}\x1b[K")
        sys.stderr.flush()


def _record(row: Row, bandwidths) -> dict:
    timing, flops = row.timing, row.op.flops
    return {
        "layer": row.op.owner.name,
        "pass": row.op.kind,
        "kernel": row.op.name,
        "shape": shape(row.op),
        "calls_per_step": row.count,
        "seconds": timing.seconds,
        "flops": flops,
        "arithmetic": row.op.arithmetic,
        "bytes": row.op.nbytes,
        "gflop_per_s": flops / timing.seconds / 1e9,
        "gb_per_s": row.op.nbytes / timing.seconds / 1e9,
        "share_of_peak": timing.of_peak,
        "share_of_roofline": timing.of_roofline,
        "peak_gflop_per_s": timing.peak / 1e9,
        "stream_gb_per_s": row.op.nbytes / timing.stream_seconds / 1e9,
        "copy_gb_per_s": bandwidths["copy"] / 1e9,
    }


# ---- the table -----------------------------------------------------------------------------------------------


def _head(what: str, ceiling, bandwidths, worst) -> str:
    peaks = np.array(ceiling.peaks) / 1e9
    read, copy, fill = (bandwidths[name] / 1e9 for name in ("read", "copy", "fill"))
    low, middle, high = np.percentile(peaks, [10, 50, 90])
    return "\n".join([
        machine_line(),
        f"peak    {middle:.0f} GFLOP/s (multiply-add loop, {multiplied(ceiling.precision)}; "
        f"{low:.0f} to {high:.0f} while this ran)",
        f"memory  {read:.0f} GB/s read, {copy:.0f} copy, {fill:.0f} fill (256 MiB)",
        f"{what}: the distinct kernel calls of one training step. All results were compared with NumPy\n"
        f"at {CHECK_BATCH} images first: largest error {worst:.1e} of the largest element.",
    ])  # fmt: skip


def table(rows: list[Row], small: int) -> str:
    """Rows by kind, with a sum under each part; small: how many calls of a step are too small to be timed."""
    width = max((len(row.op.owner.name) for row in rows), default=0)
    wide = max((len(shape(row.op)) for row in rows), default=0)
    lines = []
    heavy = [row for row in rows if row.op.kind in CONVOLUTION]
    if heavy:
        head = f"{'layer':{width}}  {'pass':15}  {'shape':{wide}}  calls"
        lines += ["", head + "        ms  GFLOP/s    GB/s  of peak  of roofline"]
        for row in heavy:
            t = row.timing
            lines.append(
                f"{row.op.owner.name:{width}}  {row.op.kind:15}  {shape(row.op):{wide}}  {row.count:5}"
                f"  {1e3 * t.seconds:8.3f}  {row.op.flops / t.seconds / 1e9:7.0f}"
                f"  {row.op.nbytes / t.seconds / 1e9:6.1f}  {t.of_peak:7.1%}  {t.of_roofline:11.1%}"
            )
        if any(row.op.arithmetic < row.op.flops for row in heavy):
            lines.append("W: by Winograd's method; GFLOP/s and peak in flops of the definition, roofline in those made")
        lines += ["", "by pass, weighted by the work of a step:"]
        for kind in (*CONVOLUTION, "together"):
            some = [row for row in heavy if kind in (row.op.kind, "together")]
            if some:
                lines.append(_sum_line(kind, some))
    light = [row for row in rows if row.op.kind not in CONVOLUTION]
    if light:
        head = f"{'layer':{width}}  {'kernel':23}  {'shape':{wide}}  calls"
        lines += ["", head + "        ms       MB    GB/s  stream GB/s  of stream"]
        for row in light:
            t = row.timing
            lines.append(
                f"{row.op.owner.name:{width}}  {row.op.name:23}  {shape(row.op):{wide}}  {row.count:5}"
                f"  {1e3 * t.seconds:8.3f}  {row.op.nbytes / 1e6:7.1f}  {row.op.nbytes / t.seconds / 1e9:6.1f}"
                f"  {row.op.nbytes / t.stream_seconds / 1e9:11.1f}  {t.of_roofline:9.1%}"
            )
        lines += ["", "by kernel, weighted by the work of a step:"]
        for kernel in dict.fromkeys(row.op.name for row in light):
            some = [row for row in light if row.op.name == kernel]
            lines.append(_sum_line(kernel, some))
    if small:
        lines += ["", f"not timed: {small} calls a step that move less than {SMALL_BYTES >> 20} MiB each"]
    return "\n".join(lines)


def _sum_line(name, rows) -> str:
    """Time of a step in these calls, and the share: the time that the ceilings allow, divided by the time it takes."""
    taken = sum(row.count * row.timing.seconds for row in rows)
    roofline = sum(row.count * row.timing.seconds * row.timing.of_roofline for row in rows) / taken
    line = f"  {name:23}  {1e3 * taken:9.2f} ms a step"
    flops = sum(row.count * row.op.flops for row in rows)
    if flops:
        peak = sum(row.count * row.timing.seconds * row.timing.of_peak for row in rows) / taken
        return line + f"  {flops / taken / 1e9:6.0f} GFLOP/s  {peak:6.1%} of peak  {roofline:6.1%} of roofline"
    moved = sum(row.count * row.op.nbytes for row in rows)
    return line + f"  {moved / taken / 1e9:6.1f} GB/s     {roofline:6.1%} of stream"
