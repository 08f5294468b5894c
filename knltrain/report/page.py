"""The page: one section after the other, each left out where a run has no numbers for it."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np

from .. import __version__
from .chart import PALETTE, heat_map, line_chart, short
from .facts import LATE, confused, differences, hardest, headline, late_ranks, slowness, span, time_split
from .markup import document, h, table
from .panels import epoch_of, panels
from .pictures import picture_urls
from .run import Run

MOST_ROWS = 512  # of a heat map of ranks; more are drawn in groups, as slow as their slowest


def page(runs: list[Run], data: Path | None = None) -> str:
    """One HTML file that needs no other, about these runs. data: shards of the pictures, where they were moved."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("style.css", "script.js"))
    colors = [int.from_bytes(color.tobytes(), "big") for color in PALETTE]
    script = script.replace("PALETTE", str(colors), 1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = ", ".join(map(_title, runs))
    curves = h("div", [line_chart(panel) for panel in panels(runs)], class_="charts")
    of_each = [section for name, make in SECTIONS.items() for section in _of_each(name, make, runs, data)]
    body = [
        h(
            "header",
            h("p", "knltrain report", class_="kind"),
            h("h1", title),
            [h("p", run.folder.resolve(), class_="note") for run in runs],
        ),
        h("main", _headline(runs), _section("Curves", curves), of_each, _recipes(runs), _machines(runs), _notes(runs)),
        h("footer", f"made by knltrain {__version__}; the page needs no network and sends nothing"),
    ]
    return document(f"{title} – knltrain report", style, script, policy, body)


def _title(run) -> str:
    """The name of its folder, with the one above where it is just a run."""
    parts = run.folder.resolve().parts
    return "/".join(parts[-2:]) if parts[-1] == "run" else parts[-1]


def _section(title: str, *content, note: str | None = None):
    return h("section", h("h2", title), h("p", note, class_="note") if note else None, content)


def _of_each(title, make, runs, data):
    """A section with a part for every run that has something to show."""
    parts = [(run, make(run, data)) for run in runs]
    parts = [(run, part) for run, part in parts if part is not None]
    if parts:
        several = len(runs) > 1
        yield _section(title, [[h("h3", run.name) if several else None, part] for run, part in parts])


def _headline(runs):
    told = [headline(run) for run in runs]
    if len(runs) == 1:
        cards = [
            h("div", h("dt", what), h("dd", value, h("small", about)), class_="card") for what, value, about in told[0]
        ]
        return h("dl", cards, class_="cards")
    names = list(dict.fromkeys(what for one in told for what, _, _ in one))
    found = [{what: [value, h("small", about)] for what, value, about in one} for one in told]
    head = ["", *(h("span", h("i", class_=f"swatch c{i % 8}"), run.name) for i, run in enumerate(runs))]
    rows = [[name, *(one.get(name, "–") for one in found)] for name in names]
    return h("div", table(head, rows), class_="facts")


# ---- of each run ---------------------------------------------------------------------------------------------------


def _trust(run: Run, _):
    steps, names, ratios = run.trust
    if not names:
        return None
    with np.errstate(divide="ignore"):
        levels = np.log10(np.where(ratios > 0, ratios, np.nan))
    text = "|w| / |gradient| by LARS's formula: how far a tensor may go. The first layer is on top."
    return [h("p", text, class_="note"), heat_map("Trust ratio", levels, names, _over(run, steps), power=True)]


def _over(run, steps):
    epochs = epoch_of(run, steps)
    return float(epochs[0]), float(epochs[-1]), "epoch"


def _time(run: Run, _):
    split = time_split(run)
    if not split:
        return None
    step_s = sum(seconds for _, seconds, _ in split)
    rows = [[what, f"{1000 * s:.2f}", f"{s / step_s:.1%}", _bar(s / step_s)] for what, s, _ in split]
    kernels = [[name, f"{1000 * s:.2f}", f"{s / step_s:.1%}"] for _, _, parts in split for name, s in parts]
    note = f"Of a step of {span(step_s)} on rank 0; the median of {len(run.ops)} steps."
    return [
        h("p", note, class_="note"), table(["", "#ms", "#share", ""], rows),
        h("details", h("summary", "by kernel"), table(["kernel", "#ms", "#share"], kernels)),
    ]  # fmt: skip


def _bar(share: float):
    rect = h("rect", width=f"{max(0.0, min(1.0, share)) * 200:.1f}", height=12, class_="c0")
    return h("svg", rect, viewBox="0 0 200 12", width=200, height=12, class_="bar")


def _ranks(run: Run, _):
    steps, seconds = run.ranks
    if seconds.shape[1] < 2:
        return None
    text, rows = late_ranks(run)
    epochs, slow = slowness(run)
    apart = -(-len(slow) // MOST_ROWS)
    slow = np.array([slow[i : i + apart].max(0) for i in range(0, len(slow), apart)])
    names = [f"{i * apart}" if apart == 1 else f"{i * apart} to {(i + 1) * apart - 1}" for i in range(len(slow))]
    known = slow[np.isfinite(slow)]
    ends = (float(known.min()), float(max(1.05, np.quantile(known, 0.995)))) if known.size else None
    across = (float(epochs[0]), float(epochs[-1]), "epoch")
    return [
        h("p", text, class_="note"), table(LATE, rows) if rows else None,
        heat_map("Own time of every rank, over that of the median rank", slow, names, across, ends=ends),
    ]  # fmt: skip


def _mistakes(run: Run, _):
    facts = run.predictions
    if not facts or facts["confusion"] is None:
        return None
    counts, names = facts["confusion"], facts["class_names"]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    title = "Class (row) and what it was taken for (column), share of the row"
    picture = heat_map(title, 100 * shares, names, tuple(names), ends=(0.0, 100.0), unit="%", square=True)
    note = f"Of the evaluation after step {facts['step']}."
    tables = [
        h(
            "div",
            h("h4", "Most often confused"),
            table(["class", "taken for", "#pictures", "#of the class"], confused(counts, names)),
        ),
        h("div", h("h4", "Least often right"), table(["class", "#right", "#pictures"], hardest(counts, names))),
    ]
    return [h("p", note, class_="note"), picture, h("div", tables, class_="charts")]


def _predictions(run: Run, data):
    facts = run.predictions
    if not facts or not (facts["worst"] or facts["best"]):
        return None
    urls, missing = picture_urls(facts, data)
    ends = (("worst", "Worst: the true class was least probable"), ("best", "Best: it was most probable"))
    parts = [[h("h4", title), h("div", [_picture(one, facts, urls) for one in facts[end]], class_="pictures")]
             for end, title in ends if facts[end]]  # fmt: skip
    return [h("p", missing, class_="note") if missing else None, parts]


def _picture(one, facts, urls):
    names, url = facts["class_names"], urls.get(one["row"])
    label, predicted = names[one["label"]], names[one["predicted"]]
    wrong = one["label"] != one["predicted"]
    text = [h("b", label), f" {one['of_label']:.1%}"]
    text += [h("br"), h("span", f"taken for {predicted} {one.get('of_predicted') or 0:.1%}", class_="wrong")] * wrong
    image = h("img", src=url, alt=f"{label}") if url else h("div", "no picture", class_="nothing")
    return h("figure", image, h("figcaption", text, h("br"), h("small", one.get("name", ""))), title=one.get("name"))


SECTIONS = {
    "Trust ratios by layer": _trust,
    "Where a step's time goes": _time,
    "Ranks": _ranks,
    "Mistakes": _mistakes,
    "Predictions": _predictions,
}


# ---- recipe, machine, notes ----------------------------------------------------------------------------------------


def _recipes(runs):
    if not any(run.recipe for run in runs):
        return None
    differing = differences([run.settings for run in runs]) if len(runs) > 1 else []
    parts = [table(["differs", *(run.name for run in runs)], differing)] if differing else []
    parts += [h("p", "The recipes are equal.", class_="note")] * (len(runs) > 1 and not differing)
    whole = [h("details", h("summary", run.name or "the whole recipe"), h("pre", run.recipe)) for run in runs]
    return _section("Recipe", parts, whole)


def _machines(runs):
    told = [_flat(run.machine) for run in runs]
    keys = dict.fromkeys(key for one in told for key in one)
    rows = [[key, *(one.get(key, "–") for one in told)] for key in keys]
    head = ["", *(run.name for run in runs)]
    return _section("Machine", table(head, rows)) if rows else None


def _flat(facts: dict, before: str = "") -> dict[str, str]:
    """Nested facts by dotted names, as text; of the processes, how many."""
    flat = {}
    for key, value in facts.items():
        if isinstance(value, dict) and before.count(".") < 3:
            flat |= _flat(value, f"{before}{key}.")
        elif key == "processes" and isinstance(value, list):
            flat["nodes"] = ", ".join(list(dict.fromkeys(str(one).partition(" ")[0] for one in value))[:16])
        elif value not in (None, {}, [], ""):
            flat[f"{before}{key}"] = short(value) if isinstance(value, float) else str(value)
    return flat


def _notes(runs):
    lines = [
        [h("b", run.name, ": ") if run.name else None, f"step {step}: {text}"]
        for run in runs
        for step, text in run.notes
    ]
    return _section("Notes of the log", h("ul", [h("li", line) for line in lines])) if lines else None
