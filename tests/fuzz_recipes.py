"""Hostile recipes, mean pictures and command lines, for fuzz.py."""

import argparse
import functools
import os
from pathlib import Path

import numpy as np
import tinyrun
from fuzz import Case, Kind, refused

from knltrain.arguments import parser
from knltrain.models import FAMILIES
from knltrain.recipe.config import rules

RECIPES = sorted((Path(__file__).resolve().parents[1] / "jobs" / "recipes").glob("*.toml"))
NUMBERS = [  # out of the bounds of all keys and options
    *("1e308", "-1e308", "inf", "-inf", "nan", "9" * 400, "-" + "9" * 400, "1" + "0" * 30, str(2**63), str(2**64 - 1)),
    *("-2", "1e400", str(-(2**63)), "0x" + "f" * 5000, "9" * 5000, "0x" + "f" * 40),
]
OTHERS = [
    "[" * 3000,
    "{" * 2000,
    "{a = 1}",
    "[[1, 2], [3]]",
    "2001-01-01",
    "[1e308, 1e308, 1e308]",
    "\x1b[2A\n",
    "\udcff",
]
PATHS = ("data.train", "data.val", "data.mean_image", "model.weights")
TEXTS = ("model.name", "run.mlflow", *PATHS)  # may be anything


def _one_of(random, values):
    return values[random.integers(len(values))]


def setting(random, folder):
    """One key gets a value that no recipe can have, and the error must name it."""
    key = _one_of(random, [name for name in rules() if name not in TEXTS])
    value = _one_of(random, NUMBERS + OTHERS)
    settings = [f"data.train={folder}/none", f"data.val={folder}/none", f"{key}={value}"]
    command = ["train", str(_one_of(random, RECIPES)), "--run", str(folder / "run")]
    for text in settings:
        command += ["--set", text]
    return Case(
        command, lambda code, text: refused(code, text) or ("" if f"{key} is " in text else f"not named: {text}")
    )


def places(random, folder):
    """A text where a path or the name of a network is expected."""
    texts = [
        "\0",
        "x" * 5000,
        "~no_such_user/x",
        "/dev/null",
        "/dev/zero",
        "a/" * 3000,
        "\x1b[2A\n",
        "\udcff",
        "9" * 400,
    ]
    command = [
        "train",
        str(_one_of(random, RECIPES)),
        "--run",
        str(folder / "run"),
        "--set",
        f"data.train={folder}/none",
    ]
    return Case([*command, "--set", f"{_one_of(random, TEXTS)}={_one_of(random, texts)}"], refused)


def damaged(random, folder):
    """A recipe with bytes changed, cut, doubled: its shards are not there, so it must end in one line."""
    data = bytearray(_one_of(random, RECIPES).read_bytes())
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
            data[at:at] = _one_of(random, NUMBERS + OTHERS).encode("utf-8", "surrogateescape")
    (folder / "recipe.toml").write_bytes(data)
    nowhere = ["--set", f"data.train={folder}/none", "--run", str(folder / "run")]
    return Case(["train", str(folder / "recipe.toml"), *nowhere], refused)


# ---- command lines -----------------------------------------------------------------------------------------------


@functools.cache
def _options():
    """(words of the command, option) of every option that takes a number."""

    def walk(parser, words):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    yield from walk(child, [*words, name])
            elif action.option_strings and callable(action.type) and action.type is not Path:
                places = [a for a in parser._actions if not a.option_strings and a.nargs in (None, "+")]
                given = [(a.choices or ["nowhere"])[0] for a in places if not isinstance(a, argparse._SubParsersAction)]
                yield [*words, *given], action.option_strings[0]

    return list(walk(parser(), []))


def option(random, folder):
    """One option gets a number out of its bounds, and the error must name it."""
    words, name = _one_of(random, _options())
    value = _one_of(random, [*NUMBERS, *OTHERS])
    named = lambda code, text: refused(code, text) or ("" if f"argument {name}" in text else f"not named: {text}")  # noqa: E731
    return Case([*words, f"{name}={value}"], named)


def network(random, folder):
    """A network that cannot be, or one of extreme size that must be described all the same or refused."""
    family = _one_of(random, list(FAMILIES))
    if random.integers(2):
        keys = ["classes", "input_size", "width", "depth", "groups", "hidden", "stem_size", "zero_gamma", "no"]
        value = _one_of(random, [*NUMBERS, *OTHERS])
        return Case(["describe", family, "--set", f"{_one_of(random, keys)}={value}"], refused)
    number = _one_of(random, ["0", "7", "1202", "1200", "1048574", "9" * 400, "9" * 5000])
    sizes = ["input_size=1048576", "width=1048576", "classes=1048576", "input_size=1"]
    return Case(["describe", f"{family}{number}", "--set", _one_of(random, sizes)], lambda code, text: "")


def fault(random, folder):
    kinds = ["kill:rank=", "kill:step=", "slow:rank=1@step=", "=@", "kill", "flip:rank=0@step="]
    text = _one_of(random, kinds) + _one_of(random, NUMBERS + OTHERS)
    command = ["train", str(_one_of(random, RECIPES)), "--set", f"data.train={folder}/none", "--inject", text]
    return Case([*command, "--run", str(folder / "run")], refused)


# ---- mean pictures -------------------------------------------------------------------------------------------------


@functools.cache
def _tiny(place):
    tinyrun.write_recipe(place / "tiny")
    return place / "tiny" / "tiny.toml"


def _header(text):
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def mean_picture(random, folder):
    """A file that is no mean picture of 20 pixels, for a recipe whose shards are whole."""
    path, shape = folder / "mean.npy", (20, 20, 3)
    kind = random.integers(6)
    if kind == 0:
        np.save(path, np.zeros(shape, _one_of(random, ["S4", "V8", "i4,f4", "c8", "M8[s]", "?", "U2"])))
    elif kind == 1:
        np.save(path, np.full(shape, _one_of(random, [np.nan, np.inf, -np.inf]), np.float32))
    elif kind == 2:
        np.save(
            path, np.zeros(_one_of(random, [(), (0,), (20, 20), (20, 20, 4), (3, 20, 21), (1, 20, 20, 3)]), np.float32)
        )
    elif kind == 3:
        claims = _one_of(random, ["(1099511627776, 20, 3)", "(20, 20, -3)", "(20, 20, 3", "(2e9,)", "(20, 20, 3)"])
        descr = _one_of(random, ["'<f4'", "'|O'", "[('a', '<f4')]", "'<f9'", "None", "'<f4'" * 300])
        path.write_bytes(_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {claims}}}"))
    elif kind == 4:
        np.save(path, np.zeros(shape, np.float32))
        path.write_bytes(path.read_bytes()[: random.integers(0, 128 + 4 * 1200)])
    elif random.integers(2):
        os.mkfifo(path)
    else:
        np.savez(folder / "mean.npz", mean=np.zeros(shape))
        (folder / "mean.npz").rename(path)
    command = ["train", str(_tiny(folder.parent)), "--run", str(folder / "run"), "--set", f"data.mean_image={path}"]
    return Case(command, refused)


KINDS = {
    "recipes_setting": Kind(300, setting),
    "recipes_places": Kind(50, places),
    "recipes_damaged": Kind(250, damaged),
    "command_option": Kind(150, option),
    "command_network": Kind(100, network),
    "command_fault": Kind(50, fault),
    "mean_picture": Kind(100, mean_picture),
}
