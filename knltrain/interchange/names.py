"""What each tensor of a network is called elsewhere, and how its numbers lie there: one table, read both ways.

Ours are (R, S, C, K) and meet images (H, W, C); PyTorch's are (K, C, R, S) and meet images (C, H, W). Going from one to
the other moves numbers and changes none, so both ways are exact to the bit.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ..claims.keys import shown
from ..layers import Linear, Sequential
from ..models import declare
from .files import Stored

SUFFIXES = {
    "w": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip
# Ours → theirs, in this order, in every network: torchvision's ResNets, and the usual CIFAR ones with 1x1 shortcuts.
RULES = [
    (r"\bstage(\d+)\.", r"layer\1."),
    (r"\bshortcut\.bn\.", "downsample.1."),
    (r"\bshortcut\.(?=[wb]$)", "downsample.0."),
    (r"\bconv(\d+)\.bn\.", r"bn\1."),
]
# torchvision's AlexNet numbers its layers.
NUMBERED = {
    "alexnet_owt": {
        "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
        "conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
    },
}  # fmt: skip
# Other spellings that are read too: of DataParallel, and of CIFAR ResNets as many write them.
SPELLINGS = [(r"^module\.", ""), (r"\bshortcut\.(?=\d)", "downsample."), (r"^linear\.", "fc.")]
EXACT = ("float32", "float16")  # every value of these is a float32
COUNTER = ".num_batches_tracked"  # PyTorch counts steps for its batch norms; nothing depends on it


class Entry(NamedTuple):
    """One tensor: its name in `models.state` and its shape here, its name and shape there.

    split: (R, S, C, K) of a weight here, where a fully connected layer has the H and W of the image before it as R and
    S; the shape itself of any other tensor.
    """

    ours: str
    theirs: str
    split: tuple
    ours_shape: tuple
    shape: tuple

    def give(self, array: np.ndarray) -> np.ndarray:
        """Ours → theirs."""
        return np.ascontiguousarray(array.reshape(self.split).transpose(_axes(self.split))).reshape(self.shape)

    def take(self, array: np.ndarray) -> np.ndarray:
        """Theirs → ours."""
        axes = _axes(self.split)
        turned = array.reshape([self.split[axis] for axis in axes]).transpose(np.argsort(axes))
        return np.ascontiguousarray(turned).reshape(self.ours_shape)


def _axes(shape) -> tuple:
    return (3, 2, 0, 1) if len(shape) == 4 else tuple(range(len(shape)))


def entries(layers: Sequential, input_shape) -> list[Entry]:
    """All learned tensors and running statistics of a network. Raises ValueError where two would be called the same."""
    program = declare(layers, input_shape)
    images = {op.owner.w.name: op.owner.image_shape[1:] for op in program.forward if isinstance(op.owner, Linear)}
    found = [_entry("value", p, layers.name, images) for p in program.parameters.parameters]
    found += [_entry("running", s, layers.name, images) for s in program.parameters.statistics]
    seen: dict[str, str] = {}
    for entry in found:
        if entry.theirs in seen:
            both = f"{seen[entry.theirs]} and {entry.ours}"
            raise ValueError(f"{both} would both be called {entry.theirs}; expected names that stay different")
        seen[entry.theirs] = entry.ours
    return found


def _entry(kind, tensor, network, images) -> Entry:
    split = tensor.shape
    if tensor.name in images:
        split = (*images[tensor.name], tensor.shape[-1])
    shape = tuple(split[axis] for axis in _axes(split))
    if tensor.name in images:
        shape = (shape[0], math.prod(shape[1:]))
    return Entry(f"{kind}/{tensor.name}", _renamed(tensor.name, network), split, tensor.shape, shape)


def _renamed(name: str, network: str) -> str:
    layer, _, suffix = name.rpartition(".")
    numbered = NUMBERED.get(network, {})
    if layer in numbered:
        name = f"{numbered[layer]}.{suffix}"
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    layer, _, suffix = name.rpartition(".")
    return f"{layer}.{SUFFIXES.get(suffix, suffix)}"


def give(table: list[Entry], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A network's tensors under the names and in the layouts of elsewhere."""
    return {entry.theirs: entry.give(arrays[entry.ours]) for entry in table}


def spelled(table: list[Entry], names: Iterable[str]) -> dict[str, str]:
    """Names of the table, or new ones → the file's own spellings of them; PyTorch's counters are left out.

    Raises ValueError where two of the file are spellings of one.
    """
    known, found = {entry.theirs for entry in table}, {}
    for name in names:
        new = name
        for pattern, replacement in SPELLINGS:
            new = new if new in known else re.sub(pattern, replacement, new)
        if new in found:
            raise ValueError(f"found {shown(new)} twice, also as {shown(name)}: expected each tensor once")
        if not new.endswith(COUNTER):
            found[new] = name
    return found


def take(table: list[Entry], stored: Mapping[str, Stored], network: str) -> dict[str, np.ndarray]:
    """A network's tensors from those of a file, of which nothing is believed: names, shapes, types, finite numbers.

    Types narrower than float32 are widened, exactly. Raises ValueError for the first thing that is not as expected.
    """
    names = spelled(table, stored)
    wanted = {entry.theirs for entry in table}
    for name in sorted(wanted - names.keys()):
        near = difflib.get_close_matches(name, names.keys() - wanted, 1, 0.8)
        hint = f"; the nearest is {shown(near[0])}" if near else ""
        raise ValueError(f"found no tensor {name}, expected all of {network}{hint}")
    for name in sorted(names.keys() - wanted):
        raise ValueError(f"found tensor {shown(name)}, which {network} does not have: expected another --model?")
    for entry in table:
        found = stored[names[entry.theirs]]
        if (found.shape, found.dtype in EXACT) != (entry.shape, True):
            expected = f"expected {entry.shape} of float32 as in {network}"
            raise ValueError(f"found {entry.theirs} {found.shape} of {found.dtype}, {expected}")
    return {entry.ours: entry.take(_numbers(entry, stored[names[entry.theirs]])) for entry in table}


def _numbers(entry, found) -> np.ndarray:
    array = found.read().astype(np.float32, copy=False)
    if array.shape != entry.shape:
        raise ValueError(f"found {entry.theirs} of {array.shape}, although the file says {found.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"found values in {entry.theirs} that are not finite, expected numbers")
    if entry.ours.endswith(".var") and array.size and array.min() < 0:
        raise ValueError(f"found {array.min()} in {entry.theirs}, expected variances, which are not negative")
    return array
