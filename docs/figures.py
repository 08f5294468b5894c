"""The figures of the documentation, drawn from the program itself: `python docs/figures.py [FOLDER]`.

program.svg: the memory plan of a step; sums.svg: the tree of sums; shard.svg: where things lie in a shard.
"""

import io
import sys
import tempfile
from pathlib import Path

import h5py
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

from knltrain.data.shards import Row, finish_shard, write_shard  # noqa: E402
from knltrain.layers import Memory  # noqa: E402
from knltrain.models import build  # noqa: E402
from knltrain.models.model import Model  # noqa: E402

FORWARD, BACKWARD, SCRATCH, INK = "#4c72b0", "#c44e52", "#bbbbbb", "#222222"
RANKS = ("#4c72b0", "#55a868", "#dd8452", "#8172b3")
STYLE = {"svg.hashsalt": "knltrain", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
NETWORK, SLOT = "resnet_cifar8", 32


def program(path):
    """Every tensor of a step as a rectangle: from its first op to its last, at its place in the one block."""
    layers, shape = build(NETWORK, classes=10, input_size=32)
    step = Model(layers, shape, SLOT).training
    for root in {tensor.root for op in step.ops for tensor in op.tensors()} - {step.images}:
        root.place = None  # planned once more, to see the plan
    plan = Memory(step)
    ops, forward = len(step.ops), len(step.forward)
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for one in plan.storages:
        color = SCRATCH if one.scratch else FORWARD if one.first < forward else BACKWARD
        place = (one.first - 0.5, one.offset / 2**20), one.last - one.first + 1, one.size / 2**20
        axes.add_patch(Rectangle(*place, facecolor=color, alpha=0.55, edgecolor="white", linewidth=0.6))
        if place[1] > 8 and place[2] > 0.45:
            x, y = place[0][0] + place[1] / 2, place[0][1] + place[2] / 2
            axes.text(x, y, one.tensors[0].name, ha="center", va="center", fontsize=7, color=INK)
    axes.axvline(forward - 0.5, color=INK, linewidth=0.8)
    alone = sum(one.size for one in plan.storages) / 2**20
    high = plan.nbytes / 2**20
    for text, x, align in (("forward", forward - 1.5, "right"), ("backward", forward + 0.5, "left")):
        axes.text(x, high * 1.02, text, ha=align, va="bottom")
    for color, text in ((FORWARD, "made by forward"), (BACKWARD, "gradients"), (SCRATCH, "scratch, packed weights")):
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor=color, alpha=0.55, label=text))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.88), fontsize=8)
    axes.set(xlim=(-0.5, ops - 0.5), ylim=(0, high), xlabel=f"the {ops} ops of a step, in the order in which they run")
    axes.set_ylabel("place in the block, MiB")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{NETWORK}, {SLOT} images: {len(plan.storages)} pieces of memory, {alone:.0f} MiB if each had its own, "
        f"{high:.0f} MiB as they are placed"
    )
    _save(figure, path)


def sums(path, slots=12, ranks=4):
    """The tree over slots; what one of four ranks adds alone has its colour, what is exchanged is black."""
    run = slots // ranks
    figure = Figure(figsize=(9, 3.4))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.9))  # whatever room a font's letters take

    def node(x, y, text, color):
        axes.plot(x, y, "o", markersize=20, markerfacecolor="white", markeredgecolor=color, zorder=2)
        axes.text(x, y, text, ha="center", va="center", zorder=3)

    def line(one, other, color):
        axes.plot(*zip(one, other, strict=True), color=color, linewidth=1.2, zorder=1)

    level = []
    for rank in range(ranks):
        color, place = RANKS[rank % len(RANKS)], None
        for i in range(rank * run, (rank + 1) * run):
            node(i, 0, f"s{i}", color)
            if place is None:
                place = (i, 0)
                continue
            new = (i - 0.5 if place[1] == 0 else i - 0.75, place[1] + 0.8)
            line(place, new, color)
            line((i, 0), new, color)
            node(*new, "+", color)
            place = new
        axes.text(rank * run + (run - 1) / 2, -0.75, f"rank {rank}", ha="center", color=color)
        level.append(place)
    while len(level) > 1:
        above = []
        for one, other in zip(level[::2], level[1::2], strict=True):
            new = ((one[0] + other[0]) / 2, one[1] + 1)
            line(one, new, INK)
            line(other, new, INK)
            node(*new, "+", INK)
            above.append(new)
        level = above
    axes.set(xlim=(-0.6, slots - 0.4), ylim=(-1, level[0][1] + 0.5))
    axes.set_axis_off()
    figure.suptitle(f"{slots} slots are added along one tree, whoever adds: {ranks} ranks here, or any number of them")
    _save(figure, path)


def shard(path):
    """The places of the datasets in a file that was written for this."""
    random, rows = np.random.default_rng(0), []
    for i in range(64):
        rows.append(Row(random.bytes(int(random.integers(15_000, 40_000))), i % 4, f"{i % 4}/{i:04}.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        temporary, final = Path(folder) / "a", Path(folder) / "shard-00000.h5"
        write_shard(temporary, rows, encoding="jpeg", size=256, class_names=["cat", "dog", "eel", "fox"])
        finish_shard(temporary, final, len(rows), 0)
        length = final.stat().st_size
        with h5py.File(final) as file:
            places = [(ds.id.get_offset(), ds.id.get_storage_size(), name) for name, ds in file.items()]
            attributes = [f"{name} = {_plain(value)}" for name, value in file.attrs.items() if name != "plan"]
            bounds = file["offsets"][:]
    places.sort()
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 10 / (len(places) + 1)
    axes.add_patch(FancyBboxPatch((0, 1), width * 0.94, 1, "round,pad=0", facecolor="#dddddd", edgecolor=INK))
    axes.text(width * 0.47, 1.5, "HDF5's header\nand attributes", ha="center", va="center")
    for i, (begin, size, name) in enumerate(places, start=1):
        color = FORWARD if name == "bytes" else "#9db7d9"
        axes.add_patch(Rectangle((i * width, 1), width * 0.94, 1, facecolor=color, alpha=0.7, edgecolor=INK))
        axes.text((i + 0.47) * width, 1.5, f"{name}\n{size:,} bytes", ha="center", va="center")
        axes.text(i * width, 0.93, f"at {begin:,}", ha="left", va="top", fontsize=7)
    axes.text(0, 2.12, " · ".join(attributes), fontsize=7.5, va="bottom")
    text = f"one pread for a row: row 7 are the {bounds[8] - bounds[7]:,} bytes from offsets[7] = {bounds[7]:,} on,"
    axes.text(0, 0.45, text + "\nand then its CRC-32C is compared with checksums[7]", va="top")
    axes.set(xlim=(0, 10), ylim=(0, 2.4))
    axes.set_axis_off()
    figure.suptitle(f"A shard of {len(rows)} JPEG files, {length:,} bytes")
    _save(figure, path)


def _plain(value):
    return value.decode() if isinstance(value, bytes) else value


def _save(figure, path):
    """The same bytes at each call, by whatever release of Matplotlib."""
    with matplotlib.rc_context(STYLE):
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    Path(path).write_bytes(content.getvalue())


FIGURES = {"program.svg": program, "sums.svg": sums, "shard.svg": shard}


def draw(folder: Path):
    """All figures."""
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, function in FIGURES.items():
            function(folder / name)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures")
