"""The curves of runs, as numbers: what a page draws in SVG and a figure for a paper by matplotlib."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from ..tell.plots import smooth
from .run import Run, number

MOST_POINTS = 240  # of a line: about as many as there are pixels


@dataclass(frozen=True)
class Line:
    """Points (x, y) of one thing of one run; low, high: the band in which what was averaged lies, or None."""

    name: str
    run: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: str = "line"  # or dashes, "line points", "ringed points"


@dataclass(frozen=True)
class Panel:
    """Lines under one heading. unit: of y, behind the number; share: y is drawn in percent."""

    title: str
    lines: list[Line] = field(default_factory=list)
    unit: str = ""
    share: bool = False


def panels(runs: list[Run]) -> list[Panel]:
    """All curves over epochs, without those that no run has numbers for."""
    found = [
        Panel("Training loss", [_line(run, i, "loss", run.steps["loss"]) for i, run in enumerate(runs)]),
        Panel("Accuracy", [line for i, run in enumerate(runs) for line in _accuracy(run, i)], share=True),
        Panel("Throughput", [_rate(run, i) for i, run in enumerate(runs)], " images/s"),
        Panel(
            "Learning rate", [_line(run, i, "rate", run.steps["lr"], False, even=False) for i, run in enumerate(runs)]
        ),
        Panel("Share of a step waiting for", [x for i, run in enumerate(runs) for x in _waiting(run, i)], share=True),
    ]
    kept = [Panel(p.title, [line for line in p.lines if len(line.x)], p.unit, p.share) for p in found]
    return [panel for panel in kept if panel.lines]


def epoch_of(run: Run, steps: np.ndarray) -> np.ndarray:
    """The epochs at which so many steps were done."""
    known = np.isfinite(run.steps["epoch"])
    return np.interp(steps, run.steps["step"][known], run.steps["epoch"][known]) if known.any() else steps


def _accuracy(run, i):
    evaluations = run.evaluations
    yield _line(run, i, "training", run.steps["accuracy"], band=False, style="dashes")
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        known = np.isfinite(evaluations[key]) & np.isfinite(evaluations["epoch"])
        if not (key == "top5" and known.any() and evaluations[key][known].min() == 1):  # of five classes or fewer
            style = "line points" if key == "top1" else "ringed points"
            yield Line(_name(run, name), i, evaluations["epoch"][known], evaluations[key][known], style=style)


def _rate(run, i):
    return _line(run, i, "images/s", run.steps["images_per_s"])


def _waiting(run, i):
    """Shares of a step, by the rate of the images: evaluations and checkpoints between the steps do not count."""
    step_s = _batches(run) / run.steps["images_per_s"]
    data = np.diff(run.steps["data_wait_s"], prepend=np.nan).clip(0)  # it begins again where a run is continued
    yield _line(run, i, "data", data / step_s, band=False, style="dashes")
    if np.nansum(run.steps["exchange_exposed_s"]) > 0:
        yield _line(run, i, "the exchange", run.steps["exchange_exposed_s"] / step_s, band=False)


def _batches(run) -> np.ndarray:
    """Images of each step: a phase may have another batch."""
    batches = np.full(run.steps["step"].size, number(run.begin.get("global_batch")))
    for phase in itertools.takewhile(lambda n: f"phase {n}.from_epoch" in run.settings, itertools.count(1)):
        start, batch = (run.settings.get(f"phase {phase}.{key}") for key in ("from_epoch", "batch.global_batch"))
        if batch is not None:
            batches[run.steps["epoch"] > number(start)] = number(batch)
    return batches


def _line(run, i, name, y, band=True, style="line", even=True) -> Line:
    """Means around each point (even), and the least and largest of what is not drawn (band)."""
    x = run.steps["epoch"]
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not x.size:
        return Line(_name(run, name), i, x, y)
    parts = np.array_split(np.arange(x.size), min(x.size, MOST_POINTS))
    middle = (smooth(y) if even else y)[[part[len(part) // 2] for part in parts]]
    low, high = (np.array([of(y[part]) for part in parts]) for of in (np.min, np.max))
    ends = (np.minimum(low, middle), np.maximum(high, middle)) if band else (None, None)
    return Line(_name(run, name), i, np.array([x[part[len(part) // 2]] for part in parts]), middle, *ends, style)


def _name(run, what) -> str:
    return f"{run.name}: {what}" if run.name else what
