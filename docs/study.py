"""Large batches on a small data set: `make study`, or `python docs/study.py TRAIN VAL [BATCH …]` with shards.

Every optimizer meets every batch at the same number of epochs and of tried rates; the rate that is best for the first
seed is repeated with two others. Each run is a line of docs/results/study.jsonl; runs that stand there are not done
again. From the lines follow the tables in docs/results/study.md and the figures beside it. What was seen with
gammas of 0 stands in study_zero_gamma.jsonl.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import knltrain as kt  # noqa: E402
from knltrain.recipe.config import Optim  # noqa: E402
from knltrain.run.observe import StepObserver  # noqa: E402

RESULTS = HERE / "results"
LOG, ZERO_GAMMA, PAGE = (RESULTS / name for name in ("study.jsonl", "study_zero_gamma.jsonl", "study.md"))
BATCHES, SLOT, EPOCHS, WARMUP, SIZE = (64, 384, 2496), 64, 6, 1, 16
SEEDS, FACTORS = (1, 2, 3), (1.0, 0.333, 3.0)
LOOKS, PROBED = 3, 512  # how often in a run the gradient is looked at, on how many pictures
BOX, CLIMBS = 1e-3, 4  # of the sharpness: Keskar et al. 2017, arXiv:1609.04836
STYLE = {"svg.hashsalt": "knltrain", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}


@dataclass(frozen=True)
class Arm:
    """An optimizer, the rate around which others are tried at batch 64, and the power of the batch it grows with."""

    optim: Optim
    rate: float
    power: float
    color: str

    def rates(self, batch: int) -> dict[float, float]:
        """What is tried at a batch, by its factor."""
        return {factor: factor * self.rate * (batch / BATCHES[0]) ** self.power for factor in FACTORS}


LARS = {"weight_decay": 5e-4, "zero_norm": "trust"}
ARMS = {
    "SGD": Arm(kt.Sgd(variant="mlperf"), 0.1, 1.0, "#222222"),
    "Nesterov": Arm(kt.Sgd(variant="mlperf", nesterov=True), 0.1, 1.0, "#8c8c8c"),
    "LARS caffe2017": Arm(kt.Lars(variant="caffe2017", **LARS), 8.0, 0.5, "#4c72b0"),
    "LARS mlperf": Arm(kt.Lars(variant="mlperf", **LARS), 8.0, 0.5, "#55a868"),
    "LARS nus": Arm(kt.Lars(variant="nus", epsilon=1e-5, **LARS), 8.0, 0.5, "#dd8452"),
    "LAMB": Arm(Optim("lamb", weight_decay=0.01, epsilon=1e-6), 0.008, 0.5, "#c44e52"),
}


# ---- one run -----------------------------------------------------------------------------------------------------


class Probe(StepObserver):
    """Looks at a run a few times: trust ratios, and how much the gradients of slots differ; at its end at sharpness."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.slots = [(images[i : i + SLOT], labels[i : i + SLOT]) for i in range(0, len(images), SLOT)]
        self.ratios: list[dict] = []
        self.noise: list[tuple] = []

    def end_step(self, trainer, step):
        """In some steps the gradients of the probed pictures, at the weights of now; the training is not touched."""
        looks = {round(trainer.total * (i + 1) / LOOKS) for i in range(LOOKS)}
        if step.number not in looks or not step.finite:
            return
        ratios = trainer.parts.optimizer.trust_ratios
        self.ratios.append({name: round(r, 9) for name, r in ratios.items() if name.endswith(".w")})
        self.noise.append((round(step.epoch, 2), self._noise_scale(trainer.model)))
        if step.number == trainer.total:
            self.sharpness = self._sharpness(trainer.model)

    def _passes(self, model) -> Iterator[tuple[float, np.ndarray]]:
        """Loss and gradient of each slot, a mean over its pictures; the gradient is overwritten by the next."""
        here = slice(model.parameters.gradient.size - model.parameters.value.size, None)
        for images, labels in self.slots:
            model.feed(images, labels)
            model.forward()
            model.backward(lambda parameter: None)
            yield float(model.loss.losses.mean()), model.parameters.gradient[here] / (model.loss.scale * SLOT)

    def _noise_scale(self, model) -> float:
        """tr(covariance) / |gradient|^2 in pictures: the batch beyond which noise is small (arXiv:1812.06162, eq. 2.8
        with the estimators of its appendix A.1)."""
        gradients = np.array([g for _, g in self._passes(model)], np.float64)
        small, big = (gradients**2).sum(1).mean(), (gradients.mean(0) ** 2).sum()
        squared = (PROBED * big - SLOT * small) / (PROBED - SLOT)
        covariance = (small - big) / (1 / SLOT - 1 / PROBED)
        return round(covariance / squared, 1) if squared > 0 else None

    def _sharpness(self, model) -> float:
        """By how many percent of 1 + loss the loss rises where no weight w moves by more than BOX (|w| + 1)."""
        w = model.parameters.value
        before, most = w.copy(), BOX * (np.abs(w) + 1)
        losses = []
        for climb in range(CLIMBS + 1):
            passes = [(loss, gradient.copy()) for loss, gradient in self._passes(model)]
            losses.append(np.mean([loss for loss, _ in passes]))
            if climb < CLIMBS:
                uphill = np.sign(np.sum([gradient for _, gradient in passes], 0))
                w[:] = np.clip(w + 2 / CLIMBS * most * uphill, before - most, before + most)
        w[:] = before
        return round(100 * (max(losses) - losses[0]) / (1 + losses[0]), 2)


