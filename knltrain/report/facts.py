"""What the headline, the tables of time, ranks and mistakes say, computed from runs."""

import numpy as np

from ..tell.stragglers import HEAD, stragglers
from .panels import epoch_of
from .run import Run, number

OP_KINDS = {
    "forward": "convolutions, forward",
    "backward_input": "gradients of inputs",
    "backward_weight": "gradients of weights",
    "memory": "batch norm, pooling and the like",
    "packing": "packing of weights",
    "update": "update of weights",
}
LATE = ["host" if name == "host" else f"#{name}" for name in HEAD]  # columns of the table of ranks
LATE += ["#computes, ms", "#waits for data, ms", "#for others, ms"]  # means of a rank's steps
REST = {"data": "waiting for data", "exchange": "waiting for the exchange", "rest": "the rest: Python, copies"}


def span(seconds: float) -> str:
    """A time as a reader says it.

    >>> span(5025), span(89), span(0.0321)
    ('1 h 24 min', '1 min 29 s', '32.1 ms')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def headline(run: Run) -> list[tuple[str, str, str]]:
    """(what, the number, what to know about it) of a run."""
    told = [_result(run), _state(run)]
    seconds = sum(seconds for seconds, _ in run.sessions)
    node_hours = sum(seconds * nodes for seconds, nodes in run.sessions) / 3600
    starts = len(run.sessions)
    how = "from start to end" if _ended(run) else "so far"
    told.append(("time", span(seconds), f"in {starts} starts" if starts > 1 else how))
    nodes, ranks, threads = _machine(run)
    told.append(("cost", f"{node_hours:.3g} node-hours", f"on {nodes} node{'s' * (nodes != 1)}"))
    rates = run.steps["images_per_s"][np.isfinite(run.steps["images_per_s"])]
    if rates.size:
        rate = float(np.median(rates))
        told.append(("throughput", f"{rate:,.4g} images/s" if rate < 1e4 else f"{rate:,.0f} images/s",
                     f"{rate / nodes:,.4g} a node" if nodes > 1 else "median of all steps"))  # fmt: skip
    count = {key: number(run.begin.get(key)) for key in ("parameters", "images", "classes")}
    if np.isfinite(list(count.values())).all():
        told.append(("network", str(run.begin.get("model")), f"{_count(count['parameters'])} parameters"))
        told.append(("data", f"{count['images']:,.0f} images", f"in {count['classes']:,.0f} classes"))
    where = f"{ranks} rank{'s' * (ranks != 1)} of {threads} thread{'s' * (threads != 1)}"
    told.append(("machine", where, str(run.machine.get("processor", ""))))
    return told


def _result(run):
    known = np.isfinite(run.evaluations["top1"])
    top1, epochs = run.evaluations["top1"][known], run.evaluations["epoch"][known]
    if not top1.size:
        loss = run.steps["loss"][np.isfinite(run.steps["loss"])]
        return "result", f"loss {loss[-1]:.4g}" if loss.size else "no finite loss", "nothing was evaluated"
    best = top1.size - 1 - int(top1[::-1].argmax())  # of equals the last
    end = "at the end" if _ended(run) == "done" else f"after epoch {epochs[-1]:.4g}"
    last = end if best == top1.size - 1 else f"after epoch {epochs[best]:.4g}; {end} {top1[-1]:.2%}"
    return "top-1", f"{top1[best]:.2%}", last


def _state(run):
    done, total = run.steps["step"][-1], number(run.begin.get("total_steps"))
    of_all = f"step {done:,.0f} of {total:,.0f}" if total > 0 else f"step {done:,.0f}"
    return "state", _ended(run) or "not ended", of_all


def _ended(run) -> str:
    """How the last start ended; "" where it goes on, or was killed."""
    state = run.end.get("state") if run.end.get("step") == run.steps["step"][-1] else None
    return state if state in ("done", "stopped") else ""


def _machine(run) -> tuple[int, int, int]:
    """Nodes of the newest start, ranks, threads of each."""
    ranks, threads = (run.machine.get(key) for key in ("ranks", "threads_per_rank"))
    whole = [value if type(value) is int and value > 0 else 1 for value in (ranks, threads)]
    return (run.sessions[-1][1] if run.sessions else 1), *whole


def _count(value: float) -> str:
    return next(
        (f"{value / size:.3g} {name}" for size, name in ((1e9, "G"), (1e6, "M")) if value >= size), f"{value:,.0f}"
    )


# ---- time ----------------------------------------------------------------------------------------------------------


def time_split(run: Run) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """(what, seconds of a step, [(kernel, seconds)]) in the order of OP_KINDS, then REST: medians of the samples."""
    if not run.ops:
        return []
    split = []
    for kind in dict.fromkeys([*OP_KINDS, *(kind for ops in run.ops for kind in ops["seconds"])]):
        kernels = dict.fromkeys(name for ops in run.ops for name in ops["seconds"].get(kind, {}))
        medians = [(name, _median([ops["seconds"].get(kind, {}).get(name, 0) for ops in run.ops])) for name in kernels]
        total = _median([sum(ops["seconds"].get(kind, {}).values()) for ops in run.ops])
        if medians:
            split.append((OP_KINDS.get(kind, kind), total, sorted(medians, key=lambda one: -one[1])))
    waits = [_median([ops[key] for ops in run.ops]) for key in ("data_wait_s", "exchange_exposed_s")]
    step_s = _median([ops["step_s"] for ops in run.ops])
    rest = max(0.0, step_s - sum(seconds for _, seconds, _ in split) - sum(waits))
    return split + [(what, seconds, []) for what, seconds in zip(REST.values(), (*waits, rest), strict=True)]


def _median(values) -> float:
    return float(np.median(values))


def slowness(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, (ranks, samples)): time a rank took itself, waiting for no other, over that of the median one."""
    steps, seconds = run.ranks
    own = seconds[0] + seconds[1]
    with np.errstate(all="ignore"):
        return epoch_of(run, steps), own / np.median(own, axis=0)


