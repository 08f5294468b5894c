"""Models by name: one function per family; `build` finds and checks, `describe` prints the table."""

import difflib
import inspect

import numpy as np

from ..arena import Parameters
from ..layers import Layer, Op, Program, Sequential, Tensor, dense_ops
from . import custom
from .alexnet import alexnet, alexnet_bn, alexnet_owt
from .model import Among, Model
from .resnet import davidnet, resnet, resnet_cifar
from .speednet import speednet

FAMILIES = {  # name: the function that returns its layers, and pixels of a side of its input
    "alexnet": (alexnet, 227),
    "alexnet_bn": (alexnet_bn, 227),
    "alexnet_owt": (alexnet_owt, 224),
    "davidnet": (davidnet, 32),
    "resnet": (resnet, 224),
    "resnet_cifar": (resnet_cifar, 32),
    "speednet": (speednet, 32),
}

LARGEST = 2**20  # of any numeric option: far beyond use, yet no size overflows
MOST = {"depth": 1202}  # the deepest of He et al. 2015

__all__ = ["FAMILIES", "Among", "Model", "build", "declare", "describe"]


def build(name: str, **options) -> tuple[Sequential, tuple]:
    """The layers and the input shape of a model: a family's name, for ResNets with the depth at its end (`resnet50`).

    Or `FILE.py:FUNCTION`, a network of the user's own; the file is run.

    Raises ValueError for an unknown name or option, naming the nearest known one, and for a value out of range.
    """
    if custom.is_custom(name):
        return custom.make(custom.find(name), **{"classes": 1000, "input_size": 224} | options)
    family = name.rstrip("0123456789")
    if family != name and len(name) - len(family) < 10 and "depth" in _options(family):
        options = {"depth": int(name[len(family) :])} | options
        name = family
    if name not in FAMILIES:
        known = ["alexnet", "alexnet_bn", "davidnet", "resnet50", "resnet_cifar20"]
        near = _nearest(name, [*FAMILIES, *known])
        raise ValueError(f"model {name!r} is unknown{near}: expected e.g. {', '.join(known)}")
    allowed = _options(name)
    for key, value in options.items():
        if key not in allowed:
            near = _nearest(key, allowed)
            raise ValueError(f"model {name}: unknown option {key!r}{near}: it takes {', '.join(allowed)}")
        default = allowed[key]
        number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not type(default) and not number:
            kinds = f"found {type(value).__name__}, expected {type(default).__name__}"
            raise ValueError(f"model {name}: option {key} = {value!r}: {kinds}")
        _check_range(name, key, value, default)
    return custom.make(FAMILIES[name][0], **allowed | options)


def _check_range(name, key, value, default):
    """A whole number is a size, a float a factor, `dropout` a probability; the comparisons also refuse nan and inf."""
    if isinstance(default, (str, bool)):
        return
    most = MOST.get(key, LARGEST)
    if key == "dropout":
        fits, expected = 0 <= value < 1, f"0 <= {key} < 1"
    elif isinstance(default, float):
        fits, expected = 0 < value <= most, f"0 < {key} <= {most}"
    else:
        fits, expected = 1 <= value <= most, f"1 <= {key} <= {most}"
    if not fits:
        raise ValueError(f"model {name}: option {key}: found {value!r}, expected {expected}")


def _options(family) -> dict:
    """Option names and defaults of a family."""
    if family not in FAMILIES:
        return {}
    function, side = FAMILIES[family]
    return {p.name: p.default for p in inspect.signature(function).parameters.values()} | {"input_size": side}


def _nearest(word, known) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", the nearest known is {match[0]!r}" if match else ""


def declare(layers: Layer, input_shape, slot_batch: int = 1) -> Program:
    """The training program of a network as its layers declare it: nothing fused, no memory, no loss."""
    images = Tensor("images", (slot_batch, *input_shape))
    program = Program(images, Parameters(), True, np.zeros(slot_batch, np.uint64))
    layers.backward(program, layers.forward(program, images))
    return program


def describe(name: str, **options) -> str:
    """A table of the model for one image: layer, output shape, parameters, multiply-adds, bytes of the output."""
    layers, input_shape = build(name, **options)
    program = declare(layers, input_shape)
    by_layer: dict[str, list[Op]] = {}
    for op in program.forward:
        by_layer.setdefault(op.owner.name, []).append(op)
    rows = []
    for layer, ops in by_layer.items():
        y = ops[-1].writes["y"]
        own = sum(parameter.size for op in ops for parameter in op.uses)
        shape = " x ".join(str(n) for n in y.root.shape[1:])
        fresh = not ops[-1].overwrites  # a layer in place adds no memory
        adds = sum(op.flops for op in ops) // 2
        rows.append((layer, type(ops[0].owner).__name__, shape, own, adds, y.nbytes if fresh else 0))
    total = [sum(row[column] for row in rows) for column in (3, 4, 5)]
    rows.append(("total", "", "input " + " x ".join(map(str, input_shape)), *total))
    width = max(len(row[0]) for row in rows)
    head = ("parameters", "multiply-adds", "bytes")
    lines = [f"{'layer':{width}}  {'kind':17}  {'output (H x W x C)':>21}" + "".join(f"  {text:>13}" for text in head)]
    for layer, kind, shape, *numbers in rows:
        lines.append(f"{layer:{width}}  {kind:17}  {shape:>21}" + "".join(f"  {number:>13,}" for number in numbers))
    return "\n".join([*lines, *_by_factors(program)])


def _by_factors(program: Program) -> list[str]:
    """Where the factors of fully connected layers, B (C + K) numbers, are fewer than two copies of dw, 2 C K."""
    sizes = {op.owner.name: op.others["plan"].w_shape[2:] for op in reversed(dense_ops(program))}
    below = "  ".join(f"{name} {2 * c * k / (c + k):,.0f}" for name, (c, k) in sizes.items())
    return [f"fewer bytes as factors (comm.fc) below a global batch of  {below}"] if below else []
