"""Communication: who is there, which slices travel together, and in which order they are summed."""

from .block import MessageBlock, compile_ahead, make_block
from .communicator import Serial, world
from .curve import Curve, fit, measure, predicted
from .gradients import Reducer, ShardedUpdate, Update, waiting_sums
from .guards import compare_replicas, compare_signatures
from .links import ALGORITHMS, Links, allowed_ranks, sums_order
from .watch import Watch
from .wire import WIRES

__all__ = [
    "ALGORITHMS",
    "Curve",
    "WIRES",
    "Links",
    "MessageBlock",
    "Reducer",
    "Serial",
    "ShardedUpdate",
    "Update",
    "Watch",
    "allowed_ranks",
    "compare_replicas",
    "compare_signatures",
    "compile_ahead",
    "fit",
    "make_block",
    "measure",
    "predicted",
    "sums_order",
    "waiting_sums",
    "world",
]
