"""Charts as SVG that code makes: lines with their bands, and heat maps as small pictures between axes.

Colours are classes of the page's style sheet, so that a chart is at home in light, dark and print.
"""

import base64
import json
import struct
import zlib

import numpy as np

from .markup import h
from .panels import Panel

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 26
RUN_COLORS = 8  # the style sheet has so many
_VIRIDIS = "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725".split()
_STOPS = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _VIRIDIS])
_LEVELS = np.linspace(0, len(_STOPS) - 1, 255)
_PLACES = np.arange(len(_STOPS))
PALETTE = (
    np.vstack([[0, 0, 0], np.stack([np.interp(_LEVELS, _PLACES, c) for c in _STOPS.T], 1)]).round().astype(np.uint8)
)


def ticks(low: float, high: float, most: int = 6) -> np.ndarray:
    """Round numbers from low to high: 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 0.9).tolist()
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    apart = next(apart * power for apart in (1, 2, 5, 10) if apart * power >= rough * 0.999)
    return (np.arange(np.ceil(low / apart - 1e-6), np.floor(high / apart + 1e-6) + 1) * apart).round(12) + 0.0  # no -0


def short(value: float) -> str:
    """A number as a reader wants it: four digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# ---- lines ---------------------------------------------------------------------------------------------------------


def line_chart(panel: Panel):
    """A figure of a panel; the values are in the page once more, for the pointer that asks for them."""
    xs, ys = (np.concatenate([getattr(line, axis) for line in panel.lines]) for axis in "xy")
    x_ends, y_ends = _ends(xs, zero=True), _ends(ys, zero=not panel.title.startswith("Accuracy"))
    if panel.share:
        y_ends = max(0.0, y_ends[0]), min(1.0, y_ends[1])

    def points(x, y):
        across = LEFT + (x - x_ends[0]) / (x_ends[1] - x_ends[0]) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - y_ends[0]) / (y_ends[1] - y_ends[0]) * (HEIGHT - TOP - BOTTOM)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up.clip(TOP, HEIGHT), strict=True))

    drawn = []
    for line in panel.lines:
        color = f"c{line.run % RUN_COLORS}"
        if line.low is not None:
            band = points(np.concatenate([line.x, line.x[::-1]]), np.concatenate([line.low, line.high[::-1]]))
            drawn.append(h("polygon", points=band, class_=f"band {color}"))
        place = points(line.x, line.y)
        drawn.append(h("polyline", points=place, class_=f"{line.style} {color}", data_name=line.name))
        if "points" in line.style:
            drawn += [
                h("circle", cx=a, cy=b, r=2.4, class_=f"{line.style} {color}")
                for a, b in (p.split(",") for p in place.split())
            ]
    scale = 100 if panel.share else 1
    unit = "%" if panel.share else panel.unit
    told = json.dumps([*x_ends, *(scale * end for end in y_ends), LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP, unit])
    y_axis = [(y, short(scale * y) + "%" * panel.share) for y in ticks(*y_ends)]
    axes = _axes([(x, short(x)) for x in ticks(*x_ends)], y_axis, points, x_ends, y_ends)
    svg = _svg(HEIGHT, axes, drawn, class_="lines", data_axes=told, label=panel.title)
    heading = panel.title + (f",{panel.unit}" if panel.unit else "")
    return h("figure", h("figcaption", heading, h("span", "over epochs")), svg, _legend(panel))


def _ends(values, zero) -> tuple[float, float]:
    """Where an axis begins and ends; the few values far above the others do not stretch it."""
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.98))
    high = usual * 1.5 if zero and high > 3 * usual > 0 else high
    low = min(0.0, low) if zero else low - 0.05 * (high - low)
    room = 0.05 * (high - low)
    return (low, high + room) if high > low else (low - 0.5, low + 0.5)


def _axes(x_ticks, y_ticks, points, x_ends, y_ends):
    """Lines and numbers of both axes; ticks: (place, text). points: places of values, as text."""
    parts = []
    for value, text in y_ticks:
        left, right = (points(np.array([x]), np.array([value])).split(",") for x in x_ends)
        parts.append(h("line", x1=left[0], y1=left[1], x2=right[0], y2=right[1], class_="grid"))
        parts.append(h("text", text, x=LEFT - 6, y=float(left[1]) + 4, class_="y"))
    for value, text in x_ticks:
        across, up = points(np.array([value]), np.array([y_ends[0]])).split(",")
        parts.append(h("text", text, x=across, y=float(up) + 18, class_="x"))
    return parts


