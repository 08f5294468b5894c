"""What must be equal on all ranks, compared: the experiment at start, the replicas every so many steps.

Both send one number as long as all is well. Only where that differs are the details gathered, and then every rank comes
to the same words: which rank, and in what.
"""

import hashlib
import json
from collections import Counter

import numpy as np

from knltrain.kernels import digest


def compare_signatures(comm, facts: dict):
    """Raise ValueError, on all ranks, where their facts differ; facts: name → JSON-able value. Collective."""
    mine = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    whole = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(comm.gather(whole))) == 1:
        return
    everything = comm.gather(mine)
    for name in sorted(set().union(*everything)):
        values = [facts.get(name, "nothing") for facts in everything]
        common = _most_common(values)
        for rank, value in enumerate(values):
            if value != common:
                raise ValueError(
                    f"rank {rank} has {name} = {value}, the others {common}; "
                    "expected one program, one recipe and one kind of processor on all ranks"
                )


def compare_replicas(comm, state: dict[str, np.ndarray], step: int):
    """Raise ValueError, on all ranks, where bits of the same name differ, with rank and tensor. Collective.

    What stands behind a space in a name is the place of a part, which not every rank has.
    """
    if comm.size == 1:
        return
    digests, places = {name: f"{digest(array):016x}" for name, array in state.items()}, {}
    for name, bits in digests.items():
        places.setdefault(name.partition(" ")[2], hashlib.sha256()).update(f"{name}{bits}".encode())
    found, first = comm.gather({place: hashed.hexdigest()[:16] for place, hashed in places.items()}), {}
    if all(first.setdefault(place, bits) == bits for facts in found for place, bits in facts.items()):
        return
    everything = comm.gather(digests)
    names = dict.fromkeys(name for facts in everything for name in facts)
    common = {name: _most_common([facts[name] for facts in everything if name in facts]) for name in names}
    culprits = {}
    for rank, facts in enumerate(everything):
        names = [name for name in facts if facts[name] != common[name]]
        if names:
            culprits[rank] = f"rank {rank} in {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}"
    raise ValueError(
        f"after step {step} the replicas differ: {'; '.join(list(culprits.values())[:8])}. Memory or a processor is "
        "faulty there: leave that node out and continue from the last checkpoint with --resume auto"
    )


def _most_common(values):
    """The value of most ranks; of two ranks, the first one's."""
    return Counter(values).most_common(1)[0][0]
