"""The state of a model as named tensors: what a checkpoint holds, and how weights get from one model into another.

Names: `value/conv1.w` (learned), `momentum/conv1.w`, `running/conv1.bn.mean` (statistics of batch norm).
"""

from collections.abc import Callable, Collection

import numpy as np

from ..arena import Parameters

ONLY_TRAINING = ("momentum", "second", "average", "residual", "local", "local_momentum")  # but for the first, if kept


def state(parameters: Parameters, momentum: bool = True) -> dict[str, np.ndarray]:
    """Named views of all that is learned; momentum=False leaves out what only training needs."""
    arrays = {f"value/{p.name}": p.w for p in parameters.parameters}
    if momentum:
        arrays |= {f"momentum/{p.name}": p.v for p in parameters.parameters}
        arrays |= {f"{kind}/{p.name}": p.states[kind] for kind in parameters.states for p in parameters.parameters}
    return arrays | {f"running/{s.name}": s.running for s in parameters.statistics}


def replicated(parameters: Parameters, but: Collection[str]) -> dict[str, np.ndarray]:
    """What of the state other ranks have, too: all `but` some kinds; of a split layer the own part, by its place."""
    found = {}
    for name, array in state(parameters).items():
        kind, _, tensor = name.partition("/")
        own = getattr(parameters.named[tensor], "own", slice(None))
        part = f" [{own.start}:{own.stop}]" * (own != slice(None))
        found |= {} if kind in but else {name + part: array.reshape(-1)[own]}
    return found


def _usable(arrays: dict[str, np.ndarray], parameters: Parameters) -> dict[str, np.ndarray]:
    """Without states that the model does not keep; an average that it does not keep takes the weights' place."""
    kinds = {name.partition("/")[0] for name in arrays}
    if "average" in kinds - parameters.states.keys():
        averages = ((name, array) for name, array in arrays.items() if name.startswith("average/"))
        arrays = arrays | {name.replace("average/", "value/", 1): array for name, array in averages}
    dropped = {*ONLY_TRAINING[1:]} - parameters.states.keys()
    return {name: array for name, array in arrays.items() if name.partition("/")[0] not in dropped}


def load(
    parameters: Parameters,
    arrays: dict[str, np.ndarray],
    where,
    strict: bool = True,
    rename: Callable[[str], str] = lambda name: name,
) -> list[str]:
    """Copy named tensors into a model; returns the names of the model's tensors that were left as they are.

    where: names the source in errors. rename: a name in the source → the name here. strict: every tensor must be there,
    none more, with its shape and type; else momentum may be missing, and the last layer may have other classes: it is
    left as it was initialised. Raises ValueError where they do not fit; then nothing was copied.
    """
    arrays, wanted = _usable({rename(name): array for name, array in arrays.items()}, parameters), state(parameters)
    last = parameters.parameters[-1].name.rpartition(".")[0]

    def may_differ(name):
        kind, _, tensor = name.partition("/")
        return not strict and (kind in ONLY_TRAINING or tensor.rpartition(".")[0] == last)

    def fits(name):
        array = arrays[name]
        return array.shape == wanted[name].shape and array.dtype == wanted[name].dtype

    differing = sorted(wanted.keys() ^ arrays.keys())
    differing += [name for name in wanted if name in arrays and not fits(name)]
    wrong = [name for name in differing if not may_differ(name)]
    if wrong:
        raise ValueError(
            f"{where}: weights of another model (differing: {', '.join(wrong[:3])}): use their own recipe"
        )
    for name in wanted.keys() - set(differing):
        if strict or not name.startswith(ONLY_TRAINING):
            wanted[name][...] = arrays[name]
    return sorted(name for name in differing if name in wanted and not name.startswith(ONLY_TRAINING))