def _svg(height, *children, label="", **attributes):
    return h("svg", *children, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, **attributes)


def _legend(panel):
    """What the lines are, where there are several."""
    if len(panel.lines) < 2:
        return None
    marks = []
    for line in panel.lines:
        color = f"c{line.run % RUN_COLORS}"
        mark = [h("polyline", points="0,5 22,5", class_=f"{line.style} {color}")]
        mark += [h("circle", cx=11, cy=5, r=2.6, class_=f"{line.style} {color}")] if "points" in line.style else []
        marks.append(h("li", h("svg", mark, viewBox="0 0 22 10", width=22, height=10), f" {line.name}"))
    return h("ul", marks, class_="legend")


# ---- heat maps -----------------------------------------------------------------------------------------------------


def heat_map(
    title: str, values: np.ndarray, names: list[str], across: tuple, *, power=False, ends=None, unit="", square=False
):
    """A figure of values (rows, columns), NaN where there is none; names: of the rows, top to bottom.

    across: (first, last, name) of the columns; or names of the columns, as many as there are. power: the values are
    logarithms, of what is told. ends: values of the first and the last colour, default those of the values. square: of
    equal rows and columns.
    """
    known = values[np.isfinite(values)]
    low, high = ends or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    high = high if high > low else low + 1
    rows, columns = values.shape
    room = min(150, 12 + 6.2 * max((len(_cut(name)) for name in names), default=0)) if names else LEFT
    tall = int(WIDTH - room - RIGHT) if square else int(np.clip(rows * 11, 110, 460))
    level = np.where(np.isfinite(values), 1 + ((values - low) / (high - low)).clip(0, 1) * 254, 0).round()
    url = "data:image/png;base64," + base64.b64encode(png(level.astype(np.uint8))).decode()
    facts = json.dumps({"low": low, "high": high, "power": power, "unit": unit, "across": across, "names": names})
    box = {"x": room, "y": TOP, "width": WIDTH - room - RIGHT, "height": tall}
    parts = [h("image", href=url, preserveAspectRatio="none", class_="heat", data_facts=facts, **box)]
    every = -(-rows * 10 // tall)
    for row in range(0, rows if names else 0, every):
        parts.append(
            h("text", _cut(names[row]), x=room - 5, y=f"{TOP + (row + 0.5) * tall / rows + 3:.1f}", class_="y")
        )
    parts += _below(across, columns, box)
    shown = [10**end if power else end for end in (low, high)]
    bar = "data:image/png;base64," + base64.b64encode(png(np.arange(1, 256, dtype=np.uint8)[None])).decode()
    bar = h("img", src=bar, width=120, height=10, alt="to")
    scale = h("p", short(shown[0]) + unit, " ", bar, " ", short(shown[1]) + unit, class_="scale")
    svg = _svg(TOP + tall + BOTTOM, parts, label=title)
    heading = h("figcaption", title, h("span", f"over {across[2]}s") if _is_numbers(across) else None)
    return h("figure", heading, svg, scale, class_="wide square" if square else "wide")


def _is_numbers(across) -> bool:
    return len(across) == 3 and isinstance(across[0], float)


def _below(across, columns, box):
    """Numbers, or names where there is room for them, under a heat map."""
    y = box["y"] + box["height"] + 17
    if not _is_numbers(across):
        if box["width"] / columns < 6.2 * max(map(len, across)):
            return []
        places = [box["x"] + (i + 0.5) * box["width"] / columns for i in range(columns)]
        return [h("text", name, x=f"{x:.1f}", y=y, class_="x") for name, x in zip(across, places, strict=True)]
    first, last, _ = across
    marks = ticks(first, last) if last > first else []
    places = [box["x"] + (mark - first) / (last - first) * box["width"] for mark in marks]
    return [h("text", short(mark), x=f"{x:.1f}", y=y, class_="x") for mark, x in zip(marks, places, strict=True)]


def _cut(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:12]}…{name[-9:]}"


def png(levels: np.ndarray) -> bytes:
    """A PNG file of levels (H, W) uint8: colours of PALETTE, 0 is nothing at all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = levels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = levels
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"PLTE", PALETTE.tobytes()), chunk(b"tRNS", b"\0")
    return (
        b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    )
