"""Who talks to whom: ranks and nodes, by which algorithm and in which format; settled before there is any memory.

`hierarchical`, where ranks share nodes: the ranks of a node sum in shared memory, each its slice; between nodes the
ranks of equal number exchange their slices. The others (`algorithms`) are messages between all ranks.

`auto` is `hierarchical` where that keeps the summation tree, else `halving`; ranks in a number that has no such tree
get `hierarchical` or `ring`. Small slices go by `doubling` in place of `halving`, between nodes by `tree` in place of
`ring`. Only what keeps the tree promises the same bits on another number of ranks.
"""

from .algorithms import BY_NAME, Algorithm
from .wire import Wire

ALGORITHMS = ("auto", "hierarchical", *BY_NAME)


def allowed_ranks(slots: int) -> list[int]:
    """Rank counts that divide the slots and continue the tree: the powers of two that divide `slots`.

    >>> allowed_ranks(24)
    [1, 2, 4, 8]
    """
    return [1 << j for j in range(slots.bit_length()) if slots % (1 << j) == 0]


def sums_order(algorithm: str) -> str:
    """What results depend on: "tree" for the algorithms that sum along it on all usual machines, else the name."""
    return "tree" if algorithm not in BY_NAME or BY_NAME[algorithm].tree else algorithm


class Group:
    """Some ranks of a communicator under numbers of their own, 0, 1, ...: what the algorithms see."""

    def __init__(self, comm, members):
        self.comm, self.members = comm, list(members)
        self.rank, self.size = self.members.index(comm.rank), len(self.members)

    def exchange(self, out, to: int, into, source: int):
        """As the communicator's, by this group's numbers."""
        self.comm.exchange(out, self.members[to], into, self.members[source])

    def sub(self, members) -> "Group":
        """Some of this group's ranks, by this group's numbers; this rank must be among them."""
        return Group(self.comm, [self.members[m] for m in members])


class Links:
    """The ranks of `comm`, node by node, and how they sum. Collective. Raises ValueError for an unknown choice.

    algorithm, wire: see ALGORITHMS and `wire.WIRES`; the wire is for gradients, what is `exact` travels as float32.
    pretended_nodes: cut the ranks of one machine into so many nodes. bandwidth: if not 0, a network of so many bytes/s
    is pretended, by sleeping. every_sum: the addends of all sums of gradients are rounded to the wire's format, those
    of slots in a rank and of ranks in a node too: then no bit depends on how many there are.

    nodes: the ranks of each. node: communicator of this node's ranks. slices: a node's sum is handled by its first
    `slices` ranks, each owning a part and talking to the ranks of the same number on the other nodes (`across`; None
    on further ranks of an uneven node). shared: whether nodes shall sum in shared memory.
    """

    def __init__(
        self, comm, algorithm: str = "auto", wire: str = "fp32", pretended_nodes: int = 0, bandwidth: float = 0.0,
        every_sum: bool = False,
    ):  # fmt: skip
        if algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {algorithm!r}; expected one of {', '.join(ALGORITHMS)}")
        self.comm, self.wire, self.bandwidth = comm, Wire(wire), bandwidth
        self.exact = Wire("fp32") if self.wire.short else self.wire
        self.every_sum = every_sum and self.wire.short
        self.node = comm.node(pretended_nodes)
        firsts = comm.gather(comm.rank - self.node.rank)  # ranks of a node are neighbours
        self.nodes = [[r for r in range(comm.size) if firsts[r] == first] for first in sorted(set(firsts))]
        self._sizes = sorted({len(ranks) for ranks in self.nodes})
        self.slices, local = self._sizes[0], self.node.rank
        self.across = Group(comm, [ranks[local] for ranks in self.nodes]) if local < self.slices else None
        chosen, power = algorithm in BY_NAME, _is_power(comm.size)
        wanted = algorithm == "hierarchical" or (self.slices > 1 and (self.continues_tree or not power))
        self.shared = comm.size > 1 and not chosen and wanted
        self._between_all = algorithm if chosen else "halving" if power else "ring"

    @property
    def continues_tree(self) -> bool:
        """Whether summing inside nodes first, then between them, is the one summation tree over ranks."""
        return len(self._sizes) == 1 and _is_power(self.slices) and _is_power(len(self.nodes))

    def methods(self, shared: bool) -> dict[Wire, tuple[Algorithm, Algorithm]]:
        """Algorithms for (small, large) slices, by wire: between all ranks, or behind the sums of nodes; {} alone.

        Raises ValueError for an algorithm that cannot work between so many ranks.
        """
        group = self.across if shared else Group(self.comm, range(self.comm.size))
        if group is None or group.size == 1:
            return {}
        large = self._between_all
        if shared:
            large = "halving" if _is_power(group.size) else "ring"
        small = "doubling" if large == "halving" else "tree" if shared else large
        return {wire: (BY_NAME[small](group, wire), BY_NAME[large](group, wire)) for wire in {self.wire, self.exact}}

    def __str__(self):
        least, most = self._sizes[0], self._sizes[-1]
        each = f"{least}" if least == most else f"{least} to {most}"
        return f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)} of {each} rank{'s' * (most > 1)}"


def _is_power(count: int) -> bool:
    return count & (count - 1) == 0