def late_ranks(run: Run, most: int = 10) -> tuple[str, list[list]]:
    """A sentence on what slow ranks cost, and rows of those that were last: as LATE names them."""
    _, (compute, data, exposed) = run.ranks
    own, late = compute + data, stragglers(compute + data)
    cost = sum(one.behind.sum() for one in late) / (own + exposed).mean(0).sum()
    places = run.machine.get("processes")
    places = places if isinstance(places, list) and len(places) == len(own) else ["?"] * len(own)
    rows = []
    for one in late[:most]:
        times = [f"{1000 * array[one.rank].mean():.2f}" for array in (compute, data, exposed)]
        rows.append(one.row(str(places[one.rank]).partition(" ")[0]) + times)
    text = f"The last of {len(own)} ranks was behind the median of the others by {cost:.1%} of a step: they wait. "
    return text + f"Means of {own.shape[1]} stretches of steps.", rows


# ---- mistakes ------------------------------------------------------------------------------------------------------


def confused(confusion: np.ndarray, names: list[str], most: int = 15) -> list[list]:
    """The pairs of classes that are most often confused: class, taken for, pictures, share of the class."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    return [
        [names[a], names[b], int(wrong[a, b]), f"{wrong[a, b] / confusion[a].sum():.1%}"] for a, b in pairs
    ]  # fmt: skip


def hardest(confusion: np.ndarray, names: list[str], most: int = 15) -> list[list]:
    """The classes that are least often right: class, share that is right, pictures."""
    of_class = confusion.sum(1)
    right = np.where(of_class > 0, confusion.diagonal() / np.maximum(of_class, 1), 2)
    order = [k for k in np.argsort(right, kind="stable")[:most] if of_class[k]]
    return [[names[k], f"{right[k]:.1%}", int(of_class[k])] for k in order]


def differences(tables: list[dict]) -> list[list[str]]:
    """Rows of a key and its value in each table, of the keys whose values are not all equal."""
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [[key, *(_shown(table.get(key)) for table in tables)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _shown(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
