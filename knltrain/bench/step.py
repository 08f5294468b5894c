"""`knltrain bench step`: a whole training step on a synthetic batch, how long and why, alone or against PyTorch."""

import statistics
import time
from collections import defaultdict

import numba

from ..layers import KINDS, Observer
from .ceiling import Ceiling, clock, machine_line, multiplied
from .torch_process import MODELS, TorchProcess, check_installed, configurations, peak_memory_bytes
from .workload import CLASSES, LEARNING_RATE, SGD, Workload

BLOCKS = 4  # of ours, and of PyTorch's, in turn
BLOCK_SECONDS = 2.0  # of one block, at least one step
PROFILED_STEPS = 3
REST = 0.3  # seconds of sleep before the other process begins: OpenMP threads spin that long after their last work
LOOKS = 5  # at the peak, between two blocks


def run(model, slot_batch, threads=0, options=None, against=None, only=(), precision="fp32", torch=""):
    """A step as a record and as text. only: these configurations of PyTorch; torch: the interpreter that has it.

    Raises ImportError for `against` without PyTorch, ValueError for a model it does not have.
    """
    options = options or {}
    if against:
        check_installed(torch)
        if set(options) - {"input_size", *MODELS.get(model, ())} or model not in MODELS:
            known = "; ".join(f"{name} with {', '.join(its)} or input_size" for name, its in MODELS.items())
            raise ValueError(f"--against torch: found {model} with {options or 'no options'}, expected one of: {known}")
    workload = Workload(model, slot_batch, options, precision=precision, threads=threads)
    first = clock(workload.step)
    own = Own(workload)
    if against:
        settings = _settings(model, slot_batch, options, workload)
        rivals = _compare(own, settings, only or configurations(precision), torch)
    else:
        rivals = []
        for _ in range(BLOCKS):
            own.block()
    memory = peak_memory_bytes()
    kinds, layers = profile(workload)
    record = own.record() | {
        "model": model,
        "slot_batch": slot_batch,
        "precision": precision,
        "threads": numba.get_num_threads(),
        "first_step_seconds": first,
        "peak_memory_bytes": memory,
        "by_kind": kinds,
        "by_layer": layers,
    }
    if against:
        record |= _best(rivals)
    return record, table(record, own.workload.flops)


class Own:
    """Our side: blocks of steps, with looks at the peak between them."""

    def __init__(self, workload):
        self.workload, self.ceiling = workload, Ceiling(precision=workload.model.number.name)
        self.steps = max(1, round(BLOCK_SECONDS / clock(workload.step)))
        self.seconds, self.peaks, self.looks = [], [], [self._look()]

    def _look(self) -> float:
        return statistics.median(self.ceiling.peak() for _ in range(LOOKS))

    def block(self) -> float:
        """Run one block; returns the seconds of a step."""
        start = time.perf_counter()
        for _ in range(self.steps):
            self.workload.step()
        self.seconds.append((time.perf_counter() - start) / self.steps)
        self.looks.append(self._look())
        self.peaks.append((self.looks[-2] + self.looks[-1]) / 2)
        return self.seconds[-1]

    def record(self) -> dict:
        flops, images = self.workload.flops, self.workload.model.slot_batch
        made = self.workload.arithmetic / flops
        seconds = statistics.median(self.seconds)
        shares = [flops / mine / peak for mine, peak in zip(self.seconds, self.peaks, strict=True)]
        return {
            "step_seconds": seconds,
            "images_per_s": images / seconds,
            "gflop_per_s": flops / seconds / 1e9,
            "peak_gflop_per_s": statistics.median(self.peaks) / 1e9,
            "share_of_peak": statistics.median(shares),
            "arithmetic_share_of_peak": made * statistics.median(shares),
        }


# ---- against PyTorch -----------------------------------------------------------------------------------------


def _settings(model, slot_batch, options, workload) -> dict:
    return {
        "model": model,
        "slot_batch": slot_batch,
        "threads": numba.get_num_threads(),
        "options": {"classes": CLASSES} | {name: options[name] for name in MODELS[model] if name in options},
        "size": workload.batch.images.shape[1],
        "sgd": {"lr": LEARNING_RATE, "momentum": SGD.momentum, "weight_decay": SGD.weight_decay},
    }


def _compare(own: Own, settings: dict, names, python: str) -> list[dict]:
    """A B A B … with each configuration in turn; the ratio is the median over neighbouring blocks."""
    rivals = []
    for name in names:
        process = TorchProcess(settings, name, python)
        rival = {"configuration": name, "version": process.version, "error": process.error}
        if not process.error:
            ratios, seconds = [], []
            steps = max(1, round(BLOCK_SECONDS / process.run(1)))
            for _ in range(BLOCKS):
                time.sleep(REST)
                mine = own.block()
                time.sleep(REST)
                seconds.append(process.run(steps) / steps)
                ratios.append(seconds[-1] / mine)
            rival |= {
                "images_per_s": settings["slot_batch"] / statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "peak_memory_bytes": process.peak_memory_bytes,
            }
        process.close()
        rivals.append(rival)
    return rivals


