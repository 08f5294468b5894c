"""Figures: the log of a run, rows of pictures, a roofline, how a planned run scales.

matplotlib is an extra: it is imported here and only when a figure is drawn.
"""

from pathlib import Path

import numpy as np

from ..claims.text import printable

_GRID = {"color": "0.9", "linewidth": 0.8}
_LOSS, _ACCURACY = "#4c72b0", "#c44e52"
_RUNS = ("#1f6fb4", "#d1600a", "#1d8a57", "#b0368c", "#8a6d00", "#5b4fc4", "#0b8a94", "#6b6f76")
FEW_CLASSES = 12  # whose names fit beside a figure


def learning_curve(records: list[dict], png: Path, title: str):
    """Training loss and validation accuracy over epochs, from the records of log.jsonl, written to `png`.

    Raises ValueError when the log holds no training step.
    """
    steps = [r for r in records if r["kind"] == "step"]
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    if not steps:
        raise ValueError(f"the log holds {len(records)} records and no training step: nothing to draw in {png}")
    figure, (left, right) = _figure(2, figsize=(10, 4))
    epochs, loss = (np.array([r[key] for r in steps], float) for key in ("epoch", "loss"))
    left.plot(epochs, loss, color=_LOSS, alpha=0.3, linewidth=0.8)
    left.plot(epochs, smooth(loss), color=_LOSS, linewidth=1.8, label="running mean")
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None), title="loss")
    left.legend(frameon=False)
    epochs, top1 = ([r[key] for r in evaluations] for key in ("epoch", "top1"))
    right.plot(epochs, [100 * share for share in top1], "o-", color=_ACCURACY, markersize=4, linewidth=1.8)
    right.set(xlabel="epoch", ylabel="top-1 on the validation set, %", ylim=(0, 102), title="accuracy")
    if top1:
        last = epochs[-1], 100 * top1[-1]
        right.annotate(f"{top1[-1]:.1%}", last, (0, -16), textcoords="offset points", ha="right")
    for axes in (left, right):
        axes.grid(**_GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, None)
    figure.suptitle(title)
    figure.savefig(png, dpi=120)