def probed(data, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training pictures in their middle, as the network is fed them, and labels."""
    net, scratch = network(data, seed), np.empty(1 << 16, np.uint8)
    rows = np.random.default_rng(seed).permutation(len(data))[:PROBED]
    images, augment = np.empty((PROBED, SIZE, SIZE, 3), np.float32), net.preprocessing()
    for row, out in zip(rows.tolist(), images, strict=True):
        augment.apply(data.read(row, scratch), 0, row, out)
    return images, data.labels[rows].astype(np.int64)


def network(data, seed: int, precision: str = "fp32"):
    """A network small enough for one core: 78,000 weights. Gammas of 0 would hold LARS up for all of a short run."""
    how = {"seed": seed, "precision": precision, "width": 16, "zero_gamma": False}
    return kt.network("resnet_cifar8", data.class_names, SIZE, **how)


def train(data, net, optim, rate: float, batch: int, seed: int, observer: StepObserver, **more):
    """Train `net`; returns the loss of each step, and whether it came to its end without an explosion."""
    schedule, losses = kt.poly(rate, EPOCHS, warmup_epochs=WARMUP, origin="warmup"), []
    how = {"global_batch": batch, "slot_batch": SLOT, "optimizer": optim, "schedule": schedule, "seed": seed}
    how |= {"augmentation": "crop_flip", "pad": 2, "shuffle": "full", "observers": (observer,)}
    trainer = kt.Trainer(net, data, **how, **more)
    for step in trainer:
        losses.append(step.loss)
        if not (step.finite and step.loss < 100):
            trainer.close()
            return losses, False
    return losses, True


def of_last_epoch(losses: list[float]) -> float:
    """The mean loss of the last epoch of a whole run."""
    return round(float(np.mean(losses[-math.ceil(len(losses) / EPOCHS) :])), 4)


def measure(data, val, name: str, batch: int, factor: float, seed: int) -> dict:
    """Train once; a line of the log."""
    arm, probe, begin = ARMS[name], Probe(*probed(data, 0)), time.process_time()
    net, rate = network(data, seed), arm.rates(batch)[factor]
    losses, ended = train(data, net, arm.optim, rate, batch, seed, probe)
    row = {"arm": name, "batch": batch, "factor": factor, "rate": float(f"{rate:.6g}"), "seed": seed}
    row |= {"steps": len(losses), "top1": kt.evaluate(net, val).top1 if ended else None}
    row |= {"loss": of_last_epoch(losses) if ended else None, "noise_scale": probe.noise}
    if ended:
        row |= {"sharpness": probe.sharpness, "trust_ratios": probe.ratios}
    return row | {"cpu_s": round(time.process_time() - begin, 1)}


# ---- all of them ---------------------------------------------------------------------------------------------------


def read(log: Path = LOG) -> dict[tuple, dict]:
    """The lines of a log, by (arm, batch, factor, seed)."""
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["arm"], row["batch"], row["factor"], row["seed"]): row for row in rows}


def tried(rows: dict, name: str, batch: int) -> list[dict]:
    """The runs of the first seed."""
    found = [rows.get((name, batch, factor, SEEDS[0])) for factor in FACTORS]
    return [row for row in found if row]


def best_factor(rows: dict, name: str, batch: int) -> float | None:
    """The factor whose run of the first seed was best; None where none ended."""
    best = max(tried(rows, name, batch), key=lambda row: row["top1"] or 0, default=None)
    return best["factor"] if best and best["top1"] else None


def run(data, val, batches) -> None:
    """Do what the log lacks at these batches; several of these programs may share the work by batches."""
    rows = read()
    for factor, seed in [(factor, SEEDS[0]) for factor in FACTORS] + [(None, seed) for seed in SEEDS[1:]]:
        for batch in batches:
            for name in ARMS:
                chosen = factor or best_factor(rows, name, batch)  # of all, as these have come before
                key = (name, batch, chosen, seed)
                if chosen is None or key in rows:
                    continue
                rows[key] = row = measure(data, val, *key)
                with LOG.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                top1 = "the loss exploded" if row["top1"] is None else f"top-1 {row['top1']:.1%}"
                what = f"{name}, batch {batch}, rate {row['rate']:g}, seed {seed}"
                print(f"{what}: {top1}, {row['cpu_s']:.0f} s", flush=True)


def finals(rows: dict, name: str, batch: int) -> list[dict]:
    """The runs of all seeds at the best rate."""
    found = [rows.get((name, batch, best_factor(rows, name, batch), seed)) for seed in SEEDS]
    return [row for row in found if row and row["top1"] is not None]


# ---- tables and figures --------------------------------------------------------------------------------------------


def table(rows: dict, cell: Callable[[list[dict]], str]) -> str:
    """A row an optimizer, a column a batch: `cell` of the runs of all seeds."""
    heads = ["optimizer", *(f"batch {batch:,}" for batch in BATCHES)]
    lines = [heads, ["---"] * len(heads)]
    for name in ARMS:
        found = [(finals(rows, name, batch), tried(rows, name, batch)) for batch in BATCHES]
        few = [f", {len(some)} of {len(FACTORS)} rates" * (len(some) < len(FACTORS)) for _, some in found]
        cells = [cell(runs) + which if runs else "–" for (runs, _), which in zip(found, few, strict=True)]
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy(found: list[dict]) -> str:
    """Top-1, mean and standard deviation over seeds, the rate, and its factor."""
    top1 = 100 * np.array([row["top1"] for row in found])
    spread = f"± {top1.std(ddof=1):.1f}" if len(found) > 1 else "(one seed)"
    return f"**{top1.mean():.1f}** {spread} at {found[0]['rate']:.3g} ({found[0]['factor']:.2g})"


def ends(found: list[dict]) -> str:
    """Sharpness and noise scale at the end."""
    noise = [row["noise_scale"][-1][1] for row in found if row["noise_scale"][-1][1] is not None]
    noise = f"{np.median(noise):,.0f}" if noise else "–"
    return f"{np.mean([row['sharpness'] for row in found]):.0f} %; {noise}"


def draw_accuracy(rows: dict, axes) -> None:
    for name, arm in ARMS.items():
        found = {batch: [100 * row["top1"] for row in finals(rows, name, batch)] for batch in BATCHES}
        found = {batch: top1 for batch, top1 in found.items() if top1}
        shift = 1.04 ** (list(ARMS).index(name) - 2.5)  # so that bars do not hide each other
        x, means = [batch * shift for batch in found], [np.mean(top1) for top1 in found.values()]
        reach = [[m - min(t) for m, t in zip(means, found.values(), strict=True)]]
        reach.append([max(t) - m for m, t in zip(means, found.values(), strict=True)])
        axes.errorbar(x, means, reach, label=name, color=arm.color, marker="o", markersize=4, capsize=2, linewidth=1.2)
    axes.set(xscale="log", xlabel="global batch", ylabel="top-1, % (mean, least and most of 3 seeds)")
    axes.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
    axes.minorticks_off()
    if rows:
        axes.legend(frameon=False, fontsize=8)


def draw_noise(rows: dict, axes) -> None:
    for batch, color in zip(BATCHES, ("#9ecae1", "#4292c6", "#08306b"), strict=True):
        for row in finals(rows, "SGD", batch)[:1]:
            points = [(epoch, noise) for epoch, noise in row["noise_scale"] if noise]
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=f"batch {batch:,}")
    axes.set(yscale="log", xlabel="epoch", ylabel="gradient noise scale, pictures (SGD)")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def draw_ratios(rows: dict, axes, batch: int) -> None:
    found = finals(rows, "LARS caffe2017", batch)
    for row in found[:1]:
        epochs = [epoch for epoch, _ in row["noise_scale"]]
        names = list(row["trust_ratios"][0])
        for name, shade in zip(names, np.linspace(0, 0.85, len(names)), strict=True):
            ratios = [ratios[name] for ratios in row["trust_ratios"]]
            axes.plot(epochs, ratios, color=matplotlib.colormaps["viridis"](shade), linewidth=1.2, label=name)
    axes.set(yscale="log", xlabel="epoch", ylabel="trust ratio", title=f"LARS caffe2017, batch {batch:,}")


def ratios(rows: dict) -> Figure:
    """Trust ratios at the smallest and the largest batch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, 2, sharey=True), (BATCHES[0], BATCHES[-1]), strict=True):
        draw_ratios(rows, axes, batch)
    if axes.lines:
        axes.legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def save(name: str, figure: Figure) -> None:
    """Write a figure to docs/results, a file that differs only where its content does."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context(STYLE):
        figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


def draw(rows: dict) -> None:
    """The figures."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_accuracy(rows, left)
        draw_noise(rows, right)
        figures = {"study_accuracy": figure, "study_trust": ratios(rows), "study_zero_gamma": ratios(read(ZERO_GAMMA))}
    for name, made in figures.items():
        save(name, made)


def put(mark: str, made: str) -> None:
    """Put a table between its marks in the page."""
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
    PAGE.write_text(between.sub(rf"\1\n{made}\n\n\2", PAGE.read_text()))


def write_page(rows: dict) -> None:
    """The tables."""
    whole = len(ARMS) * len(BATCHES) * (len(FACTORS) + len(SEEDS) - 1)
    note = f"\n\n{len(rows)} of {whole} runs are done: `make study` goes on with the rest." * (len(rows) < whole)
    put("accuracy", table(rows, accuracy) + note)
    put("probes", table(rows, ends))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        run(*map(kt.data, sys.argv[1:3]), [int(batch) for batch in sys.argv[3:]] or BATCHES)
    elif len(sys.argv) == 2:
        sys.exit("usage: study.py [TRAIN VAL [BATCH …]], shards of 16 x 16 pixels; without: draw what was measured")
    draw(read())
    write_page(read())
