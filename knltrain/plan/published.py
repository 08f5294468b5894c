"""Published runs beside what the planner says of them; no prediction uses its own row's result.

Their programs are not this one: of a step are taken the flops of the definition, at a share of peak that makes the
model reproduce the row's anchor (what one node was seen to do elsewhere), the bytes of passes over memory at memory's
rate, and an exchange that nothing hides, at so many clock cycles a byte as other rows show:

    step = flops / (share cores core_gflops) + bytes / memory_gb_s + 2 (P - 1) / P n / min(gb_s / L, core_ghz / cycles)
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..layers import CONVOLUTION
from ..models import build
from .cost import LARS_PASSES, training_program
from .exchange import WIRE_BYTES
from .machine import Machine, load_machine

IMAGES = 1_281_167
WITHIN = 0.15
NETWORKS = {"resnet50_1x1": ("resnet50", {"stride_on": "1x1"})}
FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Row:
    """A published figure, ours, and what ours was made of."""

    id: str
    what: str
    unit: str
    seen: float
    predicted: float
    used: str
    note: str

    @property
    def error(self) -> float:
        return self.predicted / self.seen - 1


@lru_cache
def _per_image(network: str) -> tuple[float, float, float]:
    """(flops, bytes of passes over memory) of an image, bytes of gradients."""
    name, options = NETWORKS.get(network, (network, {}))
    program = training_program(*build(name, **options), slot_batch=1)
    flops = sum(op.flops for op in program.ops)
    moved = sum(op.nbytes for op in program.ops if op.kind not in (*CONVOLUTION, "packing"))
    return flops, moved, 4 * sum(p.size for p in program.parameters.parameters)


class Published:
    """The rows of the file, and the arithmetic of their predictions."""

    def __init__(self):
        table = tomllib.loads(FILE.read_text(encoding="utf-8"))
        self.anchors, self.rows = table["anchors"], {row["id"]: row for row in table["rows"]}

    def predictions(self) -> list[Row]:
        """All rows of the file, in its order."""
        return [self._row(row) for row in self.rows.values()]

    def share(self, name: str) -> float:
        """Of peak, in flops of the definition, with which the model reproduces an anchor."""
        anchor = self.anchors[name]
        machine = load_machine(anchor["machine"])
        spent = anchor["images"] / anchor["rate"] - self._memory(anchor, anchor["images"], machine)
        flops = _per_image(anchor["network"])[0] * anchor["images"]
        share = flops / spent / (anchor["cores"] * 1e9 * machine.gflops(anchor.get("precision", "fp32")))
        if "scale" in anchor:
            over, under = anchor["scale"]
            share *= self.share(over) / self.share(under)
        return share

    def _memory(self, row, images, machine: Machine) -> float:
        _, moved, gradient = _per_image(row["network"])
        half = 0.5 if row.get("precision") == "bf16" else 1.0
        return (moved * images * half + sum(LARS_PASSES) * gradient) / (1e9 * machine.memory_gb_s)

    def compute(self, row, nodes: int) -> float:
        """Seconds of a step without its exchange."""
        machine, images = load_machine(row["machine"]), row["batch"] / nodes
        rate = row["cores"] * 1e9 * machine.gflops(row.get("precision", "fp32"))
        flops = _per_image(row["network"])[0] * images
        return flops / (self.share(row["anchor"]) * rate) + self._memory(row, images, machine)

    def exchange(self, row, nodes: int) -> float:
        """Seconds of a step's exchange."""
        machine, ranks = load_machine(row["machine"]), row.get("ranks", 1)
        if not {"pair", "row", "link"} & set(row):
            return 0.0
        sent = 2 * (nodes - 1) / nodes * _per_image(row["network"])[2] * WIRE_BYTES[row.get("wire", "fp32")] / 4
        core = machine.core_ghz / self.cycles(row) if "link" not in row else machine.gb_s
        return sent / (1e9 * min(machine.gb_s / ranks, core))

    def cycles(self, row) -> float:
        """Clock cycles a byte that other rows show."""
        if "pair" in row:
            few, many = (self.rows[name] for name in row["pair"])
            ratio = many["nodes"] / few["nodes"]  # computing is proportional to the images of a node, exchanging is not
            spent = (ratio * self._step_seen(many) - self._step_seen(few)) / (ratio - 1)
            source = many
        else:
            source = self.rows[row["row"]]
            spent = self._step_seen(source) - self.compute(source, source["nodes"])
        nodes = source["nodes"]
        sent = 2 * (nodes - 1) / nodes * _per_image(source["network"])[2]
        return load_machine(source["machine"]).core_ghz * 1e9 * spent / sent

    def _step_seen(self, row) -> float:
        return row["seen"] * 60 * row["batch"] / (row["epochs"] * IMAGES)

    def step(self, row, nodes: int) -> float:
        """Seconds of a step."""
        return self.compute(row, nodes) + self.exchange(row, nodes)

    def _row(self, row) -> Row:
        step = self.step(row, row["nodes"])
        value = {
            "minutes": lambda: row["epochs"] * IMAGES / row["batch"] * step / 60,
            "images/s a node": lambda: row["batch"] / row["nodes"] / step,
            "times": lambda: self.step(row, row["from"]) / step,
            "% of linear": lambda: 100 * self.step(row, row["from"]) / step * row["from"] / row["nodes"],
        }[row["unit"]]()
        return Row(row["id"], row["what"], row["unit"], row["seen"], value, self._used(row), row.get("note", ""))

    def _used(self, row) -> str:
        """In words: what the prediction was made of."""
        used = f"computing: {self.anchors[row['anchor']]['source']}; {self.share(row['anchor']):.0%} of peak"
        for key, words in (("pair", "the difference of"), ("row", "")):
            if key in row:
                names = " and ".join([row[key]] if key == "row" else row[key])
                used += f"; exchange: {self.cycles(row):.2f} cycles a byte from {words} {names}".replace("  ", " ")
        return used + "; exchange: the link alone" * ("link" in row)
