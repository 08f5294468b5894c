"""Networks to and from other programs' files: `knltrain export` and `import`, `kt.export` and `kt.import_weights`.

What is in such files, and how tensors are called and laid out there, is `interchange`'s.
"""

import dataclasses
from pathlib import Path

from ..api import Network, load
from ..claims.keys import shown
from ..claims.text import printable
from ..data.shards import Packed
from ..interchange import FORMATS, checked_names, entries, give, heard, look, spelled, take, tell, write, write_onnx
from ..models import build, custom
from ..models.state import load as load_state
from ..models.state import state
from ..recipe.config import Recipe, parse_recipe, recipe_of, resolved
from ..recipe.experiment import PREPROCESSING, build_network, network_facts

WHOLE_PICTURES = {"data.encoding": "jpeg", "data.size": 0}
SMALL = 128  # pixels: pictures of networks for smaller ones are scaled to the crop itself, not to 256


# ---- out ---------------------------------------------------------------------------------------------------------


def export(net: Network, path: str | Path, to: str = "") -> str:
    """Write a network for other programs; returns a line that says what was written.

    to: safetensors, npz, torch or onnx; "": by the end of the path. Weights are under torchvision's names and in its
    layouts; classes and preprocessing are in the file, but for torch's. Raises ValueError, ImportError for an extra,
    OSError.
    """
    path = Path(path)
    to = to or {end: name for name, end in FORMATS.items()}.get(path.suffix, "")
    if to not in FORMATS:
        raise ValueError(f"{path}: found no format, expected one of {', '.join(FORMATS)}")
    arrays, table = state(net._model().parameters, momentum=False), entries(net.layers, net.input_shape)
    facts = network_facts(net.recipe, net.class_names, net.packed)
    about = tell(facts, _picture(net))
    if to == "onnx":
        write_onnx(path, net.layers, net.input_shape, table, arrays, about)
    else:
        write(path, to, give(table, arrays), about)
    size = f"{len(table)} tensors, {path.stat().st_size / 1e6:.1f} MB"
    return f"{path}: {net.recipe.model.name}, {size}, {len(net.class_names)} classes"


def _picture(net) -> dict:
    """What is done to a picture, in plain words and numbers, for whoever uses the network elsewhere."""
    augment, data = net.preprocessing(), net.recipe.data
    return {
        "short_side": augment.short_side or net.packed.size or data.crop,  # pixels it is scaled to
        "fit": net.packed.fit,  # warp: the whole picture is scaled to a square, whatever its aspect
        "center_crop": data.crop,
        "channels": "RGB",  # of 0 to 255; then (pixel - mean) / std
        "mean": list(data.mean) if augment.mean.ndim == 1 else augment.mean.mean((0, 1)).tolist(),  # of a mean picture
        "std": list(data.std),
    }


def export_run(run: Path, to: str, out: Path | None, force=False) -> None:
    """`knltrain export`: the best checkpoint of a run folder, a checkpoint, or a saved network."""
    out = out or Path((run.resolve().name if run.is_dir() else run.stem) + FORMATS[to])
    _may_write(run, out, force)
    print(printable(export(load(run), out, to)))


def _may_write(source: Path, target: Path, force: bool):
    """Raises ValueError where something would be lost."""
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: found the file that is read, expected another to write")
    if target.exists() and not force:
        raise ValueError(f"{target}: found a file, expected none: --out FILE names another, --force replaces it")


# ---- in ----------------------------------------------------------------------------------------------------------


def import_weights(
    path: str | Path, model: str = "", classes: list[str] = (), settings: tuple[str, ...] = ()
) -> Network:
    """The network whose weights a .safetensors or .npz file holds, under torchvision's names or our export's.

    model: its name, as in a recipe; "": what the file says, if it is one of ours. classes: their names, in the order of
    the last layer; none: those the file says, or their numbers. settings: as train's --set, as "data.crop=288".
    Raises ValueError for a file that does not hold all tensors of that network and no others, OSError.
    """
    path = Path(path)
    try:
        stored, about = look(path)
        said = heard(about)
        recipe, packed = _described(said, model, settings)
        count = _classes(stored, recipe)
        names = list(classes or said.get("data.classes") or map(str, range(count)))
        if len(checked_names(names)) != count:
            raise ValueError(f"found {count} classes, but {len(names)} names of classes: expected as many")
        layers = build_network(recipe, count)
        arrays = take(entries(*layers), stored, recipe.model.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    net = Network(recipe, names, layers, packed)
    load_state(net._model().parameters, arrays, path, strict=False)
    return net


def _described(said: dict, model: str, settings) -> tuple[Recipe, Packed]:
    """The recipe's [model] and [data], and how pictures are stored: as the file says if it is ours, and the caller."""
    name = model or said.get("model.name", "")
    if not model and (not isinstance(name, str) or not name or custom.is_custom(name)):
        what = f"the network {shown(name)}, whose program is not in it" if name else "no word of its network"
        raise ValueError(f"found {what}: expected --model, as in --model resnet50")
    known = {"model.args", *(f"data.{key}" for key in (*Packed._fields, *PREPROCESSING))}
    same = name.rpartition(":")[2] == str(said.get("model.name")).rpartition(":")[2]  # wherever FILE.py lies now
    facts = {key: value for key, value in said.items() if key in known and same}
    ours = "data.crop" in facts
    if not ours and not custom.is_custom(name):
        facts["data.crop"] = build(name)[1][0]
    recipe = parse_recipe(resolved(recipe_of(facts | {"model.name": name})), settings)
    data = recipe.data
    if not ours and data.crop <= SMALL and not data.short_side:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(data, short_side=data.crop))
    return recipe, Packed.of(WHOLE_PICTURES | facts)


def _classes(stored, recipe) -> int:
    """How many the last layer of the file has, 1 where it has none: `take` says so."""
    table = entries(*build_network(recipe, 1))
    last = [entry.theirs for entry in table if entry.ours.startswith("value/")][-1]
    name = spelled(table, stored).get(last)
    return (stored[name].shape or (1,))[0] if name else 1


def import_file(
    path: Path, model: str, classes: Path | None, settings: list[str], out: Path | None, force=False
) -> None:
    """`knltrain import`: write the network as `Network.save` does. classes: a text file, a name a line."""
    out = out or Path(path.stem + ".h5")
    _may_write(path, out, force)
    lines = classes.read_text(encoding="utf-8").splitlines() if classes else []
    net = import_weights(path, model, [line.strip() for line in lines if line.strip()], tuple(settings))
    net.save(out)
    numbers = net.class_names == [str(number) for number in range(len(net.class_names))]
    called = f", called 0 to {len(net.class_names) - 1}: --classes FILE gives them names" * numbers
    print(printable(f"{out}: {net.recipe.model.name}, {len(net.class_names)} classes{called}"))
    print(printable(f"to fine-tune it: knltrain train RECIPE --set model.weights={out}"))
