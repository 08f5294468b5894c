"""Hostile recipes and command lines, for fuzz.py."""

from dataclasses import fields
from pathlib import Path

from fuzz import Case, Kind, refused

from knltrain.config import SECTIONS

RECIPES = sorted((Path(__file__).resolve().parents[1] / "jobs" / "recipes").glob("*.toml"))
NUMBERS = [
    *("1e308", "-1e308", "inf", "-inf", "nan", "9" * 400, "-" + "9" * 400, "1" + "0" * 30, str(2**63), str(2**64 - 1)),
    *("-1", "1e-320", "0x7fffffffffffffff", str(-(2**63)), "1e400"),
]
OTHERS = ["[" * 3000, "{" * 2000, "''", "[[1, 2], [3]]", "2001-01-01", "[1e308, 1e308, 1e308]"]


def _key(random):
    names = [f"{section}.{f.name}" for section, cls in SECTIONS.items() for f in fields(cls) if f.name != "args"]
    return names[random.integers(len(names))]


def setting(random, folder):
    """One key gets a value that no recipe can have; paths and free text excepted."""
    key, values = _key(random), NUMBERS + OTHERS
    value = values[random.integers(len(values))]
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPES[random.integers(len(RECIPES))].read_text())
    settings = ["--set", f"data.train={folder}/none", "--set", f"data.val={folder}/none"]
    return Case(["train", str(recipe), *settings, "--set", f"{key}={value}", "--run", str(folder / "run")], refused)


def damaged(random, folder):
    """A recipe with bytes changed, cut, doubled: its shards are not there, so it must end in one line."""
    data = bytearray(RECIPES[random.integers(len(RECIPES))].read_bytes())
    for _ in range(random.integers(1, 6)):
        at, to = sorted(random.integers(0, len(data), 2).tolist())
        choice = random.integers(4)
        if choice == 0:
            data[at] = random.integers(256)
        elif choice == 1:
            del data[at : min(to, at + 40)]
        elif choice == 2:
            data[at:at] = data[at : at + 30]
        else:
            data[at:at] = NUMBERS[random.integers(len(NUMBERS))].encode()
    (folder / "recipe.toml").write_bytes(data)
    return Case(["train", str(folder / "recipe.toml"), "--run", str(folder / "run")], refused)


KINDS = {"recipes_setting": Kind(400, setting), "recipes_damaged": Kind(300, damaged)}