def _best(rivals) -> dict:
    """The keys of the record for PyTorch: of its fastest configuration, relative to our blocks beside it."""
    best = min((rival for rival in rivals if not rival["error"]), key=lambda rival: rival["ratio"], default={})
    return {
        "torch_images_per_s": best.get("images_per_s"),
        "ratio_to_torch": best.get("ratio"),
        "torch_peak_memory_bytes": best.get("peak_memory_bytes"),
        "torch_best": best.get("configuration"),
        "torch": rivals,
    }


# ---- where the time goes -------------------------------------------------------------------------------------


class Spans(Observer):
    """Seconds of ops by layer and kind."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def end(self, op, seconds):
        self.seconds[op.owner.name, op.kind] += seconds


def profile(workload: Workload) -> tuple[dict, dict]:
    """Seconds of a step by kind, and by layer and kind; "rest" is what is no kernel: Python, copying the batch.

    The layer of the update is `update`, that of the loss `loss`. Each number is the median of PROFILED_STEPS steps.
    """
    steps = []
    for _ in range(PROFILED_STEPS):
        spans = Spans()
        workload.observe(spans)
        total = clock(workload.step)
        workload.observe(None)
        spans.seconds["", "rest"] = total - sum(spans.seconds.values())
        steps.append(spans.seconds)
    places = {place: statistics.median(step[place] for step in steps) for place in steps[0]}
    kinds = {kind: sum(taken for (_, k), taken in places.items() if k == kind) for kind in (*KINDS, "rest")}
    layers = defaultdict(dict)
    for (layer, kind), taken in places.items():
        if layer:
            layers[layer][kind] = taken
    return kinds, dict(layers)


# ---- the table -----------------------------------------------------------------------------------------------

SMALL = 0.005  # share of the step under which a layer is not listed


def table(record: dict, flops: int) -> str:
    """The record for a reader."""
    kinds = record["by_kind"]
    total = sum(kinds.values())
    lines = [
        machine_line(),
        f"peak    {record['peak_gflop_per_s']:.0f} GFLOP/s (multiply-add loop, {multiplied(record['precision'])}, "
        "between the steps)",
        f"{record['model']}, slot batch {record['slot_batch']}, {record['precision']}: one step is "
        f"{flops / 1e9:.1f} GFLOP of convolutions and fully connected layers",
        "",
        f"{record['images_per_s']:.2f} images/s    {record['step_seconds']:.3f} s a step    "
        f"{record['gflop_per_s']:.0f} GFLOP/s    {record['share_of_peak']:.1%} of peak; the multiply-adds that are "
        f"really made (fewer by Winograd's method): {record['arithmetic_share_of_peak']:.1%}",
        f"{record['peak_memory_bytes'] / 2**20:,.0f} MiB peak resident memory (VmHWM: model, batch, interpreter, "
        f"compiled code); first step {record['first_step_seconds']:.1f} s",
    ]
    if "torch" in record:
        lines += ["", *_torch_lines(record)]
    lines += ["", f"{'by kind':16}        ms  of step"]
    lines += [f"{kind:16}  {1e3 * taken:8.1f}  {taken / total:7.1%}" for kind, taken in kinds.items()]
    width = max(map(len, record["by_layer"]))
    names = {"forward": "forward", "backward_input": "bwd-input", "backward_weight": "bwd-weight", "memory": "memory"}
    head = "".join(f"  {name:>10}" for name in names.values())
    lines += ["", f"{'by layer, ms':{width}}{head}  {'together':>10}  of step"]
    small = []
    for layer, taken in record["by_layer"].items():
        whole = sum(taken.values())
        if whole < SMALL * total:
            small.append(whole)
            continue
        cells = "".join(f"  {1e3 * taken[kind]:10.1f}" if kind in taken else f"  {'':10}" for kind in names)
        lines.append(f"{layer:{width}}{cells}  {1e3 * whole:10.1f}  {whole / total:7.1%}")
    if small:
        blank = " " * 12 * len(names)
        lines.append(f"{f'{len(small)} others':{width}}{blank}  {1e3 * sum(small):10.1f}  {sum(small) / total:7.1%}")
    return "\n".join(lines)


def _torch_lines(record) -> list[str]:
    lines = []
    for rival in record["torch"]:
        if rival["error"]:
            version = rival["version"] and f"{rival['version']} "
            lines.append(f"PyTorch {version}{rival['configuration']:32}  does not count: {rival['error']}")
        else:
            lines.append(
                f"PyTorch {rival['version']} {rival['configuration']:32}  {rival['images_per_s']:7.2f} images/s   "
                f"{rival['peak_memory_bytes'] / 2**20:,.0f} MiB   ours is {rival['ratio']:.2f} times as fast"
            )
    if record["ratio_to_torch"]:
        lines.append(f"against the best, PyTorch {record['torch_best']}: {record['ratio_to_torch']:.2f} times")
    return lines
