"""Communication: who is there, which slices travel together, and in which order they are summed."""

from .communicator import world
from .curve import fit, measure, predicted
from .exchange import ALGORITHMS, Exchange, allowed_ranks, compile_ahead, sums_order
from .guards import compare_replicas, compare_signatures
from .reducer import Reducer, waiting_sums
from .trace import Trace
from .update import ShardedUpdate, Update
from .watch import Watch
from .wire import WIRES

__all__ = [
    "ALGORITHMS",
    "WIRES",
    "Exchange",
    "Reducer",
    "ShardedUpdate",
    "Trace",
    "Update",
    "Watch",
    "allowed_ranks",
    "compare_replicas",
    "compare_signatures",
    "compile_ahead",
    "fit",
    "measure",
    "predicted",
    "sums_order",
    "waiting_sums",
    "world",
]
