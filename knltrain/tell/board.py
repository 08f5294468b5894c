"""A run at a glance: a block of a few lines for a terminal, from the records of its log. Drawn by rich, an extra."""

import importlib.util
import io
import math
import statistics
from collections import deque

from ..claims.text import printable

RECENT = 50  # steps of running means, here and on the progress line
LEAST_COLUMNS, LEAST_ROWS = 60, 12  # of a terminal that has room for a block
MOST_MEANS = 128
LARGEST = 1e18  # of flops a second, say; what is beyond is drawn as this
NUMBERS = ("total_steps", "epochs", "global_batch", "ranks", "threads_per_rank", "flops", "peak_flops")  # of a run
BARS = "▁▂▃▄▅▆▇█"


def available() -> bool:
    """Whether rich is installed; it is not loaded."""
    return importlib.util.find_spec("rich") is not None


class Board:
    """What is known of a run after the records it was told: `lines` draws it."""

    def __init__(self):
        self.facts, self.step, self.scores, self.losses = {}, {}, {}, Curve(MOST_MEANS)
        self.recent = deque(maxlen=RECENT)  # (accuracy, data wait since the start, exposed exchange) of steps
        self.slowest = ""
        self._console = None

    def tell(self, record: dict):
        """Learn from a record; those of other kinds pass. Raises ValueError, TypeError, KeyError for a damaged one."""
        learn = {"begin": self._begin, "step": self._step, "ranks": self._ranks, "phase": self._numbers}
        learn |= dict.fromkeys(("evaluation", "epoch"), self._evaluation)
        if record["kind"] in learn:
            learn[record["kind"]](record)

    def _begin(self, r):
        self.facts = {}
        self._numbers(r)
        self.facts |= {"model": printable(str(r["model"])), "host": printable(str(r.get("host", "")))}
        self.facts["processes"] = [printable(str(place)) for place in r.get("processes") or []]
        self.recent.clear()  # seconds count from the start

    def _numbers(self, r):
        self.facts |= {name: _number(r[name]) for name in NUMBERS if name in r}

    def _step(self, r):
        waits = (_number(r.get("data_wait_s", 0.0)), _number(r.get("exchange_exposed_s", 0.0)))
        if type(r["step"]) is not int:
            raise TypeError("found a step without a number")
        self.step = {name: _number(r.get(name)) for name in ("step", "epoch", "loss", "lr", "images_per_s", "left_s")}
        self.recent.append((_number(r["accuracy"]), *waits))
        self.losses.add(self.step["loss"])

    def _evaluation(self, r):
        if r["top1"] is not None:
            one = (_number(r["top1"]), _number(r["epoch"]))
            before = (_number(r["best_top1"]), _number(r["best_epoch"])) if "best_top1" in r else one
            self.scores = {"last": one, "best": max(one, before, self.scores.get("best", one), key=lambda s: s[0])}

    def _ranks(self, r):
        times = [_number(seconds) for seconds in r["compute_s"]]
        late = max(range(len(times)), key=times.__getitem__)
        behind = times[late] - statistics.median(times[:late] + times[late + 1 :] or times)
        places = self.facts.get("processes", [])
        where = f" ({places[late]})" if late < len(places) else ""
        self.slowest = f"rank {late}{where}, computes {1e3 * behind:.3g} ms a step longer than the median"

    @property
    def accuracy(self) -> float:
        """In training, mean of recent steps."""
        return statistics.fmean(accuracy for accuracy, _, _ in self.recent) if self.recent else math.nan

    # ---- drawing -----------------------------------------------------------------------------------------------

    def lines(self, columns: int) -> list[str]:
        """The block, each line at most so wide, with colours as the terminal's environment allows."""
        from rich.console import Console, Group
        from rich.table import Table
        from rich.text import Text

        self._console = self._console or Console(file=io.StringIO(), force_terminal=True)
        self._console.width = columns
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", width=8)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=columns - 10)
        for label, parts in self._rows(columns - 10):
            table.add_row(label, Text("   ".join(parts)))
        with self._console.capture() as captured:
            self._console.print(Group(self._head(columns), table), end="")
        return captured.get().rstrip("\n").split("\n")

    def _head(self, columns):
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        total, done = self.facts.get("total_steps", math.nan), self.step.get("step", 0.0)
        share, left = done / total if total > 0 else 0.0, self.step.get("left_s", math.nan)
        told = f"{share:4.0%}  step {done:.0f}/{total:.0f}"
        told += f"  {duration(left)} left" if share < 1 and not math.isnan(left) else ""
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(1.0, min(share, 1.0), width=max(10, columns - len(told) - 2)), Text(told, style="bold"))
        ranks, threads = (self.facts.get(name, 1) for name in ("ranks", "threads_per_rank"))
        where = f"{ranks:.0f} rank{'s' * (ranks > 1)} of {threads:.0f} thread{'s' * (threads > 1)}"
        title = f"{self.facts.get('model', '')}  {where}  {self.facts.get('host', '')}"
        return Group(Text(title, style="bold cyan", no_wrap=True, overflow="ellipsis"), bar)

    def _rows(self, width):
        """(label, parts) of each line."""
        step = self.step
        if not step:
            yield "", ["before the first step"]
            return
        epochs = self.facts.get("epochs", math.nan)
        yield "epoch", [f"{step['epoch']:.2f} of {epochs:.4g}", f"learning rate {step['lr']:.4g}"]
        yield "loss", [f"{self.losses.recent:.4f}", sparkline(self.losses.values, min(width - 12, 60))]
        val = []
        if self.scores:
            (last, _), (best, epoch) = self.scores["last"], self.scores["best"]
            val = [f"val {last:.2%}", f"best {best:.2%} after epoch {epoch:.4g}"]
        yield "top-1", [f"train {self.accuracy:.1%}", *val]
        if step["images_per_s"] > 0:
            yield "speed", [rate(step["images_per_s"]), *self._of_peak()]
            yield "waiting", list(self._waits())
        if self.slowest:
            yield "slowest", [self.slowest]

    def _of_peak(self):
        flops = self.facts.get("flops", math.nan) * self.step["images_per_s"]
        peak = self.facts.get("peak_flops", math.nan)
        if flops > 0 and peak > 0:
            yield f"{flops / peak:.1%} of peak ({flops / 1e9:,.1f} of {peak / 1e9:,.1f} GFLOP/s)"

    def _waits(self):
        """Shares of the time of recent steps."""
        seconds = self.facts.get("global_batch", math.nan) / self.step["images_per_s"]
        data = (self.recent[-1][1] - self.recent[0][1]) / max(1, len(self.recent) - 1)
        yield f"for data {data / seconds:.1%}"
        if self.facts.get("ranks", 1) > 1:
            yield f"for exchanges {statistics.fmean(exposed for _, _, exposed in self.recent) / seconds:.1%}"


