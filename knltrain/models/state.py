"""The state of a model as named tensors: what a checkpoint holds, and how weights get from one model into another.

Names: `value/conv1.w` (learned), `momentum/conv1.w`, `running/conv1.bn.mean` (statistics of batch norm).
"""

from collections.abc import Callable

import numpy as np

from ..arena import Parameters


def state(parameters: Parameters, momentum: bool = True) -> dict[str, np.ndarray]:
    """Named views of all that is learned; momentum=False leaves out what only training needs."""
    arrays = {f"value/{p.name}": p.w for p in parameters.parameters}
    if momentum:
        arrays |= {f"momentum/{p.name}": p.v for p in parameters.parameters}
    return arrays | {f"running/{s.name}": s.running for s in parameters.statistics}


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
    arrays, wanted = {rename(name): array for name, array in arrays.items()}, state(parameters)
    last = parameters.parameters[-1].name.rpartition(".")[0]

    def may_differ(name):
        kind, _, tensor = name.partition("/")
        return not strict and (kind == "momentum" or tensor.rpartition(".")[0] == last)

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
        if strict or not name.startswith("momentum/"):
            wanted[name][...] = arrays[name]
    return sorted(name for name in differing if name in wanted and not name.startswith("momentum/"))