def curves(panels: list, path: Path):
    """The panels of a report (`knltrain.report.panels`), up to four beside each other, as a figure: .pdf, .png or .svg.

    Raises ValueError where matplotlib writes no such file.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = _figure(rows, columns, figsize=(3.6 * columns, 2.6 * rows))
    for panel, axes in zip(panels, grid.flat, strict=False):
        scale = 100 if panel.share else 1
        for line in panel.lines:
            look = {"color": _RUNS[line.run % len(_RUNS)], "linewidth": 1.2, "label": line.name}
            if line.low is not None:
                axes.fill_between(
                    line.x, scale * line.low, scale * line.high, color=look["color"], alpha=0.2, linewidth=0
                )
            marks = {"marker": "o", "markersize": 2.5} if "points" in line.style else {}
            marks |= {"markerfacecolor": "none"} if "ringed" in line.style else {}
            dashes = {"ringed points": "none", "dashes": "--"}.get(line.style, "-")
            axes.plot(line.x, scale * line.y, linestyle=dashes, **marks, **look)
        unit = ", %" if panel.share else "," * bool(panel.unit) + panel.unit
        axes.set(xlabel="epoch", ylabel=panel.title.lower() + unit, xlim=(0, None))
        if len(panel.lines) > 1:
            axes.legend(frameon=False, fontsize=7)
        axes.grid(**_GRID)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.savefig(path, dpi=300)


def contact_sheet(rows: list[tuple[str, list[np.ndarray]]], png: Path, title: str, heads: list[str] | tuple = ()):
    """A table of pictures: rows of (name, pictures (H, W, 3) uint8), columns under `heads`, written to `png`."""
    columns = max(len(pictures) for _, pictures in rows)
    figure, ((axes,),) = _figure(1, 1, figsize=(columns + 1.4, len(rows) + 0.6))
    _mosaic(axes, rows, heads)
    figure.suptitle(_plain(title))
    figure.savefig(png, dpi=110)


def data_overview(rows: list, counts: dict[str, int], sizes: np.ndarray, mean: np.ndarray, png: Path, title: str):
    """A contact sheet beside what a data set is made of, written to `png`.

    counts: pictures of each class; sizes: (height, width) of some, drawn where they differ; mean: (H, W, 3) uint8.
    """
    columns, differ = max(len(pictures) for _, pictures in rows), len(np.unique(sizes, axis=0)) > 1
    figsize = columns * 0.9 + 6, max(5, len(rows) * 0.9) + 0.6
    figure, ((sheet, right),) = _figure(1, 2, figsize=figsize, gridspec_kw={"width_ratios": (columns + 1, 4)})
    _mosaic(sheet, rows, ())
    right.set_axis_off()
    classes, *scatter, picture = right.get_subplotspec().subgridspec(2 + differ, 1).subplots()
    if len(counts) <= FEW_CLASSES:
        classes.barh([_short(name) for name in counts], counts.values(), color=_LOSS)
        classes.invert_yaxis()
        classes.set(xlabel="pictures")
    else:
        edges = np.arange(len(counts) + 1)
        classes.stairs(sorted(counts.values(), reverse=True), edges, fill=True, color=_LOSS)
        classes.set(xlabel="classes, the largest first", ylabel="pictures", xlim=(0, len(counts)), ylim=(0, None))
    for axes in scatter:
        axes.scatter(sizes[:, 1], sizes[:, 0], s=9, alpha=0.4, color=_ACCURACY, linewidth=0)
        ends = 0, sizes.max() * 1.1
        axes.set(xlabel="width of a picture, pixels", ylabel="height", xlim=ends, ylim=ends, aspect="equal")
    for axes in (classes, *scatter):
        axes.grid(**_GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    picture.imshow(mean)
    picture.set(xticks=[], yticks=[], xlabel="the mean picture")
    figure.suptitle(_plain(title))
    figure.savefig(png, dpi=110)


def _mosaic(axes, rows, heads):
    """Pictures in a grid of unit squares, each as large as it fits, names at the left, heads above."""
    columns = max(len(pictures) for _, pictures in rows)
    for line, (_, pictures) in enumerate(rows):
        for column, image in enumerate(pictures):
            height, width = np.array(image.shape[:2]) / max(image.shape[:2]) * 0.47
            x, y = column + 0.5, line + 0.5
            axes.imshow(image, extent=(x - width, x + width, y + height, y - height), interpolation="lanczos")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_short(name) for name, _ in rows])
    axes.set_xticks(np.arange(len(heads)) + 0.5, heads)
    axes.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.set(xlim=(0, columns), ylim=(len(rows), 0), aspect="equal")
    axes.spines[:].set_visible(False)


def _short(name):
    return _plain(name if len(name) <= 24 else f"{name[:23]}…")


def _plain(text):
    """A name is no formula."""
    return printable(text).replace("$", r"\$")


def roofline(records: list[dict], png: Path, title: str):
    """Speed over intensity of every kernel with flops, under what the machine could do, written to `png`.

    records: of `bench kernels --json`, at least one of them with flops. A ring: by Winograd's method, which makes
    fewer flops than the definition has, and so may lie above the roof.
    """
    records = [r for r in records if r["flops"]]
    figure, ((axes,),) = _figure(1, 1, figsize=(8, 5.5))
    peak, bandwidth = (float(np.median([r[key] for r in records])) for key in ("peak_gflop_per_s", "copy_gb_per_s"))
    intensity = np.array([r["flops"] / r["bytes"] for r in records])
    speed = np.array([r["share_of_peak"] for r in records]) * peak  # as if the machine had run at its median all along
    ends = np.array([min(intensity.min(), peak / bandwidth) / 2, intensity.max() * 2])
    ridge = np.array([ends[0], peak / bandwidth, ends[1]])
    axes.plot(ridge, np.minimum(peak, ridge * bandwidth), color="0.3", linewidth=1.5)
    axes.annotate(f"{peak:.0f} GFLOP/s", (ends[1], peak), (-4, 5), textcoords="offset points", ha="right")
    axes.annotate(f"{bandwidth:.0f} GB/s (copy)", (ends[0], ends[0] * bandwidth), (10, -4), textcoords="offset points")
    marks = {"forward": ("o", _LOSS), "backward_input": ("s", _ACCURACY), "backward_weight": ("^", "#55a868")}
    for kind, (mark, color) in marks.items():
        own = np.array([r["pass"] == kind for r in records])
        name = kind.replace("_", " ") if own.any() else None
        axes.scatter(intensity[own], speed[own], marker=mark, color=color, s=24, alpha=0.8, linewidth=0, label=name)
    fewer = np.array([r["arithmetic"] < r["flops"] for r in records])
    if fewer.any():
        ring = {"marker": "o", "s": 90, "facecolor": "none", "edgecolor": "0.5", "linewidth": 0.7}
        axes.scatter(intensity[fewer], speed[fewer], label="by Winograd's method: fewer flops than counted", **ring)
    axes.set(xscale="log", yscale="log", xlabel="flops per byte that must be moved", ylabel="GFLOP/s", title=title)
    lowest, highest = min(speed.min() / 2, ends[0] * bandwidth), max(peak, speed.max()) * 1.6
    axes.set_ylim(lowest, highest)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if highest < 30 * lowest else "")  # numbers over many decades collide
    axes.legend(frameon=False, loc="lower right")
    axes.grid(**_GRID)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=120)


def scaling(lines: dict[str, list[tuple]], png: Path, title: str):
    """Speed and length of a planned run over nodes: name → [(nodes, images/s, minutes)], written to `png`."""
    figure, (left, right) = _figure(2, figsize=(10, 4.2))
    for (name, points), color in zip(lines.items(), _RUNS, strict=False):
        nodes, speed, minutes = zip(*points, strict=True)
        look = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.8, "label": name}
        left.plot(nodes, speed, **look)
        right.plot(nodes, minutes, **look)
    nodes, speed, _ = zip(*next(iter(lines.values())), strict=True)
    ideal = [speed[0] / nodes[0] * count for count in nodes]
    left.plot(nodes, ideal, color="0.6", linestyle="--", linewidth=1, label=f"in proportion to {nodes[0]}")
    left.set(ylabel="images/s")
    right.set(ylabel="minutes")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="nodes")
        axes.set_xticks(nodes, [str(count) for count in nodes], rotation=45 if len(nodes) > 8 else 0)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(**_GRID)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(_plain(title))
    figure.savefig(png, dpi=120)


def _figure(*shape, figsize, **more):
    """Figure and axes without pyplot, so no window system is asked for and nothing global remains."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("matplotlib is not installed, expected it for drawing: pip install knltrain[plots]") from None
    figure = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*(shape if len(shape) == 2 else (1, *shape)), squeeze=len(shape) != 2, **more)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a fortieth of all values around each, fewer near the ends: centred, so it never lags."""
    place = np.arange(values.size)
    reach = np.minimum(np.minimum(place, place[::-1]), values.size // 80)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)
