"""The files a recipe is made of: its own and, by `extends`, those it inherits from; and where published ones lie.

A key is that of the nearest file that names it, a list as a whole. Nothing is deleted: a child sets a key to what it
should be. Only where it names another network, the [model] of the files it extends is left out, options and all.
"""

import difflib
import tomllib
from pathlib import Path
from typing import NamedTuple

HOME = "jobs/recipes"  # where a published recipe lies in a checkout: its ../../shards are the current folder's shards


class RecipeError(ValueError):
    """A recipe that cannot be run; one line: where, what was found, what was expected."""


class Part(NamedTuple):
    """One file of a recipe. source: its name in errors; folder: where its relative paths start; table: its TOML."""

    source: str
    folder: str | Path
    table: dict

    @property
    def name(self) -> str:
        """As `extends` would say it."""
        return Path(self.source).stem


def published() -> dict[str, Path]:
    """The recipes that come with the program, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))}


def find_recipe(path) -> Path:
    """The file of a recipe: `path`, or where there is no such file the published recipe of that name."""
    path = Path(path)
    return path if path.exists() else published().get(str(path), path)


def parts_of_file(path) -> list[Part]:
    """The recipe, a file or the name of a published one, behind those it extends, the farthest first.

    Raises RecipeError where a file cannot be read or is no TOML, for an unknown name, and for a circle.
    """
    path = find_recipe(path)
    return parts_of_text(_read(path), str(path), _folder(path))


def parts_of_text(text: str, source: str = "recipe", folder: str | Path = ".") -> list[Part]:
    """As parts_of_file, from TOML text: `source` names it in errors, `folder` is where its relative paths start."""
    parts, seen = [], [Path(source).resolve()]
    while True:
        table = _parse(text, source)
        base = table.pop("extends", None)
        parts.insert(0, Part(source, folder, table))
        if base is None:
            return _of_one_network(parts)
        path = _find(base, parts[0])
        if path.resolve() in seen:
            way = " -> ".join([part.name for part in reversed(parts)] + [path.stem])
            raise RecipeError(f"{parts[-1].source}: extends goes in a circle, {way}; expected an end")
        seen.append(path.resolve())
        text, source, folder = _read(path), str(path), _folder(path)


def origins(parts: list[Part], overrides=()) -> dict[str, str]:
    """Where a key of a recipe that loads is from, by `section.key`: a file's name, or --set; nothing: a default."""
    sections = ((part.name, *item) for part in parts for item in part.table.items() if isinstance(item[1], dict))
    named = {f"{section}.{key}": name for name, section, keys in sections for key in keys}
    return named | {override.partition("=")[0].strip(): "--set" for override in overrides}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        expected = "a recipe: a TOML file, or a name that `knltrain recipes` lists"
        raise RecipeError(f"{path}: {reason}; expected {expected}{_near(path.stem)}") from None


def _parse(text: str, source: str) -> dict:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise RecipeError(f"{source}: not valid TOML: {error}") from None


def _folder(path: Path) -> str | Path:
    return HOME if path in published().values() else path.parent


def _find(base, child: Part) -> Path:
    """The file that `child` extends: beside it or, also of a published one, by name."""
    if not isinstance(base, str) or not base or "\0" in base:
        raise RecipeError(f"{child.source}: extends is {base!r}; expected the name of a recipe, in quotes")
    known = published()
    if Path(child.source) not in known.values():
        beside = Path(child.folder) / (base if base.endswith(".toml") else f"{base}.toml")
        if base.endswith(".toml") or beside.is_file():
            return beside
    if base not in known:
        expected = "a file NAME.toml beside it, or a published recipe"
        raise RecipeError(f"{child.source}: extends {base!r}, which is unknown; expected {expected}{_near(base)}")
    return known[base]


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, published(), 1)
    return f"; did you mean the published {near[0]}" if near else ""


def _of_one_network(parts: list[Part]) -> list[Part]:
    """Leave out [model] in front of a file that names another network."""
    network = None
    for i, part in enumerate(parts):
        model = part.table.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        if None not in (name, network) and name != network:
            for before in parts[:i]:
                before.table.pop("model", None)
        network = name or network
    return parts
