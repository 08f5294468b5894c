"""What LARS loses in fp16 (Jia et al. 2018, arXiv:1807.11205, section 3.1): `make study`, or `python docs/study_fp16.py
TRAIN VAL` with the shards of study.py, without them to draw what was measured.

The networks, pictures and schedules of study.py, LARS caffe2017 at the rates that were best for it in float32; the
network in fp16 and, from way to way, what LARS keeps. Each run is a line of docs/results/study_fp16.jsonl.
"""

import dataclasses
import json
import sys
import time

import matplotlib
import numpy as np
import study
from matplotlib.figure import Figure

import knltrain as kt
from knltrain.comm import Update
from knltrain.optim.lars import Lars, trust_ratio
from knltrain.run.observe import StepObserver

ARM, LOG = "LARS caffe2017", study.RESULTS / "study_fp16.jsonl"
LOSS_SCALE = 1024.0  # constant: a dynamic one skips steps at first, of which there are only twelve at batch 2,496
WHOLE = "float32"  # the runs of study.py
KEPT = {  # what LARS has in fp16
    "fp16, float32 masters": "",
    "fp16, float32 norms": "weights",
    "fp16 throughout": "weights and norms",
}
COLORS = dict(zip((WHOLE, *KEPT), ("#222222", "#4c72b0", "#dd8452", "#c44e52"), strict=True))


class HalfLars(Lars):
    """LARS caffe2017 as written in fp16: gradient, weights, momentum and every product are rounded to it by NumPy.

    With half_norms the sums of squares and the ratio are, too. still: by step, how many weights stayed where they were
    though their momentum is not 0, and how many there are.
    """

    def __init__(self, parameters, options, half_norms: bool):
        super().__init__(parameters, options)
        self.half_norms, self.still = half_norms, []

    def begin(self, lr, scale=1.0):
        super().begin(lr, scale)
        self.still.append([0, 0])

    def update(self, p, norms, part=slice(None)):
        half, o = np.float16, self.options
        w, v = p.w.astype(half), p.v.astype(half)
        g = (p.gradient.reshape(p.w.shape) / self._scale).astype(half)
        w_norm, g_norm = np.sqrt(norms[0]), np.sqrt(norms[1]) / self._scale
        if self.half_norms:
            w_norm, g_norm = (np.sqrt((array * array).sum(dtype=half)) for array in (w, g))
        ratio = half(trust_ratio(w_norm, g_norm, o.trust_coefficient, o.weight_decay, o.epsilon, o.zero_norm))
        self.trust_ratios[p.name] = float(ratio)
        v = half(self._momentum) * v + half(self._lr) * ratio * (g + half(self._decay(p)) * w)
        moved = w - v
        self.still[-1][0] += np.count_nonzero((moved == w) & (v != 0))
        self.still[-1][1] += w.size
        p.w[...], p.v[...] = moved, v


class Keep(StepObserver):
    """Puts LARS in fp16 in the place of the trainer's."""

    def __init__(self, half: str):
        self.half, self.lars = half, None

    def begin_step(self, trainer):
        if self.half and not self.lars:
            parts, parameters = trainer.parts, trainer.model.parameters
            options = parts.optimizer.options
            self.lars = HalfLars(parameters.parameters, options, self.half.endswith("norms"))
            update = Update(parameters, self.lars, parts.reducer)
            trainer.parts = dataclasses.replace(parts, optimizer=self.lars, update=update)


def measure(data, val, way: str, batch: int, rate: float, seed: int) -> dict:
    """Train once; a line of the log. still: by epoch."""
    net, keep, begin = study.network(data, seed, "fp16"), Keep(KEPT[way]), time.process_time()
    losses, ended = study.train(data, net, study.ARMS[ARM].optim, rate, batch, seed, keep, loss_scale=LOSS_SCALE)
    row = {"way": way, "batch": batch, "rate": rate, "seed": seed, "steps": len(losses)}
    row |= {"top1": kt.evaluate(net, val).top1 if ended else None}
    row |= {"loss": study.of_last_epoch(losses) if ended else None}
    if keep.lars:
        epochs = np.array_split(np.array(keep.lars.still, float), study.EPOCHS)
        row["still"] = [round(float(np.divide(*part.sum(0))), 4) for part in epochs]
    return row | {"cpu_s": round(time.process_time() - begin, 1)}


