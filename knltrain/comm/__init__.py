"""Communication: who is there, which slices travel together, and in which order they are summed.

communicator, links, shares   ranks, nodes, and which slots each has
buckets, tree, travel         which slices travel together; the one order of sums; what is settled at the start
gradients                     which bucket is ready; how its sum is made; the reducer that the trainer knows
block, algorithms, worker     rows in shared memory or by messages, each way to sum them, the thread that does
piecewise, curve              parts of a block gathered; measured time of a sum by its bytes
wire, coded                   numbers as they are, as two bytes, as one byte with residuals
factors, split, choice        fully connected layers as factors, or split over ranks; which of that pays
update, local                 a rank's part of the update; workers that train apart for some steps
guards, watch, rendezvous, arrival  what must be equal; who is late, gone, or did not start
"""

from .algorithms import Algorithm, part_of
from .arrival import Arrival
from .block import MessageBlock, make_block
from .choice import FC, FullyConnected
from .communicator import Serial, world
from .curve import Curve, measure
from .gradients import Reducer
from .guards import compare_replicas, compare_signatures
from .links import ALGORITHMS, Group, Links
from .local import LOCAL, LocalUpdate, check_whole
from .shares import Shares
from .split import group_sizes
from .travel import Travel
from .tree import kept_sums
from .update import ShardedUpdate, Update
from .watch import Watch
from .wire import WIRES, Wire

__all__ = [
    "Algorithm", "ALGORITHMS", "Arrival", "check_whole", "compare_replicas", "compare_signatures", "Curve",
    "FC", "FullyConnected", "Group", "group_sizes", "kept_sums", "Links", "LOCAL", "LocalUpdate",
    "make_block", "measure", "MessageBlock", "part_of", "Reducer", "Serial", "ShardedUpdate", "Shares", "Travel",
    "Update", "Watch", "Wire", "WIRES", "world",
]  # fmt: skip