class Curve:
    """The course of a number, however long: means of equal stretches, at most twice `most`; what is not finite is
    left out."""

    def __init__(self, most: int):
        self.most, self.stretch, self.means, self.open = most, 1, [], []
        self.last = deque(maxlen=RECENT)

    def add(self, value: float):
        """One more."""
        if not math.isfinite(value):
            return
        self.last.append(value)
        self.open.append(value)
        if len(self.open) < self.stretch:
            return
        self.means.append(statistics.fmean(self.open))
        self.open = []
        if len(self.means) == 2 * self.most:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.stretch *= 2

    @property
    def values(self) -> list[float]:
        return self.means + ([statistics.fmean(self.open)] if self.open else [])

    @property
    def recent(self) -> float:
        """Mean of the last; nan where there is none."""
        return statistics.fmean(self.last) if self.last else math.nan


def sparkline(values: list[float], width: int) -> str:
    """At most `width` bars from the least to the most of the values' means.

    >>> sparkline([3, 2, 1, 0], 4), sparkline([1, 1], 9)
    ('█▆▃▁', '▁▁')
    """
    width = max(1, min(width, len(values)))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    low, high = min(means, default=0), max(means, default=0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def rate(images_per_s: float) -> str:
    """Images a second, with four digits."""
    return f"{images_per_s:.4g} images/s" if images_per_s < 1000 else f"{images_per_s:.0f} images/s"


def duration(seconds: float) -> str:
    """As 2:03, or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _number(value) -> float:
    """A float; nan for what a log says as null; a loss that ran away is at most LARGEST. TypeError for what is none."""
    if isinstance(value, (str, bool)):
        raise TypeError(f"found {value!r}, expected a number")
    number = math.nan if value is None else float(value)
    return math.copysign(LARGEST, number) if abs(number) > LARGEST else number
