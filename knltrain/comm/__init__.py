"""Communication: who is there, which slices travel together, and in which order they are summed."""

from .arrival import Arrival
from .block import MessageBlock, compile_ahead, make_block
from .choice import FC, FullyConnected
from .communicator import Serial, world
from .curve import Curve, fit, measure, predicted
from .gradients import Reducer
from .guards import compare_replicas, compare_signatures
from .links import ALGORITHMS, TRAINING, Links
from .local import LOCAL, LocalUpdate, check_whole
from .shares import Shares
from .tree import kept_sums
from .update import ShardedUpdate, Update
from .watch import Watch
from .wire import WIRES

__all__ = [
    "ALGORITHMS", "Arrival", "check_whole", "compare_replicas", "compare_signatures", "compile_ahead", "Curve", "FC",
    "fit", "FullyConnected", "kept_sums", "Links", "LOCAL", "LocalUpdate", "make_block", "measure", "MessageBlock",
    "predicted", "Reducer", "Serial", "ShardedUpdate", "Shares", "TRAINING", "Update", "Watch", "WIRES", "world",
]  # fmt: skip
