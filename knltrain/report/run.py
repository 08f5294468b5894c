"""A run folder as numbers. Whatever its files say is a claim: what is of another type or shape is passed over."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..tell.journal import LOG, MACHINE, PREDICTIONS, RECIPE, newest, read_all

STEP = ("step", "epoch", "loss", "accuracy", "lr", "images_per_s", "data_wait_s", "exchange_exposed_s", "time")
EVALUATION = ("step", "epoch", "top1", "top5", "images")
RANKS = ("compute_s", "data_wait_s", "exchange_exposed_s")


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    begin, end, machine: records, {} where there are none. recipe: text, settings: its values by `section.key`. steps,
    evaluations: an array of each number, NaN where there is none. sessions: seconds from a start to its last record,
    and its nodes. trust: (steps, names, ratios (names, steps)). ops: seconds of sampled steps, by what took them.
    ranks: (steps, seconds (3, ranks, steps) in the order of RANKS). predictions: of the newest evaluation, or None.
    notes: (step, text).
    """

    name: str
    folder: Path
    begin: dict
    end: dict
    machine: dict
    recipe: str
    settings: dict
    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    sessions: list[tuple[float, int]]
    trust: tuple[np.ndarray, list[str], np.ndarray]
    ops: list[dict]
    ranks: tuple[np.ndarray, np.ndarray]
    predictions: dict | None
    notes: list[tuple[int, str]]


def read_run(folder: Path, name: str) -> Run:
    """Read what `knltrain train` wrote. Raises ValueError where there is no log, or no step in it."""
    folder = Path(folder)
    if not (folder / LOG).is_file():
        raise ValueError(f"{folder}: found no {LOG}, expected the run folder of a `knltrain train`")
    records = read_all(folder)
    kinds: dict[str, list[dict]] = {}
    for record in newest(records):
        kinds.setdefault(record["kind"], []).append(record)
    if not kinds.get("step"):
        raise ValueError(f"{folder}: found no training step in its {LOG}: there is nothing to report yet")
    recipe = _text(folder / RECIPE)
    return Run(
        name, folder, (kinds.get("begin") or [{}])[-1], (kinds.get("end") or [{}])[-1],
        _table(_json(folder / MACHINE)), recipe, _settings(recipe),
        _columns(kinds["step"], STEP), _columns(kinds.get("evaluation", []), EVALUATION), _sessions(records),
        _trust(kinds.get("trust", [])), _ops(kinds.get("ops", [])), _ranks(kinds.get("ranks", [])),
        _predictions(_json(folder / PREDICTIONS)),
        [(record["step"], str(record.get("text"))) for record in kinds.get("note", [])],
    )  # fmt: skip


def number(value) -> float:
    """The value as a float, NaN where it is no number."""
    try:
        return float(value) if type(value) in (int, float) else np.nan
    except OverflowError:
        return np.nan


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path):
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError):
        return None


def _table(value) -> dict:
    return value if isinstance(value, dict) else {}


def _settings(recipe: str) -> dict:
    try:
        sections = tomllib.loads(recipe)
        phases = sections.pop("phase", [])
        numbered = enumerate(phases if isinstance(phases, list) else [], start=1)
        return dict(_flat(sections | {f"phase {number}": phase for number, phase in numbered}))
    except (ValueError, RecursionError):
        return {}


def _flat(table: dict, before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        yield from _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(f"{before}{key}", value)]


def _columns(records, keys) -> dict[str, np.ndarray]:
    return {key: np.array([number(record.get(key)) for record in records]) for key in keys}


def _sessions(records) -> list[tuple[float, int]]:
    """Of each start: how long it was at work, also on steps that were done again, and on how many nodes."""
    sessions = []
    for record in records:
        now = number(record.get("time"))
        if record["kind"] == "begin" or not sessions:
            nodes = record.get("nodes")
            sessions.append([now, now, nodes if type(nodes) is int and 0 < nodes < 10**6 else 1])
        sessions[-1][1] = max(sessions[-1][1], now)
    return [(max(0.0, last - first), nodes) for first, last, nodes in sessions if last >= first]


def _trust(records):
    columns = [_numbers(record.get("ratios")) for record in records]
    names = list(dict.fromkeys(name for column in columns for name in column))
    ratios = [[column.get(name, np.nan) for column in columns] for name in names]
    return _steps(records), names, np.array(ratios).reshape(len(names), len(columns))


def _numbers(table) -> dict[str, float]:
    return {name: number(value) for name, value in _table(table).items() if np.isfinite(number(value))}


def _ops(records) -> list[dict]:
    found = []
    for record in records:
        seconds = {kind: _numbers(kernels) for kind, kernels in _table(record.get("seconds")).items()}
        times = {key: number(record.get(key)) for key in ("step_s", "data_wait_s", "exchange_exposed_s")}
        if seconds and np.isfinite(list(times.values())).all():
            found.append({**times, "seconds": seconds})
    return found


def _ranks(records):
    kept = [record for record in records if all(isinstance(record.get(key), list) for key in RANKS)]
    sizes = [{len(record[key]) for key in RANKS} for record in kept]
    last = sizes[-1] if sizes else set()  # a run that went on with other ranks is told of as it ended
    kept = [record for record, size in zip(kept, sizes, strict=True) if size == last and len(size) == 1]
    seconds = [[[number(value) for value in record[key]] for key in RANKS] for record in kept]
    shape = (len(kept), len(RANKS), max(last, default=0))
    return _steps(kept), np.moveaxis(np.array(seconds).reshape(shape), 0, 2)


def _steps(records) -> np.ndarray:
    return np.array([record["step"] for record in records], float)


def _predictions(facts) -> dict | None:
    """The facts of `Accuracy.facts` where they are what they should be, with the confusion as a matrix, or None."""
    facts = _table(facts)
    names = facts.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        return None
    matrix = None
    counts = [_indices(triple, 3) for triple in facts.get("confusion") or []] if len(names) <= 1024 else []
    counts = np.array([c for c in counts if c and max(c[:2]) < len(names)], np.int64).reshape(-1, 3)
    if len(counts):
        matrix = np.zeros((len(names), len(names)), np.int64)
        np.add.at(matrix, (counts[:, 0], counts[:, 1]), counts[:, 2])
    ends = {end: [one for one in facts.get(end) or [] if _is_outcome(one, len(names))] for end in ("best", "worst")}
    said = {key: str(facts.get(key)) for key in ("step", "data", "digest")}
    seen = {key: max(0.0, number(facts.get(key, 0))) for key in ("crop", "short_side")}
    return {**said, **seen, "class_names": names, "confusion": matrix, **ends}


def _indices(values, count) -> list[int]:
    fits = isinstance(values, list) and len(values) == count and all(type(v) is int and 0 <= v < 2**40 for v in values)
    return values if fits else []


def _is_outcome(one, classes) -> bool:
    one = _table(one)
    found = _indices([one.get(key) for key in ("row", "label", "predicted")], 3)
    return bool(found) and max(found[1:]) < classes and np.isfinite(number(one.get("of_label")))