def read() -> dict[tuple, dict]:
    """The lines of the log, by (way, batch, seed), and those of study.py at its best rates."""
    rows, others = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else [], study.read()
    rows += [row | {"way": WHOLE} for batch in study.BATCHES for row in study.finals(others, ARM, batch)]
    return {(row["way"], row["batch"], row["seed"]): row for row in rows}


def run(data, val) -> None:
    """Do what the log lacks, at the best rates of the study."""
    rows = read()
    for seed in study.SEEDS:
        for batch in study.BATCHES:
            rate = rows[WHOLE, batch, seed]["rate"]
            for way in KEPT:
                if (way, batch, seed) in rows:
                    continue
                row = measure(data, val, way, batch, rate, seed)
                with LOG.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(f"{way}, batch {batch}, seed {seed}: top-1 {row['top1']}, {row['cpu_s']:.0f} s", flush=True)


def of(rows: dict, way: str, batch: int) -> list[dict]:
    """The runs of all seeds that came to their end."""
    found = [rows.get((way, batch, seed)) for seed in study.SEEDS]
    return [row for row in found if row and row["top1"] is not None]


def cell(found: list[dict]) -> str:
    """Top-1 over seeds; with fp16 weights the share of them that stay in the first epoch and in the last."""
    top1 = 100 * np.array([row["top1"] for row in found])
    text = f"**{top1.mean():.1f}** ± {top1.std(ddof=1):.1f}" if len(found) > 1 else "–"
    if len(found) > 1 and "still" in found[0]:
        first, last = (100 * np.mean([row["still"][epoch] for row in found]) for epoch in (0, -1))
        text += f"; {first:.0f}, {last:.0f} %"
    return text


def table(rows: dict) -> str:
    """A row a way, a column a batch."""
    lines = [["", *(f"batch {batch:,}" for batch in study.BATCHES)], ["---"] * (1 + len(study.BATCHES))]
    lines += [[way, *(cell(of(rows, way, batch)) for batch in study.BATCHES)] for way in COLORS]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: dict) -> Figure:
    """Top-1 by batch, and the share of weights that stay, by epoch."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (way, color), shift in zip(COLORS.items(), np.linspace(0.92, 1.08, len(COLORS)), strict=True):
        points = [(batch * shift, 100 * np.array([r["top1"] for r in of(rows, way, batch)])) for batch in study.BATCHES]
        points = [(x, t.mean(), t.mean() - t.min(), t.max() - t.mean()) for x, t in points if len(t)]
        if points:
            x, mean, below, above = zip(*points, strict=True)
            left.errorbar(x, mean, [below, above], label=way, color=color, marker="o", markersize=4, capsize=2)
        for batch, line in zip(study.BATCHES, ("-", "--", ":"), strict=True):
            still = [row["still"] for row in of(rows, way, batch) if "still" in row]
            if still:
                epochs = range(1, study.EPOCHS + 1)
                right.plot(epochs, 100 * np.mean(still, 0), line, color=color, label=f"{way}, batch {batch:,}")
    left.set(xscale="log", xlabel="global batch", ylabel="top-1, % (mean, least and most of 3 seeds)")
    left.set_xticks(study.BATCHES, [f"{batch:,}" for batch in study.BATCHES])
    left.minorticks_off()
    right.set(xlabel="epoch", ylabel="weights that an update leaves, %", ylim=(0, None))
    for axes in (left, right) if right.lines else ():
        axes.legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(*map(kt.data, sys.argv[1:]))
    elif len(sys.argv) != 1:
        sys.exit("usage: study_fp16.py [TRAIN VAL], shards of 16 x 16 pixels; without: draw what was measured")
    with matplotlib.rc_context(study.STYLE):
        figure = draw(read())
    study.save("study_fp16", figure)
    study.put("fp16", table(read()))
