"""A kind of node and its network as numbers, each with its source; read from TOML and checked as a recipe is.

    extends = "NAME"                     begin with all of another file
    [node] cores = [68, "data sheet"]    a number and where it is from

What a number means, its type and its bounds stand in RULES, once. A file whose name begins with _ is only extended.
"""

import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from ..claims.keys import Rule, shown

SHIPPED = Path(__file__).parent / "machines"
MOST_BYTES = 1 << 20  # of a file
_SHARE = {"above": 0.0, "most": 2.0}  # of a roofline; an op on data that lie in a cache may be above it

RULES = {
    "node.cores": Rule("cores of a node", float, least=1, most=4096),
    "node.core_gflops": Rule("float32 GFLOP/s of a core while all work", float, above=0, most=1e5),
    "node.core_bf16_gflops": Rule("the same for products of bf16; 0: as float32", float, most=1e6),
    "node.core_ghz": Rule("clock of a core that does no vector arithmetic, while all work", float, above=0, most=10),
    "node.memory_gb_s": Rule("GB/s of memory, all cores", float, above=0, most=1e5),
    "node.core_memory_gb_s": Rule("GB/s of memory that one core can draw", float, above=0, most=1e4),
    "node.cache_mb": Rule("MB that stay in caches between two ops, of a core", float, most=1e4),
    "node.core_cache_gb_s": Rule("GB/s of one core from there", float, above=0, most=1e4),
    "node.call_us": Rule("us to call a kernel", float, most=1e5),
    "node.fork_us": Rule("us to start and join all threads", float, most=1e5),
    "network.gb_s": Rule("GB/s of a node, out and in at once", float, above=0, most=1e4),
    "network.latency_us": Rule("us of a message between two nodes", float, above=0, most=1e6),
    "storage.read_gb_s": Rule("GB/s that a node reads of pictures", float, above=0, most=1e4),
    "storage.write_gb_s": Rule("GB/s that one node writes of a checkpoint", float, above=0, most=1e4),
    "program.exchange_cycles": Rule("clock cycles of a core for each byte it sends and sums", float, most=1e3),
    "program.exchange_us": Rule("us of a core for each sum between nodes, besides its bytes", float, most=1e6),
    "program.node_sum": Rule("share of memory_gb_s that a sum in shared memory reaches", float, **_SHARE),
    "program.reader_images_ghz": Rule("JPEG pictures/s of a reader thread and GHz", float, above=0, most=1e5),
}
SHARES = {  # of the roofline, by what an op does: see `cost.share_name`
    f"shares.{name}": Rule(f"of the roofline that {name} reaches", float, **_SHARE)
    for name in (
        "forward", "backward_input", "backward_weight", "forward_winograd", "backward_input_winograd",
        "backward_weight_winograd", "forward_fc", "backward_input_fc", "backward_weight_fc", "packing", "batchnorm",
        "pool", "relu", "lrn", "update", "other",
    )
}  # fmt: skip
KNOWN = RULES | SHARES


class MachineError(ValueError):
    """A machine file that cannot be used; one line: where, what was found, what was expected."""


@dataclass(frozen=True, eq=False)
class Machine:
    """numbers and sources: by `section.key`, as RULES and SHARES name them."""

    name: str
    processor: str = ""
    fabric: str = ""
    numbers: dict = field(default_factory=dict)
    sources: dict = field(default_factory=dict)

    def __getattr__(self, key: str) -> float:
        """`machine.memory_gb_s`: a number by its key alone."""
        for section in ("node", "network", "storage", "program"):
            if f"{section}.{key}" in RULES:
                return self.numbers[f"{section}.{key}"]
        raise AttributeError(key)

    def share(self, name: str) -> float:
        """Of the roofline that ops of this name reach."""
        return self.numbers[f"shares.{name}"]

    def gflops(self, precision: str) -> float:
        """Of a core, for products of a precision."""
        return (self.core_bf16_gflops if precision == "bf16" else 0) or self.core_gflops


def machines() -> dict[str, Path]:
    """The machine files that come with the program, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("[!_]*.toml"))}


def load_machine(name) -> Machine:
    """A machine by the path of its file, its name, or a part that only one name has. Raises MachineError."""
    path, known = Path(name), machines()
    if path.suffix != ".toml":
        found = [known[str(name)]] if str(name) in known else [p for n, p in known.items() if str(name) in n]
        if len(found) != 1:
            near = difflib.get_close_matches(str(name), known, 1, 0.4) or found[:1] and [found[0].stem]
            hint = f"did you mean {near[0]}? " if near else ""
            raise MachineError(f"no machine {shown(str(name))}: {hint}expected {', '.join(known)}, or a .toml file")
        path = found[0]
    values, texts = _read(path, ())
    missing = [key for key in KNOWN if key not in values]
    if missing:
        raise MachineError(f"{path}: {missing[0]} is missing: {KNOWN[missing[0]].help}; expected [number, source]")
    numbers, sources = ({key: pair[i] for key, pair in values.items()} for i in (0, 1))
    return Machine(path.stem, texts.get("node.processor", ""), texts.get("network.fabric", ""), numbers, sources)


def _read(path: Path, seen: tuple) -> tuple[dict, dict]:
    """([number, source] by key, texts by key) of a file over those that it extends."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise MachineError(f"{path}: {path.stat().st_size} bytes; expected a machine file, at most {MOST_BYTES}")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise MachineError(f"{path}: {reason}; expected a machine file, as `knltrain plan --measure` writes") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise MachineError(str(error) if isinstance(error, MachineError) else f"{path}: no TOML: {error}") from None
    values, texts = {}, {}
    base = table.pop("extends", None)
    if base is not None:
        stem = SHIPPED / f"{base}.toml"
        if not isinstance(base, str) or "/" in base or not stem.exists() or stem in seen:
            raise MachineError(f"{path}: extends is {shown(base)}; expected a shipped machine that does not extend it")
        values, texts = _read(stem, (*seen, path))
    for section, keys in table.items():
        if not isinstance(keys, dict):
            raise MachineError(f"{path}: {section} stands outside a section; expected [node], [network], ...")
        for key, value in keys.items():
            name = f"{section}.{key}"
            if name in ("node.processor", "network.fabric") and isinstance(value, str):
                texts[name] = value
            else:
                values[name] = _checked(path, name, value)
    return values, texts


def _checked(path: Path, name: str, value) -> tuple[float, str]:
    """(number, source), or MachineError."""
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, 1, 0.0)[0]
        raise MachineError(f"{path}: unknown key {name}; the nearest known one is {near}")
    number, source = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if type(number) not in (int, float) or not isinstance(source, str) or not source.strip():
        raise MachineError(f'{path}: {name} is {shown(value)}; expected [number, "where it is from"]')
    expected = KNOWN[name].expected(float(number) if abs(number) < 1e300 else float("inf"))
    if expected:
        raise MachineError(f"{path}: {name} is {shown(number)}; expected {expected}")
    return float(number), source
